"""One run, from a configuration to a complete folder; cohorts of them; evaluations; what a run will take."""

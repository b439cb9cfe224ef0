"""Studies: many runs over axes, planned, carried out, watched."""

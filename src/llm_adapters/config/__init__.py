"""Configuration: strict records, YAML files, overrides, run identity."""

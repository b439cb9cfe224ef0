"""Runs and studies."""

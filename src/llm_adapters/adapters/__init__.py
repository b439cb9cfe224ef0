"""Adapters: forms, insertion, methods, and the operations on an attached model."""

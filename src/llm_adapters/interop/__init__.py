"""Bridges to other libraries, one a file; each is imported only where it is asked for."""

"""Errors, keyed random numbers, process groups, files."""

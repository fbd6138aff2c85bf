"""Measurements: each module is run as `python -m bench.<name>` from the root of the repository."""

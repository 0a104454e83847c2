"""Measurements of the package beside its peers: each module that runs opens with its command."""

"""Losses, one per file; each rank's value is its exact share of the loss over all ranks (see `scaling`)."""

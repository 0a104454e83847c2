"""Config of `hssl sync`: what was kept while the tracking server was down is sent to it."""

from __future__ import annotations

from pydantic import Field

from hssl_dist.config.parts import JobConfig, TrackingConfig, Url


class SyncConfig(JobConfig):
    """Send what runs have kept while the tracking server was down."""

    runs: tuple[Url, ...] = Field(
        default=("hssl/runs", "hssl/studies", "hssl/evaluation"), validate_default=True, min_length=1
    )
    """Folders or URLs below which runs are looked for, at any depth; also that of one run."""
    tracking: TrackingConfig = TrackingConfig()
    moved: bool = False
    """Send to `tracking.uri` also what was kept for another address, because the server has moved."""

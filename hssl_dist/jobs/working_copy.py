"""The copy of a working directory that Ray makes for a submitted job: no place for what is to stay.

`ray job submit --working-dir` has each node unpack a copy of its own, which goes some time after the job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hssl_dist.errors import ConfigError

if TYPE_CHECKING:
    from hssl_dist.config.parts import JobConfig

_COPIES = "/runtime_resources/working_dir_files/"
_KEPT = ("store.url", "runs", "output", "tracking.uri")


def refuse_working_copy(config: JobConfig) -> None:
    """Raise ConfigError if a store, or what a job is to leave, is in such a copy."""
    inside = [key for key in _KEPT if _COPIES in str(_value(config, key))]
    if inside:
        *others, last = inside
        keys = f"{', '.join(others)} and {last}" if others else last
        raise ConfigError(
            f"{keys} would be in the copy of the working directory that Ray unpacks on each node and removes "
            "after the job; give absolute paths that all nodes share, or URLs"
        )


def _value(config: object, key: str) -> object:
    for part in key.split("."):
        config = getattr(config, part, None)
    return config

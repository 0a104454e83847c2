"""`hssl promote`: move an alias of the model registry to a version."""

from __future__ import annotations

from hssl_dist.config.finetune import PromoteConfig
from hssl_dist.console import Console
from hssl_dist.records import Outcome
from hssl_dist.tracking import set_alias


def run(config: PromoteConfig, console: Console) -> Outcome:  # noqa: ARG001  (every job takes one)
    """Give the version the alias, taking it from the one that had it.

    Raises MissingError listing what there is, ConfigError for the reserved alias `latest`, TrackingError.
    """
    version = set_alias(config.tracking, config.model, config.version, config.alias)
    return Outcome(
        summary={
            "model": version.name,
            "version": version.version,
            "alias": config.alias,
            "uri": f"models:/{version.name}@{config.alias}",
        },
        lines=(f"{version.name} version {version.version} is now models:/{version.name}@{config.alias}",),
    )

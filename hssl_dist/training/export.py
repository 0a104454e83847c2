"""A finished run's network as a model folder, ready for the registry."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hssl_dist import files
from hssl_dist.networks.weights import CARD_NAME, WEIGHTS_NAME, ModelCard, PretrainedOn, save_model
from hssl_dist.training.precision import resolved

if TYPE_CHECKING:
    from hssl_dist.config.pretrain import PretrainConfig
    from hssl_dist.records import Lineage
    from hssl_dist.training.loop import PretrainingResult


def save_pretrained(url: str, result: PretrainingResult, config: PretrainConfig, lineage: Lineage) -> None:
    """Write the network to a model folder at a local path or URL; a reader finds all of it or no card."""
    device = next(result.network.parameters()).device
    excluded = config.sampling.exclude_test
    card = ModelCard(
        kind="pretrained",
        network=config.network.model_dump(mode="json"),
        in_channels=1,
        tasks=result.tasks,
        groups=result.groups,
        pretrained_on=PretrainedOn(
            cases=result.cases,
            exclude_test=None if excluded is None else excluded.model_dump(mode="json"),
        ),
        metrics=result.metrics,
        lineage=lineage,
        extra={"trajectory": result.trajectory, "precision": resolved(config.precision, device)},
    )
    with tempfile.TemporaryDirectory(prefix="hssl-model-") as folder:
        save_model(Path(folder), result.network.state_dict(), card)
        files.remove(files.join(url, CARD_NAME))
        for name in (WEIGHTS_NAME, CARD_NAME):
            files.write(files.join(url, name), (Path(folder) / name).read_bytes())

"""A trained model's way out: a folder of the run first, then the registry."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from hssl_dist import files
from hssl_dist.config.parts import TrackingConfig
from hssl_dist.errors import TrackingError
from hssl_dist.networks.weights import ModelCard, save_model
from hssl_dist.tracking import Version, register_model, set_alias


def publish(
    tracking: TrackingConfig,
    url: str,
    state: Mapping[str, Tensor],
    card: ModelCard,
    name: str,
    run_id: str,
    aliases: Iterable[str] = (),
) -> Version:
    """Save the model at `url` (a folder, local or remote) and register it as the next version of `name`.

    That version gets the aliases.
    The folder comes first and is a model by itself: if the registry cannot be reached the training is not
    lost, and the TrackingError says where it is.
    """
    with tempfile.TemporaryDirectory(prefix="hssl-publish-") as temporary:
        folder = Path(temporary)
        save_model(folder, state, card)
        # model.json sorts before the weights but makes the folder a model, so it goes last.
        for path in sorted(folder.iterdir(), reverse=True):
            files.write(files.join(url, path.name), path.read_bytes())
        try:
            version = register_model(tracking, folder, name, run_id, card.lineage)
            for alias in aliases:
                set_alias(tracking, name, version.version, alias)
        except TrackingError as error:
            raise TrackingError(f"{error}; the model itself is safe at {url}") from error
    return version

"""A trained model's way out: a folder of the run first, then the registry."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from hssl_dist import files
from hssl_dist.errors import TrackingError
from hssl_dist.networks.weights import ModelCard, save_model
from hssl_dist.records import Lineage
from hssl_dist.tracking import Run, Version


def publish(
    tracked: Run,
    url: str,
    state: Mapping[str, Tensor],
    card: ModelCard,
    name: str,
    aliases: Iterable[str] = (),
) -> Version | None:
    """Save the model at `url`, a folder below the run's, and register it as the next version of `name`.

    That version gets the aliases. The folder comes first and is a model by itself: if the server does not
    answer the training is not lost, None says that the registration waits in the run's folder, and the
    TrackingError of a server that refuses where the model is.
    """
    with tempfile.TemporaryDirectory(prefix="hssl-publish-") as temporary:
        folder = Path(temporary)
        save_model(folder, state, card)
        # model.json sorts before the weights but makes the folder a model, so it goes last.
        for path in sorted(folder.iterdir(), reverse=True):
            files.write(files.join(url, path.name), path.read_bytes())
    return register_safe(tracked, url, name, card.lineage, aliases)


def register_safe(
    tracked: Run, url: str, name: str, lineage: Lineage, aliases: Iterable[str] = ()
) -> Version | None:
    """Register the model in the folder at `url`; None if the server does not answer and it is done later.

    Raises TrackingError that says where the model is.
    """
    try:
        return tracked.register(url, name, lineage, aliases)
    except TrackingError as error:
        raise TrackingError(
            f"{error}; the model itself is safe at {url}: run it again to register it"
        ) from error

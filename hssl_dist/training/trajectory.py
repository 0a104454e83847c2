"""What defines a pretraining run's trajectory, so that a run is never resumed as another one.

The number of workers, the machine, where things are stored and how often they are logged are no part of it.
Nor are `micro_batch` and `acceleration`, which change rounding alone: a run goes on with others, as it does
on another number of workers. `precision` is part of it: its rounding is coarser, and gives other weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hssl_dist import files
from hssl_dist.errors import ConfigError
from hssl_dist.records import content_hash
from hssl_dist.sampling.schedule import DRAWS_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hssl_dist.config.pretrain import PretrainConfig
    from hssl_dist.records import Manifest

_DEFINING = {
    "seed", "global_batch", "precision", "sampling", "views", "network", "objective", "encoder", "decoder",
}  # fmt: skip
_READING_AHEAD = {"prefetch_batches", "prefetch_bytes"}


def trajectory(config: PretrainConfig, manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """The part of the config, and the hashes of the manifests, that determine every weight; plain JSON.

    The manifests are those drawn from, and those of other datasets whose test patients are left out.
    """
    part: dict[str, Any] = config.model_dump(mode="json", include=_DEFINING)
    part["sampling"] = {key: value for key, value in part["sampling"].items() if key not in _READING_AHEAD}
    part["draws"] = DRAWS_VERSION
    for key in (
        "exclude_test_of",
        "task_weights",
    ):  # runs of before these keys go on; manifests tell the first
        if not part["sampling"][key]:
            del part["sampling"][key]
    excluded = config.sampling.exclude_test
    if excluded is not None and excluded.file is not None:
        # What the file says, wherever it lies.
        part["sampling"]["exclude_test"]["file"] = files.sha256(excluded.file)[0]
    part["manifests"] = {name: manifest.sha256 for name, manifest in sorted(manifests.items())}
    return part


def trajectory_hash(config: PretrainConfig, manifests: Mapping[str, Manifest]) -> str:
    """SHA-256 of the trajectory."""
    return content_hash(trajectory(config, manifests))


def check_same(name: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ConfigError, naming the first difference, if a run `name` was saved on another trajectory.

    A model of the same card is the same one, also as another version: registries get lost and made anew.
    """
    if saved.get("model_card") is not None and saved["model_card"] == wanted.get("model_card"):
        wanted = {**wanted, "model": saved["model"]}
    before, now = dict(_leaves(saved)), dict(_leaves(wanted))
    odd = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if not odd:
        return
    others = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
    raise ConfigError(
        f"run {name!r} was started with {odd[0]} = {before.get(odd[0], 'nothing')}, it is now "
        f"{now.get(odd[0], 'nothing')}{others}; give another --name, or the values it was started with"
    )


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _leaves(entry, f"{path}.{key}" if path else key)
    else:
        yield path, value

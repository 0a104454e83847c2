"""`hssl export`: a model in the format of another tool, compared with ours before anything is written.

model -> its U-Net, and what is left out -> the format's files, in a folder aside -> built by the other tool
      and compared -> `output`, with `export.json` last

`export.json` says first what the folder is going to hold, and what it holds of an earlier export
(`unfinished`): killed anywhere, the next export knows all that lies there.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hssl_dist import files
from hssl_dist.config.export import ExportConfig
from hssl_dist.console import Console
from hssl_dist.errors import CheckpointError, ConfigError, MissingError
from hssl_dist.interchange.monai_bundle import verify_monai, write_monai
from hssl_dist.interchange.nnunet import verify_nnunet, write_nnunet
from hssl_dist.interchange.nnunet_plans import plan_channels
from hssl_dist.interchange.plain import verify_plain, write_plain
from hssl_dist.interchange.portable import Portable, portable
from hssl_dist.interchange.preparation import Preparation, check_prepared_alike, known_preparation
from hssl_dist.interchange.verification import Verification, Written
from hssl_dist.jobs.hardware import use_hardware
from hssl_dist.jobs.lineage import code_version
from hssl_dist.networks.weights import ModelCard, load_model
from hssl_dist.records import ManifestHeader, Outcome
from hssl_dist.store import read_manifest
from hssl_dist.tracking import FetchedModel, fetch_model

ACCOUNT = "export.json"


@dataclass(frozen=True, slots=True)
class _Source:
    """The U-Net to export and all that is known of its images."""

    unet: Portable
    preparation: Preparation
    uri: str
    plans: dict[str, Any] | None


def _write_nnunet(source: _Source, folder: Path) -> Written:
    return write_nnunet(source.unet, source.preparation, source.uri, folder, source.plans)


def _write_monai(source: _Source, folder: Path) -> Written:
    return write_monai(source.unet, source.preparation, source.uri, folder)


def _write_plain(source: _Source, folder: Path) -> Written:
    return write_plain(source.unet, source.preparation, source.uri, folder)


_Format = tuple[Callable[[_Source, Path], Written], Callable[[Portable, Path], Verification]]
FORMATS: dict[str, _Format] = {
    "nnunet": (_write_nnunet, verify_nnunet),
    "monai": (_write_monai, verify_monai),
    "safetensors": (_write_plain, verify_plain),
}
"""How each is written, and how it is compared."""


def run(config: ExportConfig, console: Console) -> Outcome:  # noqa: ARG001  (every job takes one)
    """Write the export and say whether the other tool's network is ours.

    Raises MissingError and ConfigError for what the config names and what does not fit together,
    CheckpointError for a model that cannot be read or an export that is not the same network, TrackingError,
    StorageError for an output that cannot be written.
    """
    start_s = time.monotonic()
    use_hardware(config.threads)
    earlier = _earlier_export(config.output)
    fetched = fetch_model(config.tracking, config.model)
    source = _source(config, fetched)
    write, verify = FORMATS[config.to]
    with tempfile.TemporaryDirectory(prefix="hssl-export-") as temporary:
        folder = Path(temporary) / "export"
        folder.mkdir()
        written = write(source, folder)
        verification = verify(source.unet, folder)
        account = _account(config, source, written, verification, folder)
        _deliver(account, folder, config.output, earlier)
    return _outcome(config, account, round(time.monotonic() - start_s, 1))


# ------------------------------------------------------------------------------------------ what is exported


def _source(config: ExportConfig, fetched: FetchedModel) -> _Source:
    card, state = load_model(fetched.folder)
    header = read_manifest(config.store.url, config.dataset).header if config.dataset else None
    plans = _read_plans(config.plans) if config.plans else None
    # nnU-Net has planned the patch for the dataset at hand, the card's is of the one it was trained on.
    patch_size = config.patch_size or (None if plans else card.patch_size)
    unet = portable(card, state, config.channels or _channels(header, plans))
    preparation = known_preparation(card, header, patch_size)
    _check_channels(unet, preparation)
    if header is not None and card.kind == "segmentation":
        _check_dataset(card, header)
    return _Source(unet, preparation, fetched.uri, plans)


def _channels(header: ManifestHeader | None, plans: dict[str, Any] | None) -> int | None:
    if header is not None:
        return len(header.channels)
    return plan_channels(plans) if plans is not None else None


def _check_channels(unet: Portable, preparation: Preparation) -> None:
    known = len(preparation.recipe.channels) if preparation.recipe else unet.in_channels
    if known != unet.in_channels:
        raise ConfigError(
            f"the images are prepared for {known} channels and the network is exported for "
            f"{unet.in_channels}; leave channels out, or name a dataset that has as many"
        )


def _check_dataset(card: ModelCard, header: ManifestHeader) -> None:
    """A fine-tuned model has classes, and images prepared in one way."""
    if header.classes != card.classes:
        raise ConfigError(
            f"dataset {header.dataset!r} has the classes {header.classes}, the model {card.classes}; "
            f"name the one it was trained on, {card.dataset!r}"
        )
    check_prepared_alike(card, header, "leave dataset out: the model's card says how its images are prepared")


def _read_plans(url: str) -> dict[str, Any]:
    try:
        plans = json.loads(files.read(url))
    except FileNotFoundError:
        raise MissingError(
            f"no plans at {url}; give the nnUNetPlans.json of a preprocessed dataset"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{url} is not JSON: {error}; give the nnUNetPlans.json of a dataset") from None
    if not isinstance(plans, dict):
        raise ConfigError(f"{url} holds a {type(plans).__name__}; give the nnUNetPlans.json of a dataset")
    return plans


# ------------------------------------------------------------------------------------------ the output folder


def _deliver(account: dict[str, Any], folder: Path, output: str, earlier: dict[str, str]) -> None:
    """Put the files of `folder` in place of the earlier ones, and the account of them last."""
    place, names = partial(files.join, output), account["files"]
    with files.writing(output):
        claim = {"format": 1, "unfinished": True, "files": names, "earlier": earlier}
        files.write(place(ACCOUNT), _as_text(claim))
        for name in names:
            files.write(place(name), (folder / name).read_bytes())
        for name in sorted(earlier.keys() - names.keys()):
            files.remove(place(name))
        files.write(place(ACCOUNT), _as_text(account))


def _earlier_export(output: str) -> dict[str, str]:
    """SHA-256 of the files of an earlier export in the folder, whole or not, but for its account.

    Raises ConfigError if there is anything else, or a file that was changed since.
    """
    if files.exists(output) and not files.is_folder(output):
        raise ConfigError(f"{output} is a file; give a folder")
    found = sorted(files.relative(url, output) for url in files.walk(output))
    if not found:
        return {}
    try:
        account = json.loads(files.read(files.join(output, ACCOUNT)))
        listed, before = account["files"], account.get("earlier", {})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        listed, before = {}, {}
    earlier: dict[str, str] = {}
    for name in found:
        if name == ACCOUNT and listed:
            continue
        earlier[name] = files.sha256(files.join(output, name))[0]
        if earlier[name] not in (listed.get(name, {}).get("sha256"), before.get(name)):
            raise ConfigError(
                f"{output} holds {name}, which is not an unchanged file of an earlier export; "
                "give an empty folder"
            )
    return earlier


# ----------------------------------------------------------------------------------------------- the account


def _account(
    config: ExportConfig, source: _Source, written: Written, verification: Verification, folder: Path
) -> dict[str, Any]:
    """Where every parameter of the model went, what was assumed, and how the comparison went."""
    unet, state = source.unet, source.unet.state
    inflated = set(unet.report.inflated)
    if set(written.names) != set(unet.report.loaded):
        raise CheckpointError("the account of the exported parameters is not complete; nothing was exported")
    return {
        "format": 1,
        "model": source.uri,
        "to": config.to,
        "kind": unet.card.kind,
        "code_version": code_version(),
        "lineage": unet.card.lineage.model_dump(mode="json"),
        "channels": unet.in_channels,
        "verification": asdict(verification),
        "assumed": written.assumed,
        "parameters": {
            name: {
                "as": list(names),
                "shape": list(state[name].shape),
                **({"spread_over_channels": unet.in_channels} if name in inflated else {}),
            }
            for name, names in sorted(written.names.items())
        },
        "left_out": unet.left_out,
        "new": written.new,
        "files": {
            path.relative_to(folder).as_posix(): {
                "size_bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }


def _outcome(config: ExportConfig, account: dict[str, Any], seconds: float) -> Outcome:
    verification = account["verification"]
    difference = verification["max_difference"]
    compared = (
        f"{verification['note']}, largest difference {difference:.1g}"
        if verification["verified"]
        else verification["note"]
    )
    assumed = tuple(f"{key} is assumed: {text}" for key, text in sorted(account["assumed"].items()))
    return Outcome(
        summary={
            "model": account["model"],
            "to": config.to,
            "output": config.output,
            "parameters": len(account["parameters"]),
            "left_out": len(account["left_out"]),
            "assumed": sorted(account["assumed"]),
            "verified": verification["verified"],
            "max_difference": difference,
            "seconds": seconds,
        },
        lines=(
            f"{account['model']} as {config.to}: {len(account['parameters'])} parameters exported, "
            f"{len(account['left_out'])} left out; {compared}",
            f"at {config.output}; README.md says how to use it, {ACCOUNT} accounts for every parameter",
        ),
        warnings=assumed if verification["verified"] else (*assumed, verification["note"]),
    )


def _as_text(account: dict[str, Any]) -> bytes:
    return (json.dumps(account, indent=2, sort_keys=True) + "\n").encode()

"""nnU-Net v2: a checkpoint that `-pretrained_weights` takes, plans that build its network, dataset.json.

    plans.json
    dataset.json                     of a segmentation model
    fold_all/checkpoint_final.pth

nnU-Net's `load_pretrained_weights` takes every parameter by name and shape but those with `.seg_layers.` in
their names, which it neither asks for nor loads: a pretrained model is exported without them, and its decoder
is kept. With `dataset.json` the folder is a trained nnU-Net model that `nnUNetv2_predict_from_modelfolder`
runs. The checkpoint holds tensors and plain Python alone, so `torch.load(weights_only=True)` reads it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hssl_dist.interchange.nnunet_plans import (
    FULL_RESOLUTION,
    NETWORK_CLASS,
    OWN_CONFIGURATION,
    adapted_plans,
    dataset_json,
    new_plans,
)
from hssl_dist.interchange.portable import Portable
from hssl_dist.interchange.preparation import Preparation
from hssl_dist.interchange.verification import (
    Importer,
    Verification,
    Written,
    compare,
    load_strictly,
    missing_library,
    versions,
)
from hssl_dist.networks.keymaps import nnunet_names, to_nnunet

CHECKPOINT = "fold_all/checkpoint_final.pth"
PLANS = "plans.json"
DATASET = "dataset.json"
_SEGMENTATION_LAYERS = "decoder.seg_layers"
_NO_DATASET = "Dataset000_hssl"
_NETWORKS = ("dynamic-network-architectures",)

_README = """\
# A {kind} U-Net of hssl_dist for nnU-Net v2

`fold_all/checkpoint_final.pth` has the weights of {uri}; `plans.json` builds the network.
`export.json` accounts for every parameter{assumptions}.

Fine-tune on a dataset that nnU-Net has planned and preprocessed (`nnUNetv2_plan_and_preprocess -d ID`):
export with `--plans $nnUNet_preprocessed/DATASET/nnUNetPlans.json`, which adds the configuration `{own}`
to that dataset's own plans, and then

```bash
cp plans.json $nnUNet_preprocessed/DATASET/hsslPlans.json
nnUNetv2_train ID {own} FOLD -p hsslPlans -pretrained_weights fold_all/checkpoint_final.pth
```
"""

_PREDICT = """
Segment NIfTI files named as nnU-Net wants them (`case_0000.nii.gz`, one file per channel):

```bash
nnUNetv2_predict_from_modelfolder -i IMAGES -o LABELS -m . -f all --disable_tta
```
"""


def write_nnunet(
    portable: Portable,
    preparation: Preparation,
    uri: str,
    folder: Path,
    base_plans: Mapping[str, Any] | None = None,
) -> Written:
    """Write the folder; with a dataset's own plans, ours are those and a configuration more.

    Raises ConfigError for a patch size or plans that do not suit the network.
    """
    card = portable.card
    assumed: dict[str, str] = {}
    if base_plans is None:
        configuration, dataset = (
            FULL_RESOLUTION,
            f"Dataset000_{card.dataset}" if card.dataset else _NO_DATASET,
        )
        plans, assumed = new_plans(portable.config, preparation, dataset, portable.in_channels)
    else:
        configuration = OWN_CONFIGURATION
        plans = adapted_plans(base_plans, portable.config, portable.in_channels, preparation.patch_size)
    description = (
        dataset_json(card.classes, preparation.modalities, portable.in_channels) if card.classes else {}
    )
    _write_json(folder / PLANS, plans)
    if description:
        _write_json(folder / DATASET, description)
    _write_checkpoint(portable, configuration, plans, description, folder / CHECKPOINT)
    named = f", and names what the plans assume: {', '.join(sorted(assumed))}" if assumed else ""
    text = _README.format(kind=card.kind, uri=uri, assumptions=named, own=OWN_CONFIGURATION)
    (folder / "README.md").write_text(text + (_PREDICT if base_plans is None and description else ""))
    return Written(
        names={name: nnunet_names(name) for name in portable.state},
        new={}
        if portable.has_heads
        else {_SEGMENTATION_LAYERS: "the fine-tuned dataset's; nnU-Net makes them"},
        assumed=assumed,
    )


def verify_nnunet(portable: Portable, folder: Path, load: Importer = importlib.import_module) -> Verification:
    """Let nnU-Net build the network from the plans, load the checkpoint into it strictly and compare.

    Without nnunetv2 the package of its networks, which nnU-Net builds them with, does for that.
    """
    packages = ["nnunetv2", *_NETWORKS]
    try:
        build = load("nnunetv2.utilities.get_network_from_plans").get_network_from_plans
    except ImportError as error:
        try:
            load(NETWORK_CLASS.rpartition(".")[0])
        except ImportError:
            return missing_library(error, "nnunetv2 (2.8)")
        build, packages = partial(_build, load), list(_NETWORKS)
    checkpoint = torch.load(folder / CHECKPOINT, weights_only=True)
    plans = json.loads((folder / PLANS).read_text())
    planned = plans["configurations"][checkpoint["init_args"]["configuration"]]["architecture"]
    network = build(
        planned["network_class_name"],
        planned["arch_kwargs"],
        planned["_kw_requires_import"],
        portable.in_channels,
        portable.classes,
        deep_supervision=True,
    )
    load_strictly(network, checkpoint["network_weights"], portable, _SEGMENTATION_LAYERS)
    return compare(portable, network, versions(*packages), deep_supervision=True)


def _build(
    load: Importer,
    network_class: str,
    arguments: Mapping[str, Any],
    imported: Sequence[str],
    in_channels: int,
    classes: int,
    **others: Any,
) -> nn.Module:
    """What nnU-Net does to build the network of its plans."""

    def located(name: str) -> Any:
        module, _, attribute = name.rpartition(".")
        return getattr(load(module), attribute)

    classes_of_torch = {key: located(arguments[key]) for key in imported if arguments[key] is not None}
    network: nn.Module = located(network_class)(
        input_channels=in_channels, num_classes=classes, **{**arguments, **classes_of_torch, **others}
    )
    return network


def _write_checkpoint(
    portable: Portable,
    configuration: str,
    plans: Mapping[str, Any],
    description: Mapping[str, Any],
    path: Path,
) -> None:
    """What `nnUNetTrainer.save_checkpoint` writes, as far as it is not the state of a training run."""
    path.parent.mkdir(parents=True)
    checkpoint = {
        "network_weights": to_nnunet(portable.state),
        "init_args": {
            "plans": plans,
            "configuration": configuration,
            "fold": "all",
            "dataset_json": description,
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, path)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")

"""A MONAI bundle: the network as MONAI's ConfigParser builds it, its weights, and how images reach it.

    configs/metadata.json
    configs/inference.json      of a segmentation model: images in, labels on the images' own grid out
    configs/train.json          of a pretrained model: the network to fine-tune, with its weights
    models/model.pt
    scripts/normalisation.py
    docs/README.md

No network of MONAI 1.6 is ours (docs/decisions.md), so `network_def` names nnU-Net's `ResidualEncoderUNet` of
dynamic-network-architectures, which is.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch

from hssl_dist import __version__
from hssl_dist.config.network import NetworkConfig
from hssl_dist.imaging.recipe import ChannelRecipe
from hssl_dist.interchange.nnunet_plans import architecture
from hssl_dist.interchange.portable import Portable
from hssl_dist.interchange.preparation import Preparation, check_patch, default_patch
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
from hssl_dist.networks.weights import ModelCard
from hssl_dist.records import Shape

METADATA = "configs/metadata.json"
INFERENCE = "configs/inference.json"
TRAIN = "configs/train.json"
WEIGHTS = "models/model.pt"
SCRIPT = "scripts/normalisation.py"
_SEGMENTATION_LAYERS = "decoder.seg_layers"
_OVERLAP = 0.5
_AXIS_ENDS = "$(('L', 'R'), ('P', 'A'), ('I', 'S'))"
_PACKAGES = ("monai", "dynamic-network-architectures")
_NEEDED = {"dynamic-network-architectures": "0.4.4", "nibabel": "5.4.2", "pytorch-ignite": "0.5.4"}
"""Besides MONAI; versions it was tried with."""

_README = """\
# A {kind} U-Net of hssl_dist as a MONAI bundle

The weights are those of {uri}; `export.json` accounts for every parameter. The network is
`ResidualEncoderUNet` of dynamic-network-architectures (`pip install --no-deps dynamic-network-architectures`
is enough). In the bundle's folder:

```python
{code}
```
"""

_SEGMENTATION = """\
import torch
from monai.bundle import ConfigParser

parser = ConfigParser()
parser.read_config("configs/inference.json")
network = parser.get_parsed_content("network_def").eval()
network.load_state_dict(torch.load("models/model.pt", weights_only=True))
with torch.inference_mode():
    logits = network(torch.zeros({shape}))  # batch, class, z, y, x"""

_RUN = """
Label every `*.nii.gz` of `images` (of several channels: `case_0000.nii.gz`, `case_0001.nii.gz`, ...); needs
pytorch-ignite and fire:

```bash
python -m monai.bundle run --config_file configs/inference.json \\
    --bundle_root . --dataset_dir images --output_dir labels
```
"""

_PRETRAINED = """\
import torch
from monai.bundle import ConfigParser

parser = ConfigParser()
parser.read_config("configs/train.json")
parser["network_def"]["num_classes"] = 3
network = parser.get_parsed_content("network_def")
answer = network.load_state_dict(torch.load("models/model.pt", weights_only=True), strict=False)
print("new:", answer.missing_keys)  # the segmentation layers"""


def write_monai(portable: Portable, preparation: Preparation, uri: str, folder: Path) -> Written:
    """Write the bundle. Raises ConfigError for a patch size that does not suit the network."""
    patch_size = preparation.patch_size or default_patch(portable.config)
    check_patch(patch_size, portable.config)
    for name in ("configs", "models", "scripts", "docs"):
        (folder / name).mkdir()
    rules, assumed = _rules(portable, preparation, patch_size)
    if portable.has_heads:
        config, path = _inference(portable, preparation, rules, patch_size), INFERENCE
    else:
        config, path = _training(portable, rules, preparation), TRAIN
    _write_json(folder / path, config)
    _write_json(folder / METADATA, _metadata(portable, preparation, patch_size, uri))
    (folder / "scripts/__init__.py").touch()
    (folder / SCRIPT).write_bytes(Path(__file__).with_name("bundle_normalisation.py").read_bytes())
    torch.save(to_nnunet(portable.state), folder / WEIGHTS)
    (folder / "docs/README.md").write_text(_readme(portable, uri))
    return Written(
        names={name: nnunet_names(name) for name in portable.state},
        new={}
        if portable.has_heads
        else {_SEGMENTATION_LAYERS: "for the classes you train; they start anew"},
        assumed=assumed,
    )


def verify_monai(portable: Portable, folder: Path, load: Importer = importlib.import_module) -> Verification:
    """Let MONAI build the bundle's network, load its weights strictly and compare."""
    try:
        load("dynamic_network_architectures.architectures.unet")
        parser = load("monai.bundle").ConfigParser()
    except ImportError as error:
        return missing_library(error, " and ".join(_PACKAGES))
    parser.read_config(folder / (INFERENCE if portable.has_heads else TRAIN))
    parser["network_def"]["num_classes"] = portable.classes
    network = parser.get_parsed_content("network_def")
    load_strictly(network, torch.load(folder / WEIGHTS, weights_only=True), portable, _SEGMENTATION_LAYERS)
    return compare(portable, network, versions(*_PACKAGES), deep_supervision=False)


# ------------------------------------------------------------------------------------------------ its configs


def _network_def(network: NetworkConfig, in_channels: int, classes: int) -> dict[str, Any]:
    planned = architecture(network)
    arguments = planned["arch_kwargs"]
    classes_of_torch = {
        key: f"${arguments[key]}" for key in planned["_kw_requires_import"] if arguments[key] is not None
    }
    return {
        "_target_": planned["network_class_name"],
        "input_channels": in_channels,
        "num_classes": classes,
        **arguments,
        **classes_of_torch,
        "deep_supervision": False,
    }


def _rules(
    portable: Portable, preparation: Preparation, patch_size: Shape
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The channels' normalisation, and what is assumed where nothing says it."""
    recipe, assumed = preparation.recipe, {}
    if recipe is None:
        assumed["normalisation"] = "each image by its own tissue: neither the model nor a dataset says it"
        assumed["spacing"] = "images are not resampled: neither the model nor a dataset says the spacing"
    if preparation.patch_size is None:
        assumed["patch_size"] = f"{patch_size}: four voxels along each axis of the deepest stage"
    rules = recipe.channels if recipe else (ChannelRecipe(rule="mr"),) * portable.in_channels
    return [rule.model_dump(mode="json", exclude_none=True) for rule in rules], assumed


def _preprocessing(rules: list[dict[str, Any]], preparation: Preparation) -> dict[str, Any]:
    """A file to the network's input: axes z y x towards S A R (RAS turned), normalised, then resampled."""
    transforms: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "SAR", "labels": _AXIS_ENDS},
        {
            "_target_": "Lambdad",
            "keys": "image",
            "func": {"_target_": "scripts.normalisation.Normaliser", "channels": rules},
        },
    ]
    if preparation.recipe is not None:
        spacing = {"pixdim": list(preparation.recipe.spacing_mm), "mode": 3, "padding_mode": "nearest"}
        transforms.append({"_target_": "Spacingd", "keys": "image", **spacing})
    transforms.append({"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"})
    return {"_target_": "Compose", "transforms": transforms}


def _inference(
    portable: Portable, preparation: Preparation, rules: list[dict[str, Any]], patch_size: Shape
) -> dict[str, Any]:
    return {
        "imports": ["$import glob", "$import os", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/labels'",
        "ckpt": f"$@bundle_root + '/{WEIGHTS}'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "files": _files(portable.in_channels),
        "network_def": _network_def(portable.config, portable.in_channels, portable.classes),
        "network": "$@network_def.to(@device)",
        "preprocessing": _preprocessing(rules, preparation),
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': names} for names in @files]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(patch_size),
            "sw_batch_size": 1,
            "overlap": _OVERLAP,
            "mode": "gaussian",
        },
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing(portable.card)},
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": "@ckpt",
                "load_dict": {"model": "@network"},
                "map_location": "@device",
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def _files(channels: int) -> str:
    """Expression: the files of each case, one per channel, several are named as nnU-Net's."""
    if channels == 1:
        return "$[[name] for name in sorted(glob.glob(os.path.join(@dataset_dir, '*.nii.gz')))]"
    return (
        f"$[[name.replace('_0000.nii.gz', f'_{{channel:04d}}.nii.gz') for channel in range({channels})] "
        "for name in sorted(glob.glob(os.path.join(@dataset_dir, '*_0000.nii.gz')))]"
    )


def _postprocessing(card: ModelCard) -> list[dict[str, Any]]:
    """Logits back onto the image's own grid, then the label with the largest, then the card's components."""
    return [
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
        },
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        *_largest_components(card),
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "label",
            "output_dtype": "$torch.uint8",
            "separate_folder": False,
            "resample": False,
        },
    ]


def _largest_components(card: ModelCard) -> list[dict[str, Any]]:
    """What keeps the largest component, corners joining as in ours; nothing if all is kept."""
    if card.keep_largest == "never":
        return []
    return [
        {
            "_target_": "KeepLargestConnectedComponentd",
            "keys": "pred",
            "applied_labels": sorted(card.classes),
            "is_onehot": False,
            "independent": card.keep_largest == "class",
            "connectivity": 3,
        }
    ]


def _training(portable: Portable, rules: list[dict[str, Any]], preparation: Preparation) -> dict[str, Any]:
    """The network and how images reach it; data, loss and trainer are the user's."""
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": _network_def(portable.config, portable.in_channels, portable.classes),
        "train": {"preprocessing": _preprocessing(rules, preparation)},
    }


def _metadata(portable: Portable, preparation: Preparation, patch_size: Shape, uri: str) -> dict[str, Any]:
    names = portable.card.classes
    outputs = {"0": "background", **{str(value): _literal(name) for value, name in sorted(names.items())}}
    channels = preparation.modalities or ("image",) * portable.in_channels
    return {
        "version": __version__,
        "changelog": {__version__: f"exported from {uri}"},
        "monai_version": importlib.metadata.version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": importlib.metadata.version("numpy"),
        "required_packages_version": _NEEDED,
        "name": f"hssl_dist {portable.card.kind} U-Net",
        "task": "segmentation of 3D medical images"
        if portable.has_heads
        else "pretrained network to fine-tune",
        "description": f"residual encoder-decoder U-Net, {uri}",
        "authors": "hssl_dist",
        "copyright": "",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "num_channels": portable.in_channels,
                    "spatial_shape": list(patch_size),
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {str(index): _literal(name) for index, name in enumerate(channels)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": portable.classes,
                    "spatial_shape": list(patch_size),
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": outputs if portable.has_heads else {},
                }
            },
        },
    }


def _literal(name: str) -> str:
    """A name that MONAI's parser takes for text: it evaluates what starts with `$`, follows `@` and `%`."""
    return f" {name}" if name.startswith(("$", "@", "%")) else name


def _readme(portable: Portable, uri: str) -> str:
    z, y, x = portable.config.reduction
    shape = f"1, {portable.in_channels}, {2 * z}, {2 * y}, {2 * x}"
    code = _SEGMENTATION.format(shape=shape) if portable.has_heads else _PRETRAINED
    text = _README.format(kind=portable.card.kind, uri=uri, code=code)
    return text + (_RUN if portable.has_heads else "")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")

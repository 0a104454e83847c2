"""nnU-Net's plans for a network of ours: the architecture exactly, the images as near as it can.

nnU-Net v2 (2.8) reads `plans.json` by its `PlansManager` and builds the network by `get_network_from_plans`
from `architecture` of a configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hssl_dist.config.network import NetworkConfig
from hssl_dist.errors import ConfigError
from hssl_dist.imaging.recipe import ChannelRecipe
from hssl_dist.interchange.preparation import Preparation, check_patch, default_patch
from hssl_dist.networks.unet import NEGATIVE_SLOPE, NORM_EPSILON
from hssl_dist.records import Shape

NETWORK_CLASS = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
PLANS_NAME = "hsslPlans"
FULL_RESOLUTION = "3d_fullres"
OWN_CONFIGURATION = "3d_fullres_hssl"
"""Name of our configuration in plans of a dataset that nnU-Net has planned: it inherits the rest."""

_BATCH_SIZE = 2
_RESAMPLING = "resample_data_or_seg_to_shape"


def architecture(network: NetworkConfig) -> dict[str, Any]:
    """The network as plans name it; lists go from fine to coarse, but the decoder's from coarse to fine."""
    return {
        "network_class_name": NETWORK_CLASS,
        "arch_kwargs": {
            "n_stages": len(network.widths),
            "features_per_stage": list(network.widths),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [list(kernel) for kernel in network.kernels],
            "strides": [list(stride) for stride in network.strides],
            "n_blocks_per_stage": list(network.encoder_blocks),
            "n_conv_per_stage_decoder": list(reversed(network.decoder_blocks)),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": NORM_EPSILON, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"negative_slope": NEGATIVE_SLOPE, "inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def new_plans(
    network: NetworkConfig, preparation: Preparation, dataset: str, channels: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """Plans of their own, and what they assume because neither card nor dataset says it.

    Raises ConfigError for a patch size that does not suit the network.
    """
    recipe, assumed = preparation.recipe, {}
    spacing_mm = list(recipe.spacing_mm) if recipe else [1.0, 1.0, 1.0]
    patch_size = preparation.patch_size or default_patch(network)
    check_patch(patch_size, network)
    if recipe is None:
        assumed["spacing"] = "1 x 1 x 1 mm: neither the model nor a dataset says it"
        assumed["normalization_schemes"] = "ZScoreNormalization: neither the model nor a dataset says it"
    if preparation.patch_size is None:
        assumed["patch_size"] = f"{patch_size}: four voxels along each axis of the deepest stage"
    rules = recipe.channels if recipe else (ChannelRecipe(rule="mr"),) * channels
    plans = {
        "dataset_name": dataset,
        "plans_name": PLANS_NAME,
        # Only reports of nnU-Net's planner read these two.
        "original_median_spacing_after_transp": spacing_mm,
        "original_median_shape_after_transp": list(patch_size),
        # Turns images to RAS and to z y x, as ours are; nnU-Net's other readers keep the file's axes.
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            FULL_RESOLUTION: {
                "data_identifier": f"{PLANS_NAME}_{FULL_RESOLUTION}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": _BATCH_SIZE,
                "patch_size": list(patch_size),
                "median_image_size_in_voxels": list(patch_size),
                "spacing": spacing_mm,
                "normalization_schemes": [_SCHEMES[rule.rule] for rule in rules],
                "use_mask_for_norm": [False] * len(rules),
                **_resampling(),
                "batch_dice": False,
                "architecture": architecture(network),
            }
        },
        "experiment_planner_used": "ResEncUNetPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(index): _intensity_properties(rule) for index, rule in enumerate(rules)
        },
    }
    return plans, assumed


def adapted_plans(
    base: Mapping[str, Any], network: NetworkConfig, channels: int, patch_size: Shape | None
) -> dict[str, Any]:
    """A dataset's own plans with a configuration more, which differs in network and patch size alone.

    The patch is nnU-Net's, enlarged to a multiple of the network's reduction, if none is given. Raises
    ConfigError if `base` has no `3d_fullres` configuration, has other channels than the network, or the
    patch does not suit it.
    """
    planned = _planned(base)
    if (count := plan_channels(base)) != channels:
        raise ConfigError(
            f"the plans are for {count} channels and the model takes {channels}; "
            "give plans of a dataset with as many"
        )
    patch_size = patch_size or _enlarged(planned["patch_size"], network)
    check_patch(patch_size, network)
    own = {
        "inherits_from": FULL_RESOLUTION,
        "patch_size": list(patch_size),
        "architecture": architecture(network),
    }
    return {
        **base,
        "plans_name": PLANS_NAME,
        "configurations": {**base["configurations"], OWN_CONFIGURATION: own},
    }


def plan_channels(base: Mapping[str, Any]) -> int:
    """How many channels a dataset's images have, by its plans. Raises ConfigError if these are no plans."""
    return len(_planned(base)["normalization_schemes"])


def dataset_json(classes: Mapping[int, str], modalities: tuple[str, ...], channels: int) -> dict[str, Any]:
    """nnU-Net's description of a dataset with these classes: one label for each output of the network.

    Values that the classes skip are outputs too, so they get labels; a name that means something else to
    nnU-Net, or stands twice, is replaced.
    """
    names = [modalities[index].upper() if modalities else f"channel {index}" for index in range(channels)]
    labels = {"background": 0}
    for value in range(1, max(classes) + 1):
        name = classes.get(value, f"unused {value}")
        labels[f"class {value}" if name in labels or name == "ignore" else name] = value
    return {
        "channel_names": {str(index): name for index, name in enumerate(names)},
        "labels": labels,
        "numTraining": 0,
        "file_ending": ".nii.gz",
    }


_SCHEMES = {"ct": "CTNormalization", "mr": "ZScoreNormalization"}
"""By rule of our recipe. nnU-Net's CT rule is ours; ours for MR takes the moments of the tissue alone."""


def _planned(base: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of plans that ours inherits from."""
    configurations = base.get("configurations")
    planned = configurations.get(FULL_RESOLUTION) if isinstance(configurations, dict) else None
    if not isinstance(planned, dict) or not all(
        isinstance(planned.get(key), list) for key in ("patch_size", "normalization_schemes")
    ):
        raise ConfigError(
            f"the plans have no configuration {FULL_RESOLUTION!r} with patch_size and normalization_schemes; "
            "give the nnUNetPlans.json that nnUNetv2_plan_experiment wrote for a 3D dataset"
        )
    return planned


def _intensity_properties(rule: ChannelRecipe) -> dict[str, float]:
    """What nnU-Net's CTNormalization reads: clip to the percentiles, subtract the mean, divide by std."""
    values = {
        "mean": rule.offset,
        "std": rule.scale,
        "percentile_00_5": rule.clip_low,
        "percentile_99_5": rule.clip_high,
    }
    return {key: value for key, value in values.items() if value is not None}


def _resampling() -> dict[str, Any]:
    """nnU-Net's own defaults, but linear between thick slices, as our recipe resamples."""
    return {
        "resampling_fn_data": _RESAMPLING,
        "resampling_fn_seg": _RESAMPLING,
        "resampling_fn_probabilities": _RESAMPLING,
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 1, "force_separate_z": None},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities_kwargs": {
            "is_seg": False,
            "order": 1,
            "order_z": 0,
            "force_separate_z": None,
        },
    }


def _enlarged(patch_size: list[int], network: NetworkConfig) -> Shape:
    z, y, x = (
        -(-size // factor) * factor for size, factor in zip(patch_size, network.reduction, strict=True)
    )
    return z, y, x

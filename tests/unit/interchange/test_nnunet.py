"""nnU-Net's own code reads what is exported: its plans, its network, its loader, its labels, its axes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from hssl_dist.config.network import NetworkConfig
from hssl_dist.errors import CheckpointError, ConfigError
from hssl_dist.imaging.recipe import ChannelRecipe
from hssl_dist.interchange import nnunet
from hssl_dist.interchange.nnunet_plans import OWN_CONFIGURATION, adapted_plans, dataset_json
from hssl_dist.interchange.portable import Portable, portable
from hssl_dist.interchange.preparation import Preparation, known_preparation
from hssl_dist.networks.keymaps import to_nnunet
from hssl_dist.networks.weights import ModelCard
from tests.models import CT, MR, NETWORKS, SMALL, pretrained_model, recipe, segmentation_model

UNKNOWN = Preparation(None, (), None)


def exported(
    folder: Path, model: tuple[ModelCard, dict[str, torch.Tensor]], base: dict[str, Any] | None = None
) -> Portable:
    """The model's U-Net, after it was written to the folder."""
    card, state = model
    unet = portable(card, state)
    nnunet.write_nnunet(unet, known_preparation(card, None, card.patch_size), "models:/m/1", folder, base)
    return unet


def plans_in(folder: Path) -> dict[str, Any]:
    plans: dict[str, Any] = json.loads((folder / "plans.json").read_text())
    return plans


def network_from(
    handler: Any, folder: Path, channels: int, classes: int, *, deep_supervision: bool
) -> nn.Module:
    """The network that nnU-Net builds from the plans, by its PlansManager and its helper."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    configuration = handler.PlansManager(str(folder / "plans.json")).get_configuration("3d_fullres")
    network: nn.Module = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        channels,
        classes,
        deep_supervision=deep_supervision,
    )
    return network


@pytest.mark.parametrize("deep_supervision", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_nnunets_network_from_the_plans_is_ours(
    plans_handler: Any, tmp_path: Path, name: str, deep_supervision: bool
) -> None:
    network, channels = NETWORKS[name], 3
    unet = exported(tmp_path, segmentation_model(network, channels, {1: "a", 4: "b"}))
    theirs = network_from(plans_handler, tmp_path, channels, 5, deep_supervision=deep_supervision)
    checkpoint = torch.load(tmp_path / nnunet.CHECKPOINT, weights_only=True)
    theirs.load_state_dict(checkpoint["network_weights"], strict=True)
    size = [2 * factor for factor in network.reduction]
    images = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = unet.network.train(deep_supervision)(images)
        found = theirs.train(deep_supervision)(images)
    pairs = zip(found, expected, strict=True) if deep_supervision else [(found, expected)]
    for a, b in pairs:
        assert float((a - b).abs().max()) <= 1e-5 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("make", [pretrained_model, segmentation_model])
def test_nnunets_loader_takes_encoder_and_decoder(plans_handler: Any, tmp_path: Path, make: Any) -> None:
    """As `nnUNetv2_train -pretrained_weights` does it, for a dataset with other classes."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    unet = exported(tmp_path, make(SMALL))
    theirs = network_from(plans_handler, tmp_path, 1, 7, deep_supervision=True)
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    load_pretrained_weights(theirs, str(tmp_path / nnunet.CHECKPOINT))
    after = theirs.state_dict()
    segmentation = {name for name in after if ".seg_layers." in name}
    assert segmentation
    assert all(torch.equal(after[name], before[name]) for name in segmentation)
    expected = to_nnunet({name: t for name, t in unet.state.items() if not name.startswith("heads.")})
    assert after.keys() - segmentation == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(after[name], tensor)
        assert not torch.equal(before[name], tensor)


def test_the_checkpoint_is_plain_and_names_what_nnunet_reads(tmp_path: Path) -> None:
    exported(tmp_path, segmentation_model())
    checkpoint = torch.load(tmp_path / nnunet.CHECKPOINT, weights_only=True)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert checkpoint["init_args"]["configuration"] == "3d_fullres"
    assert checkpoint["init_args"]["plans"] == plans_in(tmp_path)
    assert checkpoint["inference_allowed_mirroring_axes"] is None
    weights = checkpoint["network_weights"]
    stem = "encoder.stem.convs.0.conv.weight"
    assert weights[stem].data_ptr() == weights[f"decoder.{stem}"].data_ptr(), "aliases are stored once"


def test_nnunets_plans_manager_reads_all_it_needs(plans_handler: Any, tmp_path: Path) -> None:
    from nnunetv2.experiment_planning.experiment_planners import resencUNet_planner

    model = segmentation_model(
        in_channels=2, recipe=recipe(CT, MR), modalities=("ct", "mr"), patch_size=(8, 16, 16)
    )
    exported(tmp_path, model)
    manager = plans_handler.PlansManager(str(tmp_path / "plans.json"))
    found = manager.get_configuration("3d_fullres")
    assert (found.patch_size, found.spacing, found.batch_size) == ([8, 16, 16], [2.0, 1.0, 1.0], 2)
    assert found.normalization_schemes == ["CTNormalization", "ZScoreNormalization"]
    assert found.use_mask_for_norm == [False, False]
    assert found.pool_op_kernel_sizes == [[1, 1, 1], [2, 2, 2]]
    assert (found.previous_stage_name, found.next_stage_names) == (None, None)
    assert (manager.transpose_forward, manager.transpose_backward) == ([0, 1, 2], [0, 1, 2])
    assert manager.image_reader_writer_class.__name__ == "NibabelIOWithReorient"
    assert hasattr(resencUNet_planner, manager.experiment_planner_name)
    volume = np.random.default_rng(0).normal(size=(1, 4, 6, 6)).astype(np.float32)
    for resample in (found.resampling_fn_data, found.resampling_fn_probabilities, found.resampling_fn_seg):
        assert resample(volume, (8, 6, 6), (4.0, 1.0, 1.0), (2.0, 1.0, 1.0)).shape == (1, 8, 6, 6)


def test_nnunets_labels_are_the_networks_outputs(plans_handler: Any, tmp_path: Path) -> None:
    """Also where values are skipped or names mean something else to nnU-Net."""
    classes = {1: "background", 2: "ignore", 4: "x", 5: "x"}
    unet = exported(tmp_path, segmentation_model(classes=classes, modalities=("ct",)))
    dataset = json.loads((tmp_path / "dataset.json").read_text())
    assert dataset["labels"] == {
        "background": 0, "class 1": 1, "class 2": 2, "unused 3": 3, "x": 4, "class 5": 5,
    }  # fmt: skip
    assert dataset["channel_names"] == {"0": "CT"}
    manager = plans_handler.PlansManager(plans_in(tmp_path))
    assert manager.get_label_manager(dataset).num_segmentation_heads == unet.classes == 6


def test_nnunets_ct_normalisation_is_ours() -> None:
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

    network, preparation = SMALL, known_preparation(segmentation_model(recipe=recipe(CT))[0])
    plans, assumed = nnunet.new_plans(network, preparation, "Dataset000_x", 1)
    assert set(assumed) == {"patch_size"}
    properties = plans["foreground_intensity_properties_per_channel"]["0"]
    image = np.linspace(-1000, 1000, 400, dtype=np.float32).reshape(4, 10, 10)
    rule = ChannelRecipe.model_validate(CT)
    expected = (np.clip(image, rule.clip_low, rule.clip_high) - np.float32(40)) / np.float32(60)
    found = CTNormalization(use_mask_for_norm=False, intensityproperties=properties).run(image.copy())
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_nnunets_reader_gives_our_axes(tmp_path: Path) -> None:
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

    from hssl_dist.imaging import load_case
    from hssl_dist.records import Case

    affine = np.array([[0, -1.5, 0, 7], [-1.0, 0, 0, 3], [0, 0, 2.5, 0], [0, 0, 0, 1.0]])
    data = np.random.default_rng(0).normal(size=(6, 8, 5)).astype(np.float32)
    path = tmp_path / "a_0000.nii.gz"
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    volume = load_case(Case("d", "a", "a", (str(path),), None, ("mr",)), {}, 1 << 20)
    found, properties = NibabelIOWithReorient().read_images((str(path),))
    np.testing.assert_array_equal(found, volume.image)
    assert properties["spacing"] == pytest.approx(volume.spacing_mm)


# -------------------------------------------------------------------------------------- a dataset's own plans


def base_plans(patch_size: tuple[int, int, int] = (15, 33, 40), channels: int = 1) -> dict[str, Any]:
    """What nnU-Net plans for a dataset, as far as it matters here."""
    plans, _ = nnunet.new_plans(NETWORKS["isotropic"], UNKNOWN, "Dataset004_Hippocampus", channels)
    plans["plans_name"] = "nnUNetPlans"
    plans["configurations"]["3d_fullres"] |= {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "patch_size": list(patch_size),
        "batch_size": 9,
    }
    plans["configurations"]["2d"] = {"patch_size": [32, 32]}
    return plans


def test_own_plans_get_a_configuration_more(plans_handler: Any, tmp_path: Path) -> None:
    base = base_plans()
    unet = exported(tmp_path, pretrained_model(NETWORKS["anisotropic"]), base)
    plans = plans_in(tmp_path)
    assert plans["plans_name"] == "hsslPlans"
    assert {name: plans["configurations"][name] for name in base["configurations"]} == base["configurations"]
    assert {key: plans[key] for key in base if key not in ("plans_name", "configurations")} == {
        key: base[key] for key in base if key not in ("plans_name", "configurations")
    }
    found = plans_handler.PlansManager(plans).get_configuration(OWN_CONFIGURATION)
    assert found.patch_size == [16, 36, 48], "a multiple of the reduction 4 x 4 x 12, no smaller than planned"
    assert (found.data_identifier, found.batch_size) == ("nnUNetPlans_3d_fullres", 9)
    assert found.network_arch_init_kwargs["features_per_stage"] == [4, 6, 6, 8]
    checkpoint = torch.load(tmp_path / nnunet.CHECKPOINT, weights_only=True)
    assert checkpoint["init_args"]["configuration"] == OWN_CONFIGURATION
    assert nnunet.verify_nnunet(unet, tmp_path).verified


@pytest.mark.parametrize(
    ("base", "patch_size", "message"),
    [
        (
            {"configurations": {"2d": {}}},
            None,
            "the plans have no configuration '3d_fullres' with patch_size",
        ),
        (base_plans(channels=2), None, "the plans are for 2 channels and the model takes 1"),
        (
            base_plans(),
            (3, 8, 8),
            "patch_size (3, 8, 8) is not a multiple of the network's reduction (2, 2, 2)",
        ),
        (base_plans(), (2, 2, 2), "patch_size (2, 2, 2) leaves one voxel in the deepest stage"),
    ],
)
def test_plans_that_do_not_suit_are_refused(
    base: dict[str, Any], patch_size: tuple[int, int, int] | None, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        adapted_plans(base, SMALL, 1, patch_size)
    assert str(caught.value).startswith(message)


# ------------------------------------------------------------------------------ what an export says of itself


def test_what_nothing_says_is_named_as_assumed(tmp_path: Path) -> None:
    card, state = pretrained_model(NetworkConfig())
    written = nnunet.write_nnunet(portable(card, state), UNKNOWN, "models:/m/1", tmp_path)
    assert set(written.assumed) == {"spacing", "normalization_schemes", "patch_size"}
    assert written.assumed["patch_size"].startswith("(16, 64, 64): ")
    assert list(written.new) == ["decoder.seg_layers"]
    assert not (tmp_path / "dataset.json").exists()
    assert dataset_json({2: "b"}, (), 1)["labels"] == {"background": 0, "unused 1": 1, "b": 2}


@pytest.mark.parametrize("make", [pretrained_model, segmentation_model])
def test_an_export_verifies_itself(tmp_path: Path, make: Any) -> None:
    unet = exported(tmp_path, make(NETWORKS["anisotropic"]))
    found = nnunet.verify_nnunet(unet, tmp_path)
    assert found.verified
    assert found.note.startswith("verified with nnunetv2 2.")
    assert (found.input_shape, found.outputs) == ((1, 1, 8, 8, 24), 3)
    assert found.max_difference is not None
    assert found.max_difference <= found.tolerance


@pytest.mark.parametrize("make", [pretrained_model, segmentation_model])
def test_without_nnunet_the_package_of_its_networks_does(tmp_path: Path, make: Any) -> None:
    def without_nnunet(name: str) -> Any:
        if name.startswith("nnunetv2"):
            raise ImportError("No module named 'nnunetv2'")
        return importlib.import_module(name)

    unet = exported(tmp_path, make(NETWORKS["anisotropic"]))
    whole = nnunet.verify_nnunet(unet, tmp_path)
    found = nnunet.verify_nnunet(unet, tmp_path, without_nnunet)
    assert found.note.startswith("verified with dynamic-network-architectures 0.")
    assert (found.verified, found.outputs, found.max_difference) == (True, 3, whole.max_difference)
    weights = torch.load(tmp_path / nnunet.CHECKPOINT, weights_only=True)
    weights["network_weights"]["encoder.stem.convs.0.conv.weight"] += 0.1
    torch.save(weights, tmp_path / nnunet.CHECKPOINT)
    with pytest.raises(CheckpointError, match=r"dynamic-network-architectures .* builds differs by .* from"):
        nnunet.verify_nnunet(unet, tmp_path, without_nnunet)


def test_a_missing_library_is_said_plainly(tmp_path: Path) -> None:
    def absent(name: str) -> Any:
        raise ImportError("No module named 'nnunetv2'")

    found = nnunet.verify_nnunet(exported(tmp_path, pretrained_model()), tmp_path, load=absent)
    assert (found.verified, found.max_difference) == (False, None)
    assert found.note == (
        "not verified: No module named 'nnunetv2'; "
        "install nnunetv2 (2.8) and export again to have it compared"
    )


def test_weights_that_are_not_the_models_are_found(tmp_path: Path) -> None:
    unet = exported(tmp_path, segmentation_model())
    path = tmp_path / nnunet.CHECKPOINT
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["network_weights"]["encoder.stem.convs.0.conv.weight"][0] += 0.01
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match=r"builds differs by .* from ours, at most .* is accepted"):
        nnunet.verify_nnunet(unet, tmp_path)
    del checkpoint["network_weights"]["decoder.transpconvs.0.bias"]
    torch.save(checkpoint, path)
    with pytest.raises(
        CheckpointError, match=r"do not load: .* Missing key\(s\).*decoder\.transpconvs\.0\.bias"
    ):
        nnunet.verify_nnunet(unet, tmp_path)


def test_an_architecture_that_is_not_the_models_is_found(tmp_path: Path) -> None:
    """Stride and pooling leave no trace in the weights: only the outputs tell."""
    unet = exported(tmp_path, segmentation_model())
    plans = plans_in(tmp_path)
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments["norm_op_kwargs"]["eps"] = 1e-2
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(CheckpointError, match="differs by"):
        nnunet.verify_nnunet(unet, tmp_path)

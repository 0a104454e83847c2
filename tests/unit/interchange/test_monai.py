"""MONAI's own tools read, build and run the bundle; its network and its images are ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from hssl_dist.errors import CheckpointError, ConfigError
from hssl_dist.imaging import Recipe, load_case, prepare
from hssl_dist.interchange import monai_bundle
from hssl_dist.interchange.bundle_normalisation import Normaliser
from hssl_dist.interchange.portable import Portable, portable
from hssl_dist.interchange.preparation import Preparation, known_preparation
from hssl_dist.networks.weights import ModelCard
from hssl_dist.records import Case
from hssl_dist.segmentation import WAYS, keep_largest, predict
from tests.models import CT, MR, NETWORKS, SMALL, pretrained_model, recipe, segmentation_model
from tests.readme_code import blocks, run_python

PATCH = (4, 16, 16)
SPACING_MM = (2.0, 1.0, 1.0)
CHANNELS = {"ct": CT, "mr": MR}


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for a bundle, found by Python as MONAI's workflow makes it found."""
    import sys

    folder = tmp_path / "bundle"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in ("scripts.normalisation", "scripts"):
        sys.modules.pop(name, None)


def exported(folder: Path, model: tuple[ModelCard, dict[str, torch.Tensor]]) -> Portable:
    card, state = model
    unet = portable(card, state)
    monai_bundle.write_monai(unet, known_preparation(card, None, card.patch_size), "models:/m/1", folder)
    return unet


def two_channel_model() -> tuple[ModelCard, dict[str, torch.Tensor]]:
    return segmentation_model(
        SMALL, 2, recipe=recipe(CT, MR, spacing_mm=SPACING_MM), modalities=("ct", "mr"), patch_size=PATCH
    )


def write_case(folder: Path, spacing_mm: tuple[float, float, float] = SPACING_MM) -> Case:
    """A case of two files whose axes are swapped and flipped, with air, tissue and a bright ball."""
    folder.mkdir()
    z, y, x = spacing_mm
    affine = np.array([[0, -x, 0, 30], [-y, 0, 0, 3], [0, 0, z, 5], [0, 0, 0, 1.0]])
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in (24, 28, 10)), indexing="ij"))
    body = (grid**2).sum(0) < 0.8
    rng = np.random.default_rng(0)
    paths = []
    for channel, (air, tissue) in enumerate(((-1000.0, 40.0), (0.0, 300.0))):
        image = np.where(body, tissue, air) + rng.normal(0, 30, body.shape)
        paths.append(str(folder / f"a_{channel:04d}.nii.gz"))
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), affine), paths[-1])
    return Case("d", "a", "a", tuple(paths), None, ("ct", "mr"))


def parsed(folder: Path) -> Any:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(folder / monai_bundle.INFERENCE)
    parser["bundle_root"] = str(folder)
    return parser


@pytest.mark.parametrize("name", NETWORKS)
def test_the_bundles_network_is_ours(tmp_path: Path, name: str) -> None:
    unet = exported(tmp_path, segmentation_model(NETWORKS[name], 3, {1: "a", 4: "b"}))
    found = monai_bundle.verify_monai(unet, tmp_path)
    assert found.verified
    assert found.note.startswith("verified with monai 1.")
    assert found.max_difference is not None
    assert found.max_difference <= found.tolerance


def test_the_bundle_segments_a_volume_as_we_do(bundle: Path) -> None:
    """From files on disk to a label on the files' own grid, by the bundle's configuration alone."""
    unet = exported(bundle, two_channel_model())
    case = write_case(bundle / "images")
    parser = parsed(bundle)
    network = parser.get_parsed_content("network").eval()
    network.load_state_dict(torch.load(bundle / monai_bundle.WEIGHTS, weights_only=True))
    (item,) = parser.get_parsed_content("dataset")
    volume = load_case(case, {}, 1 << 20)
    whole = Normaliser([CT, MR])(torch.from_numpy(volume.image)).numpy()
    np.testing.assert_allclose(item["image"].numpy(), whole, rtol=0, atol=1e-5)
    with torch.inference_mode():
        item["pred"] = parser.get_parsed_content("inferer")(item["image"][None], network)[0]
    expected = predict(unet.network, whole, PATCH, 0.5, torch.device("cpu"))
    label = item["pred"].argmax(0).numpy()
    assert (label == expected).mean() > 0.9999, "a tie may fall either way"
    parser.get_parsed_content("postprocessing")(item)
    saved = nibabel.load(bundle / "labels" / "a_0000_label.nii.gz")
    source = nibabel.load(case.images[0])
    assert saved.shape == source.shape
    np.testing.assert_allclose(saved.affine, source.affine, atol=1e-5)
    turned = nibabel.as_closest_canonical(saved).get_fdata().T
    assert (turned == expected).mean() > 0.9999


@pytest.mark.parametrize("modality", CHANNELS)
def test_the_bundles_normalisation_is_preprocessings(tmp_path: Path, modality: str) -> None:
    case = write_case(tmp_path / "images")
    path = case.images[["ct", "mr"].index(modality)]
    volume = load_case(Case("d", "a", "a", (path,), None, (modality,)), {}, 1 << 20)
    stored, _ = prepare(volume, Recipe.model_validate(recipe(CHANNELS[modality])))
    box = tuple(
        slice(*ends) for ends in zip(stored.geometry.crop_start, stored.geometry.crop_stop, strict=True)
    )
    found = Normaliser([CHANNELS[modality]])(torch.from_numpy(volume.image))
    np.testing.assert_allclose(found[(slice(None), *box)].numpy(), stored.image, rtol=0, atol=1e-5)


def test_the_script_that_travels_is_the_one_that_is_tested(tmp_path: Path) -> None:
    exported(tmp_path, two_channel_model())
    source = Path(monai_bundle.__file__).with_name("bundle_normalisation.py").read_text()
    assert (tmp_path / monai_bundle.SCRIPT).read_text() == source
    assert "hssl_dist" not in source, "the bundle runs without this package"
    assert "hssl_dist" not in json.dumps(json.loads((tmp_path / monai_bundle.INFERENCE).read_text()))


def test_images_of_another_spacing_are_resampled(bundle: Path) -> None:
    exported(bundle, two_channel_model())
    write_case(bundle / "images", spacing_mm=(4.0, 1.0, 2.0))
    (item,) = parsed(bundle).get_parsed_content("dataset")
    assert np.linalg.norm(np.asarray(item["image"].affine)[:3, :3], axis=0) == pytest.approx(SPACING_MM)


def test_each_case_of_one_channel_is_a_file(bundle: Path) -> None:
    exported(bundle, segmentation_model(recipe=recipe(MR), patch_size=PATCH))
    write_case(bundle / "images")
    parser = parsed(bundle)
    names = [[str(path)] for path in sorted((bundle / "images").iterdir())]
    assert parser.get_parsed_content("files") == names
    shapes = [tuple(item["image"].shape) for item in parser.get_parsed_content("dataset")]
    assert shapes == [(1, 10, 24, 28)] * 2, "the file's first axis runs towards posterior"


def workflow_of(folder: Path) -> Any:
    from monai.bundle import ConfigWorkflow

    workflow = ConfigWorkflow(
        config_file=str(folder / monai_bundle.INFERENCE),
        meta_file=str(folder / monai_bundle.METADATA),
        logging_file=False,
        workflow_type="inference",
        bundle_root=str(folder),
    )
    workflow.initialize()
    return workflow


def test_monais_tools_accept_the_bundle(bundle: Path) -> None:
    from monai.bundle import verify_net_in_out

    exported(bundle, two_channel_model())
    meta, config = str(bundle / monai_bundle.METADATA), str(bundle / monai_bundle.INFERENCE)
    verify_net_in_out("network_def", meta, config, device="cpu")
    workflow = workflow_of(bundle)
    assert set(workflow.channel_def.values()) == {"background", "left", "right"}
    required = [name for name, about in workflow.properties.items() if about["required"]]
    assert set(required) >= {"network_def", "inferer", "dataset", "version", "monai_version", "evaluator"}
    for name in required:
        # The evaluator is pytorch-ignite's; the test below runs it where that is installed.
        assert name == "evaluator" or getattr(workflow, name) is not None


@pytest.mark.parametrize("way", WAYS)
def test_the_bundle_keeps_the_components_that_we_keep(bundle: Path, way: str) -> None:
    exported(bundle, segmentation_model(SMALL, 1, patch_size=PATCH, keep_largest=way))
    transforms = parsed(bundle).get_parsed_content("postprocessing").transforms
    theirs = [t for t in transforms if type(t).__name__.startswith("KeepLargest")]
    label = np.zeros((6, 20, 20), dtype=np.uint8)
    label[1:4, 2:9, 2:9], label[3, 9:12, 9:12], label[5, 15:18, 15:19], label[0, 18:, 0] = 1, 3, 3, 1
    found = {"pred": torch.from_numpy(label[None])}
    for transform in theirs:
        found = transform(found)
    np.testing.assert_array_equal(np.asarray(found["pred"])[0], keep_largest(label, way))
    assert len(theirs) == (way != "never")


def test_monai_runs_the_bundle_whole(bundle: Path) -> None:
    pytest.importorskip("ignite")
    exported(bundle, two_channel_model())
    write_case(bundle / "images")
    workflow = workflow_of(bundle)
    workflow.run()
    assert nibabel.load(bundle / "labels" / "a_0000_label.nii.gz").shape == (24, 28, 10)


def test_a_pretrained_bundle_is_loaded_for_other_classes(tmp_path: Path) -> None:
    from monai.bundle import load

    unet = exported(tmp_path, pretrained_model(NETWORKS["anisotropic"]))
    assert monai_bundle.verify_monai(unet, tmp_path).verified
    assert not (tmp_path / monai_bundle.INFERENCE).exists()
    (code,) = blocks(tmp_path / "docs" / "README.md", "python")
    readmes = run_python(code, tmp_path)["network"]
    with pytest.warns(UserWarning, match="Only proceed if this config is from a source you trust"):
        loaded = load(tmp_path.name, bundle_dir=tmp_path.parent, net_override={"num_classes": 3})
    for network in (readmes, loaded):
        state, kept = network.state_dict(), torch.load(tmp_path / monai_bundle.WEIGHTS, weights_only=True)
        assert all(torch.equal(state[name], tensor) for name, tensor in kept.items())
        assert {name for name in state.keys() - kept.keys() if ".seg_layers." not in name} == set()
        assert len(network.decoder.seg_layers[0].weight) == 3


def test_a_segmentation_bundles_readme_runs_as_written(tmp_path: Path) -> None:
    exported(tmp_path, two_channel_model())
    (code,) = blocks(tmp_path / "docs" / "README.md", "python")
    assert tuple(run_python(code, tmp_path)["logits"].shape) == (1, 4, 4, 4, 4)


def test_what_nothing_says_is_named_as_assumed(tmp_path: Path) -> None:
    card, state = pretrained_model()
    written = monai_bundle.write_monai(portable(card, state), Preparation(None, (), None), "m", tmp_path)
    assert set(written.assumed) == {"normalisation", "spacing", "patch_size"}
    assert list(written.new) == ["decoder.seg_layers"]


def test_a_patch_that_does_not_suit_is_refused(tmp_path: Path) -> None:
    card, state = segmentation_model(patch_size=(3, 8, 8))
    with pytest.raises(ConfigError, match=r"patch_size \(3, 8, 8\) is not a multiple"):
        monai_bundle.write_monai(
            portable(card, state), known_preparation(card, None, (3, 8, 8)), "m", tmp_path
        )


def test_another_network_is_found(tmp_path: Path) -> None:
    unet = exported(tmp_path, segmentation_model())
    weights = torch.load(tmp_path / monai_bundle.WEIGHTS, weights_only=True)
    weights["decoder.seg_layers.0.bias"] += 1e-2
    torch.save(weights, tmp_path / monai_bundle.WEIGHTS)
    with pytest.raises(
        CheckpointError, match=r"the network that monai 1\..* builds differs by 0\.01\d* from ours"
    ):
        monai_bundle.verify_monai(unet, tmp_path)


def test_a_missing_library_is_said_plainly(tmp_path: Path) -> None:
    def absent(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    found = monai_bundle.verify_monai(exported(tmp_path, pretrained_model()), tmp_path, load=absent)
    assert not found.verified
    assert found.note.startswith("not verified: No module named 'dynamic_network_architectures")


def test_monais_own_residual_block_cannot_be_ours() -> None:
    """DynUNet's shortcut sees one voxel of each stride's cell; ours (nnU-Net's) averages all of them."""
    from monai.networks.blocks.dynunet_block import UnetResBlock

    from hssl_dist.networks.unet import ResidualBlock

    def voxels_read(shortcut: nn.Module) -> int:
        image = torch.ones(1, 2, 4, 4, 4, requires_grad=True)
        shortcut(image)[0, 0, 0, 0, 0].backward()
        assert image.grad is not None
        return int((image.grad[0, 0] != 0).sum())

    theirs = UnetResBlock(3, 2, 4, 3, 2, "instance").conv3
    ours = ResidualBlock(2, 4, (3, 3, 3), (2, 2, 2)).skip
    assert (voxels_read(theirs), voxels_read(nn.Sequential(ours[0], ours[1].conv))) == (1, 8)

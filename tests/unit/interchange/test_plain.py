"""Plain weights: a model folder again, and its README's code runs as written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hssl_dist.interchange.plain import verify_plain, write_plain
from hssl_dist.interchange.portable import portable
from hssl_dist.interchange.preparation import known_preparation
from hssl_dist.networks.weights import load_model
from tests.models import MR, pretrained_model, recipe, segmentation_model
from tests.readme_code import blocks, run_python


@pytest.mark.parametrize("make", [pretrained_model, segmentation_model])
def test_the_readmes_code_runs_as_written(tmp_path: Path, make: Any) -> None:
    card, state = make()
    unet = portable(card, state)
    write_plain(unet, known_preparation(card), "models:/m/1", tmp_path)
    ours, without = blocks(tmp_path / "README.md", "python")
    variables = run_python(ours, tmp_path)
    if unet.has_heads:
        assert tuple(variables["logits"].shape) == (1, 4, 4, 4, 4)
    else:
        assert tuple(variables["features"][-1].shape) == (1, 8, 2, 2, 2)
    loaded = variables["network"].state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in unet.state.items())
    variables = run_python(without, tmp_path)
    assert variables["weights"].keys() == unet.state.keys()
    assert variables["card"]["kind"] == card.kind


def test_the_folder_is_a_model_with_what_is_known_of_its_images(tmp_path: Path) -> None:
    card, state = pretrained_model()
    unet = portable(card, state, channels=2)
    known = known_preparation(card.model_copy(update={"recipe": recipe(MR, MR)}), None, (4, 8, 8))
    written = write_plain(unet, known, "models:/m/1", tmp_path)
    again, weights = load_model(tmp_path)
    assert (again.in_channels, again.patch_size, again.kind) == (2, (4, 8, 8), "pretrained")
    assert again.recipe is not None
    assert again.recipe["spacing_mm"] == [2.0, 1.0, 1.0]
    assert again.lineage == card.lineage
    assert weights.keys() == unet.state.keys() == written.names.keys()
    stored = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, unet.state[name]) for name, tensor in stored.items())
    assert verify_plain(unet, tmp_path).max_difference == 0.0

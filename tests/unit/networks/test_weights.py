"""Models on disk: they come back as they were, and nothing damaged is accepted."""

import json
from pathlib import Path

import pytest
import torch

from hssl_dist.config.network import NetworkConfig
from hssl_dist.errors import CheckpointError
from hssl_dist.networks.pretraining import build_segmentation_network
from hssl_dist.networks.weights import (
    ModelCard,
    build_from_card,
    class_count,
    load_model,
    load_state,
    save_model,
)
from hssl_dist.records import Lineage

NETWORK = NetworkConfig(
    widths=(2, 3),
    strides=((1, 1, 1), (2, 2, 2)),
    kernels=((3, 3, 3), (3, 3, 3)),
    encoder_blocks=(1, 1),
    decoder_blocks=(1,),
)
CARD = ModelCard(
    kind="segmentation",
    network=NETWORK.model_dump(mode="json"),
    in_channels=2,
    classes={1: "left", 3: "right"},
    dataset="phantoms",
    metrics={"dice": 0.5},
    lineage=Lineage(config_hash="c", code_version="0"),
)
IMAGES = torch.randn(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def saved(folder: Path) -> torch.nn.Module:
    torch.manual_seed(0)
    network = build_segmentation_network(NETWORK, 2, class_count(CARD.classes)).eval()
    save_model(folder, network.state_dict(), CARD)
    return network


def test_card_and_weights_rebuild_the_network(tmp_path: Path) -> None:
    network = saved(tmp_path)
    card, state = load_model(tmp_path)
    again = build_from_card(card).eval()
    load_state(again, state)
    assert card == CARD
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    with torch.no_grad():
        assert again(IMAGES).shape[1] == 4
        assert torch.equal(again(IMAGES), network(IMAGES))


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    saved(tmp_path / "b")
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_tensors_that_share_memory_are_saved_each(tmp_path: Path) -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    save_model(tmp_path, {"a": matrix, "b": matrix.T, "c": matrix[0]}, CARD)
    state = load_model(tmp_path)[1]
    assert torch.equal(state["b"], matrix.T)
    assert torch.equal(state["c"], matrix[0])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.json is missing: the folder has no complete model"):
        load_model(tmp_path)
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing, its card is there"):
        load_model(tmp_path)


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"with SHA-256 .* its card says"):
        load_model(tmp_path)


def test_no_flipped_bit_of_a_card_changes_what_it_says(tmp_path: Path) -> None:
    saved(tmp_path)
    path = tmp_path / "model.json"
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 3):  # of every third byte a bit, another one each time
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            assert load_model(tmp_path)[0] == CARD, f"byte {place}"
        except CheckpointError:
            refused += 1
    assert refused > len(whole) // 6  # the rest are spaces between things


def test_a_card_of_before_the_seal_is_read(tmp_path: Path) -> None:
    saved(tmp_path)
    content = json.loads((tmp_path / "model.json").read_text())
    del content["content_sha256"]
    (tmp_path / "model.json").write_text(json.dumps(content))
    assert load_model(tmp_path)[0] == CARD
    content["content_sha257"] = "0" * 64
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="is not a model card of this version: content_sha257: "):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"model\.json is no JSON \(Expecting property name"),
        ('{"format": 2}', ": format: Input should be 1"),
    ],
)
def test_a_foreign_card_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_a_pretrained_model_has_no_segmentation_head() -> None:
    card = CARD.model_copy(update={"kind": "pretrained", "classes": {}})
    with pytest.raises(CheckpointError, match="no segmentation head; fine-tune it first"):
        build_from_card(card)


def test_a_network_of_another_version_is_refused() -> None:
    card = CARD.model_copy(update={"network": CARD.network | {"depth": 3}})
    with pytest.raises(CheckpointError, match="not one of this version: depth: Extra inputs"):
        build_from_card(card)


def test_weights_of_another_network_are_refused() -> None:
    network = build_from_card(CARD)
    state = network.state_dict()
    with pytest.raises(CheckpointError) as caught:
        load_state(network, state | {"heads.0.bias": torch.zeros(7)})
    assert str(caught.value) == "the weights do not fit the network: heads.0.bias is (7,), expected (4,)"
    state.pop("heads.0.bias")
    with pytest.raises(CheckpointError, match=r"heads\.0\.bias is missing, expected \(4,\)"):
        load_state(network, state)

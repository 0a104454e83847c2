"""Settings of a step change its time and memory, and its numbers by rounding alone; a run may change them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hssl_dist.config.acceleration import AccelerationConfig, StepAccelerationConfig
from hssl_dist.config.network import NetworkConfig
from hssl_dist.config.pretrain import StageConfig
from hssl_dist.errors import ConfigError, Interrupted
from hssl_dist.networks.pretraining import build_segmentation_network
from hssl_dist.training.acceleration import accelerated, cache_folder, check_compiler, distributed
from hssl_dist.training.checkpoint import CheckpointStore
from hssl_dist.training.loop import PretrainingResult, run_pretraining
from hssl_dist.training.step import backward
from tests.tiny_pretraining import ArrayReader, Recorder, config, manifests
from tests.tiny_supervised import CONFIG, new_network, trained
from tests.unit.training.test_step import PLAIN, new_step, settings_of

CPU = torch.device("cpu")
NETWORK = NetworkConfig(
    widths=(4, 8, 8),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    encoder_blocks=(1, 2, 1),
    decoder_blocks=(1, 1),
)


def gradients(
    stage: Any, acceleration: dict[str, Any], micro_batch: int | None, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    settings = settings_of(PLAIN, micro_batch)
    network, samples = new_step(settings, stage, dtype)
    with accelerated(network, AccelerationConfig.model_validate(acceleration), CPU):
        backward(stage, samples, network, network, settings)
    return {name: value.grad for name, value in network.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("stage", ["encoder", "decoder"])
@pytest.mark.parametrize(
    "acceleration",
    [{"recompute_stages": 1}, {"recompute_stages": 99}, {"channels_last": True}],
    ids=["the finest again", "all again", "channels last"],
)
def test_gradients_are_those_without(
    acceleration: dict[str, Any], stage: Any, micro_batch: int | None
) -> None:
    expected, found = gradients(stage, {}, micro_batch), gradients(stage, acceleration, micro_batch)
    size = max(float(gradient.abs().max()) for gradient in expected.values())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-12 * size, name


def test_recomputing_in_bfloat16_repeats_the_same_numbers() -> None:
    image = torch.randn(2, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))

    def run(stages: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        network = build_segmentation_network(NETWORK, 1, 3)
        with accelerated(network, StepAccelerationConfig(recompute_stages=stages), CPU):
            with torch.autocast("cpu", torch.bfloat16):
                outputs = network(image)
            sum(logits.float().square().mean() for logits in outputs).backward()
        return {name: value.grad for name, value in network.named_parameters()}

    expected = run(0)
    assert all(torch.equal(gradient, expected[name]) for name, gradient in run(3).items())


def kept_bytes(stages: int) -> int:
    """What a forward pass keeps for the backward pass."""
    torch.manual_seed(0)
    network = build_segmentation_network(NETWORK, 1, 3)
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with (
        accelerated(network, StepAccelerationConfig(recompute_stages=stages), CPU),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
    ):
        outputs = network(torch.randn(2, 1, 8, 32, 32))
    assert outputs[0].requires_grad
    return sum(kept.values())


def test_the_more_stages_are_computed_again_the_less_is_kept() -> None:
    sizes = [kept_bytes(stages) for stages in range(5)]
    assert sizes[0] > sizes[1] > sizes[2] >= sizes[3] == sizes[4]
    assert sizes[1] < 0.6 * sizes[0]


def layouts(network: nn.Module, image: Tensor) -> list[bool]:
    """Of each convolution with more than one channel, whether it gets its channels last."""
    found: list[bool] = []
    hooks = [
        layer.register_forward_hook(
            lambda _, inputs, __: found.append(inputs[0].is_contiguous(memory_format=torch.channels_last_3d))
        )
        for layer in network.modules()
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d) and layer.in_channels > 1
    ]
    network(image)
    for hook in hooks:
        hook.remove()
    return found


def test_every_convolution_gets_its_channels_last_and_afterwards_none() -> None:
    network, image = build_segmentation_network(NETWORK, 1, 3), torch.randn(2, 1, 4, 16, 16)
    weights = {name: value.stride() for name, value in network.state_dict().items()}
    assert not any(layouts(network, image))
    with accelerated(network, StepAccelerationConfig(channels_last=True), CPU):
        assert all(layouts(network, image))
        assert {name: value.stride() for name, value in network.state_dict().items()} == weights
    assert not any(layouts(network, image))


def test_without_ranks_there_is_nothing_to_wrap() -> None:
    network = build_segmentation_network(NETWORK, 1, 3)
    assert distributed(network, AccelerationConfig(), CPU) is network


# ------------------------------------------------------------------------------------------------------- runs


def run(folder: Path, acceleration: dict[str, Any], stop_at: int | None = None) -> PretrainingResult:
    settings = config(
        acceleration=acceleration,
        encoder=StageConfig(steps=4, learning_rate=1e-3, warmup_steps=1),
        decoder=StageConfig(steps=3, learning_rate=1e-3, warmup_steps=1),
    )
    store, recorder = CheckpointStore(str(folder)), Recorder(stop_at=stop_at)
    return run_pretraining(settings, manifests(), ArrayReader(), store, recorder, CPU, dtype=torch.float64)


def losses(result: PretrainingResult) -> dict[int, float]:
    return {step: metrics["loss"] for step, metrics in result.history}


def test_a_run_goes_on_with_other_settings(tmp_path: Path) -> None:
    """Stopped with a fused optimiser, on with a plain one and other layouts, and back."""
    whole = run(tmp_path / "whole", {})
    other = {"recompute_stages": 1, "channels_last": True, "fused_optimiser": False, "bucket_mb": 1.0}
    with pytest.raises(Interrupted, match="after step 2"):
        run(tmp_path / "cut", {}, stop_at=2)
    with pytest.raises(Interrupted, match="after step 6"):
        run(tmp_path / "cut", other, stop_at=6)
    resumed = run(tmp_path / "cut", {})
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-9)
    state = whole.network.state_dict()
    for name, value in resumed.network.state_dict().items():
        assert torch.allclose(value, state[name], rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize(
    "acceleration", [{"recompute_stages": 2}, {"channels_last": True}, {"fused_optimiser": False}]
)
def test_fine_tuning_has_them_too(acceleration: dict[str, Any]) -> None:
    plain = trained(new_network(), CONFIG)
    changed = CONFIG.model_copy(update={"acceleration": StepAccelerationConfig.model_validate(acceleration)})
    found = trained(new_network(), changed)
    for (_, one), (_, other) in zip(found.history, plain.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


# ------------------------------------------------------------------------------------------------ compilation


@pytest.mark.parametrize(
    ("kind", "environment", "said"),
    [
        ("cpu", {"PATH": ""}, "no g++ or clang++; install one (g++ on Debian), or leave"),
        ("cuda", {"PATH": ""}, "no gcc or clang or cc; install one"),
        ("cpu", {"PATH": os.environ["PATH"], "CXX": "nowhere-c++"}, "no nowhere-c++; install one"),
    ],
)
def test_a_missing_compiler_is_one_line(kind: str, environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_compiler(torch.device(kind), environment)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_that_cannot_be_compiled_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "nowhere-c++")
    with pytest.raises(ConfigError, match=r"acceleration\.compile needs a compiler"):
        run(tmp_path, {"compile": True})


def test_compiled_code_is_kept_below_the_users_caches(tmp_path: Path) -> None:
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "hssl" / "compiled"
    assert cache_folder({}) == Path.home() / ".cache" / "hssl" / "compiled"
    assert cache_folder({"TORCHINDUCTOR_CACHE_DIR": "/scratch/mine"}) == Path("/scratch/mine")
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # What torch sets by itself is nobody's choice.
    default = {"TORCHINDUCTOR_CACHE_DIR": default_cache_dir(), "XDG_CACHE_HOME": "/caches"}
    assert cache_folder(default) == Path("/caches/hssl/compiled")


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "below"))
    network = build_segmentation_network(NETWORK, 1, 3)
    with (
        pytest.raises(ConfigError, match=r"compiled code cannot be kept in .*/below: Not a directory; set"),
        accelerated(network, StepAccelerationConfig(compile=True), CPU),
    ):
        pass


COMPILED = """
import sys
from pathlib import Path

import pytest
from torch._dynamo.utils import counters

from hssl_dist.errors import Interrupted
from tests.unit.training.test_acceleration import run

with pytest.raises(Interrupted, match="after step 3"):
    run(Path(sys.argv[1]), {"compile": True}, stop_at=3)
assert counters["stats"]["unique_graphs"] == 3, counters  # the stem and two stages, once each
assert not counters["graph_break"], counters
"""


@pytest.mark.soak
def test_a_compiled_run_is_that_run(tmp_path: Path) -> None:
    """It compiles for the size of its steps alone, keeps the code, and goes on without it.

    In a process of its own: here annotations are checked at each call, which is no code to compile.
    """
    code = tmp_path / "hssl" / "compiled"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    command = [sys.executable, "-c", COMPILED, str(tmp_path / "cut")]
    subprocess.run(command, env=environment, cwd=Path(__file__).parents[3], check=True, timeout=400)
    assert list(code.rglob("*.so"))
    assert code.stat().st_mode & 0o077 == 0
    saved = CheckpointStore(str(tmp_path / "cut")).load(3).model.keys()
    whole, resumed = run(tmp_path / "whole", {}), run(tmp_path / "cut", {})
    assert saved == whole.network.state_dict().keys()
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-6)

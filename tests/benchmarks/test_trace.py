"""Traces of training steps, and what a GPU run says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu_summary, trace


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("aten::convolution_backward", "convolution"),
        ("sm90_xmma_fprop_implicit_gemm_bf16", "convolution"),
        ("aten::native_batch_norm_backward", "norm"),
        ("triton_poi_fused_leaky_relu_3", "activation"),
        ("nvjet_tst_128x64_NN", "matrix products"),
        ("aten::bmm", "matrix products"),
        ("void cudnn::ops::nchwToNhwcKernel", "copies and layout"),
        ("Memcpy HtoD (Pinned -> Device)", "copies and layout"),
        ("multi_tensor_apply_kernel<FusedAdamMath>", "optimiser"),
        ("ncclDevKernel_AllReduce_Sum_f32", "communication"),
        ("aten::exp", "other"),
    ],
)
def test_kernels_are_grouped_by_name(name: str, group: str) -> None:
    assert trace.group_of(name) == group


def test_a_trace_s_shares_are_of_the_wall_time() -> None:
    kernels = [trace.Kernel("aten::bmm", 6, 0.5), trace.Kernel("aten::exp", 2, 0.25)]
    found = trace.summarise(kernels, wall_s=1.0, steps=2)
    assert found["groups"] == {"matrix products": 0.5, "other": 0.25, "outside torch": 0.25}
    assert (found["step_ms"], found["busy"]) == (500.0, 0.75)
    assert found["kernels"][0] == {"name": "aten::bmm", "calls": 3.0, "ms": 250.0, "share": 0.5}


@pytest.mark.parametrize("job", ["pretrain", "finetune"])
def test_steps_of_a_job_are_traced(job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tmp_path / "trace.json"
    words = ["--quick", "--job", job, "--warm-up", "1", "--steps", "1", "--json", "--trace", str(whole)]
    trace.main(words)
    found = json.loads(capsys.readouterr().out)
    assert found["groups"]["convolution"] > 0.0
    assert found["busy"] > 0.0
    assert "aten::convolution_backward" in whole.read_text()
    (tmp_path / "trace_encoder.json").write_text(json.dumps(found))
    shown = gpu_summary.summary(tmp_path, ["tests: status 1"])
    assert shown.startswith("# On this GPU, not all of it\n\n- tests: status 1\n")
    assert "| convolution |" in shown

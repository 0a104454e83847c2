"""Which precision `auto` comes to, and that the network runs in it."""

import pytest
import torch

from hssl_dist.training import precision
from hssl_dist.training.precision import autocast, resolved

CPU = torch.device("cpu")
AMD = {"cpu_name": "AMD EPYC", "avx512_bf16": True, "amx_bf16": False}
INTEL = {"cpu_name": "INTEL Xeon", "avx512_bf16": True, "amx_bf16": False}


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        (AMD, "bfloat16"),
        (AMD | {"avx512_bf16": False}, "float32"),
        (INTEL, "float32"),
        (INTEL | {"amx_bf16": True}, "bfloat16"),
        ({"cpu_name": "Neoverse", "bf16": True}, "float32"),
        ({}, "float32"),
    ],
)
def test_auto_is_bfloat16_on_processors_that_are_faster_with_it(
    cpu: dict[str, object], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert resolved("auto", CPU) == expected


def test_torch_that_does_not_tell_gives_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert resolved("auto", CPU) == "float32"


def test_torch_says_of_this_processor_what_the_choice_is_made_by() -> None:
    assert {"cpu_name", "avx512_bf16", "amx_bf16"} <= precision._capabilities().keys()


@pytest.mark.parametrize("emulated", [True, False])
def test_auto_is_bfloat16_on_gpus_that_need_not_emulate_it_else_float16(
    emulated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or not emulated,
    )
    assert resolved("auto", torch.device("cuda")) == ("float16" if emulated else "bfloat16")


@pytest.mark.parametrize("named", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("cpu", [AMD, INTEL])
def test_a_precision_that_is_named_stays(
    named: str, cpu: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert resolved(named, CPU) == named  # type: ignore[arg-type]


@pytest.mark.parametrize(("cpu", "dtype"), [(AMD, torch.bfloat16), (INTEL, torch.float32)])
def test_a_network_runs_in_it(
    cpu: dict[str, object], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    with autocast("auto", CPU):
        assert torch.nn.Linear(4, 4)(torch.zeros(1, 4)).dtype == dtype

"""The benchmarks of acceleration take real steps, here tiny ones."""

from __future__ import annotations

from benchmarks import kept_memory
from benchmarks.acceleration import ARMS, STAGES, build_steps, configured, table
from hssl_dist.config.pretrain import PretrainConfig


def test_an_arm_turns_on_what_it_is_called_by() -> None:
    defaults = PretrainConfig().acceleration.model_dump()
    off = configured(ARMS["all off"], 4, quick=False).acceleration.model_dump()
    assert not any(off[name] for name in defaults if not name.startswith("bucket"))
    for name, settings in ARMS.items():
        (changed,) = settings or {"nothing": None}
        assert changed == "nothing" or name.startswith(changed)
        config = configured(settings, 4, quick=False)
        found = config.acceleration.model_dump() | {"precision": config.precision}
        assert found == off | {"precision": "float32"} | settings


def test_a_step_is_timed() -> None:
    found = build_steps({"recompute_stages": 1}, "decoder", 4, 1, quick=True)()
    assert found["ms"] > 0
    assert found["build_s"] > 0


def test_the_table_has_every_setting() -> None:
    each = {stage: {"ms": 10.0, "mib": 2.0, "build_s": 1.0} for stage in STAGES}
    made = {"settings": dict.fromkeys(ARMS, each), "ranks": {"views": {"ms": 3.0}}}
    assert "| compile | 10 | 2 | 10 | 2 |" in table(made).splitlines()
    assert "| views | 3 |" in table(made).splitlines()


def test_kept_memory_is_measured_in_processes_of_their_own() -> None:
    made = kept_memory.record([4], rounds=1, steps=1, quick=True)
    assert [(row["regions"], row["kept"]) for row in made["results"]] == [(4, False), (4, True)]
    for row in made["results"]:
        assert row["ms"] >= row["system_ms"] >= 0
        assert row["peak_mib"] > 0
    assert len(kept_memory.table(made).splitlines()) == 4

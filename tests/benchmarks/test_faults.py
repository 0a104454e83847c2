"""The soak under faults: its plan and its accounts can tell right from wrong, and a short one is run."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks import faults_figures as figures
from benchmarks.faults import Size, complaints, measure, table
from benchmarks.faults_job import Event, Job, Told, is_training, told
from benchmarks.faults_plan import WEATHER, counts, plan
from benchmarks.faults_soak import Servers, Soak, Storm
from tests.faulty_proxy import FaultyProxy
from tests.tiny_network import NETWORK

# --------------------------------------------------------------------------------------------------- the plan


def test_a_seed_gives_one_plan_of_faults_spread_over_the_time() -> None:
    wanted = counts(10)
    faults = plan(3, 600.0, wanted)
    assert faults == plan(3, 600.0, wanted)
    assert faults != plan(4, 600.0, wanted)
    assert wanted == {"worker killed": 10, "driver terminated": 4, "tracking outage": 6, "storage fault": 12}
    assert counts(0.1) == dict.fromkeys(wanted, 1)
    assert faults == sorted(faults, key=lambda fault: fault.at_s)
    for kind, count in wanted.items():
        parts = [int(fault.at_s / 600.0 * count) for fault in faults if fault.kind == kind]
        assert parts == list(range(count))
    sorts = [fault.weather for fault in faults if fault.weather is not None]
    assert len(sorts) == 12
    assert set(sorts[: len(WEATHER)]) == set(WEATHER)
    for fault in faults:
        if fault.weather is not None:
            assert fault.weather.lasts_s[0] <= fault.lasts_s <= fault.weather.lasts_s[1]


# -------------------------------------------------------------------------------------------------- the lines


def events(*happened: tuple[float, Told, int] | tuple[float, Told]) -> list[Event]:
    return [Event(*each) for each in happened]


def test_lines_of_a_job_are_understood() -> None:
    assert told("joined the Ray cluster at 127.0.0.1:6379") == ("cluster", 0)
    assert told("training on 2 workers") == ("workers", 2)
    assert told("going on from the checkpoint of step 30") == ("resumed", 30)
    assert told("step 31 of 90: loss 3.211 (image 2.102), 51.2 samples/s, data wait 3 %") == ("step", 31)
    assert told("step 30 of 90: checkpoint saved") == ("saved", 30)
    assert told("warning: the checkpoint of step 30 cannot be saved at s3://b/c: ...") is None


def test_a_run_trains_from_the_first_step_of_its_present_workers() -> None:
    before = events((0, "started"), (5, "cluster"), (9, "workers", 2), (10, "step", 1))
    assert not is_training([])
    assert not is_training(before[:3])
    assert is_training(before)
    late = [*before, *events((11, "struck"), (11.2, "step", 2))]  # said before the worker was killed
    assert not is_training(late)
    assert not is_training([*late, *events((20, "workers", 2), (21, "resumed", 1))])
    assert is_training([*late, *events((20, "workers", 2), (21, "resumed", 1), (22, "step", 2))])
    assert not is_training([*before, Event(11, "ended", 3)])


KILLED = events(
    (0, "started"),
    (6, "cluster"),
    (20, "workers", 2),
    (22, "step", 1),
    (23, "step", 2),
    (24, "saved", 2),
    (24, "step", 3),
    (30, "struck"),
    (30.2, "step", 4),
    (41, "workers", 2),
    (42, "resumed", 2),
    (44, "step", 3),
    (45, "step", 4),
    (50, "struck"),  # SIGTERM
    (50.5, "step", 5),
    (51, "ended", 3),
    (51, "saved", 5),
    (52, "started"),
    (59, "cluster"),
    (70, "workers", 2),
    (71, "resumed", 5),
    (72, "step", 6),
    (73, "saved", 6),
)


def test_a_recovery_goes_from_the_kill_to_a_step_of_the_new_workers() -> None:
    assert figures.recoveries(KILLED) == [{"total_s": 14.0, "workers_s": 11.0, "step_s": 3.0}]
    # Storage has ended the attempt before the new workers had done a step.
    assert figures.recoveries([*KILLED[:10], Event(43, "ended", 1), *KILLED[17:]]) == []


def test_a_start_up_has_three_parts() -> None:
    assert figures.startups(KILLED) == [
        {"total_s": 22.0, "cluster_s": 6.0, "workers_s": 14.0, "step_s": 2.0},
        {"total_s": 20.0, "cluster_s": 7.0, "workers_s": 11.0, "step_s": 2.0},
    ]
    assert figures.startups(events((0, "started"), (6, "cluster"), (7, "ended", 1))) == []


def test_steps_done_again_are_lost_work() -> None:
    assert figures.work(KILLED) == {"steps": 6, "recomputed": 2, "recomputed_share": pytest.approx(1 / 3)}
    assert figures.step_seconds(events((1, "step", 1), (3, "step", 2), (4, "step", 3))) == 1.5


def test_a_checkpoint_that_a_restart_does_not_go_on_from_is_lost() -> None:
    assert figures.lost_checkpoints(KILLED, [5, 6], keep_last=2) == []
    older = [
        event if event.number != 5 or event.what != "resumed" else Event(71, "resumed", 2) for event in KILLED
    ]
    assert figures.lost_checkpoints(older, [5, 6], keep_last=2) == [5]
    scratch = [event for event in KILLED if event.what != "resumed"]
    assert figures.lost_checkpoints(scratch, [5, 6], keep_last=2) == [2, 5]
    # Saved, but the job was not told of it before it was struck: no matter.
    newer = [event if event.what != "resumed" else Event(event.at_s, "resumed", 5) for event in KILLED]
    assert figures.lost_checkpoints(newer, [5, 6], keep_last=2) == []


def test_a_checkpoint_that_is_gone_in_the_end_is_lost() -> None:
    assert figures.lost_checkpoints(KILLED, [2, 6], keep_last=2) == [5]
    assert figures.lost_checkpoints(KILLED, [6], keep_last=1) == []


# ------------------------------------------------------------------------------------------- what was tracked

CURVE = {
    "loss": [(1, "3.5"), (2, "3.25"), (3, "3.125")],
    "loss_image": [(1, "2.5"), (2, "2.25")],
    "gradient_norm": [(1, "1.0"), (2, "nan"), (3, "1.0")],
    "samples_per_s": [(1, "10.0"), (2, "11.0"), (3, "12.0")],
    "requests_per_region": [(1, "2.0")],
}
SAME = {
    **dict.fromkeys(("missing", "doubled", "unexpected", "losses_differ", "others_differ"), 0),
    "points": 11,
    "losses": 5,
    "others": 3,
}


def test_equal_curves_differ_in_nothing_but_how_fast_it_went() -> None:
    assert figures.compare(CURVE, CURVE) == SAME
    slower = {**CURVE, "samples_per_s": [(1, "5.0"), (2, "5.0"), (3, "5.0")], "requests_per_region": []}
    assert figures.compare(CURVE, slower) == SAME


@pytest.mark.parametrize(
    ("changed", "figure", "others"),
    [
        ({"loss": [(1, "3.5"), (3, "3.125")]}, "missing", {"losses": 4}),
        ({"samples_per_s": [(1, "5.0"), (2, "5.0")]}, "missing", {}),
        ({"loss": [*CURVE["loss"], (3, "3.125")]}, "doubled", {}),
        ({"loss": [*CURVE["loss"], (4, "3.0")]}, "unexpected", {}),
        ({"odd": [(1, "3.0")]}, "unexpected", {}),
        ({"loss": [(1, repr(math.nextafter(3.5, 4.0))), *CURVE["loss"][1:]]}, "losses_differ", {}),
        ({"loss_image": [(1, "2.5"), (2, "nan")]}, "losses_differ", {}),
        ({"gradient_norm": [(1, "1.0"), (2, "nan"), (3, "1.5")]}, "others_differ", {}),
    ],
)
def test_each_way_in_which_curves_can_differ_counts(
    changed: dict[str, Any], figure: str, others: dict[str, int]
) -> None:
    assert figures.compare(CURVE, CURVE | changed) == {**SAME, figure: 1, **others}


def test_a_metric_that_is_not_there_misses_all_its_points() -> None:
    without = {key: entries for key, entries in CURVE.items() if key != "loss"}
    assert figures.compare(CURVE, without) == {**SAME, "missing": 3, "losses": 2}


def test_samples_are_told_apart_by_count_and_digest() -> None:
    said = {"count": 480, "digest": "00ff"}
    assert figures.misplaced_samples(said, said) == 0
    assert figures.misplaced_samples(said, {"count": 472, "digest": "00aa"}) == 8
    assert figures.misplaced_samples(said, {"count": 480, "digest": "00aa"}) == 1
    with pytest.raises(ValueError, match="does not say which samples"):
        figures.misplaced_samples(said, {"count": 480, "digest": None})


# ------------------------------------------------------------------------------------------------ real things


def test_a_storm_fails_requests_until_it_is_over() -> None:
    with FaultyProxy("http://127.0.0.1:9") as proxy:
        storm = Storm(proxy, WEATHER[-1], 3600.0, seed=0)
        assert [proxy.fault_of("GET", "/a")[0] for _ in range(3)] == [WEATHER[-1].fault] * 3
        assert not storm.is_over()
        storm.end()
        assert proxy.fault_of("GET", "/a")[0] is None
        assert storm.hits == 3
        assert Storm(proxy, WEATHER[-1], 0.0, seed=0).is_over()
        assert proxy.fault_of("GET", "/a")[0] is None


def test_an_attempt_that_ends_as_no_fault_explains_is_an_error(tmp_path: Path) -> None:
    happened: list[Event] = []
    config = tmp_path / "config.json"
    config.write_text('{"no_such_key": 1}')
    around: Any = Servers(None, None, None, None)  # type: ignore[arg-type]  # none is asked for

    def start() -> Job:
        return Job(config, dict(os.environ), tmp_path / "log", happened, os.getpid())

    with pytest.raises(
        RuntimeError, match=r"^the run ended with exit status 2: [\d.]+ hssl pretrain: error: "
    ):
        Soak(start, happened, around, [], 300.0, lambda _: None).run()
    assert [event.what for event in happened] == ["started", "ended"]


@pytest.mark.soak
@pytest.mark.s3
@pytest.mark.timeout(3600)
def test_a_run_under_one_fault_of_each_kind_ends_as_if_there_had_been_none(tmp_path: Path) -> None:
    size = Size(
        volumes=2, shape=(16, 32, 32), patch_size=(4, 8, 8), global_batch=4, steps=200, network=NETWORK
    )
    minutes, said = 0.05, list[str]()  # long before the run is through
    result = measure(tmp_path / "soak", minutes, 1, size, 900.0, said.append)
    assert result["faults"] == dict.fromkeys(counts(minutes), 1), said
    assert result["must_be_zero"] == dict.fromkeys(result["must_be_zero"], 0), said
    assert len(result["must_be_zero"]) == 7
    assert result["passed"]
    assert result["work"]["steps"] == result["samples"]["seen"] / 4 == 200
    assert result["metrics"]["losses"] >= 3 * 200
    assert result["ends"]["0"] == 1
    assert result["ends"].keys() <= {"0", "1", "3"}  # 1 where storage failed longer than it is tried again
    assert result["recovery"]["measured"] <= 1
    assert "nothing is lost, doubled or different" in table(result)
    broken = result | {"must_be_zero": result["must_be_zero"] | {"losses that differ": 2}}
    assert complaints(broken) == ["2 losses that differ, which must be 0"]

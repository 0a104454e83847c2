"""The model of scaling: its parts against numbers done by hand, its plan, its page."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.pieces import OtherSettingsError, Pieces
from benchmarks.scaling import check
from benchmarks.scaling_cost import sample_cost
from benchmarks.scaling_measure import REDUCE_BYTES, compute_line, measure_exchanges, slowdown, specs
from benchmarks.scaling_model import (
    Exchange,
    Line,
    Network,
    core_share,
    errors,
    fit_exchange,
    fit_line,
    predict_memory,
    predict_step,
    tree_rounds,
)
from benchmarks.scaling_plan import (
    ASSUMPTIONS,
    Assumption,
    assumptions,
    by_key,
    gpu_counts,
    plan,
    preparation,
)
from benchmarks.scaling_table import PAGE, RECORD, measured_tables, plan_tables, read
from hssl_dist.config.pretrain import ObjectiveConfig, PretrainConfig, SamplingConfig
from tests.tiny_network import NETWORK

TINY = PretrainConfig(
    global_batch=8, network=NETWORK, sampling=SamplingConfig(patch_size=(4, 8, 8), block_size=4)
)
LARGER = TINY.model_copy(update={"sampling": SamplingConfig(patch_size=(16, 64, 64))})


# ------------------------------------------------------------------------------------------------ the pieces


def test_a_line_is_found_again() -> None:
    line = fit_line({2.0: 0.9, 4.0: 1.5, 8.0: 2.7})
    assert (line.fixed, line.per_one) == (pytest.approx(0.3), pytest.approx(0.3))


@pytest.mark.parametrize(
    ("points", "expected"),
    [({1.0: 2.0, 2.0: 1.0}, (None, 0.0)), ({1.0: 1.0, 4.0: 8.0}, (0.0, None))],
    ids=["falling", "through nothing"],
)
def test_no_part_of_a_line_is_negative(
    points: dict[float, float], expected: tuple[float | None, float | None]
) -> None:
    line = fit_line(points)
    for found, wanted in zip((line.fixed, line.per_one), expected, strict=True):
        assert found == wanted if wanted is not None else found > 0.0


def test_a_line_needs_two_points() -> None:
    with pytest.raises(ValueError, match="two points, got 1"):
        fit_line({1.0: 1.0})


@pytest.mark.parametrize("world", [2, 4])
def test_an_exchange_is_found_again_from_both_kinds(world: int) -> None:
    true = Exchange(1e-4, 2e9)
    gathers = {float(size): true.gather_s(world, size) for size in (1 << 10, 1 << 16, 1 << 20)}
    reductions = {float(size): true.reduce_s(world, size) for size in (1 << 8, 1 << 20, 1 << 24)}
    found = fit_exchange(gathers, reductions, world)
    assert found.latency_s == pytest.approx(1e-4)
    assert found.bytes_per_s == pytest.approx(2e9)


def test_a_ring_moves_what_it_moves() -> None:
    """Three of four ranks' parts to gather, in three rounds; twice that to reduce."""
    exchange = Exchange(0.5, 100.0)
    assert exchange.gather_s(4, 400.0) == 3 * 0.5 + 300.0 / 100.0
    assert exchange.reduce_s(4, 400.0) == 2 * (3 * 0.5 + 300.0 / 100.0)
    assert Exchange(0.5, 100.0, tree_rounds).gather_s(4, 0.0) == 2 * 0.5


@pytest.mark.parametrize(
    ("world", "expected"), [(1, 1.0), (2, 1.2), (4, 2.4), (3, 1.8)], ids=lambda value: str(value)
)
def test_ranks_share_cores(world: int, expected: float) -> None:
    assert core_share(world, cores=2, slowdown=1.2) == pytest.approx(expected)


def test_a_step_adds_up() -> None:
    network = Network(parameters=1000, embedding_size=15)
    step = predict_step(
        Line(0.1, 0.2),
        Exchange(0.0, 1e3),
        network,
        world_size=2,
        global_batch=4,
        share=1.5,
        hidden_share=0.25,
    )
    assert step.compute_s == pytest.approx(1.5 * (0.1 + 0.2 * 2))
    assert step.gather_s == pytest.approx(0.5 * (2 * 4 * 16 * 4) / 1e3)  # both views, a log-sum beside each
    assert step.gradients_s == pytest.approx(0.75 * 2 * 0.5 * 4000 / 1e3)
    assert step.whole_s == pytest.approx(step.compute_s + step.gather_s + step.small_s + step.gradients_s)


def test_one_rank_exchanges_nothing() -> None:
    step = predict_step(
        Line(0.1, 0.2), Exchange(9.0, 1.0), Network(10, 10), world_size=1, global_batch=4, share=1.0,
        hidden_share=0.0,
    )  # fmt: skip
    assert step.whole_s == step.compute_s == pytest.approx(0.9)


def test_memory_of_a_rank_falls_with_its_share_and_grows_with_copies() -> None:
    network, line = Network(1 << 18, 127), Line(100.0, 10.0)
    alone = predict_memory(line, network, world_size=1, global_batch=8, gradient_copies=1)
    of_two = predict_memory(line, network, world_size=2, global_batch=8, gradient_copies=1)
    assert alone == 180.0
    assert of_two == pytest.approx(140.0 + 1.0 + 8 * 2 * 128 * 4 / 2**20)


def test_errors_are_relative() -> None:
    assert errors([1.1, 0.5], [1.0, 1.0]) == [pytest.approx(0.1), -0.5]


# -------------------------------------------------------------------------------------- counted and measured


def test_operations_of_a_network_are_those_of_its_layers() -> None:
    """Of each convolution: 2 * voxels out * weights, forward, and again for each gradient that is wanted."""
    config = TINY.model_copy(update={"objective": ObjectiveConfig(task_weight=0.0, group_weight=0.0)})
    z, y, x = config.sampling.patch_size
    fine, coarse, views = z * y * x, z * y * x // 8, 2
    stem = 1 * 4 * 9
    first = 4 * 4 * 9 + 4 * 4 * 9  # two convolutions of the first stage's block, no shortcut's
    second = 4 * 8 * 27 + 8 * 8 * 27 + 4 * 8
    forward = 2 * views * (fine * (stem + first) + coarse * second)
    without_images = 2 * views * fine * stem  # nobody wants the images' gradient
    projector = 2 * views * (16 * 16 + 16 * 128)
    cost = sample_cost(config, "encoder")
    assert cost.flops == 3 * forward - without_images + 3 * projector


def test_kept_memory_grows_with_the_patch_and_halves_in_bfloat16() -> None:
    larger = TINY.model_copy(update={"sampling": SamplingConfig(patch_size=(8, 8, 8), block_size=4)})
    lower = TINY.model_copy(update={"precision": "bfloat16"})
    kept = sample_cost(TINY, "decoder").kept_bytes
    assert sample_cost(larger, "decoder").kept_bytes == pytest.approx(2 * kept, rel=0.1)
    assert 0.4 * kept < sample_cost(lower, "decoder").kept_bytes < 0.8 * kept


def test_trained_parameters_are_those_of_the_stage() -> None:
    frozen = TINY.model_copy(update={"decoder": TINY.decoder.model_copy(update={"encoder_rate": 0.0})})
    assert sample_cost(frozen, "decoder").parameters < sample_cost(TINY, "decoder").parameters


def test_ranks_exchange_within_the_size_of_what_they_exchange() -> None:
    found = measure_exchanges(2)
    assert set(found) == {"gathers", "reductions"}
    assert min(*found["gathers"].values(), *found["reductions"].values()) > 0.0
    assert found["reductions"][str(REDUCE_BYTES[-1])] > found["reductions"][str(REDUCE_BYTES[0])]


def runs(step_s: float = 0.1) -> dict[str, dict[str, float]]:
    """Runs of a machine that does what the model says, on one core beside any number."""

    def run(seconds: float, mib: float) -> dict[str, float]:
        return {"step_s": seconds, "peak_mib": mib}

    alone = {f"alone, batch {b}": run(step_s * b, 300.0 + 10 * b) for b in (4, 8)}
    return alone | {
        "2 side by side": run(1.1 * 8 * step_s, 0.0),
        "W = 1": run(8 * step_s, 380.0),
        "W = 2": run(1.1 * 4 * step_s, 340.0),
    }


def test_pieces_are_read_from_runs() -> None:
    assert compute_line(runs()).per_one == pytest.approx(0.1)
    assert slowdown(runs()) == pytest.approx(1.1)
    assert slowdown({name: run for name, run in runs().items() if "side" not in name}) == 1.0


def test_a_check_states_the_error_of_each_world() -> None:
    free = {"gathers": {"1024": 1e-9, "65536": 1e-9}, "reductions": {"256": 2e-9, "1048576": 2e-9}}
    found = check(TINY, [1, 2], runs(), {"2": free}, cores=2)
    assert [row["error"] for row in found["checks"]] == [pytest.approx(0.0, abs=1e-3)] * 2
    slower = runs() | {"W = 2": {"step_s": 0.88, "peak_mib": 340.0}}
    assert check(TINY, [1, 2], slower, {"2": free}, cores=2)["checks"][1]["error"] == pytest.approx(
        -0.5, abs=1e-3
    )


def test_runs_have_the_batches_of_the_worlds(tmp_path: Path) -> None:
    arms = {spec.name: spec for spec in specs(TINY, str(tmp_path), [1, 2, 4], 1.0)}
    assert {"alone, batch 2", "alone, batch 4", "alone, batch 8", "W = 1", "W = 2", "W = 4"} <= set(arms)
    assert arms["alone, batch 2"].config["global_batch"] == 2
    assert (arms["W = 4"].config["global_batch"], arms["W = 4"].ranks) == (8, 4)


def test_pieces_go_on_with_the_same_settings_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "kept.json")
    pieces = Pieces(path, {"rounds": 1})
    assert pieces.get("one", lambda: 1) == 1
    growing = pieces.growing("two")
    growing.found["a"] = [1]
    growing.save()
    again = Pieces(path, {"rounds": 1})
    assert again.get("one", lambda: 2) == 1
    assert again.growing("two").found == {"a": [1]}
    with pytest.raises(OtherSettingsError, match=r"other settings \(rounds\)"):
        Pieces(path, {"rounds": 2})


# -------------------------------------------------------------------------------------------------- the plan


@pytest.fixture(scope="module")
def known() -> list[Assumption]:
    return assumptions()


def changed(known: list[Assumption], **values: float) -> list[Assumption]:
    return [replace(a, value=values.get(a.name, a.value)) for a in known]


FREE = {"fetched_bytes_per_region": 1.0, "core_s_per_region_fetched": 1e-9, "stored_bytes_per_volume": 1.0}
FREE |= {"core_s_per_region_cached": 0.0}
FAST = {"in_node_bytes_per_s": 1e18, "between_nodes_bytes_per_s": 1e18}


def test_every_assumption_has_a_kind_and_a_source(known: list[Assumption]) -> None:
    for one in known:
        assert one.kind in {"record", "published", "assumption"}
        assert one.source
        assert math.isfinite(one.value)
        assert one.value > 0


def test_an_entry_that_yaml_has_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "assumptions.yaml"
    path.write_text("gpu:\n  spread: {value: 1, kind: assumption, source: this, and that}\n")
    with pytest.raises(ValueError, match=r"gpu.spread has and that; quote what has commas"):
        assumptions(path)


def test_without_data_and_exchanges_gpus_scale_until_the_batch_is_capped(known: list[Assumption]) -> None:
    ideal = changed(known, **FREE, latency_s=1e-15, spread=1e-9, **FAST)
    small_loss = LARGER.model_copy(update={"objective": ObjectiveConfig(projection_size=1)})
    _, rows = plan(ideal, [1, 8, 128, 1024], small_loss)
    assert [row.global_batch for row in rows] == [64, 512, 8192, 8192]
    assert [row.efficiency for row in rows[:3]] == [pytest.approx(1.0, abs=0.02)] * 3
    # Eight samples a GPU of 64, where half of the rate is at four: 8 / 12 over 64 / 68.
    assert rows[3].efficiency == pytest.approx((8 / 12) / (64 / 68), rel=0.05)


def test_reading_that_is_slower_than_the_step_is_the_wall(known: list[Assumption]) -> None:
    slow = changed(known, bytes_per_s=1e6)
    _, (row,) = plan(slow, [8], TINY)
    assert row.wall.name == "object storage, all nodes together"
    assert row.wall.taken > 1.0
    step_s = row.compute_s + row.gather_s + row.gradients_s + row.waiting_s
    assert row.samples_per_s == pytest.approx(row.global_batch / (step_s + row.data_s))
    assert row.data_s == pytest.approx(step_s * (row.wall.taken - 1.0))


def test_a_cache_is_of_no_use_where_a_node_draws_few_regions_of_a_volume(known: list[Assumption]) -> None:
    _, (few, many) = plan(known, [8, 1024], LARGER)
    assert (few.cached, many.cached) == (True, False)


def test_hours_are_those_of_the_budget_and_faults_cost_some(known: list[Assumption]) -> None:
    given = by_key(known)
    _, (row,) = plan(known, [64], TINY)
    samples = given["data.volumes"] * given["data.regions_per_volume"]
    assert row.hours * (1.0 - row.lost_share) * 3600 == pytest.approx(samples / row.samples_per_s)
    a_day = changed(known, gpu_days_per_fault=64.0)
    assert plan(a_day, [64], TINY)[1][0].lost_share == pytest.approx((8.8 + 300 + 300) / 86400, rel=0.01)


def test_preparing_is_counted_from_the_record(known: list[Assumption]) -> None:
    given = by_key(known)
    found = preparation(given)
    assert found["core_hours"] == pytest.approx(1e5 * given["data.core_s_per_volume_prepared"] / 3600)
    assert found["decoded_gb"] == pytest.approx(1e5 * 256**3 * 2 / 1e9)


# -------------------------------------------------------------------------------------------------- the page


def test_the_page_has_the_tables_of_the_assumptions_and_of_the_record() -> None:
    page, tables = PAGE.read_text(), plan_tables()
    assert tables in page
    assert measured_tables(read(RECORD)) in page
    assert all(f"\n| {count} | " in tables for count in gpu_counts())
    assert ASSUMPTIONS.name in page


def test_without_a_record_the_page_says_so() -> None:
    assert measured_tables(None).startswith("Not measured: there is no record yet.")

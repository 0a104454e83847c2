"""Whom the ranks blame, by what each says of itself; what one process alone notes."""

from typing import Any

from hssl_dist import watchdog
from hssl_dist.watchdog.position import Rank
from hssl_dist.watchdog.verdict import DONE, GAVE_UP, Verdict, judge

GONE = "does not answer: its process or its machine is gone or stands still, look at its log"


def at(number: int, *, waiting: bool, what: str = "summing", step: int | None = 3) -> dict[str, Any]:
    return {"number": number, "what": what, "step": step, "waiting": waiting, "at": "a.py:1 in f"}


def test_the_rank_behind_is_missing() -> None:
    answers = {0: at(5, waiting=True), 1: at(4, waiting=False), 2: at(5, waiting=True)}
    said = "rank 1 did not come, it is at a.py:1 in f, past summing in step 3"
    assert judge(3, answers, {}) == Verdict((1,), said)
    answers[1] = at(0, waiting=False)
    assert (
        judge(3, answers, {}).text == "rank 1 did not come, it is at a.py:1 in f, before its first collective"
    )


def test_a_rank_that_waits_itself_is_not_to_blame_for_being_behind() -> None:
    """Where a broadcast lets its source go on before all have it."""
    answers = {0: at(6, waiting=True), 1: at(4, waiting=False), 2: at(5, waiting=True)}
    assert judge(3, answers, {}).missing == (1,)
    answers[1] = at(5, waiting=True)
    assert judge(3, answers, {}).missing == (1, 2)


def test_ranks_that_are_gone_come_first_and_an_error_before_silence() -> None:
    answers = {0: at(5, waiting=True), 1: at(4, waiting=False)}
    assert judge(3, answers, {}) == Verdict((2,), f"rank 2 {GONE}", gone=True)
    left = {1: "StoreError: no shard"}
    assert judge(3, {0: at(5, waiting=True)}, left) == Verdict(
        (1,), "rank 1 ended with StoreError: no shard", gone=True
    )


def test_a_rank_that_gave_up_is_no_cause() -> None:
    assert judge(3, {0: at(5, waiting=True)}, {1: GAVE_UP}) == Verdict((2,), f"rank 2 {GONE}", gone=True)


def test_many_ranks_are_counted() -> None:
    verdict = judge(9, {0: at(5, waiting=True)}, {})
    assert verdict.missing == tuple(range(1, 9))
    assert verdict.text.endswith(f"rank 4 {GONE}; and 4 more ranks")


def test_where_nobody_is_behind_the_collectives_differ_or_one_hangs_inside() -> None:
    answers = {0: at(5, waiting=True), 1: at(5, waiting=True)}
    assert judge(2, answers, {}) == Verdict(
        (), "all ranks have come to it: see in their stacks which one hangs"
    )
    answers[1] = at(5, waiting=True, what="gathering rows")
    assert judge(2, answers, {}).text == (
        "rank 0 is at summing, rank 1 at gathering rows: start all ranks with the same config and code"
    )
    assert judge(2, {0: at(5, waiting=True)}, {1: DONE}).text == (
        "rank 1 has ended already: start all ranks with the same config and code"
    )


def test_notes_count_the_collectives_and_end_with_them() -> None:
    before = Rank.position.number
    with watchdog.noted("summing", timeout_s=2.0):
        inside = Rank.position
    assert (inside.number, inside.what, inside.waiting, inside.timeout_s) == (
        before + 1,
        "summing",
        True,
        2.0,
    )
    assert Rank.position == inside._replace(waiting=False)
    assert watchdog.explain() is None

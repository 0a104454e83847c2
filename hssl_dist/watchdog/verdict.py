"""Whom the ranks wait for, from what each says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hssl_dist.watchdog.position import words_of

_NAMED_RANKS = 4
DONE, GAVE_UP = "done", ""
"""How a rank has left, if not with an error of its own."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whom the ranks wait for; `gone` says that one of those cannot come any more. `text` names them."""

    missing: tuple[int, ...]
    text: str
    gone: bool = False


def judge(world_size: int, answers: Mapping[int, Mapping[str, Any]], left: Mapping[int, str]) -> Verdict:
    """Who did not come, by the positions of the ranks that answered and by how the others have left.

    To blame are the ranks that left with an error, else those that neither answered nor left, else those
    furthest behind that do not wait themselves.
    """
    said = {rank: f"ended with {how}" for rank, how in left.items() if how not in (DONE, GAVE_UP)}
    if not said:
        silent = (rank for rank in range(world_size) if rank not in answers and rank not in left)
        said = dict.fromkeys(
            silent, "does not answer: its process or its machine is gone or stands still, look at its log"
        )
    gone = bool(said)
    if not said:
        furthest = max((answer["number"] for answer in answers.values()), default=0)
        behind = {rank: answer for rank, answer in answers.items() if answer["number"] < furthest}
        behind = {rank: answer for rank, answer in behind.items() if not answer["waiting"]} or behind
        said = {rank: f"did not come, it is {_where(answer)}" for rank, answer in behind.items()}
    if not said:
        return Verdict((), _nobody_missing(answers, left))
    named = sorted(said)[:_NAMED_RANKS]
    more = f"; and {len(said) - len(named)} more ranks" if len(said) > len(named) else ""
    text = "; ".join(f"rank {rank} {said[rank]}" for rank in named) + more
    return Verdict(tuple(sorted(said)), text, gone)


def _where(answer: Mapping[str, Any]) -> str:
    if not answer["number"]:
        return f"at {answer['at']}, before its first collective"
    place = "in" if answer["waiting"] else "past"
    return f"at {answer['at']}, {place} {answer['what']}{words_of(answer['step'])}"


def _nobody_missing(answers: Mapping[int, Mapping[str, Any]], left: Mapping[int, str]) -> str:
    """Of ranks that have all come to as many collectives, or ended."""
    done = [rank for rank, how in sorted(left.items()) if how == DONE]
    doing = {rank: answer["what"] for rank, answer in sorted(answers.items())}
    if done:
        return f"rank {done[0]} has ended already: start all ranks with the same config and code"
    if len(set(doing.values())) > 1:
        first, other = min(doing), next(rank for rank in doing if doing[rank] != doing[min(doing)])
        return (
            f"rank {first} is at {doing[first]}, rank {other} at {doing[other]}: start all ranks with the "
            "same config and code"
        )
    return "all ranks have come to it: see in their stacks which one hangs"

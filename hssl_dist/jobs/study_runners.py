"""The pieces of a study, one after the other in this process or as tasks on Ray.

A piece that fails is told with its reason and stops no other.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from hssl_dist.console import Console
from hssl_dist.errors import HsslError, Interrupted
from hssl_dist.jobs import cluster

if TYPE_CHECKING:
    from hssl_dist.config.study import StudyConfig

Item = TypeVar("Item")
Result = TypeVar("Result")

_POLL_S = 0.5
_STOPPED = "what is done is kept; run it again to go on"


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a piece has no result, in one line."""

    reason: str


def run_pieces(
    config: StudyConfig,
    items: Sequence[Item],
    work: Callable[[Item, Console], Result],
    console: Console,
    should_stop: Callable[[], bool],
) -> Iterator[tuple[Item, Result | Failed]]:
    """Each item with what `work` made of it, as they come. Raises Interrupted once a stop is asked for.

    On Ray, which has to be connected, as many at once as there are CPUs or GPUs for.
    """
    if config.runner == "ray":
        yield from _on_ray(config.threads, items, work, should_stop)
        return
    for item in items:
        if should_stop():
            raise Interrupted(_STOPPED)
        yield item, _attempt(work, item, console)


def _on_ray(
    threads: int,
    items: Sequence[Item],
    work: Callable[[Item, Console], Result],
    should_stop: Callable[[], bool],
) -> Iterator[tuple[Item, Result | Failed]]:
    """Each item as a task with `threads` CPUs, where a node has them, and a GPU where there are GPUs."""
    import ray
    from ray.exceptions import RayError

    remote: Any = ray.remote(_attempt_there)
    task = remote.options(max_retries=0, **cluster.task_resources(threads))
    pending = {task.remote(work, item): item for item in items}
    try:
        while pending:
            if should_stop():
                raise Interrupted(_STOPPED)
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=_POLL_S)
            for reference in ready:
                item = pending.pop(reference)
                try:
                    yield item, ray.get(reference)
                except RayError as error:  # a worker that crashed, was killed, or ran out of memory
                    yield item, Failed(f"its Ray worker was lost: {_first_line(error)}")
    finally:
        for reference in pending:
            ray.cancel(reference)


def _attempt_there(work: Callable[[Item, Console], Result], item: Item) -> Result | Failed:
    return _attempt(work, item, Console())


def _attempt(work: Callable[[Item, Console], Result], item: Item, console: Console) -> Result | Failed:
    try:
        return work(item, console)
    except Interrupted:
        raise
    except HsslError as error:
        return Failed(str(error))
    except Exception as error:  # noqa: BLE001  (whatever it is, the other pieces go on)
        console.say(traceback.format_exc())
        return Failed(f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

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
from hssl_dist.jobs.study_memory import PROCESS_BYTES

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
    memory_bytes: Callable[[Item], int],
) -> Iterator[tuple[Item, Result | Failed]]:
    """Each item with what `work` made of it, as they come. Raises Interrupted once a stop is asked for.

    On Ray, which has to be connected, as many at once as there are CPUs or GPUs, and memory, for; the others
    wait. `memory_bytes` is about what an item takes where there is no GPU.
    """
    if config.runner == "ray":
        yield from _on_ray(config.threads, items, work, console, should_stop, memory_bytes)
        return
    for item in items:
        if should_stop():
            raise Interrupted(_STOPPED)
        yield item, _attempt(work, item, console)


def _on_ray(
    threads: int,
    items: Sequence[Item],
    work: Callable[[Item, Console], Result],
    console: Console,
    should_stop: Callable[[], bool],
    memory_bytes: Callable[[Item], int],
) -> Iterator[tuple[Item, Result | Failed]]:
    """Each item as a task with `threads` CPUs and its memory, where a node has them, and a GPU where there
    are GPUs: activations are in its own memory then. At a stop, those that have begun are waited for.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    from hssl_dist.jobs.liaison import Relay, start_liaison

    remote: Any = ray.remote(_attempt_there)
    resources, most_bytes = cluster.task_resources(threads), cluster.most_memory_bytes()
    liaison, pending = start_liaison(), {}
    for number, item in enumerate(items):
        need_bytes = PROCESS_BYTES if resources["num_gpus"] else memory_bytes(item)
        task = remote.options(max_retries=0, memory=min(need_bytes, most_bytes), **resources)
        pending[task.remote(liaison, number, work, item)] = number, item
    relay = Relay(liaison, console, should_stop)
    try:
        while pending and (relay.begun is None or relay.begun & {number for number, _ in pending.values()}):
            relay.poll()
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=_POLL_S)
            for reference in ready:
                _, item = pending.pop(reference)
                try:
                    yield item, ray.get(reference)
                except RayTaskError as error:
                    # Its worker is there: the task was stopped, or its result cannot be sent.
                    if relay.begun is None or not isinstance(error.cause, Interrupted):
                        yield item, _failed(error.cause)
                except RayError as error:  # a worker that crashed, was killed, or ran out of memory
                    yield item, Failed(f"its Ray worker was lost: {_first_line(error)}")
        if relay.begun is not None:
            raise Interrupted(_STOPPED)
    finally:
        for reference in pending:
            ray.cancel(reference)


def _attempt_there(
    liaison: Any, number: int, work: Callable[[Item, Console], Result], item: Item
) -> Result | Failed:
    from hssl_dist.jobs.liaison import working

    with working(liaison, number):
        return _attempt(work, item, Console())


def _attempt(work: Callable[[Item, Console], Result], item: Item, console: Console) -> Result | Failed:
    try:
        return work(item, console)
    except Interrupted:
        raise
    except HsslError as error:
        return _failed(error)
    except Exception as error:  # noqa: BLE001  (whatever it is, the other pieces go on)
        console.say(traceback.format_exc())
        return _failed(error)


def _failed(error: BaseException) -> Failed:
    if isinstance(error, HsslError):
        return Failed(str(error))
    if isinstance(error, Interrupted):
        return Failed(f"it was asked to stop; {_STOPPED}")
    return Failed(f"{type(error).__name__}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

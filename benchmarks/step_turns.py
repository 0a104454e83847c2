"""Arms that are measured in turns: each a process that runs some steps when told, then stands still.

So drifts of the machine hit all arms alike, and no arm shares an allocator, its settings or warm threads with
another. Between turns an arm and all its workers and ranks are stopped by SIGSTOP: nothing is read ahead
meanwhile. `Arm` is the side that tells, `Turns` the arm's own.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from benchmarks.measuring import CannotRun, own_memory_mib, tree_memory, tree_usage

START_TIMEOUT_S = 900.0
TURN_TIMEOUT_S = 900.0
_END_S = 20.0


@dataclass(frozen=True)
class ArmSpec:
    """One arm, as it travels to its process."""

    name: str
    kind: str
    """A key of `step_child.KINDS`."""
    folder: str
    """The workload's; see `step_data`."""
    config: dict[str, Any] = field(default_factory=dict)
    """A `PretrainConfig`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What of the config's `acceleration` is not as the run's config has it; for the reader alone."""
    stage: str = "encoder"
    device: str = "cpu"
    cores: tuple[int, ...] = ()
    """Processor cores that all of the arm has; whatever this process has, if empty."""
    threads: int = 1
    """Of torch, in each rank."""
    ranks: int = 1
    together: bool = True
    """Whether the ranks are a process group, or as many runs side by side that know nothing of each other."""
    workers: int = 0
    """Worker processes that a peer's loop reads with."""
    turn_s: float = 4.0
    """A turn has as many steps as fit, at least one."""
    options: dict[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------- the side that tells


class Arm:
    """A process that runs an arm; use it as a context."""

    def __init__(self, spec: ArmSpec) -> None:
        self.spec = spec
        self.about: dict[str, Any] = {}
        self.log = Path(spec.folder) / f"{spec.name.replace(' ', '-').replace('/', '-')}.log"

    def __enter__(self) -> Self:
        own, theirs = os.pipe(), os.pipe()  # to the arm, from the arm
        environment = os.environ | {
            "OMP_NUM_THREADS": str(self.spec.threads),
            "ARM_PIPES": f"{own[0]},{theirs[1]}",
        }
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.step_child", json.dumps(asdict(self.spec))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(own[0], theirs[1]),
                env=environment,
                start_new_session=True,
            )
        os.close(own[0])
        os.close(theirs[1])
        self._to, self._from = os.fdopen(own[1], "w"), os.fdopen(theirs[0])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it and all that it started."""
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self._to.close()  # the arm reads the end of its pipe, and ends
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S if error is None else 1.0)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._from.close()

    def start(self) -> CannotRun | None:
        """Have it warm up, and wait for that."""
        self._say("warm")
        found = self._answer(START_TIMEOUT_S)
        if isinstance(found, CannotRun):
            return found
        self.about = found
        self._signal(signal.SIGSTOP)
        return None

    def turn(self) -> dict[str, Any] | CannotRun:
        """One turn's figures."""
        self._signal(signal.SIGCONT)
        before = tree_usage(self._process.pid)
        self._say("go")
        found = self._answer(TURN_TIMEOUT_S)
        if isinstance(found, CannotRun):
            return found
        found["cpu_s"] = tree_usage(self._process.pid).cpu_s - before.cpu_s
        found["memory_mib"] = round(tree_memory(self._process.pid).private_mib, 1)
        self._signal(signal.SIGSTOP)
        return found

    def _say(self, word: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._to.write(f"{word}\n")
            self._to.flush()

    def _answer(self, timeout_s: float) -> Any:
        ready, _, _ = select.select([self._from], [], [], timeout_s)
        line = self._from.readline() if ready else ""
        if line:
            answer = json.loads(line)
            return CannotRun(answer["cannot_run"]) if "cannot_run" in answer else answer
        if ready:  # it says why before it ends
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
        reason = "ended" if ready else f"did not answer in {timeout_s:g} s"
        last = self.log.read_text().strip().splitlines()[-1:]
        return CannotRun(f"{reason}: {last[0]}" if last else reason)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class Kept(Protocol):
    """What earlier runs have measured, and where this one's goes."""

    @property
    def found(self) -> dict[str, Any]:
        """Outcomes, which are added to."""

    def save(self) -> None:
        """Keep them."""


def in_turns(
    specs: list[ArmSpec],
    rounds: int,
    say: Callable[[str], None],
    kept: Kept | None = None,
    until_s: float = math.inf,
) -> dict[str, Any]:
    """By each arm's name what it said of itself, as `about`, and its `turns`; or why it `cannot_run`.

    Every second round goes the other way round. The rounds that are `kept` are not done again. After
    `time.monotonic()` has come to `until_s` no arm and no round is begun.
    """
    outcomes: dict[str, Any] = {} if kept is None else kept.found
    done = min((len(found["turns"]) for found in outcomes.values() if "turns" in found), default=0)
    if outcomes and done >= rounds:
        return outcomes
    wanted = [spec for spec in specs if "cannot_run" not in outcomes.get(spec.name, {})]
    with contextlib.ExitStack() as stack:
        arms = [stack.enter_context(Arm(spec)) for spec in wanted]  # all of them import meanwhile
        running = [arm for arm in arms if _warm(arm, outcomes, say, until_s)]
        for number in range(done, rounds):
            if time.monotonic() > until_s:
                break
            found: list[tuple[Arm, dict[str, Any]]] = []
            for arm in running if number % 2 == 0 else running[::-1]:
                turn = arm.turn()
                if isinstance(turn, CannotRun):
                    _refuse(arm, turn.reason, outcomes, say)
                else:
                    found.append((arm, turn))
            for arm, turn in found:  # a round is kept as a whole
                outcomes[arm.spec.name]["turns"].append(turn)
            running = [arm for arm in running if "cannot_run" not in outcomes[arm.spec.name]]
            if kept is not None:
                kept.save()
            say(f"round {number + 1} of {rounds}")
    for arm in running:
        if not outcomes[arm.spec.name]["turns"]:
            _refuse(arm, "no time was left for a turn", outcomes, say)
    return outcomes


def _warm(arm: Arm, outcomes: dict[str, Any], say: Callable[[str], None], until_s: float) -> bool:
    """Start an arm; whether it goes on."""
    began_s = time.monotonic()
    if began_s > until_s:
        _refuse(arm, "no time was left for it", outcomes, say)
        return False
    failure = arm.start()
    if failure is not None:
        _refuse(arm, failure.reason, outcomes, say)
        return False
    outcomes.setdefault(arm.spec.name, {"turns": []})["about"] = arm.about
    say(f"{arm.spec.name}: warm after {time.monotonic() - began_s:.0f} s")
    return True


def _refuse(arm: Arm, reason: str, outcomes: dict[str, Any], say: Callable[[str], None]) -> None:
    outcomes[arm.spec.name] = {"cannot_run": reason}
    say(f"{arm.spec.name}: cannot run: {reason}")


# ---------------------------------------------------------------------------------------------- the arm's own


class Stop(Exception):  # noqa: N818  (no error)
    """The arm is to end."""


class Turns:
    """Tells an arm's loop when to go on; the loop calls `after_step` once a step is wholly done.

    The first `warm_up` steps warm up; the last of them says how many steps fit into a turn. Between turns
    `release` gives back memory that others may need; then the first `lead` steps of a turn, which take it
    again, do not count.
    """

    def __init__(
        self, turn_s: float, warm_up: int = 2, lead: int = 0, release: Callable[[], None] = lambda: None
    ) -> None:
        read, write = map(int, os.environ["ARM_PIPES"].split(","))
        self._in, self._out = os.fdopen(read), os.fdopen(write, "w")
        self._turn_s, self._warm_up, self._lead, self._release = turn_s, warm_up, lead, release
        self._size, self._left, self._leading = 0, 0, 0
        self._start_s, self._thread_s = time.perf_counter(), 0.0

    def wait_for_start(self) -> None:
        """Wait until the arm may warm up. Raises Stop."""
        if not self._in.readline():
            raise Stop

    def after_step(
        self,
        finish: Callable[[], dict[str, Any]],
        begin: Callable[[], None],
        about: Callable[[], dict[str, Any]],
        drain: Callable[[], None],
    ) -> None:
        """At the end of a turn, `drain` the device, answer with what `finish` gives, and wait for the next,
        which `begin` starts; after the warm-up, with what `about` gives. Raises Stop.
        """
        if self._warm_up:
            self._warm(about, drain)
        elif self._leading:
            self._leading -= 1
        else:
            self._left -= 1
            if self._left:
                return
            drain()
            figures = {
                "steps": self._size,
                "wall_s": time.perf_counter() - self._start_s,
                "thread_s": time.thread_time() - self._thread_s,
            }
            self._answer(figures | finish() | {"peak_mib": round(own_memory_mib("VmHWM"), 1)})
        if self._warm_up or self._leading:
            return
        if not self._left:
            self._next_turn()
            if self._leading:
                return
        drain()
        begin()
        self._start_s, self._thread_s = time.perf_counter(), time.thread_time()

    def refuse(self, reason: str) -> None:
        """Say why the arm cannot run."""
        self._answer({"cannot_run": reason})

    def close(self) -> None:
        """Hear and say no more."""
        self._in.close()
        self._out.close()

    def _warm(self, about: Callable[[], dict[str, Any]], drain: Callable[[], None]) -> None:
        drain()
        now_s = time.perf_counter()
        self._warm_up -= 1
        if not self._warm_up:
            self._size = max(1, round(self._turn_s / (now_s - self._start_s)))
            self._answer(about() | {"steps_per_turn": self._size})
        self._start_s = now_s

    def _next_turn(self) -> None:
        self._release()
        if not self._in.readline():
            raise Stop
        self._left, self._leading = self._size, self._lead

    def _answer(self, found: dict[str, Any]) -> None:
        self._out.write(json.dumps(found) + "\n")
        self._out.flush()

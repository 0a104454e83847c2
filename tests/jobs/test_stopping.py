"""Signals ask a run to stop; a second Ctrl-C acts as it did before."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from hssl_dist.jobs.stopping import asked_by, stop_requests


@pytest.fixture(autouse=True)
def _python_handles_ctrl_c() -> Iterator[None]:
    """A background process may be started with Ctrl-C ignored; these tests are about the usual case."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_requests() as stop_requested:
        assert not stop_requested()
        os.kill(os.getpid(), number)
        assert stop_requested()
    assert signal.getsignal(number) is before


def test_sigterm_asks_again() -> None:
    """Kubernetes and Slurm send it more than once: that must not end what is saving its state."""
    with stop_requests() as stop_requested:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested()


def test_the_second_ctrl_c_interrupts() -> None:
    with stop_requests():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_is_around_hears_it_too(number: signal.Signals) -> None:
    """A piece's last steps ask no more: its study would go on with the next."""
    with stop_requests() as around:
        with stop_requests():
            os.kill(os.getpid(), number)
        assert around()
        with stop_requests() as next_piece:
            assert next_piece()
    with stop_requests() as another:
        assert not another()


def test_the_second_ctrl_c_interrupts_inside_another_job_too() -> None:
    with stop_requests(), stop_requests() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_come_back_without_a_signal() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_gets_no_signals() -> None:
    answers = []

    def ask() -> None:
        with stop_requests() as stop_requested:
            answers.append(stop_requested())

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert answers == [False]


def test_who_is_asked_elsewhere_is_asked_here() -> None:
    elsewhere = threading.Event()
    with asked_by(elsewhere.is_set), stop_requests() as stop_requested:
        assert not stop_requested()
        elsewhere.set()
        assert stop_requested()
    with stop_requests() as stop_requested:
        assert not stop_requested()

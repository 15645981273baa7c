"""InterruptRouter at the worker's end of a lane."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from snakepit_kernel.lane.control_page import ControlPage
from snakepit_kernel.worker.interrupts import InterruptRouter, install

CALL = 7


@pytest.fixture
def page() -> Iterator[ControlPage]:
    before = signal.getsignal(signal.SIGINT)
    page = ControlPage.create(1)
    yield page
    page.close()
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits_for_what_must_not_be_half_done(page):
    control = page.control(0)
    interrupts = InterruptRouter(control)
    install(interrupts, [])
    done: list[str] = []

    def call() -> None:
        with interrupts.deferred():
            control.interrupted_call = CALL
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.01)
            done.append("all of it")
        time.sleep(10)
        done.append("too much")

    with pytest.raises(KeyboardInterrupt):
        interrupts.run(CALL, call)

    assert done == ["all of it"]
    assert control.acknowledged_call == CALL


def test_it_waits_for_the_outer_one_when_one_of_them_is_inside_of_another(page):
    control = page.control(0)
    interrupts = InterruptRouter(control)
    install(interrupts, [])
    done: list[str] = []

    def call() -> None:
        with interrupts.deferred():
            control.interrupted_call = CALL
            with interrupts.deferred():
                signal.raise_signal(signal.SIGINT)
            time.sleep(0.01)
            done.append("all of it")
        done.append("too much")

    with pytest.raises(KeyboardInterrupt):
        interrupts.run(CALL, call)

    assert done == ["all of it"]


def test_an_interrupt_that_comes_later_is_not_put_off(page):
    control = page.control(0)
    interrupts = InterruptRouter(control)
    install(interrupts, [])
    with interrupts.deferred():
        pass

    def call() -> None:
        control.interrupted_call = CALL
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupts.run(CALL, call)

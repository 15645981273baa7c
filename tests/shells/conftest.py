"""Sessions with shells for the tests of this folder, and a check for errors that nobody saw."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from snakepit_kernel import Pool
from snakepit_kernel.errors import SessionNotFound
from snakepit_kernel.processes import template as template_module
from snakepit_kernel.sessions.state import SessionState, open_session
from snakepit_kernel.shells.manager import manager
from snakepit_kernel.shells.shell import Shell


class Complaints(logging.Handler):
    """What asyncio and the shells report: exceptions that nobody retrieved, ends that failed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(logging.Formatter().format(record))


@pytest.fixture(scope="module", autouse=True)
def complaints() -> Iterator[Complaints]:
    """Fail a module in which an exception was never retrieved."""
    handler = Complaints()
    watched = [logging.getLogger(name) for name in ("asyncio", "concurrent.futures")]
    for logger in watched:
        logger.addHandler(handler)
    yield handler
    gc.collect()
    for logger in watched:
        logger.removeHandler(handler)
    assert handler.texts == []


@pytest.fixture(scope="module", autouse=True)
def running_manager(complaints: Complaints) -> Iterator[None]:
    """Start the thread that drives shells before the tests of a module, and end it with them."""
    if not template_module.templates():  # from which guardians are forked: they are there at once
        with Pool(1):
            pass
    state = open_session("first")
    state.shell.run("true")
    state.processes.start("true").wait()
    state.delete()
    yield
    manager.close()


@pytest.fixture
def open_one() -> Iterator[Callable[..., SessionState]]:
    """Open sessions by name, which are deleted with the test."""
    opened: list[SessionState] = []

    def open_named(name: str = "s", **options: object) -> SessionState:
        opened.append(open_session(name))
        if options:
            opened[-1].open_shell(**options)
        return opened[-1]

    yield open_named
    for state in opened:
        try:
            state.delete()
        except SessionNotFound:
            pass


@pytest.fixture
def session(open_one: Callable[..., SessionState]) -> SessionState:
    return open_one("s")


@pytest.fixture
def shell(session: SessionState) -> Shell:
    return session.shell


@pytest.fixture
def in_background() -> Iterator[Callable[..., Future[Any]]]:
    """Call functions in threads, which end with the test."""
    with ThreadPoolExecutor(16) as threads:
        yield threads.submit

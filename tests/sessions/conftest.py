"""A session in a file of its own, and processes that begin at the same moment."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snakepit_kernel.sessions.state import SessionState, open_session
from snakepit_kernel.store.store import Store, open_store

PRELUDE = """
import sys
from snakepit_kernel.sessions.state import open_session
path = sys.argv[1]
session = open_session("s", store=path)
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(tmp_path / "sessions.sqlite")
    yield store
    store.close()


@pytest.fixture
def session(store: Store) -> SessionState:
    return open_session("s", store=store)


@pytest.fixture
def beside(store: Store) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process with ``session``, the same one; its code begins when it reads a line."""
    started: list[subprocess.Popen[str]] = []

    def begin(code: str, *arguments: object) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        program = PRELUDE + textwrap.dedent(code)
        command = [sys.executable, "-c", program, str(store.path), *map(str, arguments)]
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.__exit__(None, None, None)

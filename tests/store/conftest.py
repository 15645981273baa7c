"""A database of one table, and processes that begin at the same moment."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snakepit_kernel.store.database import Database
from snakepit_kernel.store.store import Store, open_store

PRELUDE = """
import logging, os, sys, time
from pathlib import Path
logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
from snakepit_kernel.sessions.state import open_session
from snakepit_kernel.store.database import Database
from snakepit_kernel.store.store import open_store
path = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
"""


class Child(subprocess.Popen[str]):
    """A Python process that waits for `go`."""

    def __init__(self, path: Path, code: str, *arguments: object) -> None:
        program = PRELUDE + textwrap.dedent(code)
        pipe = subprocess.PIPE
        super().__init__(
            [sys.executable, "-c", program, str(path), *map(str, arguments)],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )

    def wait_ready(self) -> None:
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.stdout is not None
        return self.stdout.readline().rstrip("\n")

    def go(self, word: str = "") -> None:
        assert self.stdin is not None
        self.stdin.write(f"{word}\n")
        self.stdin.flush()

    def end(self) -> tuple[str, str]:
        """Wait for its end; return what it printed and logged."""
        out, errors = self.communicate(timeout=60)
        assert self.returncode == 0, errors
        return out, errors


Start = Callable[..., Child]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.sqlite"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    database = Database(path)
    yield database
    database.close()


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = open_store(path)
    yield store
    store.close()


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    """Start a process that runs code on the file ``path``, once it is told to ``go``."""
    children: list[Child] = []

    def begin(code: str, *arguments: object) -> Child:
        children.append(Child(path, code, *arguments))
        children[-1].wait_ready()
        return children[-1]

    yield begin
    for child in children:
        child.kill()
        child.__exit__(None, None, None)

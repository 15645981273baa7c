"""Names, command lines and errors of others do nothing to the terminal that shows them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

from snakepit_kernel.cli.findings import problem
from snakepit_kernel.ids import new_run_id
from snakepit_kernel.processes.run_registry import Registry

from .test_doctor import write_kernelspec
from .test_status import publish

Run = Callable[..., "subprocess.CompletedProcess[str]"]

EVIL = "\x1b]0;title\x07\u202e\x9b2J"
HARMLESS = r"\x1b]0;title\x07\u202e\x9b2J"

STYLE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
"""What rich itself draws its tables with."""

LOSE = """
import os, subprocess, sys
from snakepit_kernel.processes.run_registry import Registry
Registry().reserve(sys.argv[1], label=sys.argv[2])
os._exit(0)
"""


def assert_harmless(text: str) -> None:
    rest = STYLE.sub("", text).replace("\r", "").replace("\n", "")
    assert rest.isprintable(), [c for c in rest if not c.isprintable()]


@pytest.fixture
def on_terminal(snakepit: Run) -> Callable[..., str]:
    """Run the command with a terminal as its output; give what that was sent."""

    def run(*arguments: str) -> str:
        ours, theirs = pty.openpty()
        try:
            snakepit(*arguments, stdout=theirs, env={"TERM": "xterm", "COLUMNS": "250"})
            os.close(theirs)
            shown = b""
            with contextlib.suppress(OSError):  # as Linux says that the other end is closed
                while chunk := os.read(ours, 65536):
                    shown += chunk
        finally:
            os.close(ours)
        return shown.decode()

    return run


@pytest.fixture
def kept(place: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Give a process that is marked to be kept, and whose command line is evil."""
    tags = {"SNAKEPIT_KEEP": "1", "SNAKEPIT_RUN_ID": new_run_id()}
    command = [sys.executable, "-c", "input()", EVIL]
    with subprocess.Popen(
        command, env={**place.environment, **tags}, stdin=subprocess.PIPE
    ) as process:
        yield process
        process.communicate(b"\n")


def test_the_name_of_a_kernel_does_nothing_to_the_terminal_of_status(
    place: Any, snakepit: Run, on_terminal: Callable[..., str]
) -> None:
    write_kernelspec(place, display_name=f"kernel {EVIL}")
    manager = KernelManager(kernel_name="snakepit")
    manager.start_kernel()
    try:
        shown, piped = on_terminal("status"), snakepit("status").stdout
        (run,) = json.loads(snakepit("status", "--json").stdout)["runs"]
    finally:
        manager.shutdown_kernel()

    for text in (shown, piped, on_terminal("status", "--runs")):
        assert f"kernel {HARMLESS}" in text
        assert_harmless(text)
    assert run["label"] == f"kernel {EVIL}"  # programs get it as it is


def test_the_problem_of_a_pool_does_nothing_to_the_terminal_of_status(
    place: Any, on_terminal: Callable[..., str]
) -> None:
    publish(place.runtime, name="shop", problem=f"adapter says {EVIL}", sessions=[EVIL])

    shown = on_terminal("status")

    assert f"adapter says {HARMLESS}" in shown
    assert_harmless(shown)


def test_a_command_line_does_nothing_to_the_terminal_of_status_and_reap(
    kept: subprocess.Popen[bytes], on_terminal: Callable[..., str]
) -> None:
    for command in (["status"], ["reap", "--kept", "--dry-run"]):
        shown = on_terminal(*command)
        assert str(kept.pid) in shown
        assert HARMLESS in shown
        assert_harmless(shown)


def test_the_name_of_a_dead_kernel_does_nothing_to_the_terminal_of_reap(
    place: Any, on_terminal: Callable[..., str]
) -> None:
    run_id = new_run_id()
    lose = [sys.executable, "-c", LOSE, run_id, f"{EVIL}\nrun 2"]
    subprocess.run(lose, env=place.environment, check=True)

    shown = on_terminal("reap", "--dry-run")

    assert rf"run {run_id} ({HARMLESS}\nrun 2)" in shown
    assert_harmless(shown)
    on_terminal("reap")
    assert Registry().runs() == []


def test_a_finding_of_the_doctor_is_one_harmless_line() -> None:
    finding = problem("kernelspec", f"it says {EVIL}\nmore", EVIL)

    assert finding.line() == f"it says {HARMLESS} more; {HARMLESS}"
    assert finding.as_json()["text"] == f"it says {EVIL}\nmore"


def test_misuse_with_an_evil_argument_is_one_harmless_line(snakepit: Run) -> None:
    done = snakepit("unwrap", EVIL.replace("\x00", ""))

    assert done.returncode == 2
    assert_harmless(done.stderr)

"""A command that is waited for: nothing of it is left, however the wait ends."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from snakepit_kernel import StartFailed
from snakepit_kernel.environments.guarded_command import run_guarded


def run(command: Sequence[str], folder: Path, on_tick: Callable[[], object]) -> tuple[int, str]:
    with tempfile.TemporaryFile() as output:
        status = run_guarded(
            command,
            label="test",
            cwd=folder,
            env={**os.environ},
            output=output,
            on_tick=on_tick,
            holds=[],
        )
        output.seek(0)
        return status, output.read().decode()


def test_its_status_and_its_output_are_given(tmp_path):
    script = "pwd; echo bad >&2; exit 3"

    assert run(["sh", "-c", script], tmp_path, list) == (3, f"{tmp_path}\nbad\n")
    assert run(["sh", "-c", "kill -9 $$"], tmp_path, list) == (-signal.SIGKILL, "")


def test_what_it_has_left_in_the_background_is_gone_when_it_is_over(tmp_path, living):
    assert run(["sh", "-c", "setsid sleep 600 &"], tmp_path, list)[0] == 0

    assert living() == []


def test_an_interrupt_of_the_wait_ends_it_with_all_that_it_has_started(tmp_path, living):
    started: list[int] = []

    def interrupt() -> None:
        started.append(len(living()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", "trap '' TERM INT; setsid sleep 600 & wait"], tmp_path, interrupt)

    assert started[0] >= 3  # its guardian, the shell and its child
    assert living() == []


def test_a_command_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(StartFailed, match="no-such-program"):
        run(["/no-such-program"], tmp_path, list)

"""Shells and processes as runs: what they inherit, and what goes with a dead owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OWNER = """
import sys
from snakepit_kernel import open_session

session = open_session("s", store=sys.argv[1])
session.shell.run("true")
session.processes.start("sleep 60")
print("ready", flush=True)
sys.stdin.read()
"""


def test_an_owner_that_is_killed_leaves_no_folder_behind(tmp_path):
    """Its guardians remove them, without another start."""
    with tempfile.TemporaryDirectory(prefix="spt-") as runtime:  # short enough for sockets
        command = [sys.executable, "-c", OWNER, str(tmp_path / "s.sqlite")]
        environment = {**os.environ, "SNAKEPIT_RUNTIME_DIR": runtime}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as owner:
            owner.stdout.readline()
            assert list(Path(runtime).iterdir())
            owner.send_signal(signal.SIGKILL)
        until = time.monotonic() + 10
        while (left := os.listdir(runtime)) and time.monotonic() < until:
            time.sleep(0.02)  # the guardians are nobody's children
        assert left == []


def test_neither_a_shell_nor_a_process_has_a_variable_that_is_meant_for_kernels(
    session, monkeypatch
):
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    command = 'echo "[${JPY_PARENT_PID-}]"'

    assert session.shell.run(command).stdout == "[]\n"
    process = session.processes.start(command)
    assert process.wait(10) == 0
    assert process.logs().text == "[]\n"


def test_state_is_kept_before_a_command_that_may_exit_without_leaving_it(session):
    shell = session.shell
    shell.run("x=1")
    (shell._driver._code.folder / "leave").unlink()  # as when an interrupt cuts the exit short

    assert shell.run("exit 3").returncode == 3

    assert shell.run("echo $x").stdout == "1\n"

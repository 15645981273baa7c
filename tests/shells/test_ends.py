"""Every end of what owns shells and processes: nothing of them is left, however hard it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from snakepit_kernel import Pool
from snakepit_kernel.errors import ShellClosed
from snakepit_kernel.ids import RUN_ID_VARIABLE, new_run_id
from snakepit_kernel.paths import runtime_dir
from snakepit_kernel.processes.run_folders import sweep_folders
from snakepit_kernel.shells.manager import manager

CHILDREN = r"""
sleep 600 &
setsid sleep 600 </dev/null >/dev/null 2>&1 &
nohup setsid sh -c 'trap "" TERM HUP INT; sleep 600; sleep 600' </dev/null >/dev/null 2>&1 &
(setsid -f sleep 600 &)
env -i setsid -f sleep 600
(trap '' TERM HUP INT; while :; do sleep 600; done) &
coproc sleep 600
true > >(sleep 600)
"""
"""Plain children, in sessions of their own, deaf, forked twice, and without environment."""

OWNER = f"""
import os, signal, sys, threading
from snakepit_kernel import Pool, open_session
from snakepit_kernel.shells import driver, manager
driver.GRACE = manager.GRACE = 0.3
CHILDREN = {CHILDREN!r}
session = open_session("s", store=sys.argv[1])
shell = session.shell
shell.run(CHILDREN)
session.processes.start(CHILDREN + "wait", name="one")
session.processes.start("trap '' TERM; " + CHILDREN + "while :; do sleep 600; done", name="two")
os.environ.pop("SNAKEPIT_RUN_ID", None)
threading.Thread(target=lambda: shell.run("yes; " + CHILDREN + "sleep 600"), daemon=True).start()
while not shell.is_busy:
    pass
print("ready", flush=True)
"""

ENDS = {
    "it returns": "",
    "it raises": "raise KeyError",
    "sys.exit": "sys.exit(3)",
    "os._exit": "os._exit(3)",
    "os.abort": "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.abort()",
    "SIGKILL": "os.kill(os.getpid(), 9)",
    "SIGTERM": "os.kill(os.getpid(), 15); signal.pause()",
    "SIGINT": "os.kill(os.getpid(), 2); signal.pause()",
    "SIGSEGV": "os.kill(os.getpid(), 11)",
    "exec": "os.execvp('true', ['true'])",
    "the session is deleted": (
        "session.delete(); print('deleted', flush=True); sys.stdin.readline()"
    ),
    "the shell is closed and the processes are killed": (
        "shell.close(); session.processes.kill_all(grace=0.2);"
        "print('deleted', flush=True); sys.stdin.readline()"
    ),
}


@pytest.fixture
def start_owner(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    owners: list[subprocess.Popen[str]] = []

    def start(end: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", OWNER + end, str(tmp_path / "store")]
        pipe = subprocess.PIPE
        owner = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        owners.append(owner)
        assert owner.stdout.readline() == "ready\n", owner.stderr.read()
        return owner

    yield start
    for owner in owners:
        owner.kill()
        owner.__exit__(None, None, None)


def of_shells(living: Callable[[], list[Any]]) -> list[str]:
    names = ("sleep", "yes", "bash", "guardian", "sh -c")
    texts = [text for text in map(str, living()) if "open_session" not in text]  # the owner
    return [text for text in texts if any(name in text for name in names)]


@pytest.fixture(autouse=True)
def no_empty_folders(nothing_is_left_behind: object) -> Iterator[None]:
    """Remove empty folders of runs: a start does that when they are a minute old."""
    before = set(Path(os.environ["SNAKEPIT_RUNTIME_DIR"]).iterdir())
    yield
    manager.forget_ended()
    runs = Path(os.environ["SNAKEPIT_RUNTIME_DIR"])
    until = time.monotonic() + 3.0
    while set(runs.iterdir()) - before and time.monotonic() < until:
        sweep_folders()  # what an owner had just made when it died; each start does that
        for path in runs.iterdir():
            with contextlib.suppress(OSError):
                path.rmdir()
        time.sleep(0.02)  # the guardians of a dead owner remove what is in them, and tell nobody


@pytest.mark.parametrize("end", ENDS)
def test_nothing_that_shells_and_processes_have_started_outlives_the_end(
    start_owner, living, until, end
):
    owner = start_owner(ENDS[end])

    if "deleted" in ENDS[end]:
        assert owner.stdout.readline() == "deleted\n", owner.stderr.read()
        assert of_shells(living) == []
        owner.stdin.close()
    owner.wait(20)
    until(lambda: of_shells(living) == [], 6.0)


def test_the_death_of_a_guardian_ends_its_shell_and_the_next_command_has_another(
    session, living, process_of
):
    shell = session.shell
    shell.run(f"x=1; {CHILDREN}")
    shell.checkpoint()
    stat = Path(f"/proc/{shell.pid}/stat").read_text()
    guardian = process_of(int(stat.rpartition(")")[2].split()[1]))
    bash = process_of(shell.pid)

    guardian.kill()
    assert bash.wait_gone()

    result = shell.run("echo $x")
    assert (result.stdout, result.restarted) == ("1\n", True)
    session.delete()
    assert of_shells(living) == []


@pytest.mark.parametrize("way", ["session", "shell", "pool"])
def test_a_close_while_commands_run_and_wait_returns_in_time(tmp_path, living, way, in_background):
    with Pool(1, store=tmp_path / "store") as pool:
        session = pool.session("s")
        shell = session.shell
        shell.run("true")
        running = [in_background(shell.run, f"{CHILDREN} sleep 600") for _ in range(3)]
        while shell.queue_length < 2:
            time.sleep(0.005)
        process = session.processes.start(f"{CHILDREN} sleep 600")

        began = time.monotonic()
        {"session": session.delete, "shell": shell.close, "pool": pool.terminate}[way]()
        assert time.monotonic() - began < 5.0

        for each in running:
            with pytest.raises(ShellClosed):
                each.result(5)
        assert process.is_running == (way == "shell")
    assert of_shells(living) == []


def test_a_close_from_many_threads_at_once_is_one(session, in_background, living):
    shell = session.shell
    shell.run("sleep 600 &")
    for each in [in_background(shell.close) for _ in range(8)]:
        each.result(5)

    assert of_shells(living) == []
    with pytest.raises(ShellClosed):
        shell.run("true")


@pytest.mark.parametrize("delay", [0.0, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08])
def test_a_close_while_the_shell_starts_leaves_nothing(session, in_background, living, delay):
    shell = session.shell
    starting = in_background(shell.run, "true")
    time.sleep(delay)  # somewhere in its start

    shell.close()

    error = starting.exception(5)
    assert error is None or isinstance(error, ShellClosed)
    assert of_shells(living) == []


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.03, 0.06])
def test_a_cancellation_while_the_shell_starts_or_restarts_loses_no_state(session, delay):
    shell = session.shell
    shell.run("x=1")

    async def scenario() -> None:
        task = asyncio.create_task(shell.arun("y=2; exit 3"))
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())

    assert shell.run("echo $x").stdout == "1\n"


def test_two_pools_end_their_own(tmp_path, living):
    with Pool(1, store=tmp_path / "a") as a, Pool(1, store=tmp_path / "b") as b:
        ours, theirs = (pool.session("s").processes.start("sleep 600") for pool in (a, b))
        shell = b.session("s").shell
        shell.run("x=1")
        assert [each.id for each in a.processes.list()] == [ours.id]
        assert ours.pool == a.name

        a.shutdown()

        assert (ours.status, theirs.status) == ("killed", "running")
        assert shell.run("echo $x").stdout == "1\n"
    assert theirs.status == "killed"
    assert of_shells(living) == []


def test_a_detached_process_of_a_deleted_session_ends_with_the_pool(tmp_path, living):
    with Pool(1, store=tmp_path / "store") as pool:
        process = pool.session("s").processes.start("sleep 600")
        pool.session("s").delete(detach=True)
        assert process.is_running
        assert process.id in [each.id for each in pool.processes.list()]
    assert process.status == "killed"
    assert of_shells(living) == []


def test_a_shell_in_a_run_has_a_run_of_its_own(session, monkeypatch):
    monkeypatch.setenv(RUN_ID_VARIABLE, new_run_id())

    ours = session.shell.run(f"echo ${RUN_ID_VARIABLE}").stdout.strip()

    assert ours
    assert ours != os.environ[RUN_ID_VARIABLE]


@pytest.mark.parametrize("number", range(3))
def test_owners_that_are_killed_at_random_leave_nothing(tmp_path, living, until, number):
    program = OWNER.replace('print("ready", flush=True)', "signal.pause()")
    command = [sys.executable, "-c", program, str(tmp_path / "store")]
    owners = []
    for each in range(3):
        owner = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        delay = 0.25 + 0.13 * each + 0.05 * number
        threading.Timer(delay, owner.send_signal, (signal.SIGKILL,)).start()
        owners.append(owner)
    for owner in owners:
        assert owner.wait(20) == -signal.SIGKILL
    until(lambda: of_shells(living) == [], 6.0)
    # One that is killed before it has a guardian leaves its folder to the next start, or to one of
    # a minute later: it may not have written yet whose folder that is. Others go by themselves
    # meanwhile: a guardian and a template remove theirs after their last process.
    for _ in range(2):
        for folder, _, _ in os.walk(runtime_dir()):
            with contextlib.suppress(FileNotFoundError):
                os.utime(folder, (0, 0))
        sweep_folders()


def test_a_program_with_a_terminal_of_its_own_goes_with_its_session(open_one, until, living):
    state = open_one()
    spawn = f"{sys.executable} -c \"import pty; pty.spawn(['sleep', '600'])\""
    threading.Thread(target=fails_or_ends, args=(state.shell, spawn), daemon=True).start()
    until(lambda: any("sleep" in str(process) for process in living()))

    state.delete()

    assert not any("sleep" in str(process) for process in living())


def fails_or_ends(shell, command: str) -> None:
    with contextlib.suppress(ShellClosed):
        shell.run(command)

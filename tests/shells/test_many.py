"""Many shells and processes at once and one after the other: nothing grows, and nothing is slow."""

from __future__ import annotations

import asyncio
import inspect
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

import snakepit_kernel
from snakepit_kernel.shells.shell import Shell

PACKAGE = str(Path(snakepit_kernel.__file__).parent / "shells")
MOMENTS = frozenset({"call", "return", "c_return"})


def test_fifty_sessions_run_at_once(open_one):
    shells = [open_one(f"s{number}").shell for number in range(50)]

    async def scenario() -> list[str]:
        results = await asyncio.gather(
            *(shell.arun(f"x={n}; sleep 0.1; echo $x") for n, shell in enumerate(shells))
        )
        return [result.stdout for result in results]

    assert asyncio.run(scenario()) == [f"{n}\n" for n in range(50)]
    assert asyncio.run(scenario()) == [f"{n}\n" for n in range(50)]


def test_idle_shells_use_no_processor(open_one):
    shells = [open_one(f"s{number}").shell for number in range(5)]
    for shell in shells:
        shell.run("x=1")
        shell.checkpoint()
    time.sleep(0.2)  # the idle checkpoint
    before = (resource.getrusage(resource.RUSAGE_SELF), [_ticks(shell) for shell in shells])

    time.sleep(1.0)  # nothing happens, which is the point

    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before[0].ru_utime - before[0].ru_stime
    assert used < 0.05
    assert [_ticks(shell) for shell in shells] == before[1]


def _ticks(shell: Shell) -> int:
    fields = Path(f"/proc/{shell.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_sessions_that_come_and_go_leave_no_descriptor_thread_or_folder(open_one, living):
    def cycle(number: int) -> None:
        state = open_one(f"s{number}")
        assert state.shell.run("echo $$; sleep 60 & exit 3").returncode == 3
        state.processes.start("true")
        state.delete()

    def count() -> tuple[int, int, int]:
        files = Path(os.environ["SNAKEPIT_RUNTIME_DIR"]).rglob("*")
        return len(os.listdir("/proc/self/fd")), threading.active_count(), len(list(files))

    cycle(0)
    before = count()
    for number in range(15):
        cycle(number)

    after = count()
    assert after[0] <= before[0] + 1
    assert after[1] <= before[1] + 4  # the pool of threads of the loop grows to its size
    assert after[2] <= before[2]
    assert [str(each) for each in living()] == []


def test_commands_one_after_the_other_leave_no_descriptor_and_no_memory(shell):
    for command in ("true", "exit 1", "sleep 60 >/dev/null &"):
        shell.run(command)
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in range(300):
        shell.run(f"echo {number}")

    assert len(os.listdir("/proc/self/fd")) < descriptors + 10
    assert len(shell._driver._tasks) <= 2
    assert len(os.listdir(shell._driver._code.folder)) < 16


def interrupted_at(moment: int, work: Callable[[], object]) -> bool:
    """Do some work, and press Ctrl-C at a moment of it; say whether it took that long."""
    left = moment

    def hear(frame: FrameType, event: str, _: object) -> None:
        nonlocal left
        # The end of a generator's step is none: handlers run before it or after it.
        is_moment = event in MOMENTS and not (
            event == "return" and frame.f_code.co_flags & inspect.CO_GENERATOR
        )
        if is_moment and frame.f_code.co_filename.startswith(PACKAGE):
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

    sys.setprofile(hear)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return left <= 0


@pytest.mark.parametrize("way", ["run", "stream"])
def test_ctrl_c_at_any_moment_of_a_command_leaves_no_command_behind(shell, way, tmp_path):
    shell.run("x=1")
    command = f"echo a; echo b >> {tmp_path}/ran"

    def work() -> None:
        shell.run(command) if way == "run" else list(shell.stream(command))

    moment, count = 1, 0
    while interrupted_at(moment, work):
        assert shell.run("echo $x", queue=False, timeout=10).stdout == "1\n"
        moment += 1 if moment < 60 else 7
        count += 1
    assert count > 20
    assert not shell.is_busy


def test_ctrl_c_at_any_moment_of_a_start_leaves_a_process_that_is_listed(session, living):
    session.processes.start("true").wait(10)
    moment, count = 1, 0
    while interrupted_at(moment, lambda: session.processes.start("sleep 60")):
        moment += 3
        count += 1
    listed = {each.pid for each in session.processes.list() if each.is_running}
    alive = {each.pid for each in living() if "sleep 60" in str(each) and "bash" not in str(each)}

    assert count > 5
    assert len(alive) <= len(listed)
    session.processes.kill_all(grace=0)


def test_ctrl_c_at_any_moment_of_a_close_lets_it_be_closed_again(open_one, living):
    moment, count = 1, 0
    while True:
        state = open_one(f"s{moment}")
        state.shell.run("sleep 60 &")
        shell = state.shell
        is_on = interrupted_at(moment, shell.close)
        shell.close()
        assert not [each for each in living() if "sleep 60" in str(each)]
        state.delete()
        count += 1
        moment += 2
        if not is_on:
            break
    assert count >= 2


def test_a_shell_answers_while_kernels_are_being_prepared(open_one, in_background):
    shell = open_one("s").shell
    shell.run("X=1")
    burning = [in_background(_burn, 2.0) for _ in range(2)]

    slow = []
    for _ in range(100):
        began = time.monotonic()
        assert shell.run('echo "VALUE:$X:END"').stdout == "VALUE:1:END\n"
        slow.append(time.monotonic() - began)
    for each in burning:
        each.result()

    assert sorted(slow)[95] < 0.5


def _burn(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        os.getpid()

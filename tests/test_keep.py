"""Deliberate survivors: what is marked to be kept outlives its run, and nothing else does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from snakepit_kernel.processes.run_registry import Registry

SOON = 5.0

START = {
    "variable": """
import os, subprocess
kept = subprocess.Popen(['sleep', '600'], env={**os.environ, 'SNAKEPIT_KEEP': '1'})
""",
    "block": """
import subprocess, snakepit_kernel
with snakepit_kernel.keep():
    kept = subprocess.Popen(['sleep', '600'])
""",
    "block, forked": """
import multiprocessing, time, snakepit_kernel
with snakepit_kernel.keep():
    kept = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,))
    kept.start()
""",
    "block, empty environment": """
import subprocess, snakepit_kernel
with snakepit_kernel.keep():
    kept = subprocess.Popen(['/bin/sleep', '600'], env={}, start_new_session=True)
""",
}
OTHERS = """
others = [
    subprocess.Popen(['sleep', '600']),
    subprocess.Popen(['sleep', '600'], env={**os.environ, 'SNAKEPIT_KEEP': '0'}),
    subprocess.Popen(['sleep', '600'], start_new_session=True),
    subprocess.Popen(['sh', '-c', 'trap "" TERM; while :; do sleep 600; done']),
]
"""
TELL = "\nimport os\nprint(kept.pid)"


@pytest.fixture
def kept(process_of: Callable[[int], Any]) -> Iterator[Callable[[int], Any]]:
    """Note a process that is to survive; it is ended after the test."""
    noted = []

    def note(pid: int) -> Any:
        noted.append(process_of(pid))
        return noted[-1]

    yield note
    for process in noted:
        process.kill()
        assert process.wait_gone()


def snakepit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakepit_kernel", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("now", [False, True], ids=["graceful", "now"])
@pytest.mark.parametrize("way", START)
def test_what_is_kept_outlives_a_restart_and_a_shutdown_and_nothing_else_does(
    start_kernel, living, kept, way, now
):
    async def scenario() -> Any:
        async with start_kernel() as kernel:
            code = "import os, subprocess" + OTHERS + START[way] + TELL
            process = kept(int(await kernel.run(code)))
            others = [item for item in living() if item.pid != process.pid]
            await kernel.km.restart_kernel(now=now)
            assert [str(item) for item in others if item.is_alive] == []
            assert process.is_alive
            report = kernel.km.provisioner.last_report
            assert [item.pid for item in report.kept] == [process.pid]
            assert report.verified
            await kernel.ready()
            assert await kernel.run("6 * 7") == "42"
        assert [item.pid for item in living()] == [process.pid]
        return process

    process = asyncio.run(scenario())
    listed = json.loads(snakepit("status", "--json").stdout)["kept"]
    assert [item["pid"] for item in listed] == [process.pid]


@pytest.mark.parametrize("way", START)
def test_what_is_kept_outlives_its_owner_and_is_ended_on_request_only(
    kernel_owner, living, kept, start_and_shut_down, way
):
    with kernel_owner("import os, subprocess" + OTHERS + START[way] + TELL) as owner:
        owner.wait_ready()
        process = kept(int(owner.said[0]))
        owner.kill()
    others = [item for item in living() if item.pid != process.pid]
    assert [str(item) for item in others if not item.wait_gone(SOON)] == []
    start_and_shut_down()  # which sweeps
    assert process.is_alive

    asked = snakepit("reap")
    assert process.is_alive
    assert str(process.pid) in asked.stdout
    assert "snakepit reap --kept" in asked.stdout
    assert str(process.pid) in snakepit("reap", "--kept", "--dry-run").stdout
    assert process.is_alive

    done = snakepit("reap", "--kept")

    assert (done.returncode, process.is_alive) == (0, False), done
    assert "ended 1 process" in done.stdout


def test_what_is_kept_in_a_live_run_is_listed_and_not_ended(start_kernel, kept):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            process = kept(int(await kernel.run(START["block"] + TELL)))
            listed = json.loads(snakepit("status", "--json").stdout)["kept"]
            assert [item["pid"] for item in listed] == [process.pid]
            reaped = json.loads(snakepit("reap", "--kept", "--json").stdout)
            assert (reaped["kept"], reaped["kept_ended"]) == ([], [])
            assert process.is_alive

    asyncio.run(scenario())


def test_what_a_kept_process_starts_is_kept_and_what_follows_the_block_is_not(
    start_kernel, living, kept
):
    code = """
import os, subprocess, snakepit_kernel
with snakepit_kernel.keep():
    with snakepit_kernel.keep():
        pass
    kept = subprocess.Popen(['sh', '-c', 'sleep 600 & echo $!; wait'], stdout=subprocess.PIPE)
grandchild = int(kept.stdout.readline())
after = subprocess.Popen(['sleep', '600'])
forked = os.fork()
if forked == 0:
    os.execve('/bin/sleep', ['sleep', '600'], {})
print(kept.pid, grandchild, 'SNAKEPIT_KEEP' in os.environ)
"""

    async def scenario() -> None:
        async with start_kernel() as kernel:
            *pids, left = (await kernel.run(code)).split()
            assert left == "False"
            processes = [kept(int(pid)) for pid in pids]
            await kernel.km.restart_kernel(now=True)
            assert all(process.is_alive for process in processes)
        assert {item.pid for item in living()} == {process.pid for process in processes}

    asyncio.run(scenario())


def test_a_kernel_that_dies_inside_the_block_is_not_kept_itself(start_kernel, living, kept):
    code = """
import subprocess, snakepit_kernel, os
with snakepit_kernel.keep():
    kept = subprocess.Popen(['sleep', '600'])
    print(kept.pid, flush=True)
    import time; time.sleep(0.3)
    os._exit(1)
"""

    async def scenario() -> None:
        async with start_kernel() as kernel:
            said: list[str] = []
            kernel.kc.execute(code)
            while not said:
                message = await kernel.kc.get_iopub_msg(timeout=20)
                if message["msg_type"] == "stream":
                    said = message["content"]["text"].split()
            process = kept(int(said[0]))
            gone = [item for item in living() if item.pid != process.pid]
            waits = [asyncio.to_thread(item.wait_gone, SOON) for item in gone]
            assert all(await asyncio.gather(*waits))
            assert process.is_alive

    asyncio.run(scenario())


def test_a_pool_that_is_opened_inside_the_block_is_not_kept(kernel_owner, living):
    code = """
import snakepit_kernel
with snakepit_kernel.keep():
    pool = snakepit_kernel.Pool(workers=1)
    print(pool.run("import subprocess; p = subprocess.Popen(['sleep', '600']); p.pid").value)
"""
    with kernel_owner(code) as owner:
        owner.wait_ready()
        assert len(living()) >= 5
        owner.kill()
    assert [str(item) for item in living() if not item.wait_gone(SOON)] == []


def test_a_server_that_was_started_with_the_variable_does_not_keep_its_kernels(
    kernel_owner, living
):
    code = "import subprocess; children = [subprocess.Popen(['sleep', '600']) for _ in range(3)]"
    with kernel_owner(code, env={**os.environ, "SNAKEPIT_KEEP": "1"}) as owner:
        owner.wait_ready()
        owner.kill()
    assert [str(item) for item in living() if not item.wait_gone(SOON)] == []


def test_a_process_that_flees_by_forking_does_not_escape_beside_a_kept_one(
    start_kernel, living, kept
):
    code = (
        START["block"]
        + """
import os, sys
flee = '''
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    if os.fork():
        os._exit(0)
    time.sleep(0.001)
'''
subprocess.Popen([sys.executable, '-S', '-c', flee])
"""
        + TELL
    )

    async def scenario() -> None:
        async with start_kernel() as kernel:
            process = kept(int(await kernel.run(code)))
            await kernel.km.restart_kernel(now=True)
            time.sleep(0.1)
            guardian = kernel.km.provisioner.guarded.guardian.pid
            assert {item.pid for item in living()} == {process.pid, kernel.pid, guardian}

    asyncio.run(scenario())


def test_outside_of_any_run_the_block_only_sets_the_variable(monkeypatch):
    from snakepit_kernel import keep

    monkeypatch.setenv("SNAKEPIT_KEEP", "before")
    with keep():
        assert os.environ["SNAKEPIT_KEEP"] == "1"
    assert os.environ["SNAKEPIT_KEEP"] == "before"


def test_a_guardian_and_an_owner_that_were_killed_leave_what_is_kept(
    kernel_owner, living, kept, start_and_shut_down
):
    with kernel_owner("import os, subprocess" + OTHERS + START["block"] + TELL) as owner:
        _, guardian = owner.wait_ready()
        process = kept(int(owner.said[0]))
        owner.send_signal(signal.SIGSTOP)
        os.kill(guardian, signal.SIGKILL)
        owner.kill()

    start_and_shut_down()

    assert [item.pid for item in living()] == [process.pid]
    assert Registry().runs() == []

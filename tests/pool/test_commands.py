"""InterruptRouter of cells and calls that wait for a command of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import textwrap
import time
from typing import Any

import psutil
import pytest

from snakepit_kernel import Adapter, Pool, tool

pytestmark = pytest.mark.usefixtures("by_value")

SOON = 1.0
"""Seconds within which an interrupted cell ends, and with it a command that heeds SIGINT."""

LATE = 5.0
"""Seconds within which a command is gone that heeds nothing: its patience, its grace, and more."""

CELLS = {
    "os.system": "import os; os.system('sleep 9321')",
    "system_raw": "get_ipython().system_raw('sleep 9321'); reached = True",
    "!": "!sleep 9321\nreached = True",
    "!=": "x = !sleep 9321\nreached = True",
    "%%bash": "%%bash\nsleep 9321",
    "%%sh": "%%sh\necho begun; sleep 9321; echo ended",
    "%%script": "%%script --no-raise-error bash\nsleep 9321",
    "wait": "import subprocess; subprocess.Popen(['sleep', '9321']).wait()",
    "wait(timeout)": "import subprocess; subprocess.Popen(['sleep', '9321']).wait(600)",
    "communicate": "import subprocess\n"
    "subprocess.Popen(['sleep', '9321'], stdout=-1, stderr=-1).communicate()",
    "run": "import subprocess; subprocess.run(['sleep', '9321'])",
    "check_output": "import subprocess; subprocess.check_output('sleep 9321; true', shell=True)",
    "lines": "import subprocess\n"
    "for line in subprocess.Popen('echo a; sleep 9321', shell=True, stdout=-1).stdout: pass",
    "text": "import subprocess\n"
    "p = subprocess.Popen('echo a; sleep 9321', shell=True, stdout=-1, text=True)\np.stdout.read()",
    "os.popen": "import os; os.popen('sleep 9321').read()",
    "exec": "import asyncio\nawait (await asyncio.create_subprocess_exec('sleep', '9321')).wait()",
    "shell": "import asyncio\n"
    "p = await asyncio.create_subprocess_shell('sleep 9321; true', stdout=-1)\n"
    "await p.communicate()",
    "async lines": "import asyncio\n"
    "p = await asyncio.create_subprocess_shell('echo a; sleep 9321', stdout=-1)\n"
    "async for line in p.stdout: pass",
    "blocking": "import asyncio, os\n"
    "await asyncio.sleep(0)\nos.system('sleep 9321')\nreached = True",
    "put aside": "import os; os.system('sleep 9321 & wait')",
    "ignores SIGINT": "import os; os.system('trap \"\" INT; sleep 9321; sleep 9321')",
    "loop": "import os; os.system('trap \"\" INT; while :; do sleep 9321; done')",
}


def sleepers(seconds: int = 9321) -> list[int]:
    """Return the pids of living commands that sleep so long, and that these tests have started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:2] == ["sleep", str(seconds)]:
                found.append(process.pid)
    return found


def wait_for_command() -> None:
    """Wait until a command sleeps, and somebody waits for it."""
    wait_for(1, 10)
    time.sleep(0.2)  # nothing tells that


def wait_for(count: int, within: float, seconds: int = 9321) -> None:
    """Wait until so many sleep."""
    until = time.monotonic() + within
    while len(sleepers(seconds)) != count:
        assert time.monotonic() < until, (count, sleepers(seconds))
        time.sleep(0.01)  # what others start and end is no event for us


@pytest.fixture(scope="module")
def shared(open_for_all) -> Pool:
    pool = open_for_all(grace=10.0)
    pool.run("import subprocess; kept = subprocess.Popen(['sleep', '777'])")
    pool.run("get_ipython().system_raw('true')\n!true")
    return pool


@pytest.fixture
def spared(shared) -> Any:
    """Let a test see to it that worker, variables and older commands are there afterwards."""
    pid = shared.submit(os.getpid).result(10)
    yield
    assert shared.run("kept.poll()", timeout=10).value is None
    assert len(sleepers(777)) == 1
    assert shared.submit(os.getpid).result(10) == pid


@pytest.mark.parametrize("name", CELLS)
def test_an_interrupted_cell_ends_with_its_command(shared, spared, name):
    pid = shared.status().workers[0].pid
    future = _in_thread(lambda: shared.run(CELLS[name]))
    wait_for_command()

    os.kill(pid, signal.SIGINT)
    started = time.monotonic()
    result = future.result(10)

    assert time.monotonic() - started < SOON
    assert result.error.type_name == "KeyboardInterrupt"
    assert [o["ename"] for o in result.outputs if o["output_type"] == "error"] == [
        "KeyboardInterrupt"
    ]
    wait_for(0, SOON)
    assert "reached" not in shared.run("dir()", timeout=10).value


def test_a_command_that_heeds_nothing_is_killed_while_the_notebook_goes_on(shared, spared):
    pid = shared.status().workers[0].pid
    deaf = "trap '' INT TERM; sleep 9321; sleep 9321; sleep 9321"
    cell = f"import subprocess; subprocess.run({deaf!r}, shell=True)"
    future = _in_thread(lambda: shared.run(cell))
    wait_for_command()

    os.kill(pid, signal.SIGINT)

    started = time.monotonic()
    assert future.result(10).error.type_name == "KeyboardInterrupt"
    assert time.monotonic() - started < SOON
    assert shared.run("1 + 1", timeout=5).value == 2
    wait_for(0, LATE)


def test_what_the_same_cell_does_not_wait_for_is_spared(shared, spared):
    pid = shared.status().workers[0].pid
    cell = "import subprocess, time; aside = subprocess.Popen(['sleep', '9321']); time.sleep(60)"
    future = _in_thread(lambda: shared.run(cell))
    wait_for_command()

    os.kill(pid, signal.SIGINT)

    assert future.result(10).error.type_name == "KeyboardInterrupt"
    assert shared.run("aside.poll()").value is None
    shared.run("aside.kill(); aside.wait()")


def test_what_an_earlier_cell_has_started_is_spared_though_this_one_waits_for_it(shared, spared):
    pid = shared.status().workers[0].pid
    shared.run("begun = False")
    future = _in_thread(lambda: shared.run("print('begun', flush=True); kept.wait()"))
    time.sleep(0.5)  # nothing tells when it waits

    os.kill(pid, signal.SIGINT)

    assert future.result(10).error.type_name == "KeyboardInterrupt"


def test_a_system_command_gives_its_status_as_ever(shared):
    for command in ("true", "exit 3", "kill -9 $$", "nonsense-9321 2>&1"):
        ours = shared.submit(lambda c=command: __import__("os").system(c)).result(10)
        assert ours == os.system(command)
    assert shared.run("import os, pickle; pickle.loads(pickle.dumps(os.system)) is os.system").value


def test_commands_of_cells_know_variables(shared, tmp_path):
    cell = (
        f"""
path = {str(tmp_path / "said")!r}"""
        """
def inner():
    word = "local"
    x = !echo $word
    !echo {word}
    get_ipython().system_raw("echo {word} $word $$HOME > {path}")
    return x
inner()
"""
    )
    result = shared.run(cell, timeout=10)

    assert result.value == ["local"]
    assert "local\r\n" in result.stdout.replace("local\n", "local\r\n")
    assert (tmp_path / "said").read_text() == f"local local {os.environ['HOME']}\n"


CALLS = {
    "sync": """
        def call():
            import subprocess
            subprocess.check_output("sleep 9321; true", shell=True)
    """,
    "os.system": """
        def call():
            import os
            os.system("sleep 9321")
    """,
    "async": """
        async def call():
            import asyncio
            await (await asyncio.create_subprocess_exec("sleep", "9321")).wait()
    """,
    "async that blocks": """
        async def call():
            import subprocess
            subprocess.run(["sleep", "9321"])
            return "it went on"
    """,
    "loop of its own": """
        def call():
            import asyncio

            async def main():
                await (await asyncio.create_subprocess_shell("sleep 9321; true")).wait()

            asyncio.run(main())
    """,
}


def call_of(name: str) -> Any:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(textwrap.dedent(CALLS[name]), names)
    return names["call"]


@pytest.fixture(scope="module")
def calls(open_for_all) -> Pool:
    """A pool of its own: a signal soon after a cancellation counts as its repetition."""
    return open_for_all(grace=10.0, name="calls")


@pytest.mark.parametrize("name", CALLS)
def test_a_cancelled_call_ends_with_its_command(calls, name):
    pid = calls.submit(os.getpid).result(10)
    future = calls.submit(call_of(name))
    wait_for_command()

    future.cancel()

    assert calls.submit(os.getpid).result(SOON) == pid
    wait_for(0, SOON)


class Threaded(Adapter):
    thread_safe = True

    @tool
    def nothing(self):
        pass


def test_a_cancelled_call_in_a_thread_ends_with_its_command(open_pool):
    pool = open_pool(adapter=Threaded, profile="thread", threads_per_worker=1, grace=10.0)
    pid = pool.submit(os.getpid).result()
    for name in ("sync", "os.system", "async", "loop of its own"):
        future = pool.submit(call_of(name))
        wait_for_command()

        future.cancel()

        assert pool.submit(os.getpid).result(SOON) == pid
        wait_for(0, SOON)


def _in_thread(function: Any) -> Any:
    from concurrent.futures import ThreadPoolExecutor

    executor = ThreadPoolExecutor(1)
    future = executor.submit(function)
    executor.shutdown(wait=False)
    return future

"""Children that code in workers forks: they answer nothing, and their parent goes on."""

from __future__ import annotations

import os
import textwrap
import threading
from typing import Any

import pytest

from snakepit_kernel import Adapter, Pool, PoolClosed, tool

pytestmark = pytest.mark.usefixtures("by_value")

ENDINGS = {
    "return 'child'": 0,
    "sys.exit(0)": 0,
    "sys.exit(3)": 3,
    "sys.exit('sorry')": 1,
    "raise ValueError('child')": 1,
    "raise KeyboardInterrupt": 1,
    "os.kill(os.getpid(), signal.SIGINT); time.sleep(10)": 1,
    "os._exit(7)": 7,
    "import snakepit_kernel as s; s.context().variables['x']": 1,
    "import snakepit_kernel as s; s.context().host_tools.answer()": 1,
    "import asyncio; asyncio.run(asyncio.sleep(0)); return": 0,
    "import subprocess; sys.exit(subprocess.run(['true']).returncode)": 0,
    "m = multiprocessing.get_context('fork').Process(target=print); m.start(); m.join(); return": 0,
}
"""What a child does, and its exit status."""


def forking(end: str, *, fork: str = "os.fork()", begin: str = "def") -> Any:
    """Return a function of ``__main__`` that forks a child, and returns how that has ended."""
    code = f"""
    {begin} forks():
        import multiprocessing, os, pty, signal, sys, time
        print("before", end="|")
        pid = {fork}
        if pid == 0:
            print("child")
            {end}
        return "parent", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(textwrap.dedent(code), names)
    return names["forks"]


@pytest.fixture(scope="module")
def shared(open_for_all) -> Pool:
    return open_for_all(adapter=Forker)


class Forker(Adapter):
    thread_safe = True

    def cleanup(self):
        print("cleaned up")

    @tool
    def fork(self) -> str:
        pid = os.fork()
        if pid == 0:
            return "child"
        os.waitpid(pid, 0)
        return "parent"

    @tool
    def stream(self, how: str):
        yield "first"
        pid = os.fork()
        if pid == 0:
            if how == "return":
                return
            yield "of the child"
        yield os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    @tool
    async def astream(self):
        pid = os.fork()
        if pid == 0:
            yield "of the child"
        yield os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    @tool
    async def awaits(self, seconds: float) -> int:
        import asyncio

        pid = os.fork()
        await asyncio.sleep(seconds)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    @tool
    def in_a_thread(self) -> int:
        pids = []
        thread = threading.Thread(target=lambda: pids.append(os.fork()))
        thread.start()
        thread.join()
        return os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1])


@pytest.fixture(scope="module")
def threads(open_for_all) -> Pool:
    return open_for_all(adapter=Forker, profile="thread", threads_per_worker=2, name="threads")


def worker_serves(pool: Pool) -> bool:
    """Whether a pool's worker still is the process that it was."""
    pids = {pool.submit(os.getpid).result(10) for _ in range(3)}
    return pids == {pool.status().workers[0].pid} and pool.run("1", timeout=10).value == 1


@pytest.mark.parametrize("end", ENDINGS)
def test_a_child_ends_where_it_comes_back_and_its_parent_answers(shared, end, capsys):
    pool = shared

    assert pool.submit(forking(end)).result(10) == ("parent", ENDINGS[end])

    assert worker_serves(pool)
    assert capsys.readouterr().out.count("before") == 1


@pytest.mark.parametrize("fork", ["os.forkpty()[0]", "pty.fork()[0]"])
def test_a_child_with_a_terminal_of_its_own_ends_where_it_comes_back(shared, fork):
    assert shared.submit(forking("return", fork=fork)).result(10) == ("parent", 0)
    assert worker_serves(shared)


@pytest.mark.parametrize("end", ["return 'child'", "sys.exit(3)", "raise ValueError('child')"])
def test_the_child_of_a_coroutine_ends_where_it_comes_back(shared, end):
    forks = forking(end, begin="async def")

    assert shared.submit(forks).result(10) == ("parent", ENDINGS[end])
    assert worker_serves(shared)


@pytest.mark.parametrize("end", ["return 'child'", "sys.exit(3)", "raise ValueError('child')"])
def test_the_child_of_a_call_in_a_thread_ends_where_it_comes_back(threads, end):
    assert threads.submit(forking(end)).result(10) == ("parent", ENDINGS[end])
    assert worker_serves(threads)


@pytest.mark.parametrize("profile", ["shared", "threads"])
def test_the_child_of_a_tool_does_not_clean_up_after_its_parent(profile, shared, threads, capsys):
    pool = {"shared": shared, "threads": threads}[profile]

    assert pool.call("fork", timeout=10) == "parent"
    assert capsys.readouterr().out == "cleaned up\n"
    assert pool.logs()[pool.status().workers[0].name].count("cleaned up") == 0
    assert worker_serves(pool)


@pytest.mark.parametrize("profile", ["shared", "threads"])
def test_the_child_of_a_stream_sends_no_chunks(profile, shared, threads):
    pool = {"shared": shared, "threads": threads}[profile]

    assert list(pool.stream("stream", {"how": "return"}, timeout=10)) == ["first", 0]
    assert list(pool.stream("stream", {"how": "yield"}, timeout=10)) == ["first", 1]
    assert list(pool.stream("astream", timeout=10)) == [1]
    assert worker_serves(pool)


@pytest.mark.parametrize("seconds", [0, 0.2])
def test_a_child_that_awaits_ends_there(shared, seconds):
    assert shared.call("awaits", {"seconds": seconds}, timeout=10) == 1
    assert worker_serves(shared)


def test_a_child_of_a_thread_of_a_tool_ends_with_that(shared):
    assert shared.call("in_a_thread", timeout=10) == 0
    assert worker_serves(shared)


CELLS = {
    "pass": 0,
    "sys.exit(3)": 3,
    "1 / 0": 1,
    "raise KeyboardInterrupt": 1,
    "import snakepit_kernel as s; s.context().variables['x']": 1,
    "get_ipython().run_cell('1 / 0')": 1,
    "get_ipython().run_cell('2'); sys.exit(4)": 4,
}


@pytest.mark.parametrize(
    ("head", "child", "status"),
    [
        *(
            (head, *item)
            for head in ("", "await __import__('asyncio').sleep(0)", "%%time")
            for item in CELLS.items()
        ),
        ("", "await asyncio.sleep(0)", 1),
    ],
)
def test_the_child_of_a_cell_ends_with_it(shared, head, child, status):
    cell = f"""{head}
import asyncio, os, sys
print("before", flush=True)
pid = os.fork()
if pid == 0:
    print("child")
    {child}
else:
    result = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"of the child" if pid == 0 else None
"""
    result = shared.run(cell, timeout=10)

    assert result.ok
    assert shared.pull(["result"]) == {"result": status}
    assert result.stdout.count("before") == 1
    assert "child" in result.stdout
    assert {output["output_type"] for output in result.outputs} == {"stream"}
    assert worker_serves(shared)


def test_a_child_that_raises_tells_that_on_stderr(shared):
    result = shared.run("import os\nif os.fork() == 0: 1 / 0\nos.wait()[1] != 0")

    assert result.value is True
    assert "ZeroDivisionError: division by zero" in result.stderr
    assert "snakepit_kernel" not in result.stderr


def test_a_child_of_the_notebook_cannot_use_the_pool(shared):
    read, write = os.pipe()
    future = shared.submit(pow, 2, 3)
    child = os.fork()
    if child == 0:
        try:
            for use in (
                lambda: shared.call("fork"),
                lambda: shared.run("1"),
                lambda: shared.submit(pow, 2, 3),
                lambda: list(shared.map(pow, [1], [2])),
                lambda: next(shared.stream("astream")),
                lambda: shared.resize(2),
                shared.reload,
                shared.recycle,
                lambda: shared.session("child").call("fork"),
            ):
                try:
                    use()
                except PoolClosed as error:
                    os.write(write, b"." if "a forked child cannot use it" in str(error) else b"?")
            shared.shutdown()
            os.write(write, b"!")
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as said:
        assert said.read() == "." * 9 + "!"
    os.waitpid(child, 0)
    assert future.result(10) == 8
    assert worker_serves(shared)

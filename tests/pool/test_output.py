"""What functions, tools and streams show, in whatever way: it appears where the call stands."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from snakepit_kernel import Pool, ToolError, WorkerDied
from snakepit_kernel.processes import logs


@pytest.fixture(scope="module")
def pool(open_for_all) -> Pool:
    return open_for_all(name="output")


@pytest.fixture(scope="module")
def threads(open_for_all) -> Pool:
    return open_for_all(profile="thread", threads_per_worker=3, name="threads")


def of_main(function):
    """Have a function travel by value, as one of the notebook does."""
    function.__module__ = "__main__"
    return function


@of_main
def by_descriptors() -> None:
    import os
    import subprocess
    import sys

    print("python")
    os.write(1, b"descriptor\n")
    print("half a line", end=" ")
    subprocess.run(["echo", "child"], check=True)
    os.system("echo system; echo error >&2")
    print("stream", file=sys.__stdout__, flush=True)
    print("python again")


ALL_LINES = ["python", "descriptor", "half a line child", "system", "stream", "python again"]


def test_text_of_processes_and_descriptors_stands_between_the_calls_own(pool, capsys):
    pool.submit(by_descriptors).result()

    said = capsys.readouterr()
    assert said.out.splitlines() == ALL_LINES
    assert said.err == "error\n"


def test_it_does_so_in_the_first_call_of_a_young_worker(open_pool, capsys):
    young = open_pool()

    young.submit(by_descriptors).result()

    assert capsys.readouterr().out.splitlines() == ALL_LINES


@pytest.mark.parametrize("kind", ["tool", "stream", "coroutine"])
def test_it_does_so_whichever_way_the_call_is_made(kind, pool, capfd):
    @pool.tool
    def tool():
        import os

        os.write(1, b"written\n")

    @pool.tool
    def stream():
        import os

        os.write(1, b"written\n")
        yield 1

    @pool.tool
    async def coroutine():
        import os

        os.write(1, b"written\n")

    calls = {
        "tool": lambda: pool.call("tool"),
        "stream": lambda: list(pool.stream("stream")),
        "coroutine": lambda: asyncio.run(pool.acall("coroutine")),
    }
    calls[kind]()

    assert capfd.readouterr().out == "written\n"


def test_many_lines_of_a_descriptor_are_all_there_and_in_order(pool, capsys):
    @of_main
    def write() -> None:
        import os

        for number in range(100_000):
            os.write(1, b"line %d\n" % number)

    pool.submit(write).result()

    assert capsys.readouterr().out.splitlines() == [f"line {n}" for n in range(100_000)]


def test_bytes_that_are_no_text_are_shown_as_such_and_others_are_not_torn(pool, capsys):
    @of_main
    def write() -> None:
        import os

        for byte in "é\n".encode():
            os.write(1, bytes([byte]))
        os.write(1, b"\xff\n")

    pool.submit(write).result()

    assert capsys.readouterr().out == "é\n\ufffd\n"


def test_text_of_a_descriptor_arrives_while_the_call_runs(pool, capsys):
    @of_main
    def write() -> float:
        import os
        import time

        os.write(1, b"early\n")
        time.sleep(1)
        return time.time()

    future, heard = pool.submit(write), 0.0
    text = ""
    while not text and not future.done():
        time.sleep(0.01)  # see `heard_in_time`
        text = capsys.readouterr().out
        heard = time.time()

    assert text == "early\n"
    assert heard < future.result() - 0.5


def test_in_several_threads_text_of_descriptors_is_in_the_log(threads, capsys):
    @of_main
    def write() -> None:
        import os

        os.write(1, b"by a thread of threads\n")

    threads.submit(write).result()

    until = time.monotonic() + 10
    while "by a thread of threads" not in "".join(threads.logs().values()):
        assert time.monotonic() < until
    assert capsys.readouterr().out == ""


# -- what comes late -------------------------------------------------------------------------------


def heard_in_time(capsys, lines: int) -> str:
    text, until = "", time.monotonic() + 10
    while text.count("\n") < lines and time.monotonic() < until:
        time.sleep(0.01)  # what is printed in the midst of reading is lost: be rarely there
        text += capsys.readouterr().out
    return text


@of_main
def leaves_a_thread(gate: str, text: str) -> None:
    import os
    import threading
    import time

    def print_late() -> None:
        while not os.path.exists(gate):
            time.sleep(0.01)
        print(text)

    threading.Thread(target=print_late).start()


@of_main
def touch(path: str) -> None:
    open(path, "w").close()


@pytest.mark.parametrize("profile", ["process", "thread"])
def test_text_of_a_thread_that_outlives_its_call_is_printed(
    profile, pool, threads, tmp_path, capsys
):
    gate, used = str(tmp_path / "gate"), pool if profile == "process" else threads
    used.submit(leaves_a_thread, gate, "late").result()

    touch(gate)

    assert heard_in_time(capsys, 1) == "late\n"


def test_text_of_such_a_thread_is_not_taken_for_that_of_the_next_cell(pool, tmp_path, capsys):
    gate = str(tmp_path / "gate")
    pool.session("first").submit(leaves_a_thread, gate, "late").result()

    result = pool.session("second").run(
        f"open({gate!r}, 'w').close()\nimport time; time.sleep(0.5); print('own')"
    )

    assert result.stdout == "own\n"
    assert heard_in_time(capsys, 1) == "late\n"


def test_text_of_a_process_that_outlives_its_call_is_printed(pool, capsys):
    @of_main
    def leave() -> None:
        import subprocess

        subprocess.Popen("sleep 0.3; echo late", shell=True)

    pool.submit(leave).result()

    assert heard_in_time(capsys, 1) == "late\n"


def test_text_of_a_task_that_outlives_its_call_is_printed(pool, capsys):
    @of_main
    async def leave() -> None:
        import asyncio

        async def print_late() -> None:
            await asyncio.sleep(0.3)
            print("late")

        leave.task = asyncio.create_task(print_late())

    pool.submit(leave).result()

    assert heard_in_time(capsys, 1) == "late\n"


def test_what_a_cell_prints_late_is_told_to_who_listens_and_is_in_the_log(pool):
    heard: list[str] = []
    late = threading.Event()

    def listen(message: dict) -> None:
        if message["msg_type"] == "stream":
            heard.append(message["content"]["text"])
            late.set()

    code = "import threading\nthreading.Timer(0.3, print, ['late']).start()"
    result = pool.run(code, on_message=listen)

    assert result.stdout == ""
    assert late.wait(10)
    assert heard == ["late\n"]
    assert pool.logs()["output-1.1"].endswith("late")


# -- figures ---------------------------------------------------------------------------------------


@of_main
def plot(number: int) -> list[int]:
    import time

    import matplotlib.pyplot as plt

    plt.plot([number])
    time.sleep(0.1)
    return plt.get_fignums()


@pytest.mark.parametrize("profile", ["process", "thread"])
def test_figures_that_a_call_leaves_open_are_shown_there_and_closed(profile, pool, threads, capsys):
    used = pool if profile == "process" else threads

    futures = [used.submit(plot, number) for number in range(3)]

    assert [future.result() for future in futures] == [[1]] * 3
    assert capsys.readouterr().out == "<Figure size 640x480 with 1 Axes>\n" * 3
    assert used.session("stranger").run("1 + 1").outputs[0]["data"] == {"text/plain": "2"}


# -- KeyboardInterrupt -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["future", "tool", "coroutine"])
def test_a_keyboard_interrupt_of_a_functions_own_is_its_error(way, pool):
    @of_main
    def stop() -> None:
        raise KeyboardInterrupt("its own text")

    @of_main
    async def astop() -> None:
        raise KeyboardInterrupt("its own text")

    pool.tool(stop)
    calls = {
        "future": lambda: pool.submit(stop).result(),
        "tool": lambda: pool.call("stop"),
        "coroutine": lambda: pool.submit(astop).result(),
    }

    with pytest.raises(ToolError, match="its own text") as caught:
        calls[way]()

    assert caught.value.type_name == "KeyboardInterrupt"
    assert "was interrupted in its worker" not in str(caught.value)
    assert pool.submit(abs, -1).result() == 1


# -- the end of a worker ---------------------------------------------------------------------------


def test_the_last_words_of_a_worker_are_told_although_it_never_read_them(open_pool):
    @of_main
    def die() -> None:
        import ctypes

        libc = ctypes.PyDLL(None)  # Python does not run meanwhile
        libc.write(2, b"terminate called\n", 17)
        libc.abort()

    with pytest.raises(WorkerDied) as caught:
        open_pool().submit(die).result()

    assert "terminate called\nFatal Python error: Aborted" in str(caught.value)


def test_text_of_code_that_never_lets_python_run_is_all_there(pool, capsys):
    @of_main
    def write() -> None:
        import ctypes

        libc = ctypes.PyDLL(None)
        for _ in range(20_000):
            libc.write(1, b"as C writes it\n", 15)

    pool.submit(write).result()

    assert capsys.readouterr().out == "as C writes it\n" * 20_000


def test_hooks_of_ipython_run_at_the_end_of_a_call_and_once_for_a_cell(open_pool, capsys):
    pool = open_pool()
    result = pool.run(
        "hook = lambda: print('hook')\nget_ipython().events.register('post_execute', hook)"
    )

    assert result.stdout == "hook\n"
    assert pool.run("1 + 1", push={"x": 1}, pull=["x"]).stdout == "hook\n"
    assert capsys.readouterr().out == ""

    assert pool.submit(abs, -1).result() == 1

    assert capsys.readouterr().out == "hook\n"


# -- the log of a worker -------------------------------------------------------------------------


@of_main
def pour(stream: int) -> None:
    import os

    line = b"%s\n" % (b"x" * 9_999)
    for _ in range(500):
        os.write(stream, line)
    os.write(stream, b"the last of it\n")


@pytest.mark.parametrize("stream", [1, 2])
def test_the_log_of_a_worker_is_bounded_and_its_last_words_are_not_lost(open_pool, stream):
    with open_pool(name="pouring") as pool:
        pool.submit(pour, stream).result()
        (log,) = Path(os.environ["SNAKEPIT_RUNTIME_DIR"]).glob("*/pouring-*/*.log")
        sizes = [path.stat().st_size for path in (log, log.with_name(f"{log.name}.1"))]
        assert max(sizes) <= logs.LOG_BYTES + 2**16
        with pytest.raises(WorkerDied, match="the last of it"):
            pool.submit(signal.raise_signal, signal.SIGKILL).result()

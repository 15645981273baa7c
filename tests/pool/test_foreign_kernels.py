"""Workers that are kernels of other languages: they run cells, under guard like all others."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from snakepit_kernel import CallTimeout, CellsOnly, Pool, StartFailed, WorkerDied
from snakepit_kernel.processes import logs

from .conftest import wait_for_all_sockets

ECHO = '''
    """A kernel whose programs are a word and what follows it."""
    import os, signal, subprocess, sys, threading, time
    from ipykernel.kernelapp import IPKernelApp
    from ipykernel.kernelbase import Kernel

    class Echo(Kernel):
        implementation, implementation_version, banner = "echo", "1", "echo"
        language_info = {"name": "echo", "mimetype": "text/plain", "file_extension": ".echo"}
        count = 0

        def do_execute(self, code, silent, *_, **__):
            word, _, rest = code.partition(" ")
            self.count += 1
            if word == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if word == "spawn":  # a child that is in no group of its parent's
                rest = str(subprocess.Popen(["sleep", "600"], start_new_session=True).pid)
            if word == "count":
                rest = str(self.count)
            if word == "pour":  # past the channels
                for _ in range(300):
                    os.write(LOG, b"x" * 9_999 + b"\\n")
                os.write(LOG, b"the last of it\\n")
            try:  # whoever hears the text may interrupt at once
                self.send_response(self.iopub_socket, "stream", {"name": "stdout", "text": rest})
                if word == "nap":
                    time.sleep(30)
            except KeyboardInterrupt:
                return self.end_with("Woken", "by an interrupt")
            if word == "fail":
                return self.end_with("Failure", rest)
            reply = {"payload": [], "user_expressions": {}}
            if word == "leave":  # as kernels do: they say so, and end a moment later
                threading.Timer(0.3, os._exit, (0,)).start()
                reply["payload"] = [{"source": "ask_exit", "keepkernel": False}]
            return {"status": "ok", "execution_count": self.execution_count, **reply}

        def do_shutdown(self, restart):
            open(__file__.replace("echo.py", "farewell"), "w").close()
            return {"status": "ok", "restart": restart}

        def end_with(self, name, text):
            error = {"ename": name, "evalue": text, "traceback": [f"{name}: {text}"]}
            self.send_response(self.iopub_socket, "error", error)
            return {"status": "error", "execution_count": self.execution_count, **error}

    print("echo is here", flush=True)
    LOG = os.dup(2)
    IPKernelApp.launch_instance(kernel_class=Echo)
'''


@pytest.fixture
def echo(tmp_path: Path, kernelspec: Callable[..., str]) -> str:
    """A kernelspec whose language is not Python."""
    return install_echo(tmp_path, kernelspec)


def install_echo(folder: Path, kernelspec: Callable[..., str], **fields: object) -> str:
    program = folder / "echo.py"
    program.write_text(textwrap.dedent(ECHO))
    command = (sys.executable, str(program), "-f", "{connection_file}")
    return kernelspec(f"echo-{len(fields)}", *command, language="echo", **fields)


def test_cells_give_what_they_show_and_the_kernel_keeps_its_state(echo, open_pool):
    pool = open_pool(kernel_name=echo)

    result = pool.run("say hello")

    assert result.ok
    assert (result.stdout, result.value, result.execution_count) == ("hello", None, 1)
    assert pool.run("count").stdout == "2"
    assert pool.stats().ok == 2


def test_a_cell_that_fails_is_a_result_with_the_kernels_own_words(echo, open_pool):
    result = open_pool(kernel_name=echo).run("fail at once")

    assert (result.error.type_name, result.error.message) == ("Failure", "at once")
    assert result.error.traceback == ("Failure: at once",)


def test_output_is_there_while_the_cell_runs_and_ctrl_c_interrupts_it(echo, open_pool):
    pool = open_pool(kernel_name=echo)

    def interrupt(message: dict) -> None:
        if message["msg_type"] == "stream":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pool.run("nap now", on_message=interrupt)

    assert pool.run("count").stdout == "2"


@pytest.mark.parametrize("mode", ["signal", "message"])
def test_a_deadline_interrupts_a_cell_in_the_way_that_the_kernelspec_names(
    mode, tmp_path, kernelspec, open_pool
):
    pool = open_pool(kernel_name=install_echo(tmp_path, kernelspec, interrupt_mode=mode))

    with pytest.raises(CallTimeout, match="a cell passed its timeout of 0.3 s"):
        pool.run("nap", timeout=0.3)

    assert pool.run("count").stdout == "2"
    assert pool.stats().died == 0


def test_a_cancelled_task_interrupts_its_cell(echo, open_pool):
    pool = open_pool(kernel_name=echo)

    async def main() -> None:
        began = asyncio.Event()
        loop = asyncio.get_running_loop()

        def note(message: dict) -> None:
            if message["msg_type"] == "stream":
                loop.call_soon_threadsafe(began.set)

        task = asyncio.create_task(pool.arun("nap", on_message=note))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await pool.arun("count")).stdout == "2"

    asyncio.run(main())


def test_a_kernel_that_dies_is_told_at_once_and_replaced(echo, open_pool):
    pool = open_pool(kernel_name=echo)
    began = time.monotonic()

    with pytest.raises(WorkerDied, match=r"was killed by SIGKILL; its last output:\necho is here"):
        pool.run("die")

    assert time.monotonic() - began < 20
    assert pool.run("count", timeout=20).stdout == "1"


def test_a_kernel_that_is_told_to_end_gets_no_more_work(echo, open_pool):
    pool = open_pool(kernel_name=echo)
    assert [pool.run("count").stdout for _ in range(2)] == ["1", "2"]

    assert pool.run("leave").ok

    assert [pool.run("count", timeout=20).stdout for _ in range(3)] == ["1", "2", "3"]


def test_a_cell_that_heeds_no_interrupt_is_ended_with_its_kernel(echo, open_pool):
    pool = open_pool(kernel_name=echo, grace=0.3)
    pid = pool.status().workers[0].pid
    threading.Timer(0.2, os.kill, (pid, signal.SIGSTOP)).start()

    with pytest.raises(CallTimeout) as caught:
        pool.run("nap", timeout=0.5)

    assert caught.value.was_replaced
    assert pool.run("count", timeout=20).stdout == "1"


def test_sessions_and_run_all_reach_its_workers_and_share_their_state(echo, open_pool):
    pool = open_pool(2, kernel_name=echo)
    first, second = pool.session("first"), pool.session("second")

    assert [result.stdout for result in pool.run_all("say hello")] == ["hello", "hello"]
    home = first.run("count", worker=1).worker
    assert second.run("count", worker=1).stdout == "3"
    assert first.run("count").worker == home


def test_one_that_was_kept_ready_takes_the_slot_and_the_name(echo, open_pool):
    pool = open_pool(kernel_name=echo, standby=1)
    spares = pool._engine._standby
    while not spares._ready:
        time.sleep(0.02)

    with pytest.raises(WorkerDied):
        pool.run("die")

    assert pool.run("count", timeout=20).worker == "default-1.2"


def test_what_it_starts_ends_with_the_pool(echo):
    with Pool(1, kernel_name=echo) as pool:
        child = int(pool.run("spawn").stdout)
        assert Path(f"/proc/{child}").exists()

    assert not Path(f"/proc/{child}").exists()


def test_a_kernel_is_asked_to_shut_down_before_it_is_ended(echo, tmp_path):
    with Pool(1, kernel_name=echo, cwd=tmp_path) as pool:
        pool.run("say hello")

    assert (tmp_path / "farewell").exists()


@pytest.mark.parametrize(
    ("what", "ask"),
    [
        ("tool 'price'", lambda pool: pool.call("price", {"item": "tea"})),
        ("tool 'price'", lambda pool: pool.tools.price(item="tea")),
        ("pow()", lambda pool: pool.submit(pow, 2, 3)),
        ("map()", lambda pool: pool.map(abs, [1])),
        ("push()", lambda pool: pool.push({"x": 1})),
        ("pull()", lambda pool: pool.pull("x")),
        ("push", lambda pool: pool.run("say hello", push={"x": 1})),
        ("pull", lambda pool: pool.session("s").run("say hello", pull="x")),
        ("a tool", lambda pool: pool.tool(pow)),
        ("a host tool", lambda pool: pool.host_tool(pow)),
    ],
)
def test_what_needs_our_kernel_is_refused_at_once_with_the_reason(what, ask, echo_for_all):
    with pytest.raises(CellsOnly) as caught:
        ask(echo_for_all)

    assert caught.value.what == what
    assert str(caught.value) == (
        f"{what} is not possible with kernelspec {caught.value.kernel_name!r}, whose workers run "
        "cells only: it is a kernel for echo; run it as a cell, or open a pool with "
        "kernel_name='snakepit' as well"
    )


@pytest.fixture(scope="module")
def echo_for_all(tmp_path_factory, kernelspec):
    with Pool(1, kernel_name=install_echo(tmp_path_factory.mktemp("echo"), kernelspec)) as pool:
        wait_for_all_sockets()  # that for its control channel comes late
        yield pool


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"adapter": "shop:Shop"}, "an adapter"),
        ({"profile": "thread"}, "the profile 'thread'"),
        ({"preload": ["json"]}, "preload"),
    ],
)
def test_options_that_need_our_kernel_are_refused_before_anything_starts(options, what, echo):
    with pytest.raises(CellsOnly, match=f"{what} is not possible with kernelspec 'echo-0'"):
        Pool(1, kernel_name=echo, **options)


def test_a_kernel_that_never_answers_is_given_up_with_its_last_output(kernelspec):
    code = "import time; print('thinking', flush=True); time.sleep(60)"
    name = kernelspec("mute", sys.executable, "-c", code, language="silence")

    with pytest.raises(StartFailed, match=r"not ready within 0.8 s \(start_timeout\)\n.*\nthink"):
        Pool(2, kernel_name=name, start_timeout=0.8)


def test_a_program_that_is_not_there_is_told_at_once_and_other_pools_work_on(kernelspec, open_pool):
    other = open_pool()
    name = kernelspec("gone", "/no/such/julia", "{connection_file}", language="julia")
    began = time.monotonic()

    with pytest.raises(StartFailed, match="No such file or directory"):
        Pool(1, kernel_name=name)

    assert time.monotonic() - began < 20
    assert other.run("1 + 1").value == 2


def test_a_kernel_that_can_encrypt_is_reached_encrypted(kernelspec, open_pool, tmp_path):
    program = tmp_path / "secret.py"
    program.write_text("from ipykernel.kernelapp import launch_new_instance as run; run()")
    command = (sys.executable, str(program), "-f", "{connection_file}")
    metadata = {"supported_encryption": "curve"}
    pool = open_pool(kernel_name=kernelspec("s", *command, language="other", metadata=metadata))

    (worker,) = pool._engine.supervisor.workers.values()
    connection = worker.process.manager.get_connection_info()
    assert connection["transport"] == "tcp"
    assert connection["curve_publickey"]
    assert pool.run("print(6 * 7)").stdout == "42\n"


def test_the_bash_kernel_is_a_worker(open_pool, kernelspec):
    pytest.importorskip("bash_kernel")
    command = (sys.executable, "-m", "bash_kernel", "-f", "{connection_file}")
    pool = open_pool(kernel_name=kernelspec("bash-of-test", *command, language="bash"))

    assert pool.run("x=20; echo $((x + 22))").stdout == "42\n"
    with pytest.raises(CallTimeout):
        pool.run("sleep 30", timeout=0.5)
    assert pool.run("echo $x").stdout == "20\n"


def test_the_log_of_another_kernel_is_bounded_and_its_last_words_are_not_lost(echo, open_pool):
    pool = open_pool(kernel_name=echo)
    pool.run("pour")
    logs_here = Path(os.environ["SNAKEPIT_RUNTIME_DIR"]).glob("*/*/*.log")
    log = max(logs_here, key=lambda path: path.stat().st_size)
    until = time.monotonic() + 20
    while log.stat().st_size > logs.LOG_BYTES:
        assert time.monotonic() < until
        time.sleep(0.05)
    with pytest.raises(WorkerDied, match="the last of it"):
        pool.run("die")

"""The kernel: interrupts, the lazy debugger, its start and its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from snakepit_kernel.ids import RUN_ID_VARIABLE, new_run_id

SOURCE = Path(__file__).parents[2] / "kernelspec" / "kernel.json"


async def start_cell(kernel: Any, code: str) -> str:
    """Execute a cell and return when it has printed something."""
    message = kernel.kc.execute(code)
    while (await kernel.kc.get_iopub_msg(timeout=10))["msg_type"] != "stream":
        pass
    return str(message)


async def reply_to(kernel: Any, message: str, timeout: float = 10.0) -> dict[str, Any]:
    while True:
        reply = await kernel.kc.get_shell_msg(timeout=timeout)
        if reply["parent_header"]["msg_id"] == message:
            return dict(reply["content"])


# -- the start -----------------------------------------------------------------------------------


def test_the_installed_kernelspec_is_that_of_the_source():
    """In an editable install it is a copy, which may grow old."""
    installed = Path(KernelSpecManager().get_kernel_spec("snakepit").resource_dir) / "kernel.json"
    assert json.loads(installed.read_text()) == json.loads(SOURCE.read_text())


def test_the_extension_is_loaded_in_a_notebook(start_kernel):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            loaded = "print('snakepit_kernel' in get_ipython().extension_manager.loaded)"
            assert await kernel.run(loaded) == "True"
            magics = "print('snakepit' in get_ipython().magics_manager.magics['line'])"
            assert await kernel.run(magics) == "True"

    asyncio.run(scenario())


def test_a_users_module_beside_the_notebook_breaks_no_start_and_can_be_imported(
    start_kernel, tmp_path
):
    for name in ("random", "tempfile", "logging", "snakepit", "magics"):
        (tmp_path / f"{name}.py").write_text("mine = True\n")

    async def scenario() -> None:
        async with start_kernel(launch={"cwd": str(tmp_path)}) as kernel:
            assert await kernel.run("import magics; print(magics.mine)") == "True"
            assert await kernel.run("import random; print(hasattr(random, 'mine'))") == "False"

    asyncio.run(scenario())


# -- interrupts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wait",
    [
        "import time; time.sleep(60)",
        "import asyncio; await asyncio.sleep(60)",
        "while True: pass",
        "import threading; threading.Event().wait(60)",
        "import subprocess; subprocess.run(['sleep', '60'])",
    ],
    ids=["sleep", "await", "loop", "lock", "subprocess"],
)
def test_an_interrupted_cell_ends_within_a_second_and_state_survives(start_kernel, wait):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            await kernel.run("kept = 42")
            message = await start_cell(kernel, f"print('in', flush=True)\n{wait}")
            started = time.monotonic()

            await kernel.km.interrupt_kernel()

            reply = await reply_to(kernel, message)
            assert time.monotonic() - started < 10  # a fraction of a second, where there is one
            assert reply["status"] == "error"
            assert reply["ename"] == "KeyboardInterrupt"
            assert await kernel.run("print(kept)") == "42"

    asyncio.run(scenario())


COMMANDS = {
    "os.system": "print('in', flush=True); import os; os.system('sleep 9322')",
    "!": "!echo in; sleep 9322",
    "%%bash": "%%bash\necho in; sleep 9322",
    "check_output": "print('in', flush=True); import subprocess\n"
    "subprocess.check_output('sleep 9322; true', shell=True)",
    "exec": "print('in', flush=True); import asyncio\n"
    "await (await asyncio.create_subprocess_exec('sleep', '9322')).wait()",
}


@pytest.mark.parametrize("way", ["signal", "message"])
def test_an_interrupt_ends_the_command_that_a_cell_waits_for(start_kernel, living, way):
    def commands() -> list[int]:
        return [
            process.pid
            for process in living()
            if Path(f"/proc/{process.pid}/cmdline").read_bytes() == b"sleep\x009322\0"
        ]

    async def scenario() -> None:
        async with start_kernel() as kernel:
            await kernel.run("import subprocess; child = subprocess.Popen(['sleep', '600'])")
            for name, cell in COMMANDS.items():
                message = await start_cell(kernel, cell)
                async with asyncio.timeout(20):
                    while not commands():
                        await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)  # nothing tells when it is waited for
                started = time.monotonic()
                if way == "signal":
                    await kernel.km.interrupt_kernel()
                else:
                    request = kernel.kc.session.msg("interrupt_request", {})
                    kernel.kc.control_channel.send(request)
                assert (await reply_to(kernel, message))["ename"] == "KeyboardInterrupt", name
                while commands():
                    assert time.monotonic() - started < 1.0, name
                    await asyncio.sleep(0.01)
                assert time.monotonic() - started < 1.0, name
            assert await kernel.run("print(child.poll())") == "None"

    asyncio.run(scenario())


DEAF = """
import os, time
kill, missed = os.kill, []
def kill_later(pid, number):
    missed.append(number) if len(missed) < 2 else kill(pid, number)
os.kill = kill_later
print('in', flush=True)
time.sleep(60)
"""


def test_an_interrupt_by_message_that_wakes_nobody_is_sent_again(start_kernel):
    """As when the main thread is on its way into a call of the system, and not there yet."""

    async def scenario() -> None:
        async with start_kernel() as kernel:
            message = await start_cell(kernel, DEAF)
            kernel.kc.control_channel.send(kernel.kc.session.msg("interrupt_request", {}))
            assert (await reply_to(kernel, message))["ename"] == "KeyboardInterrupt"
            assert await kernel.run("print(missed)") == "[<Signals.SIGINT: 2>, <Signals.SIGINT: 2>]"

    asyncio.run(scenario())


UNNOTICED = """
import signal, threading, time
handled = []

def interrupt_this_thread():
    time.sleep(0.3)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

threading.Thread(target=interrupt_this_thread).start()
print('in', flush=True)
try:
    {wait}
except KeyboardInterrupt:
    handled.append(1)
    time.sleep(0.5)
    raise
"""


@pytest.mark.parametrize(
    "wait", ["time.sleep(60)", "threading.Lock().acquire(timeout=60)", "await asyncio.sleep(60)"]
)
def test_an_interrupt_that_wakes_nobody_is_sent_again_and_handled_once(start_kernel, wait):
    """It comes on the main thread's way into a call of the system, or another thread gets it."""
    wait = wait.replace(
        "threading.Lock()", "(lambda lock: lock.acquire() and lock)(threading.Lock())"
    )

    async def scenario() -> None:
        async with start_kernel() as kernel:
            await kernel.run("import asyncio")
            for _ in range(3):
                message = await start_cell(kernel, UNNOTICED.format(wait=wait))
                assert (await reply_to(kernel, message))["ename"] == "KeyboardInterrupt"
                assert await kernel.run("print(len(handled))") == ("0" if "await" in wait else "1")

    asyncio.run(scenario())


def test_an_interrupt_is_not_sent_again_to_a_handler_of_the_users(start_kernel):
    cell = """
import os, signal, time
seen = []
before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.3)
signal.signal(signal.SIGINT, before)
print(len(seen))
"""

    async def scenario() -> None:
        async with start_kernel() as kernel:
            assert await kernel.run(cell) == "1"

    asyncio.run(scenario())


@pytest.mark.parametrize("handler", ["its own", "Python's"])
def test_an_interrupt_of_a_forked_child_is_not_its_parents(start_kernel, handler):
    cell = f"""
import os, signal, time
pid = os.fork()
if pid == 0:
    if {handler == "its own"}:
        signal.signal(signal.SIGINT, lambda *_: os._exit(7))
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        os._exit(7)
    finally:
        os._exit(8)
time.sleep(0.2)
os.kill(pid, signal.SIGINT)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
time.sleep(0.3)
print(status)
"""

    async def scenario() -> None:
        async with start_kernel() as kernel:
            assert await kernel.run(cell) == "7"

    asyncio.run(scenario())


def test_an_interrupt_by_message_spares_the_children_too(start_kernel):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            await kernel.run("import subprocess; child = subprocess.Popen(['sleep', '600'])")
            message = await start_cell(
                kernel, "import time; print('in', flush=True); time.sleep(60)"
            )
            request = kernel.kc.session.msg("interrupt_request", {})
            kernel.kc.control_channel.send(request)
            assert (await reply_to(kernel, message))["ename"] == "KeyboardInterrupt"
            assert await kernel.run("print(child.poll())") == "None"

    asyncio.run(scenario())


def test_an_interrupt_before_the_code_runs_reaches_it_though_ipython_swallows_exceptions(
    start_kernel,
):
    """As while autoreload looks at modules: IPython reports what a callback raises, and goes on."""

    async def scenario() -> None:
        async with start_kernel() as kernel:
            await kernel.run(
                "import time\n"
                "def slow(info):\n    print('before', flush=True)\n    time.sleep(1.5)\n"
                "get_ipython().events.register('pre_run_cell', slow)"
            )
            message = await start_cell(kernel, "ran = True\ntime.sleep(60)")
            await kernel.km.interrupt_kernel()
            assert (await reply_to(kernel, message))["ename"] == "KeyboardInterrupt"
            assert await kernel.run("print('ran' in globals())") == "before\nFalse"

    asyncio.run(scenario())


def test_an_interrupt_between_cells_harms_nothing(start_kernel):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            await kernel.run("kept = 42")
            for _ in range(3):
                await kernel.km.interrupt_kernel()
            assert await kernel.run("print(kept)") == "42"

    asyncio.run(scenario())


# -- the debugger --------------------------------------------------------------------------------


class Debugger:
    """Speaks the debug adapter protocol over the control channel."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.sequence = 0

    async def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        self.sequence += 1
        content = {
            "type": "request",
            "seq": self.sequence,
            "command": command,
            "arguments": arguments,
        }
        message = self.kernel.kc.session.msg("debug_request", content)
        self.kernel.kc.control_channel.send(message)
        while True:
            reply = await self.kernel.kc.get_control_msg(timeout=20)
            if reply["parent_header"]["msg_id"] == message["header"]["msg_id"]:
                return dict(reply["content"])

    async def event(self, name: str) -> dict[str, Any]:
        while True:
            message = await self.kernel.kc.get_iopub_msg(timeout=20)
            if message["msg_type"] == "debug_event" and message["content"]["event"] == name:
                return dict(message["content"])


def test_debugging_is_offered_and_debugpy_not_imported_before_it_is_asked_for(start_kernel):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            kernel.kc.kernel_info()
            info = await kernel.kc.get_shell_msg(timeout=10)
            assert "debugger" in info["content"]["supported_features"]
            names = "print([name for name in sys.modules if 'debug' in name or 'pydevd' in name])"
            loaded = await kernel.run(f"import sys; {names}")
            assert "debugpy" not in loaded
            assert "pydevd" not in loaded
            assert "ipykernel.debugger" not in loaded

    asyncio.run(scenario())


def test_a_breakpoint_in_a_cell_is_hit_and_the_cell_continues(start_kernel):
    code = "total = 1\ntotal += 41\nprint(total)"

    async def scenario() -> None:
        async with start_kernel() as kernel:
            debugger = Debugger(kernel)
            hello = await debugger.ask(
                "initialize",
                clientID="test",
                adapterID="",
                linesStartAt1=True,
                columnsStartAt1=True,
                pathFormat="path",
            )
            assert hello["success"], hello
            assert (await debugger.ask("attach"))["success"]
            cell = (await debugger.ask("dumpCell", code=code))["body"]["sourcePath"]
            answer = await debugger.ask(
                "setBreakpoints", source={"path": cell}, breakpoints=[{"line": 2}]
            )
            assert answer["body"]["breakpoints"][0]["verified"]
            assert (await debugger.ask("configurationDone"))["success"]

            message = kernel.kc.execute(code)
            stopped = await debugger.event("stopped")
            assert stopped["body"]["reason"] == "breakpoint"
            thread = stopped["body"]["threadId"]
            frames = (await debugger.ask("stackTrace", threadId=thread))["body"]["stackFrames"]
            assert frames[0]["line"] == 2
            assert (await debugger.ask("continue", threadId=thread))["success"]

            assert (await reply_to(kernel, message))["status"] == "ok"
            assert (await debugger.ask("disconnect"))["success"]

    asyncio.run(scenario())


def test_a_debug_request_before_anything_else_is_answered(start_kernel):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            answer = await Debugger(kernel).ask("debugInfo")
            assert answer["success"]
            assert answer["body"]["isStarted"] is False
            assert await kernel.run("print(6 * 7)") == "42"

    asyncio.run(scenario())


# -- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["import sys; sys.exit()", "exit()", "quit(keep_kernel=False)"])
def test_a_cell_that_ends_the_kernel_takes_its_children_with_it(start_kernel, living, end):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            code = "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)"
            await kernel.run(code)
            children = living()
            kernel.kc.execute(end)
            if "sys.exit" in end:  # which in a notebook ends nothing
                kernel.kc.shutdown()
            waits = [asyncio.to_thread(item.wait_gone, 5.0) for item in children]
            assert all(await asyncio.gather(*waits))

    asyncio.run(scenario())


def test_a_kernel_that_a_tagged_client_runs_itself_does_not_signal_its_parent_when_it_ends(
    tmp_path,
):
    """Without a provisioner the parent is no guardian, though it is part of a run."""
    connection_file = tmp_path / "kernel.json"
    code = f"""
import subprocess, sys
from jupyter_client import BlockingKernelClient, write_connection_file
write_connection_file({str(connection_file)!r})
command = [sys.executable, "-m", "snakepit_kernel.kernel", "-f", {str(connection_file)!r}]
with subprocess.Popen(command, stderr=subprocess.DEVNULL) as kernel:
    client = BlockingKernelClient(connection_file={str(connection_file)!r})
    client.load_connection_file()
    client.start_channels(hb=False)  # or it gives up a kernel that takes a second to come up
    try:
        client.wait_for_ready(timeout=30)
        client.shutdown()
        kernel.wait(20)
    finally:
        client.stop_channels()
        kernel.terminate()  # what has ended is not signalled
print("alive", kernel.returncode)
"""
    env = {**os.environ, RUN_ID_VARIABLE: new_run_id()}
    owner = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert owner.returncode != -signal.SIGUSR2
    assert owner.stdout.splitlines()[-1] == "alive 0", owner.stderr


# -- children ------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_a_forked_child_holds_none_of_the_kernels_sockets_and_can_print(start_kernel, transport):
    code = """
import multiprocessing, os, socket
def look():
    held = []
    for number in map(int, os.listdir('/proc/self/fd')):
        try:
            held.append(str(socket.socket(fileno=os.dup(number)).getsockname()))
        except OSError:
            pass
    print('held', '|'.join(held), flush=True)
mine = socket.create_server(('127.0.0.1', 0))
child = multiprocessing.get_context('fork').Process(target=look)
child.start(); child.join(); mine.getsockname()[1], child.exitcode
"""

    async def scenario() -> None:
        async with start_kernel(transport=transport) as kernel:
            said = await kernel.run(code)
            for name in ("shell", "iopub", "stdin", "control", "hb"):
                port = getattr(kernel.km, f"{name}_port")
                assert f"', {port})" not in said  # of the network
                assert f"{kernel.km.ip}-{port}|" not in said  # a file
            own_port = said.rpartition("(")[2].partition(",")[0]
            assert f"'127.0.0.1', {own_port}" in said  # a socket of the cell is the cell's business
            assert await kernel.run("6 * 7") == "42"

    asyncio.run(scenario())


def test_each_client_is_welcomed_also_beside_another(start_kernel):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            for _ in range(2):
                client = kernel.km.client()
                client.start_channels(hb=False)
                async with asyncio.timeout(10):
                    # The end of what the fixture has asked may come before.
                    while (await client.get_iopub_msg())["msg_type"] != "iopub_welcome":
                        pass
                client.stop_channels()

    asyncio.run(scenario())

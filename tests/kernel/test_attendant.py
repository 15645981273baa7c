"""A kernel whose command a client runs by itself, without any provisioner."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient, write_connection_file

from snakepit_kernel.cli.channel_checks import check_channels, reached_by
from snakepit_kernel.ids import RUN_ID_VARIABLE, is_run_id, new_run_id
from snakepit_kernel.kernel import launcher
from snakepit_kernel.processes.run_registry import Registry
from snakepit_kernel.transport import Reached

SOON = 5.0

CHILDREN = """
import os, subprocess
subprocess.Popen(['sleep', '600'])
subprocess.Popen(['/bin/sleep', '600'], env={}, start_new_session=True)
middle = os.fork()
if middle == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp('sleep', ['sleep', '600'])
    os._exit(0)
os.waitpid(middle, 0)
print(os.getpid(), os.environ['SNAKEPIT_RUN_ID'])
"""


def connect(connection_file: Path) -> BlockingKernelClient:
    client = BlockingKernelClient(connection_file=str(connection_file))
    client.load_connection_file()
    client.start_channels()
    wait_ready(client)
    return client


def disconnect(client: BlockingKernelClient) -> None:
    client.stop_channels()
    client.context.destroy(linger=0)


def wait_ready(client: BlockingKernelClient) -> None:
    """Wait for answers and output; `wait_for_ready` gives up when the first heartbeat is late."""
    for _ in range(30):
        client.kernel_info()  # again, should the last one have reached a kernel that was dying
        with contextlib.suppress(queue.Empty):
            client.get_shell_msg(timeout=2)
            break
    else:
        pytest.fail("no answer within a minute")
    while client.get_iopub_msg(timeout=60)["msg_type"] != "iopub_welcome":
        pass  # what the kernel before this one said


class Client:
    """What a client does that starts kernels by itself: it runs the command, and connects."""

    def __init__(self, connection_file: Path, **options: Any) -> None:
        write_connection_file(str(connection_file))
        command = [sys.executable, "-m", "snakepit_kernel.kernel", "-f", str(connection_file)]
        options.setdefault("stderr", subprocess.DEVNULL)
        self.process = subprocess.Popen(command, **options)
        self.client = connect(connection_file)

    def run(self, code: str) -> str:
        output: list[str] = []

        def collect(message: dict[str, Any]) -> None:
            if message["content"].get("name") == "stdout":
                output.append(message["content"]["text"])

        reply = self.client.execute_interactive(code, timeout=20, output_hook=collect)
        assert reply["content"]["status"] == "ok", reply
        return "".join(output)

    def close(self) -> None:
        disconnect(self.client)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def client(tmp_path) -> Iterator[Client]:
    client = Client(tmp_path / "kernel.json")
    yield client
    client.close()


def test_the_kernel_tags_itself_and_is_written_down(client):
    pid, run_id = client.run(CHILDREN).split()
    assert is_run_id(run_id)
    assert f"--snakepit-run-id={run_id}" in Path(f"/proc/{pid}/cmdline").read_text()
    (run,) = Registry().runs()
    assert (run.run_id, str(run.process.pid), run.owner.pid) == (run_id, pid, client.process.pid)


def test_doctor_and_status_say_that_everybody_can_listen_to_it(client):
    """The client has chosen TCP, and its connection file is its own."""
    (run,) = Registry().runs()
    assert run.leftovers == ()
    assert reached_by(run) is Reached.PLAIN
    (finding,) = check_channels()
    assert (finding.level, run.run_id in finding.text) == ("hint", True)


def test_the_kernel_runs_with_safe_path_though_its_client_does_not(client):
    (run,) = Registry().runs()
    words = Path(f"/proc/{run.process.pid}/cmdline").read_bytes().split(b"\0")
    assert b"-P" in words[: words.index(b"-m")]


@pytest.mark.parametrize(
    ("target", "signum"),
    [
        ("process", signal.SIGKILL),
        ("process", signal.SIGTERM),
        ("process", signal.SIGHUP),
        ("kernel", signal.SIGKILL),
        ("kernel", signal.SIGSEGV),
    ],
)
def test_a_signal_that_ends_it_ends_all_and_the_client_sees_which_it_was(
    client, living, target, signum
):
    kernel = int(client.run(CHILDREN).split()[0])
    assert len(living()) == 6  # with the guardian

    os.kill(client.process.pid if target == "process" else kernel, signum)

    assert client.process.wait(SOON) == -signum
    assert [str(item) for item in living() if not item.wait_gone(SOON)] == []


def test_a_kernel_that_exits_ends_all_and_the_client_sees_its_status(client, living):
    client.run(CHILDREN)
    client.client.execute("import os; os._exit(7)")
    assert client.process.wait(SOON) == 7
    assert [str(item) for item in living()] == []
    assert Registry().runs() == []


def test_a_polite_shutdown_ends_all_before_the_process_ends(client, living):
    client.run(CHILDREN)
    client.client.shutdown()
    assert client.process.wait(SOON) == 0
    assert [str(item) for item in living()] == []


def test_an_interrupt_of_the_process_stops_the_cell_and_nothing_else(client, living):
    client.run(CHILDREN)
    before = {item.pid for item in living()}
    request = client.client.execute("import time\ntime.sleep(60)")
    while client.client.get_iopub_msg(timeout=10)["msg_type"] != "execute_input":
        pass
    time.sleep(0.2)  # the input is told a moment before the cell runs

    client.process.send_signal(signal.SIGINT)

    reply = client.client.get_shell_msg(timeout=5)
    while reply["parent_header"]["msg_id"] != request:
        reply = client.client.get_shell_msg(timeout=5)
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert {item.pid for item in living()} == before


def test_the_death_of_the_client_that_named_itself_ends_all(tmp_path, living):
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_attendant import *
environment = {{**os.environ, "JPY_PARENT_PID": str(os.getpid())}}
client = Client(Path({str(tmp_path / "kernel.json")!r}), env=environment)
client.run(CHILDREN)
print("ready", flush=True)
sys.stdin.readline()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as owner:
        assert owner.stdout.readline() == b"ready\n"
        owner.kill()
    assert [str(item) for item in living() if not item.wait_gone(SOON)] == []


@pytest.mark.parametrize("orphaned", [True, False])
def test_a_client_that_died_before_the_kernel_was_up_ends_it_and_a_stale_name_does_not(
    monkeypatch, orphaned
):
    with subprocess.Popen(["true"]) as dead:
        pass
    monkeypatch.setenv(launcher.PARENT_VARIABLE, str(dead.pid))
    monkeypatch.setattr(os, "getppid", lambda: 1 if orphaned else 2)

    client = launcher._client()

    assert (client is not None) == orphaned
    assert client is None or not client.is_alive()


def test_a_client_that_belongs_to_a_run_itself_gets_a_run_of_its_own(tmp_path, living):
    outer = new_run_id()
    client = Client(tmp_path / "kernel.json", env={**os.environ, RUN_ID_VARIABLE: outer})
    try:
        assert client.run(CHILDREN).split()[1] != outer
    finally:
        client.close()
    assert [str(item) for item in living() if not item.wait_gone(SOON)] == []


def test_file_descriptors_standard_input_and_options_of_the_interpreter_are_handed_on(tmp_path):
    reading, writing = os.pipe()
    try:
        connection_file = tmp_path / "kernel.json"
        write_connection_file(str(connection_file))
        code = "import os, sys; os.write({}, f'{{sys.flags.utf8_mode}} {{os.read(0, 9)}}'.encode())"
        command = [sys.executable, "-X", "utf8", "-m", "snakepit_kernel.kernel"]
        with subprocess.Popen(
            [*command, "-f", str(connection_file)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[writing],
        ) as process:
            client = connect(connection_file)
            process.stdin.write(b"typed")
            process.stdin.close()
            client.execute_interactive(code.format(writing), timeout=20)
            client.shutdown()
            assert process.wait(20) == 0
        disconnect(client)
        assert os.read(reading, 99) == b"1 b'typed'"
    finally:
        os.close(reading)
        os.close(writing)


def test_a_restart_by_such_a_client_works_on_the_same_connection_file(tmp_path, living):
    """As jupyter_client's own provisioner does it: SIGKILL, and the same command again."""
    connection_file = tmp_path / "kernel.json"
    first = Client(connection_file)
    first.run(CHILDREN)
    first.process.kill()
    first.process.wait()
    with subprocess.Popen(first.process.args, stderr=subprocess.DEVNULL) as again:
        wait_ready(first.client)
        assert first.run("print(6 * 7)") == "42\n"
        time.sleep(0.5)  # the guardian of the first one may remove files only now
        assert connection_file.exists()
        again.terminate()
    first.close()
    assert [str(item) for item in living() if not item.wait_gone(SOON)] == []


def test_a_start_that_fails_says_why():
    done = subprocess.run(
        [sys.executable, "-m", "snakepit_kernel.kernel", "--shell=nonsense"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "nonsense" in done.stderr

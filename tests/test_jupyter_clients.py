"""Real Jupyter clients above the kernel: they work, and their end leaves nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pexpect
import pytest
from jupyter_client.blocking import BlockingKernelClient

BIN = Path(sys.executable).parent
SOON = 5.0
CHILD = (
    "import subprocess; child = subprocess.Popen(['sleep', '600'], env={}, start_new_session=True)"
)


@pytest.fixture
def notebook(tmp_path) -> Path:
    """A notebook on our kernel, one cell of which starts a child that stays."""
    v4 = nbformat.v4
    document = v4.new_notebook(
        cells=[
            v4.new_code_cell("x = 6\nprint('hello')"),
            v4.new_code_cell(CHILD),
            v4.new_code_cell("x * 7"),
        ],
        metadata={"kernelspec": {"name": "snakepit", "display_name": "S", "language": "python"}},
    )
    document.cells[0].outputs = [v4.new_output("stream", name="stdout", text="hello\n")]
    document.cells[2].outputs = [v4.new_output("execute_result", data={"text/plain": "42"})]
    for number, cell in enumerate(document.cells, start=1):
        cell.execution_count = number
    path = tmp_path / "notebook.ipynb"
    nbformat.write(document, path)
    return path


def results_of(path: Path) -> list[str]:
    return [
        output["data"]["text/plain"]
        for cell in nbformat.read(path, as_version=4).cells
        for output in cell.outputs
        if output["output_type"] == "execute_result"
    ]


def run(*command: Any, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


# -- clients that run a notebook -----------------------------------------------------------------


def test_nbclient_executes_a_notebook_and_leaves_nothing(notebook, living):
    code = f"""
import nbclient, nbformat
document = nbformat.read({str(notebook)!r}, as_version=4)
nbclient.NotebookClient(document).execute()
nbformat.write(document, {str(notebook.with_name("out.ipynb"))!r})
"""
    run(sys.executable, "-c", code, cwd=notebook.parent)
    assert results_of(notebook.with_name("out.ipynb")) == ["42"]
    assert [item for item in living() if not item.wait_gone(SOON)] == []


def test_papermill_executes_a_notebook_with_parameters_and_leaves_nothing(notebook, living):
    run(BIN / "papermill", notebook, "out.ipynb", "-p", "y", "3", cwd=notebook.parent)
    assert results_of(notebook.with_name("out.ipynb")) == ["42"]
    assert [item for item in living() if not item.wait_gone(SOON)] == []


def test_nbval_fails_a_notebook_whose_outputs_are_wrong_and_leaves_nothing(notebook, living):
    command = [BIN / "pytest", "-p", "no:randomly", "--nbval", "-c", os.devnull, notebook.name]
    notebook.write_text(notebook.read_text().replace('"42"', '"43"'))
    wrong = subprocess.run(
        command, cwd=notebook.parent, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 1
    assert "1 failed, 2 passed" in wrong.stdout
    assert [item for item in living() if not item.wait_gone(SOON)] == []


def test_jupyter_run_executes_a_script_and_leaves_nothing(tmp_path, living):
    (tmp_path / "script.py").write_text(f"{CHILD}\nprint(6 * 7)\n")
    done = run(BIN / "jupyter", "run", "--kernel", "snakepit", "script.py", cwd=tmp_path)
    assert "42" in done.stdout
    assert [item for item in living() if not item.wait_gone(SOON)] == []


PLAIN = "Kernel is running over TCP without encryption"  # the stock kernel is, ours is not

WITH_A_POOL = """
%load_ext snakepit_kernel
pool = %snakepit start --workers 1
import os
from snakepit_kernel import WorkerDied
try:
    pool.submit(os._exit, 3).result()
except WorkerDied:
    pass
import time
time.sleep(2.5)  # until then a kernel is kept ready, where there is one
pool.submit(pow, 2, 3).result()
"""


@pytest.fixture
def keeping_ready(monkeypatch) -> None:
    """Keep a kernel ready, as by default; the tests do not elsewhere."""
    monkeypatch.delenv("SNAKEPIT_STANDBY")


def test_jupyter_execute_prints_no_more_than_with_the_stock_kernel(tmp_path, keeping_ready):
    v4 = nbformat.v4
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell(WITH_A_POOL)]), tmp_path / "n.ipynb")

    def lines(kernel: str) -> list[str]:
        options = [f"--kernel_name={kernel}", f"--output=with-{kernel}"]
        done = run(BIN / "jupyter", "execute", *options, "n.ipynb", cwd=tmp_path)
        assert results_of(tmp_path / f"with-{kernel}.ipynb") == ["8"]
        said = re.sub(r"\[\w*KernelApp\]", "[KernelApp]", done.stdout + done.stderr)
        return said.replace(kernel, "KERNEL").splitlines()

    assert lines("snakepit") == [line for line in lines("python3") if PLAIN not in line]


def test_a_console_prints_no_more_than_with_the_stock_kernel(tmp_path, keeping_ready):
    def said(kernel: str) -> list[str]:
        arguments = ["console", "--kernel", kernel, "--simple-prompt"]
        console = pexpect.spawn(
            str(BIN / "jupyter"), arguments, cwd=str(tmp_path), encoding="utf8", timeout=60
        )
        try:
            console.expect(r"In \[1\]: ")
            before = console.before or ""
            # A kernel is kept ready by then; nothing comes behind the prompt.
            console.expect(pexpect.TIMEOUT, timeout=3)
            assert (console.before or "").strip() == ""
            console.sendeof()
            console.expect("Do you really want to exit")
            console.sendline("y")
            console.expect(pexpect.EOF)
        finally:
            console.close(force=True)
        # IPython's tip of the day may have a "|" too.
        return re.findall(r"\b(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) \| [^.]*", before)

    assert said("snakepit") == [line for line in said("python3") if PLAIN not in line]


def start_console(cwd: Path) -> pexpect.spawn[str]:
    """Start a console that has executed a first cell.

    jupyter_console waits for ever when the kernel answers before the console's subscription to the
    output has reached it, and loses the output of the stock kernel then. Nothing tells when it has;
    so wait as long as a person takes to type, and try again.
    """
    arguments = ["console", "--kernel", "snakepit", "--simple-prompt"]
    for _ in range(5):
        console = pexpect.spawn(str(BIN / "jupyter"), arguments, cwd=str(cwd), encoding="utf8")
        console.expect(r"In \[1\]:")
        time.sleep(1.5)
        console.sendline("print(6 * 7)")
        if console.expect(["42", pexpect.TIMEOUT], timeout=6) == 0:
            console.expect(r"In \[2\]:")
            return console
        console.close(force=True)
    pytest.fail("no console has shown what a cell printed")


@pytest.mark.parametrize("end", ["exit", "kill", "hang up"])
def test_a_console_in_a_terminal_works_and_leaves_nothing(tmp_path, living, end):
    console = start_console(tmp_path)
    try:
        console.sendline(f"{CHILD}; print(6 * 9)")
        console.expect("54")
        console.expect(r"In \[3\]:")
        assert len(living()) >= 4
        if end == "exit":
            console.sendeof()
            console.expect("Do you really want to exit")
            console.sendline("y")
            console.expect(pexpect.EOF)
        elif end == "kill":
            console.kill(signal.SIGKILL)
    finally:
        console.close(force=True)
    assert [str(item) for item in living() if not item.wait_gone(SOON)] == []


# -- a server ------------------------------------------------------------------------------------


@pytest.fixture
def server(start_server: Callable[[], Any]) -> Any:
    return start_server()


@pytest.fixture
def client() -> Iterator[Callable[[str], BlockingKernelClient]]:
    clients: list[BlockingKernelClient] = []

    def connect(kernel_id: str) -> BlockingKernelClient:
        folder = Path(os.environ["JUPYTER_RUNTIME_DIR"])
        file = folder / f"kernel-{kernel_id}.json"
        client = BlockingKernelClient(connection_file=str(file))
        client.load_connection_file()
        client.start_channels(hb=False)  # or a late beat is the end
        clients.append(client)
        client.wait_for_ready(timeout=30)
        return client

    yield connect
    for item in clients:
        item.stop_channels()
        item.context.destroy(linger=0)


def execute(client: BlockingKernelClient, code: str) -> str:
    texts: list[str] = []

    def collect(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            texts.append(message["content"]["text"])

    reply = client.execute_interactive(code, output_hook=collect, timeout=30)
    return "".join(texts).strip() if reply["content"]["status"] == "ok" else "error"


def test_a_server_starts_interrupts_restarts_and_deletes_a_kernel(server, client, living):
    kernel = server.request("POST", "kernels", {"name": "snakepit"})["id"]
    shell = client(kernel)
    assert execute(shell, f"{CHILD}; print(6 * 7)") == "42"

    cell = shell.execute("import time; print('in', flush=True); time.sleep(60)")
    while shell.get_iopub_msg(timeout=10)["msg_type"] != "stream":
        pass
    server.request("POST", f"kernels/{kernel}/interrupt")
    reply = shell.get_shell_msg(timeout=10)
    assert reply["parent_header"]["msg_id"] == cell
    assert reply["content"]["ename"] == "KeyboardInterrupt"

    before = {item.pid for item in living()} - {server.process.pid}
    assert len(before) >= 3
    server.request("POST", f"kernels/{kernel}/restart")
    assert before & {item.pid for item in living()} == set()
    shell.wait_for_ready(timeout=30)
    assert execute(shell, f"{CHILD}; print('subprocess' in globals())") == "True"

    server.request("DELETE", f"kernels/{kernel}")
    assert [item.pid for item in living()] == [server.process.pid]
    assert server.request("GET", "kernels") == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_is_ended_leaves_no_process_and_no_file(server, client, living, signum):
    for _ in range(2):
        kernel = server.request("POST", "kernels", {"name": "snakepit"})["id"]
        assert execute(client(kernel), f"{CHILD}; print(1)") == "1"
    assert len(living()) == 7

    server.process.send_signal(signum)
    server.process.wait(20)

    assert [str(item) for item in living() if not item.wait_gone(SOON)] == []
    assert list(Path(os.environ["JUPYTER_RUNTIME_DIR"]).glob("kernel-*.json")) == []

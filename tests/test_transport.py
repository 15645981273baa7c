"""How kernels are reached, and that nothing of ours listens on the network."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.manager import KernelManager
from traitlets.config import Config

from snakepit_kernel import Pool, standby_kernels
from snakepit_kernel.errors import StartFailed
from snakepit_kernel.processes.run_registry import Registry

GRACE = {"grace": 0.5}


def listeners() -> list[str]:
    """What any descendant of this process listens to on the network, orphans included."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = process.net_connections("inet")
            found += [f"{process}: {c.laddr}" for c in connections if not c.raddr]
    return found


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [server.getsockname()[1] for server in servers]


def connection(kernel: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(kernel.km.connection_file).read_bytes())
    return content


# -- listeners -------------------------------------------------------------------------------------


def test_a_notebooks_kernel_its_pool_and_what_they_fork_listen_to_nothing(start_kernel, living):
    """Guardians and templates are among them."""
    cell = """
import os
from snakepit_kernel import Pool
pool = Pool(2, profile=PROFILE)
pool.run("import os; pid = os.fork(); print('x', flush=True); pid or os._exit(0)")
pid = os.fork()
if pid == 0:
    print('child', flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""

    async def scenario() -> None:
        async with start_kernel() as kernel:
            for profile in ("'process'", "'thread'"):
                await kernel.run(cell.replace("PROFILE", profile))
                assert len(living()) >= 5
                assert listeners() == []
                await kernel.run("pool.shutdown()")

    asyncio.run(scenario())


@pytest.mark.usefixtures("with_templates")
def test_a_kernel_that_is_kept_ready_listens_to_nothing(start_kernel):
    config = Config({"SnakepitProvisioner": {**GRACE, "standby": 1}})

    async def scenario() -> None:
        async with start_kernel(config=config):
            async with asyncio.timeout(20):
                while not [run for run in Registry().runs() if run.label == standby_kernels.LABEL]:
                    await asyncio.sleep(0.02)
            assert listeners() == []

    try:
        asyncio.run(scenario())
    finally:
        standby_kernels.close()


# -- which way -------------------------------------------------------------------------------------


def test_a_kernel_is_reached_by_ipc_without_being_asked(start_kernel, capfd):
    async def scenario() -> None:
        async with start_kernel() as kernel:
            info = connection(kernel)
            assert info["transport"] == "ipc"
            sockets = [Path(f"{info['ip']}-{port}") for port in kernel.km.ports]
            assert all(path.is_socket() for path in sockets)
            folder = sockets[0].parent
            assert folder.stat().st_mode & 0o077 == 0
            await kernel.km.restart_kernel(now=True)
            await kernel.ready()
            assert connection(kernel) == info
            assert await kernel.run("1 + 1") == "2"
        assert not any(path.exists() for path in sockets)

    asyncio.run(scenario())
    assert "encryption" not in capfd.readouterr().err


@pytest.mark.parametrize("left", ["nothing", "the session's directory"])
def test_a_kernel_whose_sockets_were_removed_is_reached_again_after_a_restart(
    start_kernel, monkeypatch, tmp_path, left
):
    """The directory of a login session goes with it, and cannot be made anew before the next."""
    (tmp_path / "runtime").mkdir(mode=0o755)  # open to others: no place for sockets
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    for name in ("SNAKEPIT_RUNTIME_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    session = Path(tempfile.mkdtemp())
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))

    async def scenario() -> None:
        async with start_kernel() as kernel:
            before = connection(kernel)
            assert Path(before["ip"]).parent == session / "snakepit"
            shutil.rmtree(session if left == "nothing" else session / "snakepit")
            assert await kernel.run("1 + 1") == "2"
            kernel.kc.stop_channels()  # a manager's clients have one identity: only one is answered

            await kernel.km.restart_kernel(now=True)

            after = connection(kernel)
            assert (after["ip"] == before["ip"]) is (left != "nothing")
            client = kernel.km.client()
            client.start_channels()
            try:
                await client.wait_for_ready(timeout=10)
            finally:
                client.stop_channels()

    asyncio.run(scenario())
    shutil.rmtree(session, ignore_errors=True)


def test_ports_that_were_chosen_are_kept_and_encrypted(start_kernel):
    names = [f"{name}_port" for name in ("shell", "iopub", "stdin", "control", "hb")]
    ports = dict(zip(names, free_ports(5), strict=True))

    async def scenario() -> None:
        async with start_kernel(**ports, cache_ports=False) as kernel:
            info = connection(kernel)
            assert {name: info[name] for name in names} == ports
            assert info["transport"] == "tcp"
            assert info["curve_publickey"]
            await kernel.km.restart_kernel(now=True)
            await kernel.ready()
            assert connection(kernel) == info

    asyncio.run(scenario())


def configured(where: str, way: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    if where == "variable":
        monkeypatch.setenv("SNAKEPIT_TRANSPORT", way)
        return Config({"SnakepitProvisioner": GRACE})
    if where == "provisioner":
        return Config({"SnakepitProvisioner": {**GRACE, "transport": way}})
    traits = {"transport_encryption": "auto"} if way == "curve" else {"transport": way}
    return Config({"SnakepitProvisioner": GRACE, "KernelManager": traits})


@pytest.mark.parametrize("where", ["variable", "provisioner", "manager"])
@pytest.mark.parametrize(
    ("way", "transport", "is_encrypted"),
    [("tcp", "tcp", False), ("curve", "tcp", True), ("ipc", "ipc", False)],
)
def test_a_kernel_is_reached_as_is_configured(
    start_kernel, monkeypatch, where, way, transport, is_encrypted
):
    config = configured(where, way, monkeypatch)

    async def scenario() -> None:
        async with start_kernel(config=config) as kernel:
            info = connection(kernel)
            assert info["transport"] == transport
            assert ("curve_publickey" in info) is is_encrypted
            assert await kernel.run("1 + 1") == "2"

    asyncio.run(scenario())


def test_a_way_that_is_none_is_named_and_ignored(start_kernel, monkeypatch, caplog):
    monkeypatch.setenv("SNAKEPIT_TRANSPORT", "pigeon")

    async def scenario() -> None:
        async with start_kernel() as kernel:
            assert connection(kernel)["transport"] == "ipc"

    asyncio.run(scenario())
    assert "auto, ipc, curve, tcp, not 'pigeon'" in caplog.text


OF_ANOTHER_LANGUAGE = {
    "language": "other",
    "metadata": {"kernel_provisioner": {"provisioner_name": "snakepit-provisioner"}},
}


def test_a_kernel_that_may_not_know_ipc_is_encrypted_if_it_can_be(write_kernelspec, tmp_path):
    program = [sys.executable, "-c", "import time; time.sleep(600)", "{connection_file}"]
    write_kernelspec("plain", program, **OF_ANOTHER_LANGUAGE)
    spec = {**OF_ANOTHER_LANGUAGE, "metadata": {**OF_ANOTHER_LANGUAGE["metadata"]}}  # type: ignore[dict-item]
    spec["metadata"]["supported_encryption"] = "curve"  # type: ignore[index]
    write_kernelspec("able", program, **spec)
    found = {}
    for name in ("plain", "able"):
        km = KernelManager(kernel_name=name, config=Config({"SnakepitProvisioner": GRACE}))
        km.start_kernel()
        found[name] = json.loads(Path(km.connection_file).read_bytes())
        km.shutdown_kernel(now=True)
    assert found["plain"]["transport"] == found["able"]["transport"] == "tcp"
    assert "curve_publickey" in found["able"]
    assert "curve_publickey" not in found["plain"]


def test_a_kernel_that_cannot_be_encrypted_as_was_asked_is_not_started(write_kernelspec, living):
    write_kernelspec(
        "plain", [sys.executable, "-c", "", "{connection_file}"], **OF_ANOTHER_LANGUAGE
    )
    config = Config({"SnakepitProvisioner": {"transport": "curve"}})
    km = KernelManager(kernel_name="plain", config=config)
    with pytest.raises(StartFailed, match="supported_encryption"):
        km.start_kernel()
    assert living() == []


def test_status_and_doctor_say_how_kernels_are_reached(start_kernel):
    def ask(*words: str) -> str:
        command = [sys.executable, "-m", "snakepit_kernel", *words]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout

    async def scenario() -> None:
        async with start_kernel() as first:
            run_id = first.km.provisioner.run_id
            (run,) = json.loads(ask("status", "--json"))["runs"]
            assert run["run_id"] == run_id
            assert run["transport"] == "ipc"
            assert "  ipc  " in ask("status")
            assert "channels: 1 by ipc" in ask("doctor")
            async with start_kernel(transport="tcp") as second:
                said = ask("doctor")
                assert "1 kernels are reached over TCP without encryption" in said
                assert second.km.provisioner.run_id in said
                assert "tcp, not encrypted" in ask("status")

    asyncio.run(scenario())


def test_a_pool_opened_with_any_variable_keeps_its_sockets_private(monkeypatch):
    monkeypatch.setenv("SNAKEPIT_TRANSPORT", "tcp")
    with Pool(1) as pool:
        pool.run("1 + 1")
        assert listeners() == []

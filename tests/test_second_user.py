"""What another user of the machine can see of a notebook, and do to it: nothing.

These tests become that user in a forked child, which only root may. All else that other users are
kept out of is tested where it is done: modes of files and folders, places in them, links.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq

import snakepit_kernel
from snakepit_kernel import Pool, ProcessNotFound, open_session
from snakepit_kernel.pool.commands import socket_path
from snakepit_kernel.shells.manager import manager

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")

NOBODY = 65534

SECRET = "hunter2-in-a-cell"


def as_nobody(look: Callable[[], Any]) -> Any:
    """Call a function as another user, in a child; return what it returns, as JSON has it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.close(reading)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            try:
                said = json.dumps(look())
            except BaseException as error:
                said = json.dumps(f"failed: {error!r}")
            os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = json.loads(pipe.read())
    os.waitpid(pid, 0)
    if isinstance(told, str) and told.startswith("failed"):
        pytest.fail(told)
    return told


def family() -> list[psutil.Process]:
    """All that this process has started, orphans included."""
    return psutil.Process().children(recursive=True)


def sockets_of(processes: list[psutil.Process]) -> list[str]:
    """The Unix sockets with a name that processes listen at or have."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {item.laddr for item in process.net_connections("unix") if item.laddr}
    return sorted(found)


def entered(paths: list[str]) -> list[str]:
    """Which sockets let this user in."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.connect(path.replace("@", "\0", 1) if path.startswith("@") else path)
            found.append(path)
    return found


def opened(pids: list[int]) -> list[str]:
    """What of processes this user can read that is not for everybody."""
    found = []
    for pid in pids:
        for name in ("environ", "maps", "mem", "auxv", "io", "stack"):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/{name}").read_bytes():
                    found.append(f"{pid}/{name}")
        with contextlib.suppress(OSError):
            found += [f"{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
        with contextlib.suppress(OSError):
            os.kill(pid, 0)  # not SIGCONT: whoever is of the same session may send that
            found.append(f"kill {pid}")
    return found


def readable(folders: list[str]) -> list[str]:
    """What this user can list below folders."""
    found = []
    for folder in folders:
        for place, _, files in os.walk(folder):
            found += [place, *files]
    return found


FOLDERS = ("SNAKEPIT_RUNTIME_DIR", "SNAKEPIT_DATA_DIR", "JUPYTER_RUNTIME_DIR")


@pytest.fixture
def folders() -> Iterator[list[str]]:
    """Our folders, below folders that keep nobody out."""
    found = [os.environ[name] for name in FOLDERS]
    modes = {parent: parent.stat().st_mode for parent in {Path(path).parent for path in found}}
    for parent in modes:
        parent.chmod(0o711)
    yield found
    for parent, mode in modes.items():
        parent.chmod(mode)


def test_another_user_enters_no_socket_and_no_folder_and_reads_no_process(start_kernel, folders):

    async def scenario() -> None:
        async with start_kernel() as kernel:
            with Pool(2, profile="thread") as pool:
                pool.run("1 + 1")
                before = family()
                sockets = sockets_of(before)
                assert len([path for path in sockets if path.startswith("/")]) >= 10
                pids = [process.pid for process in before]
                assert as_nobody(lambda: readable(folders)) == []
                assert as_nobody(lambda: entered(sockets)) == []
                assert as_nobody(lambda: opened(pids)) == []
                commands = "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in pids)
                assert kernel.km.session.key.decode() not in commands  # these all can read
                pool.run("1 + 1")
            assert await kernel.run("1 + 1") == "2"

    asyncio.run(scenario())


def test_sockets_are_closed_to_others_even_without_their_folder_and_whatever_the_umask(
    start_kernel,
):
    before = os.umask(0)

    async def scenario() -> None:
        async with start_kernel() as kernel:
            with Pool(1) as pool:
                pool.run("1 + 1")
                paths = [Path(path) for path in sockets_of(family()) if path.startswith("/")]
                modes = {str(path): oct(stat.S_IMODE(path.stat().st_mode)) for path in paths}
            assert len(modes) == 10
            assert set(modes.values()) == {"0o600"}, modes
            assert await kernel.run("1 + 1") == "2"

    try:
        asyncio.run(scenario())
    finally:
        os.umask(before)


def said_by(path: Path) -> str:
    """Send a pool the command to end, at its socket; return its answer."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        try:
            client.sendall(b'{"op": "stop"}\n')
            return client.makefile("rb").read().decode()
        except ConnectionError:  # it was closed before it was read
            return ""


def test_another_user_commands_no_pool_even_where_the_socket_lets_them_in(folders):
    with Pool(1) as pool:
        path = socket_path(pool._engine._folder.path)
        above = list(path.parents)[:3]
        modes = {each: each.stat().st_mode for each in (path, *above)}
        try:
            path.chmod(0o666)
            for each in above:
                each.chmod(0o711)
            assert as_nobody(lambda: said_by(path)) == ""
        finally:
            for each, mode in modes.items():
                each.chmod(mode)
        assert pool.submit(pow, 2, 3).result(10) == 8
        assert said_by(path) == '{"problem":""}\n'


def overhear(ports: list[int], seconds: float) -> list[str]:
    """Subscribe to everything that is sent at ports of the network, for a while."""
    context = zmq.Context()
    heard: list[str] = []
    poller = zmq.Poller()
    for port in ports:
        subscriber = context.socket(zmq.SUB)
        subscriber.linger = 0
        subscriber.subscribe(b"")
        subscriber.connect(f"tcp://127.0.0.1:{port}")
        poller.register(subscriber, zmq.POLLIN)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for subscriber, _ in poller.poll(100):
            heard += [part.decode("latin-1") for part in subscriber.recv_multipart()]
    context.destroy(linger=0)
    return heard


def feed(ports: list[int]) -> None:
    """Send what is large and false to ports of the network."""
    context = zmq.Context()
    for port in ports:
        for kind in (zmq.PUSH, zmq.DEALER):
            sender = context.socket(kind)
            sender.linger = 1000
            sender.connect(f"tcp://127.0.0.1:{port}")
            with contextlib.suppress(zmq.Again):
                sender.send_multipart([b"not-the-key", b"x" * (20 << 20)], zmq.NOBLOCK)
    time.sleep(1.0)
    context.destroy(linger=0)


@pytest.mark.parametrize("encryption", ["auto", "disabled"])
def test_another_user_overhears_an_encrypted_kernel_no_more(start_kernel, encryption):
    """That it hears one that is not encrypted shows that it listens well."""

    async def scenario() -> str:
        traits = {"transport": "tcp", "transport_encryption": encryption}
        async with start_kernel(**traits) as kernel:
            ports = list(kernel.km.ports)
            listening = asyncio.create_task(
                asyncio.to_thread(as_nobody, lambda: overhear(ports, 2.0))
            )
            while not listening.done():
                await kernel.run(f"print({SECRET!r})")
                await asyncio.sleep(0.1)
            return "".join(await listening)

    assert (SECRET in asyncio.run(scenario())) is (encryption == "disabled")


def test_what_another_user_feeds_to_an_encrypted_kernel_is_not_taken(start_kernel, capfd):
    async def scenario() -> None:
        async with start_kernel(transport="tcp", transport_encryption="auto") as kernel:
            process = psutil.Process(kernel.pid)
            ports = [item.laddr.port for item in process.net_connections("inet") if not item.raddr]
            assert sorted(ports) == sorted(kernel.km.ports)
            before = process.memory_info().rss
            await asyncio.to_thread(as_nobody, lambda: feed(ports))
            assert await kernel.run("1 + 1") == "2"
            assert process.memory_info().rss - before < 10 << 20

    asyncio.run(scenario())
    assert "not-the-key" not in capfd.readouterr().err


@pytest.fixture
def theirs() -> Iterator[str]:
    """A folder of the other user, where that user can go."""
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, NOBODY, NOBODY)
        yield folder


def test_shells_and_processes_of_another_user_are_closed_and_unknown(theirs):
    state = open_session("mine")
    state.shell.run(f"export TOKEN={SECRET}; sleep 600 &")
    process = state.processes.start(f"echo {SECRET}; sleep 600", name="web")
    process.wait_for_log(SECRET)
    pids = [each.pid for each in family()]
    folders = [os.environ[name] for name in FOLDERS if name in os.environ]

    def look() -> dict[str, Any]:
        found = {"opened": opened(pids), "readable": readable(folders)}
        os.environ["SNAKEPIT_RUNTIME_DIR"] = os.environ["SNAKEPIT_DATA_DIR"] = theirs
        found["listed"] = [each.id for each in snakepit_kernel.processes()]
        for wanted in (process.id, "web"):
            try:
                manager.find_process(wanted)
            except ProcessNotFound as error:
                found[wanted] = str(error)
        return found

    told = as_nobody(look)

    assert told.pop("opened") == []
    assert told.pop("readable") == []
    assert told.pop("listed") == []
    assert set(told) == {process.id, "web"}
    assert all("there is no process" in text for text in told.values()), told
    state.delete()
    manager.close()

"""What every test gets: private directories, and a fixture that fails a test that leaves something.

The process of pytest makes itself a subreaper, so that whatever the processes of a test start stays
below it, orphans included. It looks with code of its own, not with that under test.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import json
import os
import re
import select
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import websocket
from jupyter_client.channels import HBChannel
from traitlets.config import Config

from snakepit_kernel.processes import template as template_module
from snakepit_kernel.store import store as store_module

GRACE = 0.5
"""Seconds that the kernels of tests give to what is deaf to SIGTERM; by default it would be 2."""

PATIENCE = 3.0
"""Seconds that what is ending at the end of a test may still take."""

LONG = (
    "tests/browser/",
    *(f"tests/{name}.py" for name in ("test_every_end", "test_provisioner", "test_chaos")),
    *("tests/test_jupyter_clients.py", "tests/pool/test_presence.py", "tests/test_joblib"),
    *("tests/environments/", "tests/processes/test_template.py"),
)
"""Files and folders whose tests take long."""

MAX_PROCESSES = 4
"""Processes that run tests beside each other; each starts many more."""

PR_SET_CHILD_SUBREAPER = 36

PRIVATE = Path(tempfile.mkdtemp(prefix="spt-", dir="/tmp"))  # short: sockets lie below it
RUNTIME_DIRS = [PRIVATE / "run", PRIVATE / "s"]

# Whoever runs these tests has settings of their own, and may run them from a tagged kernel.
OTHERS_SETTINGS = ("SNAKEPIT_", "JUPYTER_", "JPY_", "IPYTHON", "OTEL_", "MPLBACKEND", "OMP_")
OTHERS_SCREEN = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR")
OTHERS_PYTHON = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
for variable in list(os.environ):
    if variable.startswith(OTHERS_SETTINGS) or variable in (*OTHERS_SCREEN, *OTHERS_PYTHON):
        del os.environ[variable]

os.environ["JUPYTER_RUNTIME_DIR"] = str(RUNTIME_DIRS[0])
os.environ["SNAKEPIT_RUNTIME_DIR"] = str(RUNTIME_DIRS[1])
os.environ["JUPYTER_DATA_DIR"] = str(PRIVATE / "data")  # kernelspecs are found in sys.prefix too
os.environ["JUPYTER_CONFIG_DIR"] = str(PRIVATE / "config")
os.environ["SNAKEPIT_DATA_DIR"] = str(PRIVATE / "snakepit")
os.environ["SNAKEPIT_CACHE_DIR"] = str(PRIVATE / "cache")
os.environ["UV_COMPILE_BYTECODE"] = "0"  # it would take longer than what the tests run there
os.environ["IPYTHONDIR"] = str(PRIVATE / "ipython")
os.environ["JUPYTER_PLATFORM_DIRS"] = "1"  # or jupyter_core warns that this will change
os.environ["SNAKEPIT_STANDBY"] = "0"  # what a test starts is what it asks for

# A shell lets what it runs in the background ignore these, and so all that it starts would.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        is_interrupt = number is signal.SIGINT
        signal.signal(number, signal.default_int_handler if is_interrupt else lambda *_: None)

# What the process of pytest opens once and keeps. The key is what /proc/self/fd/N links to.
KEPT_DESCRIPTORS = {
    "/dev/urandom": "libraries keep the source of random numbers open",
    "/dev/null": "subprocess and ipykernel keep a sink open",
}
# multiprocessing starts one for the life of the interpreter; the descriptor is its pipe.
KEPT_COMMANDS = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption("--chaos-kills", type=int, default=12, help="rounds of the chaos test")
    group.addoption("--store-kills", type=int, default=30, help="writers that are killed")
    group.addoption("--soak-calls", type=int, default=2500, help="calls of the soak test")
    group.addoption("--shell-commands", type=int, default=300, help="commands at random")
    group.addoption("--cycles", type=int, default=10, help="cycles of the test of leaks")
    group.addoption("--no-template", action="store_true", help="fork no kernel from a template")
    group.addoption("--chaos-seed", type=int, help="its seed; by default another each time")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite in one process more than there are cores; a part of it in one.

    Tests wait for much of their time. ``-n`` says otherwise. Tests of one file stay together: they
    share pools and servers.
    """
    if hasattr(config, "workerinput") or not config.pluginmanager.hasplugin("xdist"):
        return
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if is_whole and config.option.numprocesses is None:
        config.option.numprocesses = min(len(os.sched_getaffinity(0)) + 1, MAX_PROCESSES)
        config.option.dist = "loadfile"
        config.option.loadscopereorder = False  # by the number of tests: see below


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files whose few tests take long, or the last one would run alone."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


def pytest_configure(config: pytest.Config) -> None:
    """Become the subreaper of everything that the tests start."""
    if config.option.no_template:
        os.environ[template_module.TEMPLATE_VARIABLE] = "0"
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        pytest.exit("prctl(PR_SET_CHILD_SUBREAPER) failed")
    for directory in (*RUNTIME_DIRS, PRIVATE / "ipython"):
        directory.mkdir(mode=0o700, exist_ok=True)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Let libraries open what they keep for the life of the process.

    jupyter_core has event loops; tqdm has a lock of multiprocessing, which has a name where that
    does not fork.
    """
    from jupyter_core.utils import run_sync
    from tqdm import tqdm

    tqdm.get_lock()

    async def nothing() -> None:
        pass

    async def nothing_inside_a_loop() -> None:
        run_sync(nothing)()

    run_sync(nothing)()
    asyncio.run(nothing_inside_a_loop())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the templates of this process, and see that they have ended."""
    template_module.close_templates()
    left = [str(item) for item in _descendants(os.getpid()) if TEMPLATE.search(_command(item))]
    assert left == []


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(PRIVATE, ignore_errors=True)


class Process(NamedTuple):
    """A process that can be told from the next one with its pid."""

    pid: int
    start_time: int

    @property
    def state(self) -> str:
        """The letter in ``/proc/PID/stat``, or an empty string when the process is gone."""
        fields = _stat(self.pid)
        return fields[0] if fields and int(fields[19]) == self.start_time else ""

    @property
    def is_alive(self) -> bool:
        # One whose first thread has ended before others has the state of a zombie.
        threads = _stat(self.pid)[17:18]
        return self.state not in {"", "Z", "X"} or (
            self.state == "Z" and threads not in ([], ["0"], ["1"])
        )

    def __str__(self) -> str:
        command = _read(f"/proc/{self.pid}/cmdline").replace(b"\0", b" ").decode(errors="replace")
        return f"{self.pid} [{self.state}] {command.strip()[:200]}"

    def wait_gone(self, timeout: float = 5.0) -> bool:
        """Wait until it has ended; say whether it has."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            if self.is_alive:
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                poll.poll(max(timeout, 0.0) * 1000)
            return not self.is_alive
        finally:
            os.close(pidfd)

    def kill(self) -> None:
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.is_alive:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _stat(pid: int) -> list[str]:
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].decode().split()


def _process(pid: int) -> Process | None:
    fields = _stat(pid)
    return Process(pid, int(fields[19])) if fields else None


def _descendants(root: int) -> list[Process]:
    """Everything below a process, zombies included."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))):
            children.setdefault(int(fields[1]), []).append(int(name))
    found, level = [], children.get(root, [])
    while level:
        found += level
        level = [child for pid in level for child in children.get(pid, [])]
    return [process for process in map(_process, found) if process is not None]


def _is_kept(process: Process) -> bool:
    command = _command(process)
    return any(name in command for name in KEPT_COMMANDS) or _is_template(command)


def _command(process: Process) -> bytes:
    return _read(f"/proc/{process.pid}/cmdline")


TEMPLATE = re.compile(rb"template[\0 ]--owner=(\d+):(\d+)")


def _is_template(command: bytes) -> bool:
    """Whether a process is the template of an owner that lives: it stays as long as that does."""
    found = TEMPLATE.search(command)
    return found is not None and Process(*map(int, found.groups())).is_alive


class Surroundings:
    """What is there at one moment, and what of it came later than another moment."""

    def __init__(self) -> None:
        self.processes = set(_descendants(os.getpid()))
        self.files = _runtime_files()
        self.shared_memory = {
            entry.name for entry in os.scandir("/dev/shm") if _owner(entry) == os.getuid()
        }
        self.descriptors = _descriptors()
        self.runs = _own_runs()

    def new_processes(self) -> list[Process]:
        """Living processes; ours that are zombies are reaped on the way."""
        found = []
        for process in _descendants(os.getpid()):
            if process in self.processes:
                continue
            if process.is_alive:
                if not _is_kept(process):
                    found.append(process)
            elif (fields := _stat(process.pid)) and int(fields[1]) == os.getpid():
                try:
                    os.waitpid(process.pid, os.WNOHANG)
                except ChildProcessError:
                    pass
        return found

    def new_files(self) -> list[str]:
        new = _runtime_files() - self.files
        # The log of a worker that was there, and has grown so long that it began anew.
        return sorted(path for path in new if path.removesuffix(".1") not in self.files)

    def new_shared_memory(self) -> list[str]:
        now = {entry.name for entry in os.scandir("/dev/shm") if _owner(entry) == os.getuid()}
        new = sorted(now - self.shared_memory)
        return [f"/dev/shm/{name}" for name in new if not _belongs_to_a_stranger(name)]

    def new_runs(self) -> list[str]:
        return sorted(_own_runs() - self.runs)

    def new_descriptors(self) -> list[str]:
        now = _descriptors()
        new = {
            number: link
            for number, link in now.items()
            if self.descriptors.get(number) != link and link not in KEPT_DESCRIPTORS
        }
        if _own_runs():  # the file of runs stays open for them
            new = {number: link for number, link in new.items() if "/runs.sqlite" not in link}
        for template in template_module.templates():
            for number in template.descriptors():
                new.pop(number, None)
        if new and any(_is_kept(process) for process in _descendants(os.getpid())):
            # The pipe to a resource tracker that was started in this test.
            pipes = [number for number, link in new.items() if link.startswith("pipe:")]
            for number in pipes[:1]:
                del new[number]
        return [f"{number} -> {link}{_kind(link)}" for number, link in sorted(new.items())]


def _runtime_files() -> set[str]:
    """Files and directories below the runtime directories; one that goes meanwhile is no error."""
    return {
        os.path.join(parent, name)
        for directory in RUNTIME_DIRS
        for parent, directories, files in os.walk(directory)
        for name in directories + files
    }


def _own_runs() -> set[str]:
    """Runs of this process that are written down and not crossed out."""
    file = PRIVATE / "snakepit" / "runs.sqlite"
    if not file.exists():
        return set()
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        select = "SELECT run_id || ' ' || label FROM runs WHERE owner LIKE ? || ':%'"
        return {row[0] for row in connection.execute(select, (str(os.getpid()),))}


def _owner(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_uid
    except FileNotFoundError:
        return -1


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the descriptor that listdir itself used
    return found


def _kind(link: str) -> str:
    """What kind of socket a descriptor is, and where it is bound; empty for everything else."""
    inode = link.removeprefix("socket:[").removesuffix("]")
    for kind in ("unix", "tcp", "tcp6", "udp", "udp6", "netlink"):
        for line in _read(f"/proc/self/net/{kind}").decode().splitlines()[1:]:
            if inode in line.split():
                return f" ({kind}: {' '.join(line.split())})"
    return ""


def _belongs_to_a_stranger(name: str) -> bool:
    """Whether a process that these tests did not start uses a file in /dev/shm."""
    ours = {os.getpid(), *(process.pid for process in _descendants(os.getpid()))}
    needle = f"/dev/shm/{name}\n".encode()
    return any(
        needle in _read(f"/proc/{pid}/maps")
        for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
        if pid not in ours
    )


def _settle(look: Callable[[], list[str]], deadline: float) -> list[str]:
    """Look until nothing is left or time is up; return what is left."""
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(0.02)  # a file that goes away is no event for a test's bystander
    return left


@pytest.fixture(scope="session", autouse=True)
def heartbeats_begin_before_they_stop() -> Iterator[None]:
    """Mend jupyter_client: a heartbeat that is stopped before it has begun never ends.

    Its thread says that it runs after it was told not to, and then opens one socket after another.
    """
    stop = HBChannel.stop

    def stop_once_begun(channel: HBChannel) -> None:
        while channel.is_alive() and not channel._running:
            time.sleep(0.005)  # nothing tells when it has
        stop(channel)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HBChannel, "stop", stop_once_begun)
        yield


@pytest.fixture
def with_templates() -> Iterator[None]:
    """Allow templates to a test that is about them, also where the whole suite runs without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(template_module.TEMPLATE_VARIABLE, "1")
        yield


@pytest.fixture(autouse=True)
def no_sessions_of_other_tests(nothing_is_left_behind: object) -> Iterator[None]:
    """Begin with an empty store: sessions outlive all processes of a test.

    A pool that outlives the test keeps the store open; what is in use then is a leak, no more.
    """
    yield
    for store in list(store_module._stores.values()):
        store.rest()
    for path in Path(os.environ["SNAKEPIT_DATA_DIR"]).glob("sessions.sqlite*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[Surroundings]:
    """Fail a test that leaves a process, a run, a runtime file, shared memory or a descriptor."""
    before = Surroundings()
    yield before
    deadline = time.monotonic() + PATIENCE
    complaints = []
    while left := before.new_processes():
        if time.monotonic() > deadline:
            complaints += [f"process {process}" for process in left]
            for process in left:
                process.kill()
            for process in left:
                process.wait_gone()
            deadline = time.monotonic() + PATIENCE  # what their death sets free is looked at anew
            continue
        left[0].wait_gone(deadline - time.monotonic())
    if before.new_descriptors():
        gc.collect()
    complaints += [f"file {path}" for path in _settle(before.new_files, deadline)]
    complaints += [f"shared memory {path}" for path in _settle(before.new_shared_memory, deadline)]
    complaints += [f"run {item}" for item in _settle(before.new_runs, deadline)]
    complaints += [f"descriptor {item}" for item in _settle(before.new_descriptors, deadline)]
    for path in map(Path, reversed(before.new_files())):
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    if complaints:
        pytest.fail("left behind:\n  " + "\n  ".join(complaints), pytrace=False)


@pytest.fixture
def living(nothing_is_left_behind: Surroundings) -> Callable[[], list[Process]]:
    """List the living processes that were started since the test began, orphans included."""
    return nothing_is_left_behind.new_processes


@pytest.fixture
def process_of() -> Callable[[int], Process]:
    """Give the process of a pid: ``.is_alive``, ``.wait_gone(timeout)``, ``.kill()``."""

    def find(pid: int) -> Process:
        process = _process(pid)
        assert process is not None, f"there is no process {pid}"
        return process

    return find


@pytest.fixture
def until() -> Callable[..., None]:
    """Wait for something of which nothing tells."""

    def wait(is_true: Callable[[], object], seconds: float = 5.0) -> None:
        end = time.monotonic() + seconds
        while not is_true():
            assert time.monotonic() < end, "it did not come"
            time.sleep(0.005)

    return wait


@pytest.fixture
def write_kernelspec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a kernelspec where Jupyter finds it, from name, argv and fields; give its folder."""

    def write(name: str, argv: list[str], **spec: Any) -> Path:
        if "JUPYTER_PATH" not in os.environ:
            monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
        folder = Path(os.environ["JUPYTER_PATH"], "kernels", name)
        folder.mkdir(parents=True)
        content = {"argv": argv, "display_name": name.title(), "language": "python", **spec}
        (folder / "kernel.json").write_text(json.dumps(content))
        return folder

    return write


@pytest.fixture
def refusing() -> Callable[..., list[str]]:
    """Give the beginning of a command to which the operating system refuses some calls.

    They are given by name, with the error: ``refusing(kill=errno.EPERM)``.
    """
    numbers = {
        "pidfd_open": 434,
        "pidfd_send_signal": 424,
        "kill": {"x86_64": 62, "aarch64": 129}[os.uname().machine],
    }

    def prefix(**errors: int) -> list[str]:
        refusals = [f"{numbers[name]}:{error}" for name, error in errors.items()]
        return [sys.executable, str(Path(__file__).with_name("refuse_calls.py")), *refusals, "--"]

    return prefix


@pytest.fixture
def powerless_python(refusing: Callable[..., list[str]], tmp_path: Path) -> str:
    """Give a Python whose signals reach nobody: all others are like another user's processes."""
    refused = refusing(kill=errno.EPERM, pidfd_send_signal=errno.EPERM)
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(refused)} {sys.executable} "$@"')
    program.chmod(0o700)
    return str(program)


class Kernel:
    """A kernel, its manager and a client, in the event loop of a test."""

    def __init__(self, km: Any, kc: Any) -> None:
        self.km = km
        self.kc = kc

    @property
    def pid(self) -> int:
        return int(self.km.provisioner.pid)

    @property
    def identity(self) -> str:
        """The kernel's process, as ``PID:START``."""
        return str(self.km.provisioner.guarded.identity)

    async def run(self, code: str, timeout: float = 20.0) -> str:
        """Run a cell; return what it printed and displayed; raise RuntimeError if it failed."""
        output: list[str] = []

        def collect(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream" and content["name"] == "stdout":
                output.append(content["text"])
            elif message["msg_type"] in {"execute_result", "display_data"}:
                output.append(content["data"]["text/plain"])

        reply = await self.kc.execute_interactive(code, output_hook=collect, timeout=timeout)
        while reply["content"]["status"] == "aborted":  # the queue of a failed cell is dropped
            reply = await self.kc.execute_interactive(code, output_hook=collect, timeout=timeout)
        if reply["content"]["status"] != "ok":
            raise RuntimeError(f"{reply['content']['ename']}: {reply['content']['evalue']}")
        return "".join(output).strip()

    async def ready(self, timeout: float = 30.0) -> None:
        """Wait until output arrives and requests are answered.

        The client's own `wait_for_ready` does not know ipykernel's welcome, and sleeps instead.
        """
        if self.km.kernel_name != "snakepit":
            await self.kc.wait_for_ready(timeout=timeout)
            return
        async with asyncio.timeout(timeout):
            while (await self.kc.get_iopub_msg())["msg_type"] != "iopub_welcome":
                pass
            await self.kc.kernel_info(reply=True, timeout=timeout)


@pytest.fixture
def start_kernel() -> Callable[..., contextlib.AbstractAsyncContextManager[Kernel]]:
    """Start a kernel in an ``async with``; keyword arguments of its manager may be given."""

    @contextlib.asynccontextmanager
    async def start(
        kernel_name: str = "snakepit",
        manager_class: Any = None,
        launch: dict[str, Any] | None = None,
        **traits: Any,
    ) -> AsyncIterator[Kernel]:
        from jupyter_client.manager import AsyncKernelManager

        config = traits.setdefault("config", Config({"SnakepitProvisioner": {"grace": GRACE}}))
        if traits.get("transport") == "tcp":  # it is the default's name, so it must be configured
            traits["config"] = config = Config(config)
            config.KernelManager.transport = traits.pop("transport")
        km = (manager_class or AsyncKernelManager)(kernel_name=kernel_name, **traits)
        await km.start_kernel(**(launch or {}))
        kc = km.client()
        kc.start_channels(hb=False)  # its thread may only now begin when the context ends
        kernel = Kernel(km, kc)
        try:
            await kernel.ready()
            yield kernel
        finally:
            kc.stop_channels()
            await km.shutdown_kernel(now=True)
            km.context.destroy(linger=0)  # jupyter_client forgets a socket after an autorestart

    return start


class KernelOwner(subprocess.Popen[str]):
    """A process that starts a kernel, runs a cell in it and waits for the end of its input.

    Attributes
    ----------
    said
        What the cell printed, in words.
    """

    said: list[str]

    def __init__(
        self,
        code: str,
        *,
        traits: dict[str, Any] | None = None,
        launch: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        program = f"""
import asyncio, subprocess, sys
from jupyter_client.manager import AsyncKernelManager
from traitlets.config import Config
async def main():
    config = Config({{"SnakepitProvisioner": {{"grace": {GRACE}}}}})
    km = AsyncKernelManager(kernel_name="snakepit", config=config, **{traits or {}!r})
    sink = {{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}}
    await km.start_kernel(**sink, **{launch or {}!r})
    kc = km.client()
    kc.start_channels()
    while (await kc.get_iopub_msg(timeout=30))["msg_type"] != "iopub_welcome":
        pass
    said = []
    def collect(message):
        if message["content"].get("name") == "stdout":
            said.append(message["content"]["text"])
    await kc.execute_interactive({code!r}, timeout=30, output_hook=collect)
    print(km.provisioner.pid, km.provisioner.guarded.guardian.pid, *"".join(said).split())
    print("ready", flush=True)
    sys.stdin.readline()
asyncio.run(main())
"""
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", program]
        super().__init__(command, stdin=pipe, stdout=pipe, text=True, **arguments)

    def wait_ready(self) -> tuple[int, int]:
        """Wait until the cell has run; return the pids of the kernel and of its guardian."""
        assert self.stdout is not None
        kernel, guardian, *self.said = self.stdout.readline().split()
        assert self.stdout.readline() == "ready\n"
        return int(kernel), int(guardian)


@pytest.fixture
def kernel_owner() -> type[KernelOwner]:
    """Start a process that owns a kernel; used in a ``with``."""
    return KernelOwner


@pytest.fixture
def start_and_shut_down() -> Callable[[], None]:
    """Start a kernel and shut it down, which sweeps what dead runs left."""

    def run() -> None:
        from jupyter_client.manager import AsyncKernelManager

        async def scenario() -> None:
            km = AsyncKernelManager(kernel_name="snakepit")
            await km.start_kernel()
            await km.shutdown_kernel(now=True)

        asyncio.run(scenario())

    return run


# -- a Jupyter server ------------------------------------------------------------------------------


class Server:
    """A Jupyter server in a process of its own."""

    def __init__(self, folder: Path, name: str, *more_options: str) -> None:
        self.log = (folder / f"{name}.log").open("w+")
        ready = folder / f"{name}.ready"
        code = f"""
import json
from jupyter_server.serverapp import ServerApp
class App(ServerApp):
    def write_server_info_file(self):
        super().write_server_info_file()
        self.io_loop.add_callback(self.say)
    def say(self):
        with open({str(ready)!r}, "w") as file:
            json.dump([self.port], file)
App.launch_instance()
"""
        os.mkfifo(ready)
        options = ["--no-browser", "--IdentityProvider.token=t", f"--ServerApp.root_dir={folder}"]
        options += ["--allow-root", "--ServerApp.port=0", "--ServerApp.terminals_enabled=False"]
        options += [f"--ServerApp.cookie_secret_file={folder / 'secret'}", *more_options]
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *options], stdout=self.log, stderr=self.log, cwd=folder
        )
        with ready.open() as file:  # waits until the server opens the other end
            (self.port,) = json.load(file)

    def request(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": "token t"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.log.close()


class ServedNotebook:
    """A new notebook in a server, as JupyterLab opens it.

    Parameters
    ----------
    server
        The server.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        made = server.request("POST", "contents", {"type": "notebook"})
        self.path = made["path"]
        self.save(f"{self.path}-cell")
        self._session = server.request("POST", "sessions", self._model())
        self.kernel = self._session["kernel"]["id"]

    def _model(self) -> dict[str, Any]:
        where = {"path": self.path, "name": self.path, "type": "notebook"}
        return {**where, "kernel": {"name": "snakepit"}}

    def save(self, *cells: str) -> None:
        code = [
            {"cell_type": "code", "id": cell.replace(".", "-"), "source": "", "metadata": {}}
            | {"outputs": [], "execution_count": None}
            for cell in cells
        ]
        content = {"cells": code, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        self._server.request(
            "PUT", f"contents/{self.path}", {"type": "notebook", "content": content}
        )

    def rename(self, path: str) -> None:
        self._server.request("PATCH", f"contents/{self.path}", {"path": path})
        self.path = path
        model = {"path": path, "name": path, "type": "notebook"}
        self._server.request("PATCH", f"sessions/{self._session['id']}", model)

    def restart(self) -> None:
        self._server.request("POST", f"kernels/{self.kernel}/restart")

    def close(self) -> None:
        self._server.request("DELETE", f"sessions/{self._session['id']}")

    def reopen(self) -> None:
        self.close()
        self._session = self._server.request("POST", "sessions", self._model())
        self.kernel = self._session["kernel"]["id"]

    def run(self, code: str) -> str:
        """Return what a cell shows as text."""
        address = f"ws://127.0.0.1:{self._server.port}/api/kernels/{self.kernel}/channels?token=t"
        socket = websocket.create_connection(address, timeout=60)
        request = uuid.uuid4().hex
        header = {"msg_id": request, "msg_type": "execute_request", "session": request}
        header |= {"username": "", "version": "5.3", "date": ""}
        content = {"code": code, "silent": False, "allow_stdin": False, "stop_on_error": True}
        message = {"header": header, "parent_header": {}, "metadata": {}, "channel": "shell"}
        socket.send(json.dumps({**message, "content": content}))
        shown: list[str] = []
        try:
            while True:
                answer = json.loads(socket.recv())
                if answer["parent_header"].get("msg_id") != request:
                    continue
                content = answer["content"]
                shown += content.get("traceback", [])
                shown += [content.get("text", ""), content.get("data", {}).get("text/plain", "")]
                if answer["msg_type"] == "status" and content["execution_state"] == "idle":
                    return "".join(shown)
        finally:
            socket.close()


@pytest.fixture(scope="session")
def served_notebook() -> type[ServedNotebook]:
    """Open a new notebook in a server."""
    return ServedNotebook


def _servers(folder: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*options: str) -> Server:
        servers.append(Server(folder, f"server-{len(servers)}", *options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
    for path in Path(os.environ["JUPYTER_RUNTIME_DIR"]).glob("jp*server-*"):
        path.unlink()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start Jupyter servers, with options, that end with the test."""
    yield from _servers(tmp_path)


@pytest.fixture(scope="module")
def start_server_for_all(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., Server]]:
    """Start Jupyter servers that end with the module, verified."""
    before = Surroundings()
    yield from _servers(tmp_path_factory.mktemp("server"))
    deadline = time.monotonic() + PATIENCE
    while (left := before.new_processes()) and time.monotonic() < deadline:
        left[0].wait_gone(deadline - time.monotonic())  # what a server's death ends
    assert left == []

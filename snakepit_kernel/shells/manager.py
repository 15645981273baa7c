"""The shells and background processes of this process, and the thread that drives them."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import secrets
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from .. import telemetry
from ..errors import ProcessNotFound, StartFailed
from ..ids import check_name, new_run_id
from ..locks import Lock
from ..loggers import get_logger
from ..paths import runtime_dirs
from ..processes.concurrency import LoopThread, in_thread
from ..processes.identity import ProcessIdentity
from ..processes.keep import is_keeping
from ..processes.launch_spec import LaunchSpec
from ..processes.run import GuardedRun
from ..processes.run_folders import make_folder, remake_folder, remove_folder
from ..processes.run_registry import Registry
from ..redaction import redacted
from ..telemetry.correlation import correlation_of_work
from ..telemetry.spans import Scalar
from .bash_code import check_environment, quoted
from .driver import GRACE, ShellDriver, check_directory, explain
from .outputs import readable_bytes
from .process import (
    INPUT_FILE,
    KILL_FILE,
    STATUS_FILE,
    Process,
    ProcessRecord,
    published,
    write_record,
)
from .process_log import LogWriter
from .shell import Shell

logger = get_logger(__name__)

MAX_ENDED = 200
"""Ended processes that are kept in the list."""

READ_BYTES = 1 << 16

DRAIN_SECONDS = 0.1
"""Seconds after the end of a process in which what it has started may still write to its log."""


class RunningProcess:
    """A background process in the process that owns it: its log, its input and its end.

    Parameters
    ----------
    folder
        Its folder, in which it is published.

    Attributes
    ----------
    is_over
        It has ended.
    is_killed
        This process has asked for its end; another one leaves a file that says so.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.changed = threading.Condition()
        self.record: ProcessRecord
        self.owner_pid = os.getpid()
        self._log: LogWriter | None = None
        self._input = -1
        self._outputs: dict[int, str] = {}
        self._all_read = asyncio.Event()
        self._run: GuardedRun | None = None
        self.is_over = False
        self.is_killed = False
        self.key: object = None
        self.owner: object = None
        self.correlation = ""

    async def start(
        self, command: list[str], *, label: str, env: Mapping[str, str], cwd: str
    ) -> GuardedRun:
        """Start it under a guardian.

        Raises
        ------
        StartFailed
            It could not be started.
        """
        ends: dict[str, int] = {}
        try:
            self._log = LogWriter(self.folder)
            os.mkfifo(self.folder / INPUT_FILE, 0o600)
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            ends["stdin"] = os.open(self.folder / INPUT_FILE, flags)
            self._input = os.open(self.folder / INPUT_FILE, os.O_WRONLY | os.O_CLOEXEC)
            os.set_blocking(ends["stdin"], True)
            for stream in ("stdout", "stderr"):
                reading, ends[stream] = os.pipe()
                self._outputs[reading] = stream
                os.set_blocking(reading, False)
            spec = LaunchSpec.of(
                command,
                run_id=new_run_id(),
                grace=GRACE,
                env=env,
                cwd=cwd,
                leftovers=[self.folder.parents[1]],  # as of workers: all of their owner's run
                is_program=True,
                **ends,
            )
            self._run = await GuardedRun.start(spec, registry=Registry(), label=label)
        except BaseException:
            self._close()
            raise
        finally:
            for fd in ends.values():
                os.close(fd)
        loop = asyncio.get_running_loop()
        for fd in self._outputs:
            loop.add_reader(fd, self._read, fd)
        return self._run

    def publish(self, record: ProcessRecord) -> None:
        """Publish what is known of it."""
        self.record = record
        with contextlib.suppress(OSError):  # its folder was removed, or the disk is full
            write_record(self.folder, record)
        with self.changed:
            self.changed.notify_all()

    def _read(self, fd: int) -> None:
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._keep(fd, data)
        else:
            self._forget(fd)
        with self.changed:
            self.changed.notify_all()

    def _keep(self, fd: int, data: bytes) -> None:
        if self._log is not None:
            self._log.add(self._outputs[fd], data)  # type: ignore[arg-type]

    def _forget(self, fd: int) -> None:
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().remove_reader(fd)
        del self._outputs[fd]
        os.close(fd)
        if not self._outputs:
            self._all_read.set()

    async def watch(self) -> None:
        """Wait for its end, and publish how it ended."""
        assert self._run is not None
        status = await self._run.process.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_read.wait(), DRAIN_SECONDS)
        self._finish(status)
        await self._run.end(GRACE)

    def _finish(self, status: int | None) -> None:
        if self.is_over:
            return
        self.is_over = True
        for fd in self._outputs:
            if there := readable_bytes(fd):  # it was written before the end
                self._keep(fd, os.read(fd, there))
        self._close()
        code = 128 + signal.SIGKILL if status is None else status if status >= 0 else 128 - status
        self.is_killed |= (self.folder / KILL_FILE).exists() or status is None
        state = (
            "killed"
            if self.is_killed or status in _KILLED_BY
            else "exited"
            if code == 0
            else "failed"
        )
        values = {"state": state, "returncode": code, "ended": time.time()}
        self.record = replace(self.record, **values)  # type: ignore[arg-type]
        self._report()  # before those who wait for the end go on
        self.publish(self.record)

    def _report(self) -> None:
        """Emit the event of its end, without its command."""
        record = self.record
        if not telemetry.is_on() or record.ended is None:
            return
        attributes: dict[str, Scalar] = {
            "process": record.id,
            "name": record.name,
            "session": record.session,
            "outcome": record.state,
            "returncode": record.returncode or 0,
            "correlation_id": self.correlation,
        }
        if record.pool is not None:
            attributes["pool"] = record.pool
        telemetry.emit("process", attributes, seconds=record.ended - record.started)

    @property
    def is_gone(self) -> bool:
        """Whether it and all that it has started are verified gone."""
        return self._run is None or self._run.is_over

    async def end(self) -> None:
        """End it and all that it has started; return when that is verified."""
        if self._run is None or self._run.is_over:
            return
        if not self.is_over:
            self.is_killed = True
        await self._run.end(0.0)
        self._finish(self._run.process.poll())

    def close_input(self) -> None:
        """Close its standard input."""
        fd, self._input = self._input, -1
        if fd >= 0:
            os.close(fd)
            with contextlib.suppress(OSError):
                (self.folder / INPUT_FILE).unlink(missing_ok=True)

    def _close(self) -> None:
        self.close_input()
        for fd in list(self._outputs):
            self._forget(fd)
        if self._log is not None:
            self._log.close()
            self._log = None


_FILES = ("command", "state", "begin", INPUT_FILE, KILL_FILE, STATUS_FILE, "log.0", "log.1")

_KILLED_BY = {-signum for signum in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessRequest:
    """A background process that is to be started.

    Attributes
    ----------
    command
        Any text that bash can run.
    key, session_id, pool
        The session, its name, and that of its pool, if it has one.
    driver
        Drives the session's shell, with whose state it begins.
    name, cwd, env
        As for `SessionProcesses.start`, checked.
    owner
        Whose end ends it, see `ShellManager.close_owner`.
    """

    command: str
    key: object
    session_id: str
    pool: str | None
    driver: ShellDriver
    name: str
    cwd: str | None
    env: Mapping[str, str | None]
    owner: object
    correlation: str = field(default_factory=correlation_of_work)

    @classmethod
    def checked(
        cls,
        command: str,
        *,
        name: str | None,
        cwd: str | os.PathLike[str] | None,
        env: Mapping[str, str | None] | None,
        **others: Any,
    ) -> Self:
        """Check what the user gave.

        Raises
        ------
        TypeError, ValueError, NotADirectoryError
            An argument is wrong; it is named.
        """
        if not isinstance(command, str):
            msg = f"a process runs a command, which is text, not {type(command).__name__}"
            raise TypeError(msg)
        if is_keeping():
            msg = (
                "a process of a session ends with its kernel, and keep() cannot change that; use "
                "subprocess inside keep(), or shell.run('SNAKEPIT_KEEP=1 setsid COMMAND >FILE 2>&1 "
                "</dev/null &')"
            )
            raise ValueError(msg)
        if not command.strip() or "\0" in command:
            msg = f"a process needs a command, which has no NUL, not {command[:100]!r}"
            raise ValueError(msg)
        return cls(
            command=command,
            name=_name_of(command) if name is None else check_name("process", name),
            cwd=None if cwd is None else check_directory(cwd),
            env=check_environment(env or {}),
            **others,
        )


class ShellManager:
    """The shells and background processes of this process.

    A thread with an event loop drives them all; it starts with the first of them.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._loop_thread: LoopThread | None = None
        self._shells: dict[object, Shell] = {}
        self._drivers: dict[object, ShellDriver] = {}
        self._owners: dict[object, object] = {}
        self._processes: dict[str, RunningProcess] = {}
        self._ended: deque[str] = deque()
        self._folder: Path | None = None

    @property
    def loop_thread(self) -> LoopThread:
        """The thread that drives them."""
        with self._lock:
            if self._loop_thread is None or not self._loop_thread.is_open:
                loop_thread = LoopThread("snakepit-shells")
                try:
                    loop_thread.start()
                except BaseException:
                    loop_thread.close()
                    raise
                self._loop_thread = loop_thread
            return self._loop_thread

    # -- shells --------------------------------------------------------------------------------

    def find_shell(self, key: object) -> Shell | None:
        """Return the open shell of a session, if there is one."""
        with self._lock:
            shell = self._shells.get(key)
            return shell if shell is not None and shell.is_open else None

    def open_shell(
        self,
        key: object,
        driver: ShellDriver,
        owner: object,
        fork: Callable[[str, bytes], Shell],
    ) -> Shell:
        """Open the shell of a session.

        Parameters
        ----------
        key
            The session, unique in this process.
        driver
            Of the new shell.
        owner
            Whose end ends the shell, see `close_owner`.
        fork
            Opens a copy of the session with a state.

        Raises
        ------
        ValueError
            It is open.
        """
        loop_thread = self.loop_thread
        with self._lock:
            known = self._shells.get(key)
            if known is not None and known.is_open:
                msg = (
                    f"the shell of session {driver.session_id!r} is open; its options can be "
                    "given before its first use, or after close()"
                )
                raise ValueError(msg)
            shell = self._shells[key] = Shell(driver, loop_thread, fork)
            self._drivers[key] = driver
            self._owners[key] = owner
        return shell

    def driver(self, key: object, open_it: Callable[[], Shell]) -> ShellDriver:
        """Return the driver of a session's shell, which is opened if it is not."""
        if self.find_shell(key) is None:
            open_it()
        return self._drivers[key]

    def counts(self, owner: object) -> tuple[int, int]:
        """Return the number of an owner's shells that run, and of its processes."""
        drivers = [self._drivers[key] for key, each in list(self._owners.items()) if each is owner]
        running = self._running(lambda process: process.owner is owner)
        return sum(driver.pid is not None for driver in drivers), len(running)

    # -- processes -----------------------------------------------------------------------------

    def start_process(self, request: ProcessRequest) -> Process:
        """Start a background process.

        Raises
        ------
        StartFailed
            It could not be started.
        """
        return self.loop_thread.ask(self._start(request)).result()

    async def _start(self, request: ProcessRequest) -> Process:
        name, driver = request.name, request.driver
        program = shutil.which("bash")
        if program is None:
            raise StartFailed(f"process {name}", "there is no bash on PATH; install it")
        state = await driver.state()
        try:
            folder = await in_thread(self._make_folder)
        except OSError as error:
            raise StartFailed(f"process {name}", explain(error)) from error
        running = RunningProcess(folder)
        try:
            (folder / "command").write_bytes(request.command.encode("utf-8", "surrogateescape"))
            (folder / "state").write_bytes(state)
            (folder / "begin").write_text(_beginning(folder, request.cwd, request.env))
            run = await running.start(
                [
                    program,
                    "--noprofile",
                    "--norc",
                    "-c",
                    '. "$0/begin"; . "$0/command"',
                    str(folder),
                ],
                label=f"process {name} of session {request.session_id}",
                env=driver.options.environment(),
                cwd=request.cwd or driver.options.cwd,
            )
        except OSError as error:
            _remove(folder)
            raise StartFailed(f"process {name}", explain(error)) from error
        except BaseException:
            _remove(folder)
            raise
        assert run.process.identity is not None
        assert run.process.guardian is not None
        running.publish(
            ProcessRecord(
                id=folder.name,
                name=name,
                command=redacted(request.command),
                pid=run.process.identity.pid,
                session=request.session_id,
                pool=request.pool,
                run_id=run.run_id,
                guardian=str(run.process.guardian),
                owner=str(ProcessIdentity.of(os.getpid())),
                state="running",
                returncode=None,
                started=time.time(),
                ended=None,
            )
        )
        self._processes[folder.name] = running
        running.key = request.key
        running.owner = request.owner
        running.correlation = request.correlation
        self.loop_thread.spawn(self._watch(running))
        return Process(folder, running)

    def _make_folder(self) -> Path:
        """Return a new folder for a process.

        Raises
        ------
        OSError
            It cannot be made.
        """
        with self._lock:
            if self._folder is None:
                self._folder = make_folder("process")
            parent = self._folder
        remake_folder(parent)  # its login session may have ended
        while True:
            folder = parent / f"p{secrets.token_hex(3)}"
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                return folder

    async def _watch(self, running: RunningProcess) -> None:
        await running.watch()
        self._ended.append(running.folder.name)
        while len(self._ended) > MAX_ENDED:
            self._remove(self._ended.popleft())

    def _remove(self, name: str) -> None:
        """Remove what is known of a process that has ended."""
        old = self._processes.pop(name, None)
        if old is not None:
            _remove(old.folder)

    def forget_ended(self, key: object = None) -> None:
        """Forget the processes that have ended, of a session or all."""
        for name, each in list(self._processes.items()):
            if each.is_gone and (key is None or each.key == key):
                self._remove(name)

    def processes(self, *, key: object = None, owner: object = None) -> list[Process]:
        """Return the processes of this process, of a session or a pool of it, oldest first."""
        return [
            Process(running.folder, running)
            for running in list(self._processes.values())
            if (key is None or running.key == key) and (owner is None or running.owner is owner)
        ]

    def all_processes(self) -> list[Process]:
        """Return the processes of all kernels and scripts of this user, oldest first."""
        found = []
        for folder in published(runtime_dirs()):
            with contextlib.suppress(ProcessNotFound):
                found.append(Process(folder, self._processes.get(folder.name)))
        return sorted(found, key=lambda process: process.started)

    def find_process(self, id: str) -> Process:  # noqa: A002 - its public name
        """Return a process by its id or name, of any kernel or script of this user.

        Raises
        ------
        ProcessNotFound
            There is none, or several have that name.
        """
        known = self.all_processes()
        for process in known:
            if process.id == id:
                return process
        named = [process for process in known if process.name == id]
        running = [process for process in named if process.is_running] or named
        if len(running) == 1:
            return running[0]
        raise ProcessNotFound(id, [each.id for each in running or known])

    # -- the end -------------------------------------------------------------------------------

    def close_session(self, key: object, *, detach: bool = False) -> None:
        """End the shell of a session and, unless they are detached, its processes."""
        running = [] if detach else self._running(lambda each: each.key == key)
        self._end([key], running, "its session was deleted", keep=False)
        self.forget_ended(key)

    def close_owner(self, owner: object, because: str) -> None:
        """End the shells and processes of an owner."""
        keys = [key for key, each in list(self._owners.items()) if each is owner]
        self._end(keys, self._running(lambda each: each.owner is owner), because)

    def close(self) -> None:
        """End all of them; return when that is verified."""
        self._end(list(self._shells), self._running(lambda _: True), "its process ends")
        with self._lock:
            loop_thread, self._loop_thread = self._loop_thread, None
        if loop_thread is not None:
            loop_thread.close()
        if self._folder is not None:
            remove_folder(self._folder)
            self._folder = None
        self._processes.clear()
        self._ended.clear()

    def _running(self, is_wanted: Callable[[RunningProcess], bool]) -> list[RunningProcess]:
        return [
            each for each in list(self._processes.values()) if not each.is_gone and is_wanted(each)
        ]

    def _end(
        self,
        keys: Sequence[object],
        running: list[RunningProcess],
        because: str,
        *,
        keep: bool = True,
    ) -> None:
        with self._lock:
            drivers = [self._drivers.pop(key) for key in keys if key in self._drivers]
            for key in keys:
                self._shells.pop(key, None)
                self._owners.pop(key, None)
        if not drivers and not running:
            return

        async def end() -> None:
            ends = [
                *(each.close(because, keep=keep) for each in drivers),
                *(each.end() for each in running),
            ]
            for failure in await asyncio.gather(*ends, return_exceptions=True):
                if isinstance(failure, Exception):
                    logger.warning("the end of a shell or process: %s", failure)

        self.loop_thread.ask(end()).result()

    def forget(self) -> None:
        """In a forked child: forget what is the parent's."""
        self.__init__()  # type: ignore[misc]


def _remove(folder: Path) -> None:
    """Remove the folder of a process, even if this process can open no file any more."""
    for name in _FILES:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _name_of(command: str) -> str:
    word = command.split(maxsplit=1)[0].rpartition("/")[2]
    return "".join(c for c in word if c.isalnum() or c in "_.-")[:32] or "process"


def _beginning(folder: Path, cwd: str | None, env: Mapping[str, str | None]) -> str:
    """Return the code that gives a process the state of its session's shell."""
    lines = [
        f"\\builtin command . {quoted(str(folder / 'state'))} >/dev/null 2>&1",
        "\\builtin trap - EXIT RTMIN+7",
    ]
    if cwd is not None:
        lines.append(f"\\builtin cd -- {quoted(cwd)}")
    for name, value in env.items():
        lines.append(
            f"\\builtin unset -v {name}"
            if value is None
            else f"\\builtin export {name}={quoted(value)}"
        )
    return "\n".join([*lines, ""])


manager = ShellManager()
"""The one of this process."""

os.register_at_fork(after_in_child=manager.forget)
atexit.register(manager.close)

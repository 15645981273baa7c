"""The template process: it has imported what kernels need, and forks guardians and kernels.

A template has one thread and does nothing but wait. Its owner sends it launches; for each it forks
a guardian, which forks the kernel. It ends with its owner: by the end of the channel, by the end of
the owner's process, and by its parent-death signal.

The kernel waits at a gate, a socket whose other end the owner holds, until its run is registered.

A guardian that was forked from a template is as safe to fork as the template was, so it can fork
another template next to its kernel, for the pools that the kernel opens.

Messages on the channel are a word and file descriptors; the answers come on the launch's own
channel: the guardian's messages and one more::

    refused STALE MODULE REASON     nothing was forked
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import resource
import select
import signal
import site
import socket
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from ..ids import RUN_ID_OPTION
from . import pidfd
from .bare_fork import bare_fork
from .guardian import (
    OWNER_INTERVAL,
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    Guardian,
    Options,
    prctl,
)
from .guardian_link import ASSIGN, FORK_TEMPLATE
from .identity import ProcessIdentity, descendants
from .process_title import set_title
from .tags import set_mark

MAX_FDS = 253
"""Maximum number of file descriptors in one message, as Linux allows."""

LAUNCH = b"launch"
PROGRAM = b"program"
CHECK = b"check"
PREPARE = b"prepare"
FIT = b"fit\n"


def main(arguments: Sequence[str]) -> int:
    """Serve an owner that starts programs, until it is gone."""
    options = dict(argument.lstrip("-").partition("=")[::2] for argument in arguments)
    channel = socket.socket(fileno=int(options["channel"]))
    channel.set_inheritable(False)
    owner = ProcessIdentity.parse(options["owner"])
    set_title(["snakepit-template", f"--owner={owner}"], "")
    TemplateProcess(channel, owner).serve()
    return 0


class Launch:
    """A request to fork a guardian and a kernel, with the file descriptors that came with it.

    Attributes
    ----------
    options
        Options of the guardian.
    command
        The command line that the kernel shows and parses.
    env, cwd, umask, limits
        Attributes of the kernel's process.
    standby
        The kernel waits for an assignment.
    is_program
        The command is executed.
    gate
        File descriptor from which the kernel reads a byte before it runs.
    """

    def __init__(
        self, message: dict[str, Any], channel: int, gate: int, descriptors: Sequence[int]
    ) -> None:
        self.options = Options.parse(message["guardian"])
        self.options.channel = channel  # here it has another number than at the owner's
        self.run_id: str = message["run_id"]
        self.command = self.options.command
        self.env: dict[str, str] = message["env"]
        self.cwd: str | None = message["cwd"]
        self.umask: int | None = message["umask"]
        self.limits: list[tuple[int, int, int]] = message["limits"]
        self.standby: bool = message["standby"]
        self.is_program: bool = message["is_program"]
        self.targets: list[int] = message["descriptors"]
        self.gate = gate
        self.descriptors = list(descriptors)
        self.link = -1
        self.idle_lock = -1
        self.changes: dict[str, tuple[str | None, str]] = {}


class TemplateProcess:
    """A process that forks kernels until its owner is gone.

    Parameters
    ----------
    channel
        Channel from the owner.
    owner
        The process that owns the kernels.
    idle_lock
        File descriptor for the kernels' locks, see `idle_lock`; all of them share it. Programs have
        none.
    """

    def __init__(self, channel: socket.socket, owner: ProcessIdentity, idle_lock: int = -1) -> None:
        self._channel = channel
        self._owner = owner
        self._owner_fd: int | None = None
        self._refusal = ""
        self._stamp: dict[str, tuple[int, int]] = {}
        self._changes: dict[str, tuple[str | None, str]] = {}
        self._idle_lock = idle_lock

    def serve(self) -> Launch | None:
        """Fork the requested kernels; return a launch in each of them, and None at the end."""
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # owner's death ends us even when we are stopped
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_IGN)  # the last: guardians need no reaping then
        self._announce()
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        interval: float | None = OWNER_INTERVAL * 1000
        if pidfd.is_possible():
            self._owner_fd = self._owner.open()
            if self._owner_fd is None:
                return None
            poll.register(self._owner_fd, select.POLLIN)
            interval = None
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(interval)}
            if self._owner_fd in ready or not self._owner.is_alive():
                return None
            if self._channel.fileno() not in ready:
                continue
            word, descriptors = _receive(self._channel)
            if not word:
                return None
            launch = self._handle_message(word, descriptors)
            if launch is not None:
                return launch

    def _announce(self) -> None:
        with contextlib.suppress(OSError):
            self._channel.send(str(ProcessIdentity.of(os.getpid())).encode())

    def _handle_message(self, word: bytes, descriptors: list[int]) -> Launch | None:
        """Handle a message; return a launch in the forked kernel."""
        try:
            if word == PREPARE:
                self._prepare(**_load(descriptors[0]))
                return None
            channel = descriptors[0] if word == CHECK else descriptors[1]
            if refusal := self._refusal or ("" if word == PROGRAM else self._staleness()):
                with contextlib.suppress(OSError):  # the owner has stopped waiting
                    os.write(channel, f"refused\t{refusal}\n".encode())
                return None
            if word == CHECK:
                with contextlib.suppress(OSError):  # the owner has stopped waiting
                    os.write(channel, FIT)
                return None
            return self._launch(descriptors)
        finally:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    os.close(descriptor)

    def _launch(self, descriptors: list[int]) -> Launch | None:
        """Fork a guardian; return its launch in the kernel that it forks."""
        payload, channel, gate, *others = descriptors
        launch = Launch(_load(payload), channel, gate, others)
        launch.idle_lock = self._idle_lock
        launch.changes = self._changes
        try:
            pid = bare_fork()  # the guardian forks the kernel by `os.fork`
        except OSError as error:
            os.write(channel, f"failed\t{error.errno}\n".encode())
            return None
        if pid:
            return None
        self._channel.close()
        os.close(payload)
        if self._owner_fd is not None:
            os.close(self._owner_fd)
        descriptors.clear()  # they belong to the launch now
        return run_guardian(launch)

    # -- preloading ----------------------------------------------------------------------------

    def _prepare(
        self, preload: list[str], import_path: list[str], env: dict[str, str], cwd: str | None
    ) -> None:
        """Import what this owner's kernels will need, and check that forking is still safe."""
        if cwd is not None:
            with contextlib.suppress(OSError):  # each kernel will report that it does not exist
                os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        own_path = list(sys.path)
        if import_path:  # in the owner's order
            rest = [entry for entry in own_path if entry not in import_path]
            sys.path[:] = [*(entry or os.getcwd() for entry in import_path), *rest]  # noqa: PTH109
        trace = _ForkHazards()
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or modules would get no exit statuses
        for name in ("", *preload):
            # A failing import fails again in each kernel, which reports it.
            with contextlib.suppress(Exception):
                if name:
                    importlib.import_module(name)
            if remains := trace.look():
                self._refusal = f"0\t{name}\t{_one_line(remains)}"
                break
        self._changes = {
            name: (env.get(name), value)
            for name, value in os.environ.items()
            if env.get(name) != value
        }
        _end_children()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        _reap_children()
        prctl(PR_SET_CHILD_SUBREAPER, 0)
        self._stamp = _stamp(import_path)
        sys.path[:] = own_path
        os.chdir("/")
        gc.collect()
        gc.freeze()  # or a collection in one kernel would copy pages shared with the others

    def _staleness(self) -> str:
        """Return a refusal if a file has changed since the imports, or an empty string."""
        for path, before in self._stamp.items():
            if _signature(path) != before:
                return f"1\t\t{_one_line(path)} has changed"
        return ""


class _ForkHazards:
    """Finds what an import may leave behind that makes forking unsafe."""

    def __init__(self) -> None:
        self._known = set(_open_descriptors())

    def look(self) -> str:
        """Return the first hazard as text, or an empty string."""
        threads = [thread.name for thread in threading.enumerate()[1:]]
        if threads:
            return f"started threads ({', '.join(threads)})"
        for number, kind in _open_descriptors().items():
            if number not in self._known and kind:
                return f"opened a {kind}"
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pass
        else:
            return "started a process"
        return "" if _threads() == 1 or _threads_end_at_fork() else "started threads of its own"


def _end_children() -> None:
    """Kill the processes that imports have started: a template leaves nothing but guardians."""
    not_permitted: set[int] = set()  # set-uid programs
    while children := [
        status
        for status in descendants(os.getpid())
        if not status.is_dead and status.pid not in not_permitted
    ]:
        for status in children:
            try:
                ProcessIdentity(status.pid, status.start_time).signal(signal.SIGKILL)
            except PermissionError:
                not_permitted.add(status.pid)


def _reap_children() -> None:
    """Reap the children that ended while SIGCHLD was not ignored."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208


def _threads_end_at_fork() -> bool:
    """Whether threads that Python does not know end when this process forks.

    OpenBLAS ends its own before a fork, and starts them again when it needs them.
    """
    previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns about forking with threads
        pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    signal.signal(signal.SIGCHLD, previous)
    return _threads() == 1


def _open_descriptors() -> dict[int, str]:
    """Return the open file descriptors, each with its type if forks must not share it, else ""."""
    found = {}
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        try:
            mode = os.fstat(number).st_mode
            link = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
        except OSError:
            continue  # the descriptor of this listing
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or link in _HARMLESS:
            found[number] = ""
        elif stat.S_ISSOCK(mode):
            found[number] = "socket"
        else:
            found[number] = f"file that a fork would share ({link})"
    return found


_HARMLESS = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}


def _stamp(import_path: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return the signatures of the files whose change would make this process out of date.

    Those are the directories of installed packages, their ``.pth`` files, and the files of modules
    in other directories.
    """
    sites = {path for path in (*sys.path, *import_path) if _is_site(path)}
    paths = set(sites)
    for root in sites:
        with contextlib.suppress(OSError):
            paths.update(f"{root}/{name}" for name in os.listdir(root) if name.endswith(".pth"))  # noqa: PTH208
    standard = os.path.dirname(os.__file__)  # noqa: PTH120
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and not path.startswith(standard) and not _is_below(path, sites):
            paths.add(path)
    return {path: _signature(path) for path in paths}


def _is_site(path: str) -> bool:
    return path in _SITES or os.path.basename(path) in {"site-packages", "dist-packages"}  # noqa: PTH119


_SITES = {*site.getsitepackages(), site.getusersitepackages()}


def _is_below(path: str, folders: Iterable[str]) -> bool:
    return any(path.startswith(f"{folder}/") for folder in folders)


def _signature(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, 0 if stat.S_ISDIR(found.st_mode) else found.st_size)


# -- in the children -------------------------------------------------------------------------------


class ForkedGuardian(Guardian):
    """A guardian forked from a template, which can fork templates for its kernel's own pools.

    Attributes
    ----------
    tags
        Arguments on its command line that name its run and owner.
    """

    tags: Sequence[str] = ()

    def read_link(self) -> None:
        """Handle a message of the kernel: forward that it is ready, or fork a template for it.

        Raises
        ------
        _BecameTemplate
            In that template.
        """
        with socket.socket(fileno=os.dup(self.link)) as link:
            word, descriptors = _receive(link)
        if not word:
            self.drop_link()
        elif word == FORK_TEMPLATE:
            self.fork_template(descriptors[0])
        else:
            self.send(word.decode("utf-8", "replace"))

    def assign(self, assignment: bytes) -> None:
        """Send a standby kernel its assignment, and take over its leftovers and title."""
        if self.link < 0:
            return  # the kernel has ended, which is reported to the owner
        message = json.loads(assignment)
        self.options.leftovers = message["leftovers"]
        set_title(["snakepit-guardian", *self.tags, "--", *message["command"]], "")
        with (
            open(os.memfd_create("snakepit-assignment", os.MFD_CLOEXEC), "wb") as file,  # noqa: PTH123
            socket.socket(fileno=os.dup(self.link)) as link,
        ):
            file.write(assignment)
            file.flush()
            with contextlib.suppress(OSError):  # the kernel has ended, which will be reported
                socket.send_fds(link, [ASSIGN], [file.fileno()])

    def fork_template(self, channel: int) -> None:
        """Fork a template next to the kernel, which serves the requests on a channel."""
        guardian = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            pid = -1  # the kernel sees that its channel is closed
        if pid:
            os.close(channel)
            return
        self.leave_guardian(guardian)
        for descriptor in (self.channel, self.link, self.wakeup):
            os.close(descriptor)
        raise _BecameTemplate(channel)


class _BecameTemplate(Exception):
    """Raised in a process forked from a guardian: it is a template with a channel now."""

    def __init__(self, channel: int) -> None:
        super().__init__(channel)
        self.channel = channel


def run_guardian(launch: Launch) -> Launch | None:
    """Run the guardian of a launch, in a child of a template; return only in the forked kernel.

    Or in a kernel that a template forks which was forked from this guardian.
    """
    gc.disable()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.setsid()
    tags = [f"{RUN_ID_OPTION}{launch.run_id}", f"--owner={launch.options.owner}"]
    set_title(["snakepit-guardian", *tags, "--", *launch.command], launch.run_id)
    set_mark(launch.options.mark)  # it can be found from now on, so its title comes first
    guardian = ForkedGuardian(launch.options)
    guardian.tags = tags
    guardian.send_line("guardian", str(ProcessIdentity.of(os.getpid())))
    if not guardian.options.owner.is_alive():
        guardian.abandon()
        os._exit(1)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel_descriptors = (launch.gate, *launch.descriptors)
    if launch.is_program:
        guardian.fork = bare_fork
    if guardian.fork_kernel((ours.detach(), theirs.detach()), close=kernel_descriptors):
        if launch.is_program:
            _execute(launch, guardian)
        gc.enable()
        _become_kernel(launch, guardian)
        return launch
    try:
        guardian.watch()
    except _BecameTemplate as branch:
        channel = socket.socket(fileno=branch.channel)
    else:
        os._exit(0)
    gc.enable()
    owner = ProcessIdentity(guardian.kernel_pid, guardian.kernel_start_time)
    set_title(["snakepit-template", f"--owner={owner}", tags[0]], launch.run_id)
    return TemplateProcess(channel, owner, launch.idle_lock).serve()


def apply_attributes(launch: Launch, assignment: dict[str, Any]) -> None:
    """In a standby kernel: apply the process attributes of its assignment.

    Raises
    ------
    OSError
        The working directory does not exist.
    """
    os.chdir(assignment["cwd"])
    os.umask(assignment["umask"])
    _set_limits(assignment["limits"])
    _set_environment(assignment["env"], launch.changes)
    sys.orig_argv[:] = launch.command = assignment["command"]
    set_title(launch.command, launch.run_id)


def _become_kernel(launch: Launch, guardian: Guardian) -> None:
    """In the kernel: apply everything that an executed process would have inherited."""
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        _take_descriptors(launch, guardian)
        _apply_limits(launch)
        _set_environment(launch.env, launch.changes)
        sys.orig_argv[:] = launch.command
        set_title(launch.command, launch.run_id)
        guardian.confirm()
    except OSError as error:
        guardian.report_failure(error.errno or 0, error.filename or "")
        os._exit(127)
    if not os.read(launch.gate, 1):
        os._exit(1)  # the owner has cancelled its start
    os.close(launch.gate)


def _execute(launch: Launch, guardian: Guardian) -> NoReturn:
    """In the process of a program: become it, whose start the guardian then sees."""
    what = ""
    try:
        try:
            _lift_descriptors(launch, guardian)
            _apply_limits(launch)
        except OSError as error:
            what = error.filename or ""
            raise
        if not os.read(launch.gate, 1):
            os._exit(1)  # the owner has cancelled its start
        os.execvpe(launch.command[0], launch.command, launch.env)  # noqa: S606
    except OSError as error:
        guardian.report_failure(error.errno or 0, what)
    finally:
        os._exit(127)


def _apply_limits(launch: Launch) -> None:
    """Apply the working directory, the mode of new files and the limits of a launch."""
    if launch.cwd is not None:
        os.chdir(launch.cwd)
    if launch.umask is not None:
        os.umask(launch.umask)
    _set_limits(launch.limits)


def _set_environment(env: Mapping[str, str], changes: Mapping[str, tuple[str | None, str]]) -> None:
    """Set the environment, including the changes that preloaded modules have made to it."""
    os.environ.clear()
    os.environ.update(env)
    for name, (before, after) in changes.items():
        if env.get(name) == before:
            os.environ[name] = after


def _set_limits(limits: Iterable[tuple[int, int, int]]) -> None:
    for limit, soft, hard in limits:
        with contextlib.suppress(OSError, ValueError):
            if resource.getrlimit(limit) != (soft, hard):
                resource.setrlimit(limit, (soft, hard))


def _take_descriptors(launch: Launch, guardian: Guardian) -> None:
    """Move the inherited file descriptors to their numbers, and close all others."""
    lift = _lifting(launch)
    launch.link = lift(guardian.kernel_link)
    launch.idle_lock = lift(launch.idle_lock)
    lifted = _lift_descriptors(launch, guardian)
    keep = {0, 1, 2, *launch.targets, launch.link, launch.idle_lock, launch.gate}
    keep.add(guardian.error_write)
    harmless = {number for number, kind in _open_descriptors().items() if not kind}
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        if number not in keep and (number not in harmless or number in lifted):
            with contextlib.suppress(OSError):
                os.close(number)


def _lift_descriptors(launch: Launch, guardian: Guardian) -> list[int]:
    """Move the inherited file descriptors to their numbers; return copies that can be closed.

    A program that is executed inherits no others.
    """
    lift = _lifting(launch)
    launch.gate = lift(launch.gate)
    guardian.error_write = lift(guardian.error_write)
    lifted = [lift(descriptor) for descriptor in launch.descriptors]
    for descriptor, target in zip(lifted, launch.targets, strict=True):
        os.dup2(descriptor, target, inheritable=True)
    return lifted


def _lifting(launch: Launch) -> Callable[[int], int]:
    """Return the function that copies a descriptor to above the numbers that a launch needs."""
    floor = max([2, *launch.targets]) + 1
    return lambda descriptor: fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, floor)


def _receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    try:
        word, descriptors, _, _ = socket.recv_fds(channel, 1024, MAX_FDS)
    except OSError:
        return b"", []
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return word, descriptors


def _load(descriptor: int) -> dict[str, Any]:
    size = os.fstat(descriptor).st_size
    content: dict[str, Any] = json.loads(os.pread(descriptor, size, 0))
    return content


def _one_line(text: str) -> str:
    return " ".join(text.split())

"""The owner's handle on templates: processes that fork guardians and kernels.

One is started for each configuration: a command, the modules to preload, and the environment that
matters to imports. It lives as long as its owner, and is replaced when a module that it has
imported changes on disk. The process itself is in `template_process`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

from ..ids import RUN_ID_VARIABLE, own_run_id
from ..locks import Lock
from ..loggers import get_logger
from ..printable import printable
from . import pidfd
from .bare_interpreter import bare_command
from .guardian_link import ask_for_template
from .identity import ProcessIdentity
from .launch_spec import LaunchSpec
from .process_title import NO_RUN, room
from .tags import KEEP_VARIABLE
from .template_process import CHECK, FIT, LAUNCH, MAX_FDS, PREPARE, PROGRAM
from .waiting import readable

logger = get_logger(__name__)

TEMPLATE_VARIABLE = "SNAKEPIT_TEMPLATE"
"""Environment variable that turns templates off, with ``0``."""

IMPORT_VARIABLES = (
    *("PYTHON", "LD_", "MALLOC_", "GLIBC_", "ZMQ_", "PYDEVD", "DEBUGPY", "IPYTHON", "JUPYTER"),
    *("XDG_", "LC_", "LANG", "TZ", "HOME", "TMPDIR", "TEMP", "TMP", "VIRTUAL_ENV", "CONDA_"),
)
"""Prefixes of environment variables that the kernel's own modules may read at import.

With modules to preload, every variable matters.
"""

PER_KERNEL_VARIABLES = ("SNAKEPIT_", "JPY_", "PWD", "OLDPWD", "SHLVL", "COLUMNS", "LINES")
"""Prefixes of environment variables that differ between kernels and matter to no import."""

MAX_TEMPLATES = 8
"""Maximum number of templates of an owner; beyond it the least recently used one ends."""

CHECK_PATIENCE = 1.0
"""Seconds that a template may take to answer that it is up to date."""

END_PATIENCE = 2.0
"""Seconds that a template may take to end before it is killed."""


FORKABLE_ARGUMENTS = {"cwd", "umask", "stdin", "stdout", "stderr"}
"""Arguments of `subprocess.Popen` that a fork from a template supports."""


class CannotFork(Exception):
    """No template can fork a launch; it starts by ``exec``."""


class TemplateKind(NamedTuple):
    """What a template can fork: processes of one program, with the same modules preloaded.

    Attributes
    ----------
    program
        The command of the template: interpreter, its options, ``-m`` and the module.
    preload
        Modules that it imports beyond the module's own.
    import_path
        Additional entries of ``sys.path`` to import them from.
    """

    program: tuple[str, ...]
    preload: tuple[str, ...] = ()
    import_path: tuple[str, ...] = ()


PROGRAMS = TemplateKind((*bare_command("template_process"), "--template"))
"""Kind of the template that forks guardians for programs: it has imported nothing else."""


class Template:
    """The owner's handle on one template process.

    Parameters
    ----------
    kind
        Kind of processes to fork.
    env
        Environment of its start and of its imports.
    cwd
        Working directory of its imports.

    Attributes
    ----------
    kind
        Kind of processes that it forks.
    """

    def __init__(
        self, kind: TemplateKind, *, env: Mapping[str, str], cwd: str | os.PathLike[str] | None
    ) -> None:
        self.kind = kind
        self._identity: ProcessIdentity | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._lock = Lock()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        with theirs:
            try:
                if not _is_ours(kind) or not ask_for_template(theirs, import_variables(env)):
                    self._execute(env, cwd, theirs)
            except BaseException:
                self._channel.close()
                raise
        preparation = {
            "preload": kind.preload,
            "import_path": kind.import_path,
            "env": {**env},
            "cwd": None if cwd is None else os.fsdecode(cwd),
        }
        try:
            with _in_memory_file(preparation) as file:
                self._send(PREPARE, [file.fileno()])
        except BaseException:  # it has ended already
            self.close()
            raise

    def _execute(
        self,
        env: Mapping[str, str],
        cwd: str | os.PathLike[str] | None,
        theirs: socket.socket,
    ) -> None:
        """Execute the process, in a directory where no file can shadow a module of ours.

        A thread that lives as long starts it: when the thread that started a process ends, the
        process gets its parent-death signal.
        """
        owner = ProcessIdentity.of(os.getpid())
        command = [*self.kind.program, f"--owner={owner}", f"--channel={theirs.fileno()}", room()]
        environment = {name: value for name, value in env.items() if name != KEEP_VARIABLE}
        environment[RUN_ID_VARIABLE] = own_run_id() or NO_RUN
        environment["JPY_PARENT_PID"] = "1"  # read when ipykernel is imported: no poller
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the template
        started = threading.Event()
        failure: list[OSError] = []

        def keep() -> None:
            try:
                self._popen = subprocess.Popen(  # noqa: S603 - our own module and a kernel's interpreter
                    command,
                    env=environment,
                    cwd="/" if _is_independent_of_cwd(command[0], env) else cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            except OSError as error:
                failure.append(error)
                return
            finally:
                started.set()
            self._popen.wait()

        try:
            threading.Thread(target=keep, name="snakepit-template", daemon=True).start()
            started.wait()
        except RuntimeError as error:  # there are as many threads as there may be
            failure.append(OSError(errno.EAGAIN, str(error)))
        if failure:
            self._channel.close()
            self._errors.close()
            reason = f"its template could not be started: {failure[0]}"
            raise CannotFork(reason) from failure[0]

    # -- asking ------------------------------------------------------------------------------

    def fork(
        self,
        spec: LaunchSpec,
        channel: socket.socket,
        gate: socket.socket,
        descriptors: Mapping[int, int],
    ) -> None:
        """Ask it to fork a guardian and its kernel.

        Parameters
        ----------
        spec
            What is launched.
        channel
            The guardian's end of its channel, on which the answer comes.
        gate
            Socket from which the kernel reads a byte before it runs.
        descriptors
            File descriptors for the kernel, by their numbers there.

        Raises
        ------
        CannotFork
            The template is gone. Nothing was forked.
        """
        if len(descriptors) > MAX_FDS - 3:
            reason = f"{len(descriptors)} file descriptors are more than a template can be sent"
            raise CannotFork(reason)
        message = {
            "run_id": spec.run_id,
            "guardian": spec.guardian_arguments(channel.fileno(), reports_ready=True),
            "descriptors": list(descriptors),
            "standby": spec.standby,
            "is_program": spec.is_program,
            **spec.process_attributes(),
        }
        passed = [channel.fileno(), gate.fileno(), *descriptors.values()]
        with _in_memory_file(message) as file:
            self._send(PROGRAM if spec.is_program else LAUNCH, [file.fileno(), *passed])

    async def reason_not_to_fork(self, timeout: float = CHECK_PATIENCE) -> str:
        """Ask whether it would fork now; return why not, or an empty string.

        If it is out of date, so are the processes that it has forked before.
        """
        if self.is_stopped:
            return "a signal has stopped it"
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                try:
                    self._send(CHECK, [theirs.fileno()])
                except CannotFork as error:
                    return str(error)
            if not await readable(ours.fileno(), timeout=timeout):
                return f"it did not answer within {timeout:g} s"
            answer = ours.recv(4096)
        if not answer:
            return f"it ended{self.last_error_line()}"
        return "" if answer == FIT else answer.decode().strip().rpartition("\t")[2]

    def _send(self, word: bytes, descriptors: Sequence[int]) -> None:
        try:
            socket.send_fds(self._channel, [word], descriptors)
        except OSError as error:
            reason = f"its template is gone{self.last_error_line()}"
            raise CannotFork(reason) from error

    # -- looking -----------------------------------------------------------------------------

    @property
    def is_alive(self) -> bool:
        """Whether it runs, as far as is known without asking it."""
        if self._channel.fileno() < 0 or (self._popen and self._popen.poll() is not None):
            return False
        identity = self.identity
        return self._channel.fileno() >= 0 and (identity is None or identity.is_alive())

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has stopped it, as far as is known which process it is."""
        identity = self.identity
        if identity is None and self._popen is not None:  # it imports, and has not announced itself
            identity = ProcessIdentity.of(self._popen.pid)
        return identity is not None and identity.is_stopped()

    @property
    def identity(self) -> ProcessIdentity | None:
        """The process, or None before it has announced itself."""
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._channel.fileno() < 0:
                return self._identity
            try:
                said = self._channel.recv(64)
            except ConnectionError:
                said = b""
            if said:
                self._identity = ProcessIdentity.parse(said.decode("ascii"))
            else:
                self._channel.close()  # it has ended, or was never started
        return self._identity

    def last_error_line(self) -> str:
        """Return the last line on its standard error, formatted for a message, or nothing."""
        if self._errors is None or self._errors.closed:
            return ""
        size = os.fstat(self._errors.fileno()).st_size
        text = os.pread(self._errors.fileno(), 4096, max(0, size - 4096)).decode("utf-8", "replace")
        last = [line for line in text.strip().splitlines() if line.strip()][-1:]
        return f": {last[0].strip()}" if last else ""

    def descriptors(self) -> list[int]:
        """Return the file descriptors of this process that belong to it."""
        files = (self._channel, self._errors)
        return [file.fileno() for file in files if file is not None and _is_usable(file)]

    # -- ending ------------------------------------------------------------------------------

    def close(self) -> None:
        """End it, and wait for its end. The processes that it has forked live on."""
        identity = self.identity
        is_stopped = self.is_stopped  # it would not notice that its channel closes
        self._channel.close()
        if self._popen is not None:
            try:
                self._popen.wait(0 if is_stopped else END_PATIENCE)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        elif identity is not None:
            _wait_gone(identity, 0 if is_stopped else END_PATIENCE)
        if self._errors is not None:
            self._errors.close()

    def abandon(self) -> None:
        """Close the channel in a forked child: the template belongs to the parent."""
        self._channel.close()


def _is_ours(kind: TemplateKind) -> bool:
    """Whether a fork of the guardian of this kernel has the modules of that kind of template.

    It runs the interpreter of this process; another environment has an interpreter of its own.
    """
    return kind != PROGRAMS and kind.program[0] == sys.executable


def _is_usable(file: socket.socket | IO[bytes]) -> bool:
    return file.fileno() >= 0 if isinstance(file, socket.socket) else not file.closed


def _wait_gone(process: ProcessIdentity, patience: float) -> None:
    import select

    descriptor = process.open() if pidfd.is_possible() else None
    if descriptor is None:
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(patience * 1000):
            process.signal(9)
            poll.poll(END_PATIENCE * 1000)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _in_memory_file(message: Mapping[str, Any]) -> Any:
    """Write a message of any size to a memory file, whose descriptor can be sent."""
    with open(os.memfd_create("snakepit-launch", os.MFD_CLOEXEC), "wb") as file:  # noqa: PTH123
        file.write(json.dumps(message).encode("ascii"))
        file.flush()
        yield file


# -- the templates of this process -----------------------------------------------------------------


def import_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Return the part of an environment that the kernel's own modules may read at import."""
    return {name: value for name, value in env.items() if name.startswith(IMPORT_VARIABLES)}


def _stable_variables(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith(PER_KERNEL_VARIABLES)}


def _is_independent_of_cwd(program: str, env: Mapping[str, str]) -> bool:
    is_relative = os.sep in program and not os.path.isabs(program)  # noqa: PTH117
    return _paths_are_absolute(env) and not is_relative


def _paths_are_absolute(env: Mapping[str, str]) -> bool:
    return all(map(os.path.isabs, env.get("PYTHONPATH", "/").split(os.pathsep)))


def _inherited_state() -> tuple[object, ...]:
    """Return attributes that a template inherits at its start and its owner may change later."""
    users = os.getresuid(), os.getresgid(), tuple(os.getgroups())
    return *users, frozenset(os.sched_getaffinity(0)), os.getpriority(os.PRIO_PROCESS, 0)


class _Key(NamedTuple):
    """What a template is for."""

    kind: TemplateKind
    directory: str | None
    environment: frozenset[tuple[str, str]]
    inherited: tuple[object, ...]


_templates: dict[_Key, Template] = {}
_refused: dict[tuple[str, ...], dict[str, str]] = {}
_lock = Lock()


def template_for(
    kind: TemplateKind, *, env: Mapping[str, str], cwd: str | os.PathLike[str] | None = None
) -> Template:
    """Return the template for a kind of process; start one if there is none yet.

    Parameters
    ----------
    kind
        Its command, and the modules to preload.
    env
        Environment of the process; there is a template for each set of variables that may matter
        to imports.
    cwd
        Its working directory, which matters if ``sys.path`` has relative entries.

    Raises
    ------
    CannotFork
        With the reason.
    """
    reason = why_not()
    if reason:
        raise CannotFork(reason)
    with _lock:
        refused = _refused.get(kind.program, {})
        if "" in refused:
            raise CannotFork(refused[""])
        preload = tuple(name for name in kind.preload if name not in refused)
        kind = kind._replace(preload=preload, import_path=kind.import_path if preload else ())
        directory = None if _paths_are_absolute(env) or cwd is None else os.fsdecode(cwd)
        environment = _stable_variables(env) if preload else import_variables(env)
        key = _Key(kind, directory, frozenset(environment.items()), _inherited_state())
        template = _templates.pop(key, None)
        if template is not None and not template.is_alive:
            template.close()
            template = None
        if template is None:
            template = Template(kind, env=env, cwd=cwd)
        _templates[key] = template  # last in order: the most recently used
        surplus = (
            _templates.pop(next(iter(_templates))) if len(_templates) > MAX_TEMPLATES else None
        )
    if surplus is not None:
        surplus.close()
    return template


def program_template() -> Template:
    """Return a template that can fork a guardian for a program; start the one for them.

    Until that one runs, it is another one that does.

    Raises
    ------
    CannotFork
        With the reason.
    """
    own = template_for(PROGRAMS, env=import_variables(os.environ), cwd="/")
    if own.identity is not None:
        return own
    inherited = _inherited_state()
    with _lock:
        for key, template in _templates.items():
            is_ready = template.identity is not None and not template.is_stopped
            if key.inherited == inherited and is_ready and template.is_alive:
                return template
    return own


def discard(template: Template) -> None:
    """End a template that is out of date or broken; the next use starts another."""
    with _lock:
        for key in [key for key, item in _templates.items() if item is template]:
            del _templates[key]
    template.close()


def refuse_preload(kind: TemplateKind, module: str, reason: str) -> None:
    """Record a module that no template may import: kernels import it themselves.

    An empty name means that the kernel's own modules make forking unsafe.
    """
    with _lock:
        known = _refused.setdefault(kind.program, {})
        is_news = module not in known
        known[module] = reason
    if is_news and module:
        text = "%s is not imported ahead, because it %s; each worker imports it by itself"
        logger.warning(text, module, printable(reason, lines=True))


def why_not() -> str:
    """Return why this process cannot use templates, or an empty string."""
    if sys.platform != "linux":
        return f"forking a kernel is not safe on {sys.platform}"
    if os.environ.get(TEMPLATE_VARIABLE) == "0":
        return f"{TEMPLATE_VARIABLE}=0"
    return ""


def templates() -> list[Template]:
    """Return the templates of this process."""
    with _lock:
        return list(_templates.values())


def close_templates() -> None:
    """End every template of this process; the next launch starts another."""
    with _lock:
        ending = list(_templates.values())
        _templates.clear()
    for template in ending:
        template.close()


@contextlib.contextmanager
def inherited_descriptors(spec: LaunchSpec) -> Iterator[dict[int, int]]:
    """Open the file descriptors for a process to be forked, by their numbers in that process.

    Raises
    ------
    CannotFork
        A template does not support one of the arguments.
    """
    unknown = sorted(set(spec.popen_arguments) - FORKABLE_ARGUMENTS)
    if unknown:
        reason = f"a template cannot fork with the arguments {', '.join(unknown)}"
        raise CannotFork(reason)
    with contextlib.ExitStack() as stack:
        found = {number: number for number in spec.pass_fds}
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            found[number] = _descriptor(spec.popen_arguments.get(name), number, found, stack)
        yield found


def _descriptor(
    given: Any, number: int, found: Mapping[int, int], stack: contextlib.ExitStack
) -> int:
    if given is None and _is_inheritable(number):
        return number
    if given is None or given == subprocess.DEVNULL:
        sink = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, sink)
        return sink
    if given == subprocess.STDOUT:
        return found[1]
    if given == subprocess.PIPE:
        reason = "a template makes no pipes"
        raise CannotFork(reason)
    return given if isinstance(given, int) else int(given.fileno())


def _is_inheritable(descriptor: int) -> bool:
    """Whether an executed process would inherit it; a file with a closed stream's number is not."""
    try:
        return os.get_inheritable(descriptor)
    except OSError:
        return False


def _forget() -> None:
    """In a forked child: forget the templates, which are the parent's."""
    global _lock  # noqa: PLW0603
    _lock = Lock()
    for template in _templates.values():
        template.abandon()
    _templates.clear()


os.register_at_fork(after_in_child=_forget)
atexit.register(close_templates)

"""The kernel provisioner: jupyter_client's hooks, with a guardian for each kernel.

Each launch is a run with its own id, on the command line and in the environment. The run is ended
and verified on every path on which jupyter_client calls a hook at all; on the others (the manager
dies) the guardian notices by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import signal
from typing import Any

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from jupyter_core.paths import jupyter_runtime_dir
from traitlets import Bool, CaselessStrEnum, Float, Int, List, Unicode, default

from . import standby_kernels
from .errors import StartFailed, SurvivorsError
from .files import make_directory
from .ids import RUN_ID_OPTION, new_run_id
from .paths import MAX_SOCKET_PATH, is_private, runtime_dir, why_too_long
from .processes.end_report import EndReport
from .processes.guarded_process import GuardedProcess
from .processes.identity import ProcessIdentity
from .processes.launch_spec import LaunchSpec
from .processes.run import GuardedRun
from .processes.run_registry import Registry
from .processes.safe_path import with_safe_path, without_empty_entries
from .processes.sweep import end_run_tagged
from .processes.template import TemplateKind
from .processes.waiting import ended, run_shielded
from .transport import KERNEL_MODULE, TRANSPORT_VARIABLE, Transport, can_encrypt, choose, module_of

SHUTDOWN_PATIENCE = 1.0
"""Seconds that `SnakepitProvisioner.poll` waits for a kernel that was asked to shut down, so that
jupyter_client notices its end at once and not at its next poll, 100 ms later."""


READY_PATIENCE = 10.0
"""Seconds that a launch waits for the kernel to report that it is ready. Its user's own startup
files may take longer; then the client waits on."""

STANDBY_VARIABLE = "SNAKEPIT_STANDBY"
"""Environment variable with the default number of standby kernels."""


class SnakepitProvisioner(LocalProvisioner):
    """Provisions local kernels that leave nothing behind.

    Traits are set in the kernelspec, under ``metadata.kernel_provisioner.config``.
    """

    grace = Float(
        2.0,
        min=0.0,
        help="Seconds between SIGTERM and SIGKILL for what a kernel leaves behind.",
    ).tag(config=True)
    tag_command = Bool(
        False,
        help="Whether the run id is added to the kernel's command line; only for kernels that "
        f"know the option {RUN_ID_OPTION}ID.",
    ).tag(config=True)
    label = Unicode(help="What the registry of runs calls this kernel.").tag(config=True)

    leftovers = List(
        Unicode(),
        help="Files and directories that go with the kernel when its manager is dead. Should its "
        "guardian die as well, the next start removes only those that lie where runs have theirs.",
    ).tag(config=True)

    preload = List(
        Unicode(),
        help="Modules that the kernel's template imports ahead.",
    ).tag(config=True)
    import_path = List(
        Unicode(),
        help="Where the template finds them, beside the interpreter's own path.",
    ).tag(config=True)
    standby = Int(
        1,
        min=0,
        help="Kernels that are started ahead, after the first, and wait to be needed. The default "
        f"is taken from the environment variable {STANDBY_VARIABLE}, or 1.",
    ).tag(config=True)
    await_ready = Bool(
        True,
        help="Whether a launch is over only when the kernel takes requests, if it can say so.",
    ).tag(config=True)
    transport = CaselessStrEnum(
        list(Transport),
        help="How clients reach the kernel where its manager is not configured for it: 'ipc' "
        "(Unix sockets in a private folder), 'curve' (encrypted TCP), 'tcp' (not encrypted: every "
        "user of the machine can read the output), or 'auto', the first of these that kernel and "
        f"client can do. The default is taken from the environment variable {TRANSPORT_VARIABLE}, "
        "or 'auto'.",
    ).tag(config=True)

    @default("standby")
    def _standby_of_environment(self) -> int:
        text = os.environ.get(STANDBY_VARIABLE, "1")
        if text.isdecimal():
            return int(text)
        self.log.warning("%s must be a whole number, not %r: it is ignored", STANDBY_VARIABLE, text)
        return 1

    @default("transport")
    def _transport_of_environment(self) -> str:
        text = os.environ.get(TRANSPORT_VARIABLE, Transport.AUTO).lower()
        if text in set(Transport):
            return text
        kinds = ", ".join(Transport)
        self.log.warning(
            "%s must be one of %s, not %r: it is ignored", TRANSPORT_VARIABLE, kinds, text
        )
        return Transport.AUTO

    registry = Registry()
    run_id = ""
    last_report: EndReport | None = None

    _run: GuardedRun | None = None
    _previous: str | None = None
    _waited = False
    _shutdown_requested = False
    _adopted: dict[str, ProcessIdentity] | None = None

    @property
    def has_process(self) -> bool:
        """Whether there is a kernel whose end has not been waited for."""
        return (self._run is not None or self._adopted is not None) and not self._waited

    @property
    def guarded(self) -> GuardedProcess | None:
        """The kernel's guarded process, from its launch until `cleanup`."""
        return self._run.process if self._run is not None else None

    # -- launching ---------------------------------------------------------------------------

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Choose the kernel's transport, and do what jupyter_client does."""
        if self.parent is not None:
            self._set_transport(self.parent)
        return await super().pre_launch(**kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel under a guardian, after the last run is verified gone.

        Raises
        ------
        StartFailed
            The command could not be executed. Nothing is left running.
        """
        await self.end_run(self.grace)
        cmd = [os.path.expanduser(cmd[0]), *cmd[1:]]  # noqa: ASYNC240, PTH111 - touches no file
        arguments = self._scrub_kwargs(kwargs)
        if module_of(cmd) == KERNEL_MODULE:
            cmd = with_safe_path(cmd)
            arguments["env"] = without_empty_entries(arguments["env"])
        kind = self._kind(cmd)
        try:
            run = await self._acquire_standby(kind, cmd, arguments)
            if run is None:
                run = await self._start(kind, cmd, arguments)
        except BaseException:
            self._remove_sockets()  # a kernel that was ended during its start may have bound them
            raise
        self._run = run
        self.run_id = self._previous = run.run_id
        self._adopted = None
        self._waited = self._shutdown_requested = False
        self.pid = run.process.identity.pid if run.process.identity else None
        self.pgid = self.pid  # the kernel leads a group of its own; we never signal the group
        self.cwd = kwargs["cwd"] if "cwd" in kwargs else _current_directory()
        if kind is not None and self.await_ready:
            # Or a client would connect before it listens, and wait before the next attempt.
            try:
                await run.process.ready(READY_PATIENCE)
            except BaseException:  # cancelled: a start that fails leaves nothing
                await run_shielded(self.end_run(0.0))
                raise
        can_use_standby = self._can_use_standby(cmd, arguments) and run.process.template is not None
        if kind is not None and can_use_standby:
            key = standby_kernels.standby_key(kind, cmd, arguments["env"], self.grace)
            env, cwd = arguments["env"], arguments.get("cwd")
            standby_kernels.refill(key, self.standby, env, cwd, self.registry)
        return self.connection_info

    async def _start(
        self, kind: TemplateKind | None, cmd: list[str], arguments: dict[str, Any]
    ) -> GuardedRun:
        """Start a kernel as a new run."""
        run_id = new_run_id()
        spec = LaunchSpec.of(
            [*cmd, RUN_ID_OPTION + run_id] if self.tag_command else cmd,
            run_id=run_id,
            grace=self.grace,
            leftovers=self._leftovers(),
            **arguments,
        )
        return await GuardedRun.start(
            spec, registry=self.registry, label=self._label(), kind=kind, previous=self._previous
        )

    async def _acquire_standby(
        self, kind: TemplateKind | None, cmd: list[str], arguments: dict[str, Any]
    ) -> GuardedRun | None:
        """Assign this launch to a standby kernel; return None if there is no suitable one."""
        km = self.parent
        if kind is None or km is None or not self._can_use_standby(cmd, arguments):
            return None
        key = standby_kernels.standby_key(kind, cmd, arguments["env"], self.grace)
        run = standby_kernels.take(key, arguments["env"], arguments.get("cwd"))
        if run is None:
            return None
        spec = LaunchSpec.of(
            [*cmd, RUN_ID_OPTION + run.run_id],
            run_id=run.run_id,
            grace=self.grace,
            leftovers=self._leftovers(),
            **arguments,
        )
        # Its template looks at its modules' files while the kernel begins to listen.
        check = asyncio.ensure_future(standby_kernels.is_up_to_date(run))
        try:
            await run.assign(
                spec,
                connection_file=km.connection_file,
                label=self._label(),
                previous=self._previous,
            )
            is_up_to_date = await check
        except BaseException:  # cancelled: it is assigned, and can serve nobody else
            check.cancel()
            await run_shielded(run.end(0.0))
            raise
        if is_up_to_date and run.process.poll() is None and run.process.is_ready:
            return run
        await run_shielded(run.end(0.0))
        self._remove_sockets()
        return None

    def _can_use_standby(self, cmd: list[str], arguments: dict[str, Any]) -> bool:
        """Whether a standby kernel would be started with the same arguments."""
        return (
            self.standby > 0
            and self.tag_command
            and set(arguments) <= {"env", "cwd"}
            and "-f" in cmd[:-1]  # the only form in which a connection file can be assigned
        )

    # -- looking -----------------------------------------------------------------------------

    async def poll(self) -> int | None:
        """Return None while the kernel runs, else its exit status."""
        if self._adopted is not None:
            return None if self._adopted["process"].is_alive() else 0
        if self._run is None or self._waited:
            return 0
        if self._shutdown_requested:
            return await self._run.process.wait(SHUTDOWN_PATIENCE)
        return self._run.process.poll()

    async def wait(self) -> int | None:
        """Wait for the kernel to end; return its exit status."""
        status: int | None = 0
        if self._adopted is not None:
            await ended(self._adopted["process"])
        elif self._run is not None and not self._waited:
            status = await self._run.process.wait()
        self._waited = True
        return status

    # -- ending ------------------------------------------------------------------------------

    async def send_signal(self, signum: int) -> None:
        """Send a signal to the kernel alone: an interrupt spares its children."""
        if self._adopted is not None:
            self._adopted["process"].signal(signum)
        elif self._run is not None:
            self._run.process.send_signal(signum)

    async def kill(self, restart: bool = False) -> None:  # noqa: ARG002 - the interface
        """End the kernel and everything it started now; return when that is verified."""
        if self._adopted is not None:
            await self._end_adopted(self._adopted["guardian"], signal.SIGUSR1)
        elif self._run is not None:
            await self._end_and_report(self._run, 0.0)

    async def terminate(self, restart: bool = False) -> None:  # noqa: ARG002
        """Ask the kernel to end, by SIGTERM."""
        await self.send_signal(signal.SIGTERM)

    async def shutdown_requested(self, restart: bool = False) -> None:  # noqa: ARG002
        """Record that the kernel was asked to shut down: `poll` waits for its end from now on."""
        self._shutdown_requested = True

    async def cleanup(self, restart: bool = False) -> None:
        """End what is left of the run; return when that is verified.

        This is the one hook that jupyter_client calls on every shutdown and restart. It may be
        called twice, or without a kill before.
        """
        await self.end_run(self.grace)
        await super().cleanup(restart=restart)
        if not restart:
            self.ports_cached = False  # they were released; a second call must not do it again

    async def end_run(self, grace: float) -> None:
        """End the kernel, if it still runs, and all it started; return when that is verified."""
        if self._adopted is not None:
            await self._end_adopted(self._adopted["guardian"], signal.SIGTERM)
            self._adopted = None
            self._remove_sockets()
        if self._run is not None:
            await self._end_and_report(self._run, grace)  # if cancelled, it is still ours to end
            self._run = None
            self._remove_sockets()

    def _remove_sockets(self) -> None:
        """Remove the ipc sockets of a kernel that has ended."""
        km = self.parent
        if km is not None and km.transport == "ipc":
            km.cleanup_ipc_files()

    async def _end_and_report(self, run: GuardedRun, grace: float) -> None:
        """End a run, and log its survivors."""
        self.last_report = await run.end(grace)
        if self.last_report.survivors:
            self.log.warning("%s", SurvivorsError(run.run_id, self.last_report.survivors))

    async def _end_adopted(self, guardian: ProcessIdentity, signum: int) -> None:
        """End a run that another manager started, by its guardian or else by its tag."""
        try:
            guardian.signal(signum)
            guardian.signal(signal.SIGCONT)  # in case it is stopped
        except PermissionError as error:  # /proc hides it; it notices that the owner has died
            self.log.warning("the guardian of run %s cannot be asked: %s", self.run_id, error)
        if not await ended(guardian, self.grace + 10.0):
            self.log.warning("processes of run %s do not die", self.run_id)
            return
        ending = await end_run_tagged(self.registry, self.run_id, self.grace)
        self.registry.retire(self.run_id, ending.report())

    # -- persistence -------------------------------------------------------------------------

    async def get_provisioner_info(self) -> dict[str, Any]:
        """Return the JSON data that another manager needs to watch and end this kernel."""
        info: dict[str, Any] = await super().get_provisioner_info()
        info["connection_info"] = {
            name: value.decode("ascii") if isinstance(value, bytes) else value
            for name, value in self.connection_info.items()
        }
        identities = self._adopted
        guarded = self.guarded
        if guarded is not None and guarded.identity is not None and guarded.guardian is not None:
            identities = {"guardian": guarded.guardian, "process": guarded.identity}
        info["run_id"] = self.run_id
        info["identities"] = {name: str(item) for name, item in (identities or {}).items()}
        return info

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Take over a kernel of another manager, as `get_provisioner_info` described it."""
        await super().load_provisioner_info(provisioner_info)
        connection_info: Any = {
            name: value.encode("ascii")
            if name in {"key", "curve_publickey", "curve_secretkey"} and isinstance(value, str)
            else value
            for name, value in provisioner_info["connection_info"].items()
        }
        self.connection_info = connection_info
        self.run_id = provisioner_info["run_id"]
        self._adopted = {
            name: ProcessIdentity.parse(text)
            for name, text in provisioner_info["identities"].items()
        } or None
        self._waited = False

    # -- details -----------------------------------------------------------------------------

    def _kind(self, cmd: list[str]) -> TemplateKind | None:
        """Return the kind of template that can fork a command; None when no template can."""
        if module_of(cmd) != KERNEL_MODULE:
            return None
        program = (*cmd[: cmd.index("-m") + 2], "--template")
        return TemplateKind(program, tuple(self.preload), tuple(self.import_path))

    def _label(self) -> str:
        return self.label or getattr(self.kernel_spec, "display_name", "") or "kernel"

    def _leftovers(self) -> list[str]:
        """Return the files to remove with the run when there is no manager left to do so."""
        km = self.parent
        files = [*self.leftovers]
        if km is None:
            return files
        files += [str(pathlib.Path(km.connection_file).absolute())]
        if km.transport == "ipc":
            files += [f"{km.ip}-{port}" for port in km.ports]
        return files

    def _set_transport(self, km: Any) -> None:
        """Set the manager's transport as configured, or to the best one.

        Raises
        ------
        StartFailed
            Encryption is required, but not supported.
        """
        transport = choose(Transport(self.transport), km)
        if transport is Transport.IPC:
            km.transport = "ipc"
            self._set_ipc_address(km)
        elif transport is Transport.CURVE and km.transport_encryption == "disabled":
            if not can_encrypt(km):
                cause = (
                    "it is to be encrypted (transport 'curve'), and its kernelspec does not say "
                    "that it can (metadata.supported_encryption), or its manager must not "
                    "(transport_encryption); use transport 'tcp', if others may read its output"
                )
                raise StartFailed(self._label(), cause)
            km.transport_encryption = "auto"

    def _set_ipc_address(self, km: Any) -> None:
        """Set a path for the manager's ipc sockets that works for every kernel.

        A configured path is kept, if possible. The usual one is next to the connection file, as in
        jupyter_client. That may be relative, and then depends on the kernel's working directory, or
        be too long for a socket, or in a directory that others can enter, or have been removed
        since the last start: then the sockets are in our own runtime directory.
        """
        base = pathlib.Path(str(km.ip))
        file = km.connection_file or f"{jupyter_runtime_dir()}/kernel-{new_run_id()}.json"
        usual = pathlib.Path(f"{os.path.splitext(file)[0]}-ipc")  # noqa: PTH122
        if not base.is_absolute():
            base = usual
        if base == usual and base.is_absolute():
            with contextlib.suppress(OSError):  # then it cannot be used for sockets either
                make_directory(base.parent)
        fits = len(os.fsencode(base)) + len("-65535") <= MAX_SOCKET_PATH
        is_left = base.is_absolute() and _exists(base.parent)
        if not fits or not is_left or (base == usual and not is_private(base.parent)):
            base = runtime_dir() / new_run_id()
            if cause := why_too_long(base):
                raise StartFailed(self._label(), cause)
        if km.ip != str(base):
            km.cleanup_connection_file()  # if one is written: it names another path
            km.ip = str(base)


def _exists(directory: pathlib.Path) -> bool:
    """Whether a directory exists, also after our own runtime directory is created again."""
    if not directory.is_dir():
        with contextlib.suppress(OSError):  # removed with its user's last login session
            runtime_dir()
    return directory.is_dir()


def _current_directory() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - it may have been removed, and is only recorded
    except FileNotFoundError:
        return ""

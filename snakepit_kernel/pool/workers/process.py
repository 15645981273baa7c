"""The process of a worker: launched by jupyter_client under a guardian, watched, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq
import zmq.asyncio
from jupyter_client.kernelspec import NoSuchKernel
from traitlets.config import Config

from ...errors import StartFailed, WorkerDied, describe_exit, suggest
from ...processes import logs
from ...processes.os_limits import Cgroup
from ...processes.run_folders import remake_folder
from ...provisioner import SnakepitProvisioner
from .jupyter import KernelSpecs, WorkerManager

if TYPE_CHECKING:
    from ...processes.guarded_process import GuardedProcess
    from ..config import PoolConfig
    from .output import WorkerOutput

DEATH_PATIENCE = 2.0
"""Seconds to wait for the exit status of a worker whose lane closed."""


class WorkerProcess:
    """One kernel process under its guardian, from its launch to its verified end.

    Parameters
    ----------
    config
        The pool's options.
    label
        Name of the worker at its start.
    base
        Its files have this path, each with its own ending.
    output
        Has what the process prints outside of calls.
    context
        ZeroMQ context for the Jupyter channels.
    specs
        Finds the kernelspec.

    Attributes
    ----------
    label
        Name of the worker at its start.
    manager
        The kernel manager, which knows the connection.
    guarded
        The process, once it is launched.
    died
        Set the moment the process has ended.
    end_reason
        Why its pool has ended it; else empty.
    """

    def __init__(
        self,
        config: PoolConfig,
        label: str,
        base: Path,
        output: WorkerOutput,
        *,
        context: zmq.asyncio.Context,
        specs: KernelSpecs,
    ) -> None:
        self.label = label
        self.guarded: GuardedProcess | None = None
        self.died = asyncio.Event()
        self.end_reason = ""
        self._config = config
        self._output = output
        self._exit_fd: int | None = None
        self._group = None if config.group is None else Cgroup(config.group)
        self._ran_out_of_memory = False
        kernel = config.kernel
        # If the owner is dead, the first guardian to end removes all files of the run.
        leftovers = [base.parent.parent, *([self._group.path] if self._group else [])]
        provisioner_options = {
            "grace": config.grace,
            "label": label,
            "leftovers": list(map(str, leftovers)),
            "preload": list(config.preload),
            "import_path": kernel.import_path(),
            "await_ready": False,  # the lane reports when it is ready
        }
        # The protocol leaves ipc optional; every kernel supports tcp.
        has_ipc = kernel.has_lane or kernel.is_python
        self.manager = WorkerManager(
            kernel_name=kernel.name,
            connection_file=str(base.with_name(f"{base.name}.json")),
            context=context,
            kernel_spec_manager=specs,
            config=Config({"SnakepitProvisioner": provisioner_options}),
            **({"transport": "ipc", "ip": str(base)} if has_ipc else {"transport": "tcp"}),
        )

    # -- starting ------------------------------------------------------------------------------

    async def launch(self, slot: int, **arguments: Any) -> None:
        """Launch the process of a slot's worker. The arguments are those of `start_kernel`.

        Raises
        ------
        StartFailed
            There is no such kernel, or the operating system refuses.
        """
        kernel = self._config.kernel
        if kernel.problem:
            raise StartFailed(self.title, kernel.problem)
        try:
            if self.manager.kernel_spec is None:
                raise NoSuchKernel(kernel.name)
            if self._group is not None:
                limits = self._config.limits
                self._group.make(memory_bytes=limits.memory_bytes, cpus=limits.cpus)
            remake_folder(self._output.log_path.parent)
            with logs.open_log(self._output.log_path) as log:
                await self.manager.launch(
                    env=self._config.worker_environment(slot),
                    cwd=str(self._config.cwd),
                    stdout=log,
                    stderr=log,
                    **arguments,
                )
        except NoSuchKernel as error:
            known = self.manager.kernel_spec_manager.find_kernel_specs()
            cause = f"there is no kernelspec {error.name!r}{suggest(error.name, known)}"
            raise StartFailed(self.title, cause) from None
        except (OSError, zmq.ZMQError) as error:
            raise StartFailed(self.title, self.explain(error)) from error
        assert isinstance(self.manager.provisioner, SnakepitProvisioner)
        self.guarded = self.manager.provisioner.guarded
        self._watch()
        if self._group is not None and self.pid is not None:
            with contextlib.suppress(
                ProcessLookupError
            ):  # it has ended, which is reported elsewhere
                self._group.add(self.pid)

    def _watch(self) -> None:
        """Set `died` the moment the process ends."""
        assert self.guarded is not None
        loop = asyncio.get_running_loop()
        try:
            descriptor = self.guarded.exit_descriptor()
        except ProcessLookupError:
            self.died.set()
            return
        self._exit_fd = descriptor

        def on_exit() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            self._exit_fd = None
            self.died.set()

        loop.add_reader(descriptor, on_exit)

    @property
    def title(self) -> str:
        """What errors of its start call it."""
        return f"worker {self.label}"

    def explain(self, error: OSError | zmq.ZMQError) -> str:
        """Describe an error of the operating system, with the place of the files."""
        if getattr(error, "filename", None):
            return str(error)
        return f"{error}; its files are in {self._output.log_path.parent}"

    def start_failed(self, cause: str) -> StartFailed:
        """Return the error of a start that failed, with the last output."""
        return StartFailed(self.title, cause, self.last_output())

    async def ended_early(self) -> StartFailed:
        """Return the error of a start that failed because the process has ended."""
        await self.wait_for_status()
        return self.start_failed(f"it {describe_exit(self.status)} before it was ready")

    # -- looking -------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self.guarded.identity.pid if self.guarded and self.guarded.identity else None

    @property
    def run_id(self) -> str:
        """Id of its run; empty before it has started."""
        return self.guarded.run_id if self.guarded else ""

    @property
    def status(self) -> int | None:
        """Its exit status, if it is known."""
        return None if self.guarded is None else self.guarded.status

    @property
    def has_died(self) -> bool:
        """Whether it has ended, even if the event loop has not noticed yet."""
        if self.died.is_set() or self._exit_fd is None:
            return self.died.is_set()
        poller = select.poll()
        poller.register(self._exit_fd, select.POLLIN)
        return bool(poller.poll(0))

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has stopped it or its guardian."""
        return self.guarded is not None and self.guarded.is_stopped

    @property
    def has_lost_its_main_thread(self) -> bool:
        """Whether its main thread, which does all the work, has ended while others live."""
        identity = self.guarded.identity if self.guarded is not None else None
        return identity is not None and identity.has_lost_its_main_thread()

    def missing_socket(self) -> str:
        """Return the path of a missing socket of its channels; empty if none is missing."""
        connection = self.manager.get_connection_info()
        if connection["transport"] != "ipc":
            return ""
        ports = (connection["shell_port"], connection["iopub_port"])
        paths = [f"{connection['ip']}-{port}" for port in ports]
        return next((path for path in paths if not os.path.exists(path)), "")  # noqa: PTH110

    def last_output(self) -> str:
        """Return the last output that it wrote to its real stdout and stderr."""
        return self._output.last(has_ended=self.died.is_set())

    # -- signals -------------------------------------------------------------------------------

    def signal(self, signum: int) -> None:
        """Send it a signal, if it lives, from any thread."""
        if self.guarded is not None:
            self.guarded.send_signal(signum)

    def terminate(self) -> None:
        """End it at once, from any thread; its pool notices and refills the slot."""
        if self.guarded is not None:
            self.guarded.request_end(0.0)

    # -- ending --------------------------------------------------------------------------------

    async def end(self, grace: float) -> Sequence[str]:
        """End it and all that it started; return what survives even that.

        A kernel with a lane has been asked to exit by the end of its lanes; any other one is asked
        now. What is left after ``grace`` seconds is killed.
        """
        await self.manager.settled()
        provisioner = self.manager.provisioner
        if not isinstance(provisioner, SnakepitProvisioner):
            return ()
        if self.guarded is not None and grace > 0:
            if not self._config.kernel.has_lane:
                await self.manager.request_shutdown()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.died.wait(), grace)
        # Not manager.shutdown_kernel(): it interrupts, and polls every 100 ms.
        await provisioner.end_run(grace if self.died.is_set() else 0.0)
        report = provisioner.last_report
        await self.manager.cleanup_resources()
        return () if report is None else report.survivors

    def close(self) -> None:
        """Free what this process holds of it, in the event loop that has ended it."""
        if self._group is not None:
            self._ran_out_of_memory = self._group.ran_out_of_memory
            with contextlib.suppress(OSError):  # whoever finds the run next removes it
                self._group.remove()
        if self._exit_fd is not None:
            asyncio.get_running_loop().remove_reader(self._exit_fd)
            os.close(self._exit_fd)
            self._exit_fd = None
        self.died.set()

    # -- how it ended --------------------------------------------------------------------------

    def await_status(self) -> None:
        """Wait a moment for the exit status, in a thread without an event loop."""
        if self.guarded is not None:
            end = time.monotonic() + DEATH_PATIENCE
            while self.guarded.poll() is None and time.monotonic() < end:
                # The guardian reports the exit status a moment after the lane has closed.
                time.sleep(0.005)

    async def wait_for_status(self) -> None:
        """Wait a moment for the exit status, in the event loop."""
        if self.guarded is not None:
            await self.guarded.wait(DEATH_PATIENCE)

    def describe_death(self, worker: str) -> WorkerDied:
        """Describe how the worker of that name died."""
        return WorkerDied(worker, self.status, self.last_output(), self._why_ended())

    def describe_end(self) -> str:
        """Describe in one line how it ended. Only after its end."""
        reason = self._why_ended()
        how = describe_exit(self.status)
        return f"{reason} and {how}" if reason else how

    def _why_ended(self) -> str:
        """Return why its pool or one of its limits ended it; empty when neither did."""
        if self._group is not None:
            self._ran_out_of_memory = self._ran_out_of_memory or self._group.ran_out_of_memory
        return self.end_reason or self._config.limits.why_ended(
            self.status, ran_out_of_memory=self._ran_out_of_memory
        )

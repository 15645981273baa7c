"""A run: registered before its process starts, and until everything it started is verified gone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..ids import RUN_ID_VARIABLE, own_run_id
from .end_report import EndReport
from .guarded_process import GuardedProcess
from .run_folders import run_folder
from .run_registry import Registry
from .sweep import Signalled, end_run_tagged, end_tagged, guardian_report_file, sweep_together
from .template import current_limits, process_attributes
from .waiting import run_shielded


class GuardedRun:
    """One execution of a command: registered, started under a guardian, ended, retired.

    Attributes
    ----------
    run_id
        The run; it is in the environment of the command and of all that it starts.
    process
        The command, and the channel to its guardian.
    """

    def __init__(
        self, run_id: str, process: GuardedProcess, registry: Registry, folder: Path
    ) -> None:
        self.run_id = run_id
        self.process = process
        self._registry = registry
        self._folder = folder
        self._report: EndReport | None = None  # once it is verified gone
        self._signalled: Signalled = {}  # by all attempts, also cancelled and concurrent ones

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        run_id: str,
        registry: Registry,
        label: str,
        grace: float,
        env: Mapping[str, str],
        previous: str | None = None,
        leftovers: Sequence[str] = (),
        **arguments: Any,
    ) -> GuardedRun:
        """End what dead runs have left behind, and start a command as a new run.

        Parameters
        ----------
        command
            Program and arguments.
        run_id
            A new run id.
        registry
            Where the run is registered.
        label
            Its name in the registry.
        grace
            Seconds between SIGTERM and SIGKILL.
        env
            The environment, to which the run id is added.
        previous
            The run that this one replaces.
        leftovers
            Files and directories that are removed with the run; its own folder is added.
        arguments
            Other arguments of `GuardedProcess.start`.

        Raises
        ------
        StartFailed
            The command could not be executed. Nothing is left running.
        """

        async def register_and_sweep() -> None:
            # Register first: this claims the files of a dead run that are used again.
            await registry.areserve(
                run_id, label=label, parent=own_run_id(), previous=previous, leftovers=leftovers
            )
            await sweep_together(registry, grace)

        folder = run_folder(run_id)  # before there is a process: this may fail
        process: GuardedProcess | None = None
        try:
            process = await GuardedProcess.start(
                command,
                run_id=run_id,
                grace=grace,
                env={**env, RUN_ID_VARIABLE: run_id},
                leftovers=[*leftovers, folder],
                report_file=_report_file(run_id),
                before=register_and_sweep,
                **arguments,
            )
            assert process.guardian is not None
            await registry.aactivate(run_id, process.guardian, process.identity)
        except BaseException:
            if process is not None:
                await run_shielded(process.end(0.0))
            # Its guardian may have been killed while it started: then the kernel is still dying.
            await run_shielded(end_tagged([run_id], 0.0))
            await registry.aretire(run_id)
            raise
        return cls(run_id, process, registry, folder)

    async def assign(
        self,
        command: Sequence[str],
        *,
        connection_file: str,
        label: str,
        grace: float,
        env: Mapping[str, str],
        cwd: str | None,
        previous: str | None,
        leftovers: Sequence[str],
    ) -> None:
        """Give a standby kernel its assignment.

        The parameters are those of `start`, and the connection file.

        Raises
        ------
        StartFailed
            It could not apply the assignment. Nothing is left running.
        """
        assignment = {
            "command": [*command],
            "connection_file": connection_file,
            "leftovers": [*leftovers, str(self._folder)],
            "limits": current_limits(),
            **process_attributes({**env, RUN_ID_VARIABLE: self.run_id}, {"cwd": cwd}),
        }

        async def register_and_sweep() -> None:
            # Register first: this claims the files of a dead run that are used again.
            self._registry.assign(self.run_id, label=label, previous=previous, leftovers=leftovers)
            await sweep_together(self._registry, grace)

        try:
            await self.process.assign(assignment, meanwhile=register_and_sweep())
        except BaseException:
            await run_shielded(self.end(0.0))
            raise

    @property
    def is_over(self) -> bool:
        """Whether all of it is verified gone."""
        return self._report is not None

    async def end(self, grace: float) -> EndReport:
        """End all of it; return when that is verified, or when survivors are known.

        It may be called again, also after a cancellation.
        """
        if self._report is not None:
            return self._report
        report = await self.process.end(grace)
        if not report.verified and (self.process.is_gone or not report.survivors):
            # The guardian was killed; or it is stopped, and ends together with its tree.
            ending = await end_run_tagged(self._registry, self.run_id, grace, self._signalled)
            report = ending.report()
            await self.process.end(0.0)
        if report.verified:
            shutil.rmtree(self._folder, ignore_errors=True)
            await self._registry.aretire(self.run_id, report)
            self._report = report
        return report


def _report_file(run_id: str) -> Path | None:
    try:
        return guardian_report_file(run_id)
    except OSError:  # the registry cannot be used either, and has logged that
        return None

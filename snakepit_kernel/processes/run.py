"""A run, from the moment before its process is spawned until all of it is verified gone."""

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
from .sweep import Signalled, end_run_tagged, end_tagged, last_words, sweep_together
from .template import current_limits, process_attributes
from .waiting import run_shielded


class GuardedRun:
    """One life of a command: written down, started under a guardian, ended, crossed out.

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
        self._signalled: Signalled = {}  # also by a try that was cancelled, or that still goes on

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
        """End what dead runs left behind, then start a command as a new run.

        Parameters
        ----------
        command
            Program and arguments.
        run_id
            A new run id.
        registry
            Where the run is written down.
        label
            What the registry calls it.
        grace
            Seconds between SIGTERM and SIGKILL.
        env
            The environment, to which the run id is added.
        previous
            The run that this one replaces.
        leftovers
            Files and directories that go with the run; its own folder is added.
        arguments
            Anything else that `GuardedProcess.start` knows.

        Raises
        ------
        StartFailed
            The command could not be executed. Nothing is left running.
        """

        async def write_down_and_sweep() -> None:
            # First the files: those of a dead run that are used again are then claimed.
            await registry.areserve(
                run_id, label=label, parent=own_run_id(), previous=previous, leftovers=leftovers
            )
            await sweep_together(registry, grace)

        folder = run_folder(run_id)  # before there is a process: it may not be possible
        process: GuardedProcess | None = None
        try:
            process = await GuardedProcess.start(
                command,
                run_id=run_id,
                grace=grace,
                env={**env, RUN_ID_VARIABLE: run_id},
                leftovers=[*leftovers, folder],
                report_file=_report_file(run_id),
                before=write_down_and_sweep,
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

    async def take(
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
        """Make a kernel that was kept ready the one that is needed.

        The parameters are those of `start`, and its connection file.

        Raises
        ------
        StartFailed
            It could not become that. Nothing is left running.
        """
        place = {
            "command": [*command],
            "connection_file": connection_file,
            "leftovers": [*leftovers, str(self._folder)],
            "limits": current_limits(),
            **process_attributes({**env, RUN_ID_VARIABLE: self.run_id}, {"cwd": cwd}),
        }

        async def write_down_and_sweep() -> None:
            # First the files: those of a dead run that are used again are then claimed.
            self._registry.assign(self.run_id, label=label, previous=previous, leftovers=leftovers)
            await sweep_together(self._registry, grace)

        try:
            await self.process.take(place, meanwhile=write_down_and_sweep())
        except BaseException:
            await run_shielded(self.end(0.0))
            raise

    @property
    def is_over(self) -> bool:
        """Whether it is verified that nothing of it is left."""
        return self._report is not None

    async def end(self, grace: float) -> EndReport:
        """End all of it; return when that is verified, or when survivors can be named.

        It may be called again, also after it was cancelled.
        """
        if self._report is not None:
            return self._report
        report = await self.process.end(grace)
        if not report.verified and (self.process.is_gone or not report.survivors):
            # Somebody killed the guardian; or holds it, and it ends with what it guards.
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
        return last_words(run_id)
    except OSError:  # the registry cannot be used either, and has said so
        return None

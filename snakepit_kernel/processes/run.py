"""A run: registered before its process starts, and until everything it started is verified gone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from ..ids import RUN_ID_VARIABLE, own_run_id
from .end_report import EndReport
from .guarded_process import GuardedProcess
from .launch_spec import LaunchSpec
from .run_folders import run_folder
from .run_registry import Registry
from .sweep import Signalled, end_run_tagged, end_tagged, guardian_report_file, sweep_together
from .template import TemplateKind
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
        spec: LaunchSpec,
        *,
        registry: Registry,
        label: str,
        kind: TemplateKind | None = None,
        previous: str | None = None,
    ) -> GuardedRun:
        """End what dead runs have left behind, and start a command as a new run.

        Parameters
        ----------
        spec
            The command, with a new run id; what makes it a run is added: the id in its environment,
            its folder and its report.
        registry
            Where the run is registered.
        label
            Its name in the registry.
        kind
            Kind of its template, for a command that a template can fork.
        previous
            The run that this one replaces.

        Raises
        ------
        StartFailed
            The command could not be executed. Nothing is left running.
        """
        run_id = spec.run_id
        leftovers = [str(path) for path in spec.leftovers]

        async def register_and_sweep() -> None:
            # Register first: this claims the files of a dead run that are used again.
            await registry.areserve(
                run_id,
                label=label,
                parent=own_run_id(),
                previous=previous,
                leftovers=leftovers,
            )
            await sweep_together(registry, spec.grace)

        folder = run_folder(run_id)  # before there is a process: this may fail
        spec = replace(
            spec,
            env={**spec.env, RUN_ID_VARIABLE: run_id},
            leftovers=[*spec.leftovers, folder],
            report_file=_report_file(run_id),
        )
        process: GuardedProcess | None = None
        try:
            process = await GuardedProcess.start(spec, kind=kind, before=register_and_sweep)
            assert process.guardian is not None
            await registry.aactivate(run_id, process.guardian, process.identity)
        except BaseException:
            if process is not None:
                await run_shielded(process.give_up())
            # Its guardian may have been killed while it started: then the kernel is still dying.
            await run_shielded(end_tagged([run_id], 0.0))
            await registry.aretire(run_id)
            raise
        return cls(run_id, process, registry, folder)

    async def assign(
        self, spec: LaunchSpec, *, connection_file: str, label: str, previous: str | None
    ) -> None:
        """Give a standby kernel its assignment.

        Parameters
        ----------
        spec
            The command, with the id of this run.
        connection_file
            The file that the kernel writes.
        label, previous
            As for `start`.

        Raises
        ------
        StartFailed
            It could not apply the assignment. Nothing is left running.
        """
        spec = replace(spec, env={**spec.env, RUN_ID_VARIABLE: self.run_id})
        leftovers = [str(path) for path in spec.leftovers]
        assignment = {
            "command": spec.command,
            "connection_file": connection_file,
            "leftovers": [*leftovers, str(self._folder)],
            **spec.process_attributes(),
        }

        async def register_and_sweep() -> None:
            # Register first: this claims the files of a dead run that are used again.
            self._registry.assign(self.run_id, label=label, previous=previous, leftovers=leftovers)
            await sweep_together(self._registry, spec.grace)

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

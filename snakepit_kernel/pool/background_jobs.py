"""The background cells and calls of this process's notebook, as other processes see them."""

from __future__ import annotations

import time
from typing import Protocol

from ..locks import Lock
from ..printable import printable
from ..redaction import redacted
from .status import JobStatus

MAX_TITLE = 100
"""Characters of a title that are published."""


class BackgroundJob(Protocol):
    """A cell or call in the background."""

    number: int
    title: str

    @property
    def state(self) -> str:
        """``"running"``, or how it has ended."""

    def cancel(self) -> bool:
        """Interrupt it, from any thread; return whether it was still running."""


class RunningJobs:
    """The jobs of this process that run."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._jobs: list[tuple[BackgroundJob, float]] = []

    def add(self, job: BackgroundJob) -> None:
        """Show a job until it has ended."""
        with self._lock:
            self._jobs.append((job, time.time()))

    def _running(self) -> list[tuple[BackgroundJob, float]]:
        with self._lock:
            self._jobs = [each for each in self._jobs if each[0].state == "running"]
            return list(self._jobs)

    def status(self) -> tuple[JobStatus, ...]:
        """Return the jobs that run."""
        return tuple(
            JobStatus(
                number=job.number,
                title=printable(redacted(job.title), limit=MAX_TITLE),
                started=started,
            )
            for job, started in self._running()
        )

    def cancel(self, number: int) -> bool:
        """Interrupt the job of a number; return whether it was running."""
        wanted = (job for job, _ in self._running() if job.number == number)
        job = next(wanted, None)
        return job is not None and job.cancel()


running_jobs = RunningJobs()

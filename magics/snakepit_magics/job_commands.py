"""Commands for jobs, and the cells and calls that run as jobs."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display

from snakepit_kernel import CellError, CellResult, Session, ToolError
from snakepit_kernel.errors import suggest
from snakepit_kernel.pool.caller import arun_everywhere
from snakepit_kernel.pool.results import LiveView
from snakepit_kernel.printable import printable

from .jobs import Job, WorkFactory
from .rendering import as_cell_error, named_error, raise_here, show, without_traceback
from .worker_outputs import WorkersView, summarize_errors

MAX_ENDED = 100
"""Jobs that are kept when they have ended."""

OnSuccess = Callable[[Job], None]


class JobCommands:
    """Begins jobs, and runs the commands that wait for them and cancel them.

    Parameters
    ----------
    shell
        The notebook's shell, in which variables may hold jobs.

    Attributes
    ----------
    jobs
        The jobs, by number.
    """

    def __init__(self, shell: InteractiveShell) -> None:
        self._shell = shell
        self.jobs: dict[int, Job] = {}

    # -- beginning -----------------------------------------------------------------------------

    def begin_cell(
        self,
        session: Session,
        code: str,
        worker: int | None,
        arguments: dict[str, Any],
        on_success: OnSuccess,
    ) -> Job:
        """Run a cell in one worker; call a function, in the job's thread, if it has succeeded."""

        async def work(job: Job) -> CellResult:
            result = await session.arun(code, worker=worker, on_message=job.take, **arguments)
            job.results = {0: result}
            if result.error is not None:
                raise named_error(result.error)
            return result

        def on_end(job: Job) -> None:
            if job.status == "done":
                on_success(job)
            elif isinstance(job.error, CellError):
                job.present(partial(_print_failure, job, job.error.traceback))
            else:
                job.present(partial(_print_failure, job))

        return self._begin(_first_line(code), work, on_end, show=show, unit="worker")

    def begin_cell_everywhere(
        self,
        session: Session,
        code: str,
        workers: int,
        arguments: dict[str, Any],
        on_success: OnSuccess,
    ) -> Job:
        """Run a cell in all workers; call a function, in the job's thread, if all succeeded."""
        view = WorkersView()

        async def work(job: Job) -> list[CellResult]:
            job.results = await arun_everywhere(session, code, on_message=job.take, **arguments)
            error = summarize_errors(job.results)
            if error is not None:
                raise named_error(error)
            return list(job.results.values())

        def on_end(job: Job) -> None:
            job.present(partial(view.end, job.results))
            if job.status == "done":
                on_success(job)
            else:
                job.present(partial(_print_failure, job))

        title = _first_line(code)
        return self._begin(title, work, on_end, show=view.show, unit="worker", total=workers)

    def begin_call(
        self,
        session: Session,
        title: str,
        tool: str,
        arguments: dict[str, Any],
        limit: dict[str, Any],
    ) -> Job:
        """Call a tool; its output and its value appear below the cell that began the job."""
        call = _stream_tool if session.tools[tool].streams else _call_tool

        def on_end(job: Job) -> None:
            if job.status != "done":
                lines = job.error.traceback if isinstance(job.error, CellError) else ()
                _print_failure(job, lines)
            elif call is _call_tool and job.value is not None:  # chunks have been shown already
                display(job.value)

        return self._begin(title, lambda _: call(session, tool, arguments, limit), on_end)

    def _begin(
        self, title: str, work: WorkFactory, on_end: Callable[[Job], None], **options: Any
    ) -> Job:
        number = max(self.jobs, default=0) + 1
        ended = [each for each, job in self.jobs.items() if job.done()]
        for each in ended[: max(0, len(ended) - MAX_ENDED)]:
            del self.jobs[each]
        job = self.jobs[number] = Job(number, title, work, on_end, **options)
        job.start()
        return job

    # -- commands ------------------------------------------------------------------------------

    def cancel(self, options: Namespace) -> None:
        """Cancel jobs."""
        if options.jobs == ["all"]:
            running = [job for job in self.jobs.values() if job.cancel()]
            print(f"{len(running)} of {len(self.jobs)} jobs cancelled")  # noqa: T201
            return
        for job in self._find(options.jobs):
            if not job.cancel():
                print(job)  # noqa: T201

    def wait(self, options: Namespace) -> None:
        """Wait for jobs, and show here what they show; raise an error if one has failed."""
        jobs = self._find(options.jobs)
        if not options.jobs:
            jobs = [job for job in self.jobs.values() if not job.done()]
        if not jobs:
            print("no job runs")  # noqa: T201
        until = math.inf if options.timeout is None else time.monotonic() + options.timeout
        for job in jobs:
            try:
                job.wait_interactive(max(0.0, until - time.monotonic()))
            except KeyboardInterrupt as interrupt:
                raise without_traceback(interrupt) from None
        for job in jobs:
            print(job)  # noqa: T201
        _raise_failures([job for job in jobs if job.status in {"failed", "cancelled"}], len(jobs))

    def names(self) -> Iterable[str]:
        """Return what names a job: numbers, and the variables that hold jobs."""
        yield from map(str, self.jobs)
        for name, value in list(self._shell.user_ns.items()):
            if isinstance(value, Job) and not name.startswith("_"):
                yield name

    def _find(self, words: list[str]) -> list[Job]:
        return [self._find_one(word) for word in words]

    def _find_one(self, word: str) -> Job:
        found = self._shell.user_ns.get(word)
        if isinstance(found, Job):
            return found
        with contextlib.suppress(ValueError, KeyError):
            return self.jobs[int(word)]
        if word in self._shell.user_ns:
            msg = f"{word} is of type {type(found).__name__}, and no job"
            raise UsageError(msg)
        msg = f"there is no job {word}{suggest(word, self.names())}"
        raise UsageError(msg)


def _raise_failures(failed: list[Job], count: int) -> None:
    """Raise one short error for jobs that have failed: what they have shown tells the rest."""
    if not failed:
        return
    errors = [job.error for job in failed if isinstance(job.error, ToolError)]
    name = errors[0].type_name if errors else type(failed[0].error).__name__
    numbers = ", ".join(str(job.id) for job in failed)
    text = f"job {failed[0].id} {failed[0].status}"
    if count > 1:
        text = f"{len(failed)} of {count} jobs failed: {numbers}"
    raise_here(CellError(name, text, [f"{name}: {text}"]))


def _print_failure(job: Job, traceback: Iterable[str] = ()) -> None:
    """Print the traceback of a job, and then the job; without one, its error in the same line."""
    lines = list(traceback)
    text = "" if lines else printable(_text_of(job.error), lines=True)
    told = "\n".join([*lines, ": ".join(filter(None, [str(job), text]))])
    print(told, file=sys.stderr)  # noqa: T201 - output of the magic


def _text_of(error: BaseException | None) -> str:
    return error.message if isinstance(error, CellError) else str(error)


def _first_line(code: str) -> str:
    return next((line for line in code.splitlines() if line.strip()), "")


async def _call_tool(
    session: Session, tool: str, arguments: dict[str, Any], limit: dict[str, Any]
) -> Any:
    try:
        return await session.acall(tool, arguments, **limit)
    except ToolError as error:
        raise as_cell_error(error) from None


async def _stream_tool(
    session: Session, tool: str, arguments: dict[str, Any], limit: dict[str, Any]
) -> Any:
    """Do the same as `Stream.show`, in an event loop."""
    try:
        async with contextlib.aclosing(session.astream(tool, arguments, **limit)) as chunks:
            with LiveView() as view:
                async for chunk in chunks:
                    view.take(chunk)
    except ToolError as error:
        raise as_cell_error(error) from None
    return view.last

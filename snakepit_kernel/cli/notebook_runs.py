"""``snakepit run``: many notebooks, each in a kernel of its own, so many at a time.

What has ended is recorded in a journal in the output directory. A run that was killed goes on with
``--resume``, and runs no notebook again that had succeeded.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ..printable import counted, duration, printable
from .listing import Listing, print_listings

JOURNAL = ".snakepit-run.jsonl"

PRELOADABLE = ("numpy", "pandas", "scipy", "sklearn", "polars", "pyarrow", "xarray", "sympy")
"""Packages that kernels import ahead, once for all, if a notebook imports them: their import prints
nothing, and takes time."""

IMPORT = re.compile(r"^\s*(?:import|from)\s+(\w+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A notebook to run.

    Attributes
    ----------
    source, target
        Absolute paths of the notebook and of its output.
    digest
        Of its contents and the parameters.
    """

    source: Path
    target: Path
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How the run of a notebook ended; a line of the journal.

    Attributes
    ----------
    notebook
        Name of the output.
    digest
        That of the task.
    status
        ``"done"``, ``"failed"`` or ``"stopped"``.
    seconds
        Its duration.
    error
        One line, or nothing.
    """

    notebook: str
    digest: str
    status: str
    seconds: float
    error: str = ""


class Journal:
    """The outcomes in an output directory, of which one run at a time writes.

    Parameters
    ----------
    folder
        The output directory; it is created.

    Raises
    ------
    BlockingIOError
        Another run writes there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / JOURNAL).open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise
        self._lock = threading.Lock()

    def done(self) -> dict[str, str]:
        """Return the digests of notebooks that have succeeded, by name."""
        self._file.seek(0)
        found: dict[str, str] = {}
        for line in self._file:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # it was cut by a kill
                said = json.loads(line)
                found.pop(said["notebook"], None)
                if said["status"] == "done":
                    found[said["notebook"]] = said["digest"]
        return found

    def clear(self) -> None:
        """Forget all outcomes."""
        self._file.truncate(0)

    def add(self, outcome: Outcome) -> None:
        """Write an outcome, so that it is there after a kill."""
        line = json.dumps(asdict(outcome)).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let others write."""
        self._file.close()


def run_notebooks(
    notebooks: Sequence[Path],
    *,
    jobs: int,
    folder: Path,
    parameters: Mapping[str, Any],
    resume: bool,
    cell_timeout: float | None,
    timeout: float | None,
    preload: Sequence[str],
) -> int:
    """Run notebooks, and print how each has ended.

    Parameters
    ----------
    notebooks
        Their paths.
    jobs
        How many run at a time.
    folder
        The output directory.
    parameters
        Values for their cells with the tag ``parameters``, as in papermill.
    resume
        Leave out those that had succeeded before in this directory.
    cell_timeout, timeout
        Seconds that a cell, and a notebook, may take.
    preload
        Modules that the kernels import ahead, beside those that the notebooks import and that are
        known to bear it.

    Returns
    -------
    int
        The exit status: 1 if one did not succeed.

    Raises
    ------
    ValueError
        The notebooks cannot be run so; nothing was run.
    OSError
        The output directory cannot be written.
    """
    if find_spec("papermill") is None:
        raise ValueError("snakepit run needs papermill: pip install 'snakepit-kernel[papermill]'")
    for name in preload:
        if find_spec(name) is None:
            raise ValueError(f"--preload: there is no module {name!r} in this environment")
    tasks = [_task(path, folder, parameters) for path in notebooks]
    _check_targets(tasks)
    try:
        journal = Journal(folder)
    except BlockingIOError:
        raise ValueError(
            f"another snakepit run writes into {folder}; wait for it, or choose another "
            "--output-dir"
        ) from None
    with contextlib.closing(journal):
        done = journal.done() if resume else {}
        if not resume:
            journal.clear()
        waiting = [
            task
            for task in tasks
            if done.get(task.target.name) != task.digest or not task.target.exists()
        ]
        if len(waiting) < len(tasks):
            click.echo(f"{counted(len(tasks) - len(waiting), 'notebook')} succeeded before")
        modules = [*preload, *_imported(waiting)]
        run = _Run(journal, parameters, cell_timeout=cell_timeout, timeout=timeout, preload=modules)
        outcomes = run.all(waiting, jobs)
    _show(outcomes, len(tasks))
    return 0 if all(each.status == "done" for each in outcomes) else 1


def parsed_parameters(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return parameters by name, with values of the types that papermill gives them.

    Raises
    ------
    ValueError
        A name is none of Python's.
    """
    for name, _ in pairs:
        if not name.isidentifier():
            raise ValueError(f"-p takes the name of a variable first, not {name!r}")
    return {name: _parsed(value) for name, value in pairs}


def _parsed(value: str) -> Any:
    constants: dict[str, Any] = {"True": True, "False": False, "None": None, "null": None}
    if value in constants:
        return constants[value]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(value)
    return value


class _Run:
    """The notebooks of one command."""

    def __init__(
        self,
        journal: Journal,
        parameters: Mapping[str, Any],
        *,
        cell_timeout: float | None,
        timeout: float | None,
        preload: Sequence[str],
    ) -> None:
        self._journal = journal
        self._parameters = dict(parameters)
        self._cell_timeout = cell_timeout
        self._timeout = timeout
        self._preload = preload
        self._is_stopped = threading.Event()
        self._ended = 0

    def all(self, tasks: Sequence[Task], jobs: int) -> list[Outcome]:
        """Run notebooks in threads; after Ctrl-C, return when their kernels are gone."""
        import papermill  # noqa: F401 - here: Ctrl-C must not meet the threads as they import it

        logging.getLogger("papermill").setLevel(logging.ERROR)
        with concurrent.futures.ThreadPoolExecutor(jobs, "snakepit-run") as threads:
            futures = [threads.submit(self._one, task, jobs, len(tasks)) for task in tasks]
            try:
                concurrent.futures.wait(futures)
            except KeyboardInterrupt:
                self._stop(tasks)
                for future in futures:
                    future.cancel()
                raise
        return [future.result() for future in futures]

    def _stop(self, tasks: Sequence[Task]) -> None:
        from ..papermill import kill_kernel

        self._is_stopped.set()
        for task in tasks:
            kill_kernel(str(task.target))

    def _one(self, task: Task, jobs: int, count: int) -> Outcome:
        began = time.monotonic()
        error = self._execute(task, jobs)
        seconds = time.monotonic() - began
        status = "stopped" if self._is_stopped.is_set() else "failed" if error else "done"
        outcome = Outcome(
            notebook=task.target.name,
            digest=task.digest,
            status=status,
            seconds=round(seconds, 3),
            error=error,
        )
        self._journal.add(outcome)
        self._ended += 1
        click.echo(
            printable(f"{status:7} {outcome.notebook}  {duration(seconds)}  {error}").rstrip()
            + f"  ({self._ended} of {count})"
        )
        return outcome

    def _execute(self, task: Task, jobs: int) -> str:
        """Run one notebook; return the line of its error."""
        import papermill

        from ..papermill import ENGINE, kill_kernel

        if self._is_stopped.is_set():
            return "it was not started"
        is_late = threading.Event()

        def kill() -> None:
            is_late.set()
            kill_kernel(str(task.target))

        timer = threading.Timer(self._timeout, kill) if self._timeout is not None else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            papermill.execute_notebook(
                str(task.source),
                str(task.target),
                self._parameters,
                engine_name=ENGINE,
                progress_bar=False,
                execution_timeout=self._cell_timeout,
                notebook=str(task.target),
                preload=self._preload,
                standby=jobs,
            )
        except Exception as error:  # noqa: BLE001 - one notebook costs only itself
            if is_late.is_set():
                return f"it took longer than {self._timeout:g} s"
            return _first_line(error)
        finally:
            if timer is not None:
                timer.cancel()
        return ""


def _first_line(error: BaseException) -> str:
    """Return the line that says most: that of the cell's own error."""
    name, value = getattr(error, "ename", ""), getattr(error, "evalue", "")
    text = f"{name}: {value}" if name else f"{type(error).__name__}: {error}"
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _task(path: Path, folder: Path, parameters: Mapping[str, Any]) -> Task:
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    try:
        cells = json.loads(contents)["cells"]
        if not isinstance(cells, list):
            raise TypeError(cells)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no notebook of format 4: it has no cells as JSON") from None
    digest = hashlib.sha256(contents)
    digest.update(json.dumps(parameters, sort_keys=True, default=repr).encode())
    target = folder.absolute() / path.name
    return Task(source=path.absolute(), target=target, digest=digest.hexdigest())


def _check_targets(tasks: Sequence[Task]) -> None:
    by_target: dict[Path, Task] = {}
    for task in tasks:
        if task.target.exists() and task.target.samefile(task.source):
            raise ValueError(f"{task.source} would be overwritten; choose another --output-dir")
        other = by_target.setdefault(task.target, task)
        if other is not task:
            raise ValueError(
                f"{other.source} and {task.source} would both be written to {task.target}; "
                "run them apart"
            )


def _imported(tasks: Sequence[Task]) -> Iterator[str]:
    """Yield the packages of `PRELOADABLE` that the notebooks import."""
    found: set[str] = set()
    for task in tasks:
        for cell in json.loads(task.source.read_bytes())["cells"]:
            if cell.get("cell_type") == "code":
                found.update(IMPORT.findall("".join(cell.get("source", ()))))
    yield from (name for name in PRELOADABLE if name in found and find_spec(name) is not None)


def _show(outcomes: Sequence[Outcome], count: int) -> None:
    failed = [each for each in outcomes if each.status != "done"]
    total = sum(each.seconds for each in outcomes)
    listing = Listing(
        title=f"{counted(count, 'notebook')}: {count - len(failed)} succeeded, "
        f"{len(failed)} failed",
        headings=("notebook", "result", "seconds", "error"),
        rows=[(each.notebook, each.status, f"{each.seconds:.1f}", each.error) for each in outcomes],
        footer=f"{total:.1f} s of kernels" if outcomes else "",
    )
    print_listings([listing])

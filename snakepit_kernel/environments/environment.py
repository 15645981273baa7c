"""Finds the environment of some requirements, or makes it: once, for all pools of this user.

The requirements, this installation and its Python are a key, under which it is recorded what they
were resolved to; the packages found name the environment. So requirements that are not pinned keep
their first resolution until it is upgraded or pruned, and different requirements that were resolved
to the same packages share an environment.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from ..errors import EnvironmentFailed, StartFailed
from ..printable import counted
from .cache import EnvironmentCache, Lease, Resolution, remove
from .guarded_command import run_guarded
from .installers import Installer, find_installer
from .own_wheel import Installation
from .progress_line import ProgressLine
from .requirements import DISTRIBUTION, Requirements

MAX_OUTPUT = 4096
"""Maximum characters of the installer's output in an error: the last ones."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def acquire(requirements: Requirements, *, upgrade: bool = False) -> Lease:
    """Return a lease of the environment of some requirements; make it if there is none.

    Its progress is shown in the cell that runs, or on standard error. If another process makes it,
    that is waited for. Ctrl-C ends the installer and all that it has started.

    Parameters
    ----------
    requirements
        The requirements.
    upgrade
        Resolve them again, instead of using what they were resolved to before.

    Raises
    ------
    EnvironmentFailed
        It cannot be made; with what the installer said. Nothing of it is left.
    """
    try:
        return _Maker(requirements).acquire(upgrade=upgrade)
    except EnvironmentFailed as error:
        raise EnvironmentFailed(requirements.shown, error.cause, error.output) from None
    except (OSError, StartFailed) as error:
        raise EnvironmentFailed(requirements.shown, str(error)) from error


class _Maker:
    """Finds or makes the environment of some requirements."""

    def __init__(self, requirements: Requirements) -> None:
        self._requirements = requirements
        self._cache = EnvironmentCache()
        self._installation = Installation.find()
        files = _signatures(requirements.lines)
        self._key = _digest(requirements.key, *files, self._installation.key)
        self._progress = ProgressLine(f"environment of {requirements}")

    def acquire(self, *, upgrade: bool) -> Lease:
        while True:
            known = None if upgrade else self._cache.resolution(self._key)
            lease = None if known is None else self._cache.use(known.name)
            if lease is None:
                lease = self._acquire_in_turn(upgrade=upgrade)
            if lease is not None:
                return lease
            upgrade = False  # it was made, and pruned before it could be used

    def _acquire_in_turn(self, *, upgrade: bool) -> Lease | None:
        """Make it unless somebody else has, while others who want the same wait."""
        lock = self._cache.request_lock(self._key, self._tell_of_wait)
        try:
            with self._telling_the_outcome(), self._cache.work_folder(self._key) as work:
                known = None if upgrade else self._cache.resolution(self._key)
                if known is not None and (lease := self._use(known)) is not None:
                    return lease
                steps = _Steps(find_installer(), work, self._progress, [lock.descriptor])
                wheel = self._installation.write_wheel(work)
                if known is None:
                    known = self._resolved(steps, wheel, upgrade=upgrade)
                if (lease := self._use(known)) is None:
                    self._make(known, steps, wheel)
                    lease = self._use(known)
                return lease
        finally:
            lock.release()

    def _use(self, known: Resolution) -> Lease | None:
        return self._cache.use(known.name, self._tell_of_wait)

    def _tell_of_wait(self, holder: str) -> None:
        self._progress.step(f"waiting for {holder}, which makes it")

    @contextlib.contextmanager
    def _telling_the_outcome(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._progress.end("failed")
            raise
        self._progress.end("ready")

    def _resolved(self, steps: _Steps, wheel: Path, *, upgrade: bool) -> Resolution:
        packages = steps.resolve(self._requirements, wheel, upgrade=upgrade)
        resolution = Resolution(
            name=_digest(*packages, *_signatures(packages), self._installation.key),
            requirements=self._requirements.shown,
            packages=tuple(packages),
        )
        self._cache.keep_resolution(self._key, resolution)
        return resolution

    def _make(self, resolution: Resolution, steps: _Steps, wheel: Path) -> None:
        self._cache.sweep()
        lock = self._cache.lock(resolution.name, exclusive=True, on_wait=self._tell_of_wait)
        try:
            if self._cache.find(resolution.name) is not None:
                return  # made for other requirements that were resolved to the same packages
            folder = self._cache.folder(resolution.name)
            steps.holds.append(lock.descriptor)
            try:
                steps.install(folder, resolution, self._requirements.options, wheel)
                self._installation.link(folder)
                self._cache.complete(resolution)
            except BaseException:
                remove(folder)
                raise
        finally:
            lock.release()


class _Steps:
    """The commands of an installer, one after the other.

    Parameters
    ----------
    installer
        The installer.
    work
        Folder for temporary files.
    progress
        Where it is shown what is done.

    Attributes
    ----------
    holds
        File descriptors of locks that each command holds as well, should this process be killed.
    """

    def __init__(
        self, installer: Installer, work: Path, progress: ProgressLine, holds: list[int]
    ) -> None:
        self._installer = installer
        self._work = work
        self._progress = progress
        self.holds = holds
        self._variables = {**installer.environment(), "NO_COLOR": "1"}

    def resolve(self, requirements: Requirements, wheel: Path, *, upgrade: bool) -> list[str]:
        """Resolve requirements together with those of the wheel; return the packages."""
        self._progress.step("resolving")
        request, constraints = self._work / "request.txt", self._work / "constraints.txt"
        _write(request, [*requirements.options, *requirements.lines, _from(wheel)])
        _write(constraints, requirements.constraints)
        lock = self._work / "lock.txt"
        command = self._installer.resolve(request, constraints, lock, upgrade=upgrade)
        self._run(command, "could not resolve the requirements")
        return self._installer.read_lock(lock)

    def install(
        self, folder: Path, resolution: Resolution, options: Sequence[str], wheel: Path
    ) -> None:
        """Make the folder of an environment, and install packages and the wheel into it."""
        self._progress.step(f"installing {counted(len(resolution.packages), 'package')}")
        lock = self._work / "install.txt"
        _write(lock, [*options, *resolution.packages, _from(wheel)])
        self._run(self._installer.create(folder), "could not make the environment")
        self._run(self._installer.install(folder, lock), "could not install the packages")

    def _run(self, command: Sequence[str], failure: str) -> None:
        with open(os.memfd_create("snakepit-installer"), "w+b") as output:  # noqa: PTH123 - it may fail because the disk is full
            status = run_guarded(
                command,
                label=f"{self._installer.name} for an environment",
                cwd=self._work,
                env=self._variables,
                output=output,
                on_tick=self._progress.tick,
                holds=self.holds,
            )
            if status != 0:
                output.seek(0)
                text = _COLOUR.sub("", output.read().decode("utf-8", "replace")).strip()
                raise EnvironmentFailed((), f"{self._installer.name} {failure}", text[-MAX_OUTPUT:])


def _write(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _from(wheel: Path) -> str:
    return f"{DISTRIBUTION} @ {wheel.as_uri()}"


def _signatures(lines: Sequence[str]) -> list[str]:
    """Return what tells whether the local files have changed that requirements name."""
    found = []
    for line in lines:
        _, _, url = line.partition(" @ file://")
        with contextlib.suppress(OSError):  # the installer says so
            status = Path(unquote(url.partition(";")[0].partition("#")[0].strip())).stat()
            if url and stat.S_ISREG(status.st_mode):
                found.append(f"{line} {status.st_size} {status.st_mtime_ns}")
    return found


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]

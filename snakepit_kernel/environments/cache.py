"""The environments of this user: where they lie, which are used, and which can go.

In the cache directory there are::

    environments/NAME/          an environment; usable if the file `MARKER` is in it
    environments/NAME.lock      held exclusively by who makes or removes it, shared by who uses it
    requests/KEY.json           what some requirements were resolved to, and the environment's name
    requests/KEY.lock           held by who resolves them and makes the environment
    requests/KEY.work/          its temporary files

An environment is made in its place, because its scripts name their interpreter by its path. The
marker is written last, when all else is on the disk. What has no marker and no holder of its lock
was left half made, and the next maker removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from ..files import make_directory, read_json, write_file
from ..paths import cache_dir
from .file_lock import FileLock, OnWait
from .marker import MARKER
from .requirements import brief

UNUSED_SECONDS = 90 * 86400.0
"""Seconds after which an environment that nobody has used is removed when another one is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """What some requirements were resolved to.

    Attributes
    ----------
    name
        Name of the environment.
    requirements
        The requirements, for people.
    packages
        All packages, as lines of a requirements file.
    """

    name: str
    requirements: tuple[str, ...]
    packages: tuple[str, ...]

    @classmethod
    def of_json(cls, data: object) -> Self:
        """Restore it; raise ValueError or TypeError if the data is not what was written."""
        if not isinstance(data, dict) or not isinstance(data.get("name"), str):
            msg = "it is no resolution"
            raise TypeError(msg)
        lists = {
            key: tuple(map(str, data[key]))
            for key in ("requirements", "packages")
            if isinstance(data.get(key), list)
        }
        return cls(name=data["name"], **lists)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A complete environment.

    Attributes
    ----------
    folder
        Its folder.
    resolution
        What it was made of.
    used
        When it was used last, in seconds since the epoch.
    """

    folder: Path
    resolution: Resolution
    used: float

    @property
    def name(self) -> str:
        """Its name."""
        return self.folder.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return _interpreter(self.folder)

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of processes that use it, as a kernelspec gives them."""
        folder = str(self.folder).replace("$", "$$")
        return {"VIRTUAL_ENV": folder, "PATH": f"{folder}/bin{os.pathsep}${{PATH}}"}

    def __str__(self) -> str:
        return brief(self.resolution.requirements)

    def size_bytes(self) -> int:
        """Return the size of its files; those that it shares with the cache of uv count as well."""
        return sum(
            os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118 - many files
            for parent, _, names in os.walk(self.folder)
            for name in names
        )


class Lease:
    """An environment in use: it is not removed until `release`, or until this process ends.

    Attributes
    ----------
    environment
        The environment.
    """

    def __init__(self, environment: Environment, lock: FileLock) -> None:
        self.environment = environment
        self._lock = lock
        self._touch()

    def release(self) -> None:
        """Allow it to be removed; again does nothing."""
        self._touch()
        self._lock.release()

    def _touch(self) -> None:
        with contextlib.suppress(OSError):  # a cache that can only be read
            os.utime(self.environment.folder / MARKER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What `EnvironmentCache.prune` has done with an environment.

    Attributes
    ----------
    in_use
        It was left, because somebody uses it.
    """

    environment: Environment
    in_use: bool


class EnvironmentCache:
    """The environments in the cache directory of this user.

    Raises
    ------
    OSError
        The directory cannot be used; the text says why.
    """

    def __init__(self) -> None:
        base = cache_dir()
        self._environments = base / "environments"
        self._requests = base / "requests"
        for folder in (self._environments, self._requests):
            make_directory(folder)

    # -- places --------------------------------------------------------------------------------

    def folder(self, name: str) -> Path:
        """Return the folder of an environment."""
        return self._environments / name

    def lock(self, name: str, *, exclusive: bool, on_wait: OnWait | None = None) -> FileLock:
        """Acquire the lock of an environment, see `FileLock`."""
        path = self._environments / f"{name}.lock"
        return FileLock(path, exclusive=exclusive, on_wait=on_wait)

    def request_lock(self, key: str, on_wait: OnWait | None = None) -> FileLock:
        """Acquire the lock of some requirements, see `FileLock`."""
        return FileLock(self._requests / f"{key}.lock", exclusive=True, on_wait=on_wait)

    @contextlib.contextmanager
    def work_folder(self, key: str) -> Iterator[Path]:
        """Make an empty folder for the holder of a request's lock, and remove it afterwards."""
        folder = self._requests / f"{key}.work"
        remove(folder)
        make_directory(folder)
        try:
            yield folder
        finally:
            remove(folder)

    # -- looking -------------------------------------------------------------------------------

    def resolution(self, key: str) -> Resolution | None:
        """Return what some requirements were resolved to; None if that is not known."""
        return _read_resolution(self._requests / f"{key}.json")

    def find(self, name: str) -> Environment | None:
        """Return an environment that is complete; None if there is none of that name."""
        folder = self.folder(name)
        resolution = _read_resolution(folder / MARKER)
        if resolution is None or not _interpreter(folder).exists():  # Python was removed
            return None
        try:
            used = (folder / MARKER).stat().st_mtime
        except FileNotFoundError:
            return None
        return Environment(folder=folder, resolution=resolution, used=used)

    def all(self) -> list[Environment]:
        """Return all that are complete, the one used last first."""
        names = [path.name for path in self._environments.iterdir() if path.is_dir()]
        found = [each for each in map(self.find, names) if each is not None]
        return sorted(found, key=lambda each: each.used, reverse=True)

    def is_used(self, name: str) -> bool:
        """Whether somebody uses, makes or removes an environment at this moment."""
        try:
            self.lock(name, exclusive=True).release()
        except BlockingIOError:
            return True
        return False

    # -- using and making ----------------------------------------------------------------------

    def use(self, name: str, on_wait: OnWait | None = None) -> Lease | None:
        """Return a lease of an environment; None if it is not there.

        Parameters
        ----------
        name
            Name of the environment.
        on_wait
            Called before a wait for who makes or removes it; without it that counts as not there.
        """
        if not self.folder(name).is_dir():
            return None
        try:
            lock = self.lock(name, exclusive=False, on_wait=on_wait)
        except BlockingIOError:
            return None
        try:
            environment = self.find(name)
            if environment is not None:
                return Lease(environment, lock)
        except BaseException:
            lock.release()
            raise
        lock.release()
        return None

    def keep_resolution(self, key: str, resolution: Resolution) -> None:
        """Record what some requirements were resolved to."""
        write_file(self._requests / f"{key}.json", json.dumps(asdict(resolution)))

    def complete(self, resolution: Resolution) -> None:
        """Mark an environment as complete, when all of it is on the disk."""
        folder = self.folder(resolution.name)
        _sync_file_system(folder)
        write_file(folder / MARKER, json.dumps(asdict(resolution)))

    # -- removing ------------------------------------------------------------------------------

    def prune(self, seconds: float = 0.0, *, dry_run: bool = False) -> list[Pruned]:
        """Remove environments that have not been used for so many seconds, and nobody uses now.

        Requirements that were resolved to one of them are resolved anew the next time.

        Parameters
        ----------
        seconds
            The time without use.
        dry_run
            Only tell what would be done.
        """
        before = time.time() - seconds
        done = []
        for environment in self.all():
            if environment.used > before and seconds > 0:
                continue
            name = environment.name
            is_left = self.is_used(name) if dry_run else not self._remove(name)
            done.append(Pruned(environment=environment, in_use=is_left))
        if not dry_run:
            self._forget_requests()
        return done

    def sweep(self) -> None:
        """Remove what was left half made, and what nobody has used for a long time."""
        for path in self._environments.iterdir():
            if path.is_dir() and self.find(path.name) is None:
                self._remove(path.name)
        self.prune(UNUSED_SECONDS)

    def _remove(self, name: str) -> bool:
        """Remove an environment; return whether that was possible."""
        try:
            lock = self.lock(name, exclusive=True)
        except BlockingIOError:
            return False
        try:
            (self.folder(name) / MARKER).unlink(missing_ok=True)  # first: it is incomplete now
            remove(self.folder(name))
            lock.remove()
        finally:
            lock.release()
        return True

    def _forget_requests(self) -> None:
        """Forget what was resolved to environments that are gone."""
        for path in self._requests.glob("*.json"):
            resolution = _read_resolution(path)
            if resolution is not None and self.folder(resolution.name).exists():
                continue
            try:
                lock = self.request_lock(path.stem)
            except BlockingIOError:  # it is being made
                continue
            try:
                path.unlink(missing_ok=True)
                remove(path.with_suffix(".work"))
                lock.remove()
            finally:
                lock.release()


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it; nothing if there is none."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _interpreter(folder: Path) -> Path:
    return folder / "bin" / "python"


def _read_resolution(path: Path) -> Resolution | None:
    try:
        return Resolution.of_json(read_json(path))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):  # damaged: it is made anew
        return None


def _sync_file_system(folder: Path) -> None:
    """Wait until all that was written to the file system of a folder is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(descriptor)

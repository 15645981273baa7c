"""Where runtime and durable files live.

Runtime files (sockets, connection files, logs of workers) go into a short private directory. It is
the first of these:

1. ``SNAKEPIT_RUNTIME_DIR``;
2. ``snakepit`` below ``JUPYTER_RUNTIME_DIR``, where somebody has set that;
3. ``snakepit`` below ``XDG_RUNTIME_DIR``, when that is there, is ours, and only we can write to it;
4. ``snakepit`` below the runtime directory that Jupyter chooses by itself;
5. ``snakepit-UID`` in the directory of temporary files.

What leaves no room for the names of sockets is passed over, but the first, and so is what another
user has made. Durable files go to ``SNAKEPIT_DATA_DIR``, or to ``snakepit`` below Jupyter's data
directory.

Each is made with mode 0700, as are the directories above it that are missing. One that is there is
used only if it is no link, is ours, and others have no rights to it; it is never changed.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .files import Foreign, NotOurs, check_directory, make_directory, open_file

logger = logging.getLogger(__name__)

RUNTIME_VARIABLE = "SNAKEPIT_RUNTIME_DIR"
DATA_VARIABLE = "SNAKEPIT_DATA_DIR"

MAX_SOCKET_PATH = 107
"""Bytes that a socket's path may have on Linux, less the final NUL."""

_ROOM_FOR_NAMES = 44  # "/<run id>/<purpose>-<6>/<slot>.<incarnation>-5" and some to spare

OWN = "snakepit"

KEPT_NAME = "runtime-directory"
"""File in the data directory: the runtime directory that is used because its name was taken."""


# -- runtime files ---------------------------------------------------------------------------------


def runtime_dir() -> Path:
    """Return the private directory for runtime files; make it when it is missing.

    Raises
    ------
    PermissionError
        It cannot be made or written; it is a link or another user's, or others have rights to it.
    """
    chosen = os.environ.get(RUNTIME_VARIABLE)
    if chosen:
        return _private(_chosen(chosen), RUNTIME_VARIABLE)
    for place in _places():
        path = place / OWN
        if fits_sockets(path):
            try:
                return _private(path, RUNTIME_VARIABLE)
            except Foreign as error:
                _tell_once(str(error))
    return _short_runtime_dir()


def runtime_dirs() -> list[Path]:
    """Return the directory for runtime files, and others where processes of ours may have some.

    A process may have another environment than this one, as one without ``XDG_RUNTIME_DIR`` has.
    Where the directory was chosen, it is the only one.

    Raises
    ------
    PermissionError
        As for `runtime_dir`.
    """
    found = {runtime_dir(): None}
    if not os.environ.get(RUNTIME_VARIABLE) and not os.environ.get("JUPYTER_RUNTIME_DIR"):
        user = os.geteuid()
        places = [place / OWN for place in (*_places(), Path(f"/run/user/{user}"))]
        places += [place / f"{OWN}-{user}" for place in _shared_places()]
        for path in places:
            try:
                check_directory(path)
            except OSError:
                continue
            found[path] = None
    return list(found)


def jupyter_runtime_dir() -> Path:
    """Return where Jupyter's connection files are."""
    return _jupyters("jupyter_runtime_dir", *_settings())


def _places() -> Iterator[Path]:
    """Yield the directories in which our runtime directory may lie, the best one first."""
    if not os.environ.get("JUPYTER_RUNTIME_DIR"):  # else somebody wants to have the files there
        session = os.environ.get("XDG_RUNTIME_DIR")
        if session and _is_ours_to_write(session):
            yield Path(session)
    yield jupyter_runtime_dir()


def _is_ours_to_write(directory: str) -> bool:
    if not os.path.isabs(directory):  # noqa: PTH117 - one call for each start
        return False  # processes with other working directories would have others
    try:
        status = os.stat(directory)  # noqa: PTH116
    except OSError:
        return False  # it goes with the last login of its user
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    return is_ours and not status.st_mode & 0o022


def _short_runtime_dir() -> Path:
    """Return the directory among temporary files, where anyone can take its name."""
    place = next(_shared_places(), None)
    if place is None:
        msg = (
            "there is no directory for the sockets of kernels: Jupyter's has too long a path, and "
            f"in those for temporary files others could replace it; set {RUNTIME_VARIABLE}"
        )
        raise PermissionError(msg)
    kept = _kept_name(place)
    if kept is not None:
        return kept
    path = place / f"{OWN}-{os.geteuid()}"
    try:
        return _private(path, RUNTIME_VARIABLE)
    except Foreign as error:
        made = _make_another(place)
        _tell_once(f"{error}; {made} is used instead")
        return made


def _shared_places() -> Iterator[Path]:
    """Yield directories for temporary files in which what is ours stays ours."""
    for name in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")):  # noqa: S108
        try:
            status = os.stat(name)  # noqa: PTH116
        except OSError:
            continue
        is_safe = status.st_mode & stat.S_ISVTX or not status.st_mode & 0o022
        if is_safe and fits_sockets(Path(name, f"{OWN}-{os.geteuid()}-12345678")):
            yield Path(name)


def _kept_name(place: Path) -> Path | None:
    """Return the directory that was made because our name was taken, if there is one."""
    try:
        descriptor = open_file(data_dir() / KEPT_NAME, os.O_RDONLY)
    except OSError:
        return None  # there is none, or no data directory
    try:
        return _read_name(descriptor, place)
    finally:
        os.close(descriptor)


def _make_another(place: Path) -> Path:
    """Make a directory with a name that nobody can guess; all processes of ours find it.

    Raises
    ------
    OSError
        It cannot be made, or not be kept in the data directory.
    """
    descriptor = open_file(data_dir() / KEPT_NAME, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        made = _read_name(descriptor, place)  # another process may have been faster
        if made is None:
            made = Path(tempfile.mkdtemp(prefix=f"{OWN}-{os.geteuid()}-", dir=place))
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, os.fsencode(made), 0)
        return made
    finally:  # closing alone would leave the lock to a child that was forked meanwhile
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _read_name(descriptor: int, place: Path) -> Path | None:
    path = Path(os.fsdecode(os.pread(descriptor, 4096, 0)))
    if path.parent != place or not re.fullmatch(rf"{OWN}-{os.geteuid()}-\w+", path.name):
        return None
    try:
        check_directory(path)
    except (OSError, ValueError):
        return None  # removed, as with the next boot
    return path


# -- durable files ---------------------------------------------------------------------------------


def data_dir() -> Path:
    """Return the private directory for durable files; make it when it is missing.

    Raises
    ------
    PermissionError
        It cannot be made or written; it is a link or another user's, or others have rights to it.
    """
    chosen = os.environ.get(DATA_VARIABLE)
    if chosen:
        return _private(_chosen(chosen), DATA_VARIABLE)
    return _private(_jupyters("jupyter_data_dir", *_settings()) / OWN, DATA_VARIABLE)


def _settings() -> list[str | None]:
    """Return what Jupyter's directories depend on."""
    return [os.environ.get(name) for name in _SETTINGS]


_SETTINGS = (
    *("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_NO_CONFIG", "JUPYTER_PLATFORM_DIRS"),
    *("XDG_DATA_HOME", "XDG_RUNTIME_DIR", "HOME"),
)


@functools.lru_cache(maxsize=16)
def _jupyters(function: str, *_: str | None) -> Path:
    """Ask Jupyter for one of its directories, once for the same settings: it takes a while."""
    import jupyter_core.paths

    path: str = getattr(jupyter_core.paths, function)()
    return Path(path).absolute()


# -- paths -----------------------------------------------------------------------------------------


def fits_sockets(path: Path) -> bool:
    """Whether a directory's path leaves room for the names of sockets in it."""
    return len(os.fsencode(path)) + _ROOM_FOR_NAMES <= MAX_SOCKET_PATH


def is_private(path: Path) -> bool:
    """Whether a directory is there, is ours, and nobody else can enter it."""
    try:
        check_directory(path)
    except OSError:
        return False
    return True


def why_too_long(path: Path) -> str:
    """Say why the sockets of a kernel cannot lie at a path, a digit behind it; or nothing."""
    most = MAX_SOCKET_PATH - len("-5")
    if (length := len(os.fsencode(path))) <= most:
        return ""
    return (
        f"the path of its sockets, {path}, is too long: {length} bytes, and {most} are possible; "
        f"set {RUNTIME_VARIABLE} to a shorter directory"
    )


def working_directory() -> str:
    """Return the working directory of this process.

    Raises
    ------
    FileNotFoundError
        It was removed; the text says what to do.
    """
    try:
        return os.getcwd()  # noqa: PTH109 - pathlib does nothing else
    except FileNotFoundError as error:
        text = "the working directory of this process was removed; os.chdir() to another one first"
        raise FileNotFoundError(error.errno, text, _removed_directory()) from None


def _removed_directory() -> str | None:
    try:
        return os.readlink("/proc/self/cwd")  # noqa: PTH115 - it is no path any more
    except OSError:
        return None


def _chosen(path: str) -> Path:
    """Return a directory that was named in the environment, where no shell may have read its ~."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:  # no such user: then that is its name
        return Path(path).absolute()


def _private(path: Path, variable: str) -> Path:
    """Make a directory when it is missing, and see that it is ours alone."""
    another = f"set {variable} to another one"
    try:
        try:
            check_directory(path)
        except FileNotFoundError:
            make_directory(path)
            check_directory(path)
    except NotOurs as error:
        raise type(error)(
            f"directory {path}", error.problem, f"{error.remedy}, or {another}"
        ) from error
    except OSError as error:
        msg = f"cannot use directory {path}: {error.strerror}; {another}"
        raise PermissionError(msg) from error
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        msg = f"directory {path} must be writable; mend that, or {another}"
        raise PermissionError(msg)
    return path


@functools.lru_cache(maxsize=64)
def _tell_once(text: str) -> None:
    logger.warning("%s", text)

"""The directories for runtime files and durable files.

Runtime files (sockets, connection files, logs of workers) go into a short private directory. It is
the first of these:

1. ``SNAKEPIT_RUNTIME_DIR``;
2. ``snakepit`` below ``JUPYTER_RUNTIME_DIR``, if that is set;
3. ``snakepit`` below ``XDG_RUNTIME_DIR``, if that exists, is ours, and only we can write to it;
4. ``snakepit`` below the runtime directory that Jupyter chooses by itself;
5. ``snakepit-UID`` in the directory of temporary files.

All but the first are skipped if their path leaves no room for the names of sockets, or if they
belong to another user. Durable files go to ``SNAKEPIT_DATA_DIR``, or to ``snakepit`` below
Jupyter's data directory. What can be made anew goes to ``SNAKEPIT_CACHE_DIR``, or to ``snakepit``
below ``XDG_CACHE_HOME`` or ``~/.cache``.

Each is created with mode 0700, as are its missing parents. An existing one is used only if it is no
link, is ours, and other users have no permissions; it is never changed.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from .files import NotOurs, OwnedByOther, check_directory, make_directory, open_file
from .loggers import get_logger

logger = get_logger(__name__)

RUNTIME_VARIABLE = "SNAKEPIT_RUNTIME_DIR"
DATA_VARIABLE = "SNAKEPIT_DATA_DIR"
CACHE_VARIABLE = "SNAKEPIT_CACHE_DIR"

MAX_SOCKET_PATH = 107
"""Maximum bytes of a socket's path on Linux, without the final NUL."""

_ROOM_FOR_NAMES = 44  # "/<run id>/<purpose>-<6>/<slot>.<incarnation>-5" and some to spare

OWN = "snakepit"

RECORD_NAME = "runtime-directory"
"""File in the data directory that records the runtime directory used when its name was taken."""


NOTEBOOK_VARIABLE = "JPY_SESSION_NAME"
"""Environment variable in which Jupyter Server tells a kernel the path of its notebook."""


def notebook_name(env: Mapping[str, str] = os.environ) -> str | None:
    """Return the name of a kernel's notebook from its environment: by default this kernel's.

    None if it was not told, or if the process is no kernel.
    """
    return os.path.basename(env.get(NOTEBOOK_VARIABLE, "")) or None  # noqa: PTH119


# -- runtime files ---------------------------------------------------------------------------------


def runtime_dir() -> Path:
    """Return the private directory for runtime files; create it when it is missing.

    Raises
    ------
    PermissionError
        It cannot be created or written; it is a link, another user's, or not private.
    """
    chosen = os.environ.get(RUNTIME_VARIABLE)
    if chosen:
        return _private(_expanded(chosen), RUNTIME_VARIABLE)
    for base in _base_dirs():
        path = base / OWN
        if fits_sockets(path):
            try:
                return _private(path, RUNTIME_VARIABLE)
            except OwnedByOther as error:
                _warn_once(str(error))
    return _short_runtime_dir()


def runtime_dirs() -> list[Path]:
    """Return the directory for runtime files, and others that processes of ours may use.

    A process may have another environment than this one, for example without ``XDG_RUNTIME_DIR``.
    A configured directory is the only one.

    Raises
    ------
    PermissionError
        As for `runtime_dir`.
    """
    found = {runtime_dir(): None}
    if not os.environ.get(RUNTIME_VARIABLE) and not os.environ.get("JUPYTER_RUNTIME_DIR"):
        user = os.geteuid()
        paths = [base / OWN for base in (*_base_dirs(), Path(f"/run/user/{user}"))]
        for base in _temporary_dirs():
            paths += [base / f"{OWN}-{user}", *filter(None, [_recorded_dir(base)])]
        for path in paths:
            try:
                check_directory(path)
            except OSError:
                continue
            found[path] = None
    return list(found)


def jupyter_runtime_dir() -> Path:
    """Return the directory of Jupyter's connection files."""
    return _jupyter_dir("jupyter_runtime_dir", *_settings())


def _base_dirs() -> Iterator[Path]:
    """Yield the possible parents of our runtime directory, the best one first."""
    if not os.environ.get("JUPYTER_RUNTIME_DIR"):  # if it is set, the files belong there
        session = os.environ.get("XDG_RUNTIME_DIR")
        if session and _is_ours_to_write(session):
            yield Path(session)
    yield jupyter_runtime_dir()


def _is_ours_to_write(directory: str) -> bool:
    if not os.path.isabs(directory):  # noqa: PTH117 - one call for each start
        return False  # it would depend on the working directory
    try:
        status = os.stat(directory)  # noqa: PTH116
    except OSError:
        return False  # it is removed with its user's last login session
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    return is_ours and not status.st_mode & 0o022


def _short_runtime_dir() -> Path:
    """Return the directory among temporary files, where any user could take its name."""
    base = next(_temporary_dirs(), None)
    if base is None:
        msg = (
            "there is no directory for the sockets of kernels: Jupyter's has too long a path, and "
            f"in those for temporary files others could replace it; set {RUNTIME_VARIABLE}"
        )
        raise PermissionError(msg)
    kept = _recorded_dir(base)
    if kept is not None:
        return kept
    path = base / f"{OWN}-{os.geteuid()}"
    try:
        return _private(path, RUNTIME_VARIABLE)
    except OwnedByOther as error:
        made = _make_unguessable_dir(base)
        _warn_once(f"{error}; {made} is used instead")
        return made


def _temporary_dirs() -> Iterator[Path]:
    """Yield directories for temporary files in which other users cannot replace ours."""
    for name in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")):  # noqa: S108
        try:
            status = os.stat(name)  # noqa: PTH116
        except OSError:
            continue
        is_safe = status.st_mode & stat.S_ISVTX or not status.st_mode & 0o022
        if is_safe and fits_sockets(Path(name, f"{OWN}-{os.geteuid()}-12345678")):
            yield Path(name)


def _recorded_dir(base: Path) -> Path | None:
    """Return the recorded directory that was created because our name was taken, if any."""
    try:
        descriptor = open_file(data_dir() / RECORD_NAME, os.O_RDONLY)
    except OSError:
        return None  # there is no record, or no data directory
    try:
        return _read_record(descriptor, base)
    finally:
        os.close(descriptor)


def _make_unguessable_dir(base: Path) -> Path:
    """Create a directory with an unguessable name, and record it for all processes of ours.

    Raises
    ------
    OSError
        It cannot be created, or not be recorded in the data directory.
    """
    descriptor = open_file(data_dir() / RECORD_NAME, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        made = _read_record(descriptor, base)  # another process may have been faster
        if made is None:
            made = Path(tempfile.mkdtemp(prefix=f"{OWN}-{os.geteuid()}-", dir=base))
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, os.fsencode(made), 0)
        return made
    finally:  # after closing alone, a child that was forked meanwhile would still hold the lock
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _read_record(descriptor: int, base: Path) -> Path | None:
    path = Path(os.fsdecode(os.pread(descriptor, 4096, 0)))
    if path.parent != base or not re.fullmatch(rf"{OWN}-{os.geteuid()}-\w+", path.name):
        return None
    try:
        check_directory(path)
    except (OSError, ValueError):
        return None  # removed, for example by a reboot
    return path


# -- durable files ---------------------------------------------------------------------------------


def data_dir() -> Path:
    """Return the private directory for durable files; create it when it is missing.

    Raises
    ------
    PermissionError
        It cannot be created or written; it is a link, another user's, or not private.
    """
    chosen = os.environ.get(DATA_VARIABLE)
    if chosen:
        return _private(_expanded(chosen), DATA_VARIABLE)
    return _private(_jupyter_dir("jupyter_data_dir", *_settings()) / OWN, DATA_VARIABLE)


def cache_dir() -> Path:
    """Return the private directory for what can be made anew; create it when it is missing.

    Raises
    ------
    PermissionError
        It cannot be created or written; it is a link, another user's, or not private.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return _private(_expanded(chosen), CACHE_VARIABLE)
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification of these directories has relative paths ignored.
    return _private(
        (Path(base) if base.startswith("/") else _expanded("~/.cache")) / OWN, CACHE_VARIABLE
    )


def _settings() -> list[str | None]:
    """Return the variables that Jupyter's directories depend on."""
    return [os.environ.get(name) for name in _SETTINGS]


_SETTINGS = (
    *("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_NO_CONFIG", "JUPYTER_PLATFORM_DIRS"),
    *("XDG_DATA_HOME", "XDG_RUNTIME_DIR", "HOME"),
)


@functools.lru_cache(maxsize=16)
def _jupyter_dir(function: str, *_: str | None) -> Path:
    """Return one of Jupyter's directories, cached by settings: computing it is slow."""
    import jupyter_core.paths

    path: str = getattr(jupyter_core.paths, function)()
    return Path(path).absolute()


# -- paths -----------------------------------------------------------------------------------------


def fits_sockets(path: Path) -> bool:
    """Whether a directory's path is short enough for sockets in it."""
    return len(os.fsencode(path)) + _ROOM_FOR_NAMES <= MAX_SOCKET_PATH


def is_private(path: Path) -> bool:
    """Whether a directory exists, is ours, and private."""
    try:
        check_directory(path)
    except OSError:
        return False
    return True


def why_too_long(path: Path) -> str:
    """Return why a path with a digit appended is too long for a kernel's sockets, or nothing."""
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
        return os.getcwd()  # noqa: PTH109 - pathlib does the same
    except FileNotFoundError as error:
        text = "the working directory of this process was removed; os.chdir() to another one first"
        raise FileNotFoundError(error.errno, text, _removed_directory()) from None


def _removed_directory() -> str | None:
    try:
        return os.readlink("/proc/self/cwd")  # noqa: PTH115 - the path no longer exists
    except OSError:
        return None


def _expanded(path: str) -> Path:
    """Return the absolute path of a directory from the environment, with ~ expanded."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:  # no such user: the name is literal
        return Path(path).absolute()


def _private(path: Path, variable: str) -> Path:
    """Create a directory when it is missing, and check that it is private."""
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
def _warn_once(text: str) -> None:
    logger.warning("%s", text)

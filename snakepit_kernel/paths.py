"""Where runtime and durable files live.

Runtime files (sockets, connection files, logs of workers) go into a short private directory
under Jupyter's runtime directory; durable ones under Jupyter's data directory. Both can be set,
by ``SNAKEPIT_RUNTIME_DIR`` and ``SNAKEPIT_DATA_DIR``.
"""

from __future__ import annotations

import functools
import os
import stat
import tempfile
from pathlib import Path

RUNTIME_VARIABLE = "SNAKEPIT_RUNTIME_DIR"
DATA_VARIABLE = "SNAKEPIT_DATA_DIR"

MAX_SOCKET_PATH = 107
"""Bytes that a socket's path may have on Linux, less the final NUL."""

_ROOM_FOR_NAMES = 44  # "/<run id>/<purpose>-<6>/<slot>.<incarnation>-5" and some to spare


def runtime_dir() -> Path:
    """Return the private directory for runtime files; make it when it is missing.

    Raises
    ------
    PermissionError
        It cannot be made or written, or others could write into it.
    """
    chosen = os.environ.get(RUNTIME_VARIABLE)
    if chosen:
        path = Path(chosen).absolute()
    else:
        path = _jupyters("jupyter_runtime_dir", *_settings()) / "snakepit"
        if not fits_sockets(path):
            path = Path(tempfile.gettempdir()) / f"snakepit-{os.getuid()}"
            if path.is_symlink():  # its name can be guessed, and anyone can write beside it
                msg = f"directory {path} is a link; remove it, or set {RUNTIME_VARIABLE}"
                raise PermissionError(msg)
    return _private(path, RUNTIME_VARIABLE)


def data_dir() -> Path:
    """Return the private directory for durable files; make it when it is missing.

    Raises
    ------
    PermissionError
        It cannot be made or written, or others could write into it.
    """
    chosen = os.environ.get(DATA_VARIABLE)
    if chosen:
        return _private(Path(chosen).absolute(), DATA_VARIABLE)
    return _private(_jupyters("jupyter_data_dir", *_settings()) / "snakepit", DATA_VARIABLE)


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


def fits_sockets(path: Path) -> bool:
    """Whether a directory's path leaves room for the names of sockets in it."""
    return len(os.fsencode(path)) + _ROOM_FOR_NAMES <= MAX_SOCKET_PATH


def is_private(path: Path) -> bool:
    """Whether a directory is there, is ours, and nobody else can enter it."""
    try:
        status = path.lstat()
    except OSError:
        return False
    mode = status.st_mode
    return stat.S_ISDIR(mode) and status.st_uid == os.geteuid() and not mode & 0o077


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


def _private(path: Path, variable: str) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
        if status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) & 0o077:
            path.chmod(0o700)
    except OSError as error:
        msg = f"cannot use directory {path}: {error.strerror}; set {variable} to another one"
        raise PermissionError(msg) from error
    if status.st_uid != os.getuid() or not os.access(path, os.W_OK | os.X_OK):
        msg = (
            f"directory {path} must belong to you and be writable; "
            f"mend that, or set {variable} to another one"
        )
        raise PermissionError(msg)
    return path

"""Private directories and files: accessible to this user only, and never through a link.

The umask does not matter. Files that others could have put there are refused with a reason. Files
are inspected through ``O_PATH`` descriptors: opening and closing a database would release the locks
that SQLite holds on it in this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import json
import os
import stat
import struct
import time
import uuid
from pathlib import Path

OTHERS = 0o077
"""The permissions of all users except the owner."""

PRIVATE = 0o600
PRIVATE_DIRECTORY = 0o700

READER_PATIENCE = 2.0
"""Seconds to wait for a reader of a pipe that a file is written to."""

_PATH_ONLY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class NotOurs(PermissionError):
    """A path that should be a private file or directory of ours may be somebody else's.

    Attributes
    ----------
    path
        The path.
    problem
        What is wrong with it.
    remedy
        What to do.
    """

    def __init__(self, path: str, problem: str, remedy: str) -> None:
        super().__init__(path, problem, remedy)
        self.path = path
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.path} {self.problem}; {self.remedy}"


class OwnedByOther(NotOurs):
    """It belongs to another user."""


# -- directories -----------------------------------------------------------------------------------


def make_directory(path: Path) -> None:
    """Create a private directory, and its missing parents.

    Existing directories are not changed.

    Raises
    ------
    OSError
        It cannot be created.
    """
    try:
        os.mkdir(path, PRIVATE_DIRECTORY)  # noqa: PTH102 - pathlib creates parents with the umask
    except FileNotFoundError:
        make_directory(path.parent)
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.mkdir(path, PRIVATE_DIRECTORY)  # noqa: PTH102
    except FileExistsError:
        pass


def check_directory(path: Path) -> None:
    """Check that a path is a directory and no link, belongs to this user, and is private.

    Raises
    ------
    NotOurs
        It is not.
    OSError
        It cannot be inspected.
    """
    descriptor = os.open(path, _PATH_ONLY)
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    _check_owner(status, str(path))
    if stat.S_ISLNK(status.st_mode):
        raise NotOurs(str(path), "is a link", "name the directory that it points to, or remove it")
    if not stat.S_ISDIR(status.st_mode):
        raise NotOurs(str(path), "is no directory", "remove it")
    if (mode := stat.S_IMODE(status.st_mode)) & OTHERS:
        is_shared = mode & stat.S_ISVTX  # such as /tmp: it must not be changed
        raise NotOurs(
            str(path),
            f"is open to others (mode {mode:04o}): who knows what they have put there",
            f"name a new one in it, as {path / 'snakepit'}"
            if is_shared
            else f"look what is in it, then chmod 700 {path}",
        )


# -- files -----------------------------------------------------------------------------------------


def check_file(path: Path, *, links: int = 1) -> bool:
    """Check that a file is private, if it exists; return whether it exists.

    Permissions of other users are removed.

    Parameters
    ----------
    path
        The file.
    links
        Maximum number of its hard links.

    Raises
    ------
    NotOurs
        It is a symbolic link, not a regular file, another user's, or has more hard links.
    OSError
        It cannot be inspected.
    """
    try:
        _check(os.lstat(path), str(path), links)
    except FileNotFoundError:
        return False
    except _TooPermissive:
        pass
    else:
        return True
    try:
        descriptor = os.open(path, _PATH_ONLY)
    except FileNotFoundError:
        return False
    try:
        with contextlib.suppress(_TooPermissive):
            _check(os.fstat(descriptor), str(path), links)
        os.chmod(f"/proc/self/fd/{descriptor}", PRIVATE)  # noqa: PTH101 - this very file
    finally:
        os.close(descriptor)
    return True


def create_file(path: Path) -> None:
    """Create an empty private file without opening it; check it if it exists already."""
    if not check_file(path):
        try:
            os.mknod(path, stat.S_IFREG | PRIVATE)
        except FileExistsError:  # another process was faster
            check_file(path)


def open_file(path: Path | str, flags: int, *, links: int = 1) -> int:
    """Open a private file, created if the flags say so; return its descriptor.

    Permissions of other users are removed.

    Parameters
    ----------
    path, links
        As for `check_file`.
    flags
        As for `os.open`.

    Raises
    ------
    NotOurs
        As for `check_file`.
    OSError
        It cannot be opened.
    """
    try:
        # O_NONBLOCK: a pipe must give an error and not block.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, PRIVATE)
    except OSError:
        check_file(Path(path), links=links)  # it raises a better error
        raise
    try:
        try:
            _check(os.fstat(descriptor), str(path), links)
        except _TooPermissive:
            os.fchmod(descriptor, PRIVATE)
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_file(path: Path) -> str:
    """Return the text of a private file. Errors are those of `open_file`."""
    with open(open_file(path, os.O_RDONLY), encoding="utf-8", errors="replace") as file:
        return file.read()


def read_any_file(path: Path) -> bytes:
    """Return the contents of a regular file of any owner; links are followed.

    Raises
    ------
    NotOurs
        It is not a regular file: reading a pipe would block, and a device may have no end.
    OSError
        It cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - it is a descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotOurs(str(path), "is no regular file", "remove it")
        return file.read()


def birth_of(path: str) -> float:
    """Return when a file was made, in seconds since the epoch; 0 if that is not known.

    A rename and a write in place do not change it. It is not in `os.stat_result` on Linux; see
    ``man 2 statx`` for the structure.
    """
    found = ctypes.create_string_buffer(_STATX_BYTES)
    try:
        failed = _libc().statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_BTIME, found)
    except (AttributeError, ValueError):  # an old C library; a path with a null
        return 0.0
    (mask,) = struct.unpack_from("=I", found, 0)
    if failed or not mask & _STATX_BTIME:
        return 0.0
    seconds, nanoseconds = struct.unpack_from("=qI", found, _STATX_BIRTH)
    return float(seconds + nanoseconds * 1e-9)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


_AT_FDCWD, _STATX_BTIME = -100, 0x800
_STATX_BYTES, _STATX_BIRTH = 256, 80


def read_json(path: Path) -> object:
    """Return the value in a regular JSON file of any owner.

    Raises
    ------
    ValueError
        It is not JSON, or nested too deeply.
    OSError
        As for `read_any_file`.
    """
    try:
        found: object = json.loads(read_any_file(path))
    except RecursionError as error:
        msg = "there are too many lists or objects in each other"
        raise ValueError(msg) from error
    return found


def write_file(path: Path, text: str) -> None:
    """Write a file atomically: private, or with the permissions of the file that it replaces.

    A link is replaced and not followed, and a file of another user keeps nothing. Devices are
    written to, and so are pipes of this user that somebody reads.

    Raises
    ------
    NotOurs
        It is another user's pipe.
    OSError
        It cannot be written. An earlier file is still there.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        mode = PRIVATE
    else:
        is_link = stat.S_ISLNK(status.st_mode)
        if stat.S_ISFIFO(status.st_mode):
            _write_to_pipe(path, text)
            return
        if not stat.S_ISREG(status.st_mode) and (not is_link or path.parent == Path("/dev")):
            path.write_text(text, encoding="utf-8")
            return
        is_ours = not is_link and status.st_uid == os.geteuid()
        mode = stat.S_IMODE(status.st_mode) if is_ours else PRIVATE
    temporary = path.with_name(f".{path.name[:200]}.{uuid.uuid4().hex[:8]}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, PRIVATE), "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(text)
            if mode != PRIVATE:
                os.fchmod(file.fileno(), mode)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise type(error)(error.errno, error.strerror, str(path)) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_to_pipe(path: Path, text: str) -> None:
    # O_NONBLOCK: it must not block for ever without a reader.
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    until = time.monotonic() + READER_PATIENCE
    while True:
        try:
            descriptor = os.open(path, flags)
            break
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > until:
                reason = "no process reads this pipe"
                raise type(error)(error.errno, reason, str(path)) from error
        time.sleep(0.01)  # a reader is no event for a writer
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - it is a descriptor
        _check_owner(os.fstat(descriptor), str(path))
        os.set_blocking(descriptor, True)
        file.write(text)


class _TooPermissive(Exception):
    """A file is ours, but other users have permissions."""


def _check(status: os.stat_result, path: str, links: int) -> None:
    _check_owner(status, path)
    if stat.S_ISLNK(status.st_mode):
        raise NotOurs(path, "is a link", "name the file that it points to, or remove it")
    if not stat.S_ISREG(status.st_mode):
        raise NotOurs(path, "is no regular file", "remove it")
    if status.st_nlink > links:
        raise NotOurs(
            path,
            "has another name as well (a hard link)",
            "it is not used; remove it, or put a copy in its place if you made that link",
        )
    if status.st_mode & OTHERS:
        raise _TooPermissive


def _check_owner(status: os.stat_result, path: str) -> None:
    if status.st_uid != os.geteuid():
        import pwd

        try:
            owner = pwd.getpwuid(status.st_uid).pw_name
        except KeyError:
            owner = str(status.st_uid)
        problem = f"must belong to you, and belongs to user {owner}"
        raise OwnedByOther(path, problem, "it is not used: have it removed")

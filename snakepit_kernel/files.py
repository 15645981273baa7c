"""Private directories and files: ours alone, whatever the umask, and never behind a link.

What others could have put there is refused by name. Files are looked at through descriptors that
only name them (``O_PATH``): to open and close a database would take away the locks that SQLite has
on it in this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import uuid
from pathlib import Path

OTHERS = 0o077
"""The rights of everybody but the owner."""

PRIVATE = 0o600
PRIVATE_DIRECTORY = 0o700

_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class NotOurs(PermissionError):
    """Something has the name of a file or directory of ours, and may be somebody else's.

    Attributes
    ----------
    path
        What it is.
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


class Foreign(NotOurs):
    """It belongs to another user."""


# -- directories -----------------------------------------------------------------------------------


def make_directory(path: Path) -> None:
    """Make a directory that only we can enter, and so those above it that are missing.

    What is there already stays as it is.

    Raises
    ------
    OSError
        It cannot be made.
    """
    try:
        os.mkdir(path, PRIVATE_DIRECTORY)  # noqa: PTH102 - pathlib gives parents all the umask leaves
    except FileNotFoundError:
        make_directory(path.parent)
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.mkdir(path, PRIVATE_DIRECTORY)  # noqa: PTH102
    except FileExistsError:
        pass


def check_directory(path: Path) -> None:
    """See that a directory is one, and no link; that it is ours, and that only we can enter it.

    Raises
    ------
    NotOurs
        It is not.
    OSError
        It cannot be looked at.
    """
    descriptor = os.open(path, _LOOK)
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
        is_shared = mode & stat.S_ISVTX  # as /tmp: it must stay as it is
        raise NotOurs(
            str(path),
            f"is open to others (mode {mode:04o}): who knows what they have put there",
            f"name a new one in it, as {path / 'snakepit'}"
            if is_shared
            else f"look what is in it, then chmod 700 {path}",
        )


# -- files -----------------------------------------------------------------------------------------


def check_file(path: Path, *, links: int = 1) -> bool:
    """See that a file is ours alone, if there is one; say whether there is.

    Rights that others have are taken away.

    Parameters
    ----------
    path
        The file.
    links
        How many names it may have.

    Raises
    ------
    NotOurs
        It is a link, no regular file, another user's, or has other names as well.
    OSError
        It cannot be looked at.
    """
    try:
        _check(os.lstat(path), str(path), links)
    except FileNotFoundError:
        return False
    except _TooWide:
        pass
    else:
        return True
    try:
        descriptor = os.open(path, _LOOK)
    except FileNotFoundError:
        return False
    try:
        with contextlib.suppress(_TooWide):
            _check(os.fstat(descriptor), str(path), links)
        os.chmod(f"/proc/self/fd/{descriptor}", PRIVATE)  # noqa: PTH101 - not what has the name now
    finally:
        os.close(descriptor)
    return True


def create_file(path: Path) -> None:
    """Make an empty private file when there is none, without opening it; else `check_file`."""
    if not check_file(path):
        try:
            os.mknod(path, stat.S_IFREG | PRIVATE)
        except FileExistsError:  # another process was faster
            check_file(path)


def open_file(path: Path | str, flags: int, *, links: int = 1) -> int:
    """Open a private file, and make it if the flags say so; return its descriptor.

    Rights that others have are taken away.

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
        # What is no file shall be told, not waited for.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, PRIVATE)
    except OSError:
        check_file(Path(path), links=links)  # that says more
        raise
    try:
        try:
            _check(os.fstat(descriptor), str(path), links)
        except _TooWide:
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


def read_given(path: Path) -> bytes:
    """Return what is in a regular file, whoever has made it; links are followed.

    Raises
    ------
    NotOurs
        It is no regular file: a pipe would be waited for, and a device may have no end.
    OSError
        It cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - it is a descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise NotOurs(str(path), "is no regular file", "remove it")
        return file.read()


def read_json(path: Path) -> object:
    """Return what a regular file of JSON holds, whoever has made it.

    Raises
    ------
    ValueError
        It holds no JSON, or more in each other than anybody has written.
    OSError
        As for `read_given`.
    """
    try:
        found: object = json.loads(read_given(path))
    except RecursionError as error:
        msg = "there are too many lists or objects in each other"
        raise ValueError(msg) from error
    return found


def write_file(path: Path, text: str) -> None:
    """Write a file whole or not at all: private, or with the rights of the one in its place.

    A link in its place is replaced and not followed. Devices and pipes are written to.

    Raises
    ------
    OSError
        It cannot be written. What was there before is there still.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        mode = PRIVATE
    else:
        is_link = stat.S_ISLNK(status.st_mode)
        if not stat.S_ISREG(status.st_mode) and (not is_link or path.parent == Path("/dev")):
            path.write_text(text, encoding="utf-8")
            return
        mode = PRIVATE if is_link else stat.S_IMODE(status.st_mode)
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


class _TooWide(Exception):
    """A file is ours, and others have rights to it."""


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
        raise _TooWide


def _check_owner(status: os.stat_result, path: str) -> None:
    if status.st_uid != os.geteuid():
        import pwd

        try:
            owner = pwd.getpwuid(status.st_uid).pw_name
        except KeyError:
            owner = str(status.st_uid)
        problem = f"must belong to you, and belongs to user {owner}"
        raise Foreign(path, problem, "it is not used: have it removed")

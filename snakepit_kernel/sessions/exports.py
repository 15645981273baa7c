"""Export of sessions to files, and import from them."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..files import write_file
from ..tracebacks import hides_own_frames
from .json_format import (
    FORMAT_VERSION,
    VARIABLES_FORMAT,
    check_format,
    check_trust,
    decoded,
    encoded,
    written,
)
from .state import SessionState

FORMAT: Final = "snakepit-session"

MAX_BYTES: Final = 1 << 28
"""Largest file that is read without ``trust``."""

Programs = dict[str, tuple[Any, Mapping[str, Any]]]


@hides_own_frames
def export_session(session: SessionState, path: str | Path) -> int:
    """Write a session's variables, programs and metadata to a file; return the number of entries.

    The history of variables is not written. The file is private (mode 0600), or keeps the
    permissions of a file that it replaces; a link is replaced.

    Raises
    ------
    OSError
        The file cannot be written. A previous file is unchanged.
    """
    variables = session.variables.list()
    programs = {
        program.name: {
            "metadata": dict(program.metadata),
            "value": encoded(session.programs[program.name]),
        }
        for program in session.programs.list()
    }
    metadata = {name: encoded(value) for name, value in session.metadata.items()}
    content = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "session": session.id,
        "variables": [written(variable) for variable in variables],
        "programs": programs,
        "metadata": metadata,
    }
    write_file(Path(path).expanduser(), json.dumps(content, indent=2, ensure_ascii=False))
    return len(variables) + len(programs) + len(metadata)


@hides_own_frames
def import_session(session: SessionState, path: str | Path, *, trust: bool = False) -> int:
    """Read a file into a session; return the number of entries.

    Existing variables get the value of the file; they must be of the same type. All or no variables
    are imported.

    Parameters
    ----------
    session
        The session.
    path
        A file that `export_session` has written.
    trust
        Read pickles, too, which can run code.

    Raises
    ------
    ValueError
        It is not such a file, has a newer version, or needs ``trust``: it has pickles, patterns
        that may take long, or more than 256 MiB or 10,000 entries.
    BatchRejected
        Some variables cannot be set; each is named. Nothing was changed.
    OSError
        The file cannot be read.
    """
    content = _read(Path(path).expanduser(), trust=trust)
    check_trust(content, str(path), trust=trust)
    try:
        programs: Programs = {
            name: (decoded(entry["value"]), entry["metadata"])
            for name, entry in content["programs"].items()
        }
        notes = {name: decoded(value) for name, value in content["metadata"].items()}
        variables = content["variables"]
    except Exception as error:  # a damaged pickle can raise anything
        msg = f"{path} is damaged: {type(error).__name__}: {error}"
        raise ValueError(msg) from error
    exported = {"format": VARIABLES_FORMAT, "version": FORMAT_VERSION, "variables": variables}
    names = session.variables.import_(exported, trust=trust, what=str(path))
    for name, (value, metadata) in programs.items():
        session.programs.put(name, value, metadata=metadata)
    session.metadata.update(notes)
    return len(names) + len(programs) + len(notes)


def _read(path: Path, *, trust: bool) -> dict[str, Any]:
    # Non-blocking: a pipe without a writer reads as empty, instead of blocking.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IsADirectoryError(
            errno.EISDIR, "it is a directory, and no exported session", str(path)
        )
    with open(descriptor, "rb") as file:  # noqa: PTH123 - it is a descriptor
        os.set_blocking(descriptor, True)
        data = file.read(-1 if trust else MAX_BYTES + 1)
    if not trust and len(data) > MAX_BYTES:
        msg = (
            f"{path} has more than the {MAX_BYTES:,} bytes that are read of an "
            "untrusted file; if you trust its author, say so (--trust, trust=True)"
        )
        raise ValueError(msg)
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # bad JSON or UTF-8, or too long a number
        msg = f"{path} is no exported session: {error}"
        raise ValueError(msg) from error
    check_format(content, FORMAT, str(path))
    return content  # type: ignore[no-any-return]

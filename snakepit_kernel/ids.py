"""Identifiers of runs and of Jupyter messages, and validation of names."""

from __future__ import annotations

import base64
import os
import re
import secrets

RUN_ID_VARIABLE = "SNAKEPIT_RUN_ID"
"""Environment variable that tags every process of a run."""

RUN_ID_OPTION = "--snakepit-run-id="
"""Command line option that does the same."""

SESSION_KEY = "snakepit_session"
"""Key in the metadata of a Jupyter request to a worker: the session that it belongs to."""

COMM_TYPES = frozenset({"comm_open", "comm_msg", "comm_close"})
"""Types of the Jupyter messages of comms, which the widgets of a page use, in either direction."""

_RUN_ID = re.compile(r"[a-z2-7]{13}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def new_run_id() -> str:
    """Create a run id: 13 lower-case characters that encode 60 random bits."""
    return run_id_of_number(secrets.randbits(60))


def run_number(run_id: str) -> int:
    """Return the 60 random bits of a run id."""
    return int.from_bytes(base64.b32decode(run_id.upper() + "===")) >> 4


def run_id_of_number(number: int) -> str:
    """Return the run id that encodes a number of 60 bits."""
    return base64.b32encode((number << 4).to_bytes(8)).decode("ascii").rstrip("=").lower()


def is_run_id(text: str) -> bool:
    """Whether a text has the form of a run id."""
    return _RUN_ID.fullmatch(text) is not None


def own_run_id() -> str | None:
    """Return the run that this process belongs to, or None outside of any run."""
    run_id = os.environ.get(RUN_ID_VARIABLE, "")
    return run_id if is_run_id(run_id) else None


def check_name(kind: str, name: object) -> str:
    """Return a valid name of a pool, session or tool.

    Raises
    ------
    TypeError
        It is not a string.
    ValueError
        It is not 1 to 64 characters of ``[A-Za-z0-9_.-]`` that start with a letter or a digit.
    """
    if not isinstance(name, str):
        msg = f"{kind} name must be a string, not {type(name).__name__}"
        raise TypeError(msg)
    if not _NAME.fullmatch(name):
        msg = (
            f"{kind} name {name!r} must be 1 to 64 characters of A-Z a-z 0-9 _ . - "
            "and start with a letter or a digit"
        )
        raise ValueError(msg)
    return name

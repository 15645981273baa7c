"""What of a snapshot is brought back: what the session's commands have changed.

A snapshot has all variables of a shell. Those that came from the environment are left out, so that
a later shell gets them from its own environment, and secrets there are not stored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

_VALUE = rb"""(?:"(?:[^"\\]|\\.)*"|\$'(?:[^'\\]|\\.)*')"""
_ARRAY = rb"\((?:" + _VALUE + rb"|[^()\"'])*\)"
_ENTRY = re.compile(
    rb"declare (-\S+) ([A-Za-z_]\w*)(?:=(" + _VALUE + rb"|" + _ARRAY + rb"))?\n", re.DOTALL
)
_ESCAPED = re.compile(rb'\\(["\\$`\n])')

OWN_PREFIXES: Final = (b"__sbx_", b"SBX_")
"""Prefixes of the driver's names."""

_SET_BY_BASH: Final = frozenset(
    b"BASHOPTS BASHPID BASH_ALIASES BASH_ARGC BASH_ARGV BASH_ARGV0 BASH_CMDS BASH_COMMAND"
    b" BASH_LINENO BASH_SOURCE BASH_SUBSHELL BASH_VERSINFO BASH_VERSION COMP_WORDBREAKS DIRSTACK"
    b" EPOCHREALTIME EPOCHSECONDS EUID FUNCNAME GROUPS HISTCMD HOSTNAME HOSTTYPE LINENO MACHTYPE"
    b" OSTYPE PIPESTATUS PPID PWD RANDOM SECONDS SHELLOPTS SHLVL SNAKEPIT_RUN_ID SRANDOM UID"
    b" _ BASH BASH_EXECUTION_STRING BASH_MONOSECONDS".split()
)
"""Variables that bash sets itself, or that are this process's own."""


def changes(snapshot: bytes, cookie: str, environment: Mapping[str, str]) -> bytes:
    """Return the code that brings a shell's state back.

    Parameters
    ----------
    snapshot
        What `BashCode` lets bash write.
    cookie
        That of the code.
    environment
        The environment that the shell began with.
    """
    begin, end = (f"# {cookie} {word}\n".encode() for word in ("variables", "the rest"))
    before, _, rest = snapshot.partition(begin)
    listed, _, after = rest.partition(end)
    known = {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}
    kept, seen, at = [], set(), 0
    while (entry := _ENTRY.match(listed, at)) is not None:
        at = entry.end()
        flags, name, value = entry.groups()
        seen.add(name)
        if name in _SET_BY_BASH or name.startswith(OWN_PREFIXES):
            continue
        if b"x" in flags and name in known and _plain(value) == known[name]:
            continue
        kept.append(entry.group())
    gone = [name for name in known if name not in seen and name not in _SET_BY_BASH]
    lines = [b"\\unset -v " + name + b"\n" for name in gone if re.fullmatch(rb"[A-Za-z_]\w*", name)]
    return b"".join([before, *lines, *kept, listed[at:], after])


def _plain(value: bytes | None) -> bytes | None:
    """Return the value of a word in double quotes; None for other words."""
    if value is None or not value.startswith(b'"'):
        return None
    return _ESCAPED.sub(rb"\1", value[1:-1])

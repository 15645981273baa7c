"""What of a snapshot is brought back: what the session's commands have changed.

A snapshot has all variables of a shell. Those that came from the environment are left out, so that
a later shell gets them from its own environment, and secrets there are not stored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from .bash_code import quoted

_VALUE = rb"""(?:"(?:[^"\\]|\\.)*"|\$'(?:[^'\\]|\\.)*')"""
_ARRAY = rb"\((?:" + _VALUE + rb"|[^()\"'])*\)"
_ENTRY = re.compile(
    rb"declare (-\S+) ([A-Za-z_]\w*)(?:=(" + _VALUE + rb"|" + _ARRAY + rb"))?\n", re.DOTALL
)
_OWN_TRAP = re.compile(
    rb"trap -- '\{ \\builtin command \. [^\n]*/leave; \} 2>/dev/null' EXIT\n"
    rb"|trap -- '\\builtin set -T; [^\n]* DEBUG; \\builtin return 130' \S+\n"
)
_EXIT_TRAP = re.compile(rb"^trap -- '(?:[^']|'\\'')*' EXIT\n", re.MULTILINE)
_DEBUG_TRAP = re.compile(rb"^trap -- '(?:[^']|'\\'')*' DEBUG\n", re.MULTILINE)
_SETTING = re.compile(
    rb"^trap -- '(?:[^']|'\\'')*' \S+\n|^shopt -s \w+\n|^set -o \w+\n", re.MULTILINE
)
_FUNCTRACE = re.compile(rb"^set -o functrace\n", re.MULTILINE)
_COMPATIBLE = re.compile(rb"^shopt -u compat\d+\n", re.MULTILINE)
"""What bash shows for a level of compatibility that it does not have: taken literally, it would set
``BASH_COMPAT``."""

_CD = re.compile(rb"^\\builtin cd -- .* && OLDPWD=.*\n", re.MULTILINE)
_DECLARATION = re.compile(rb"\b(?:local|declare|typeset)\b([^;&|\n]*)")
_DECLARED = re.compile(rb"(?<![\w$\"'=-])([A-Za-z_]\w*)(?=[\s=]|\Z)")
_ESCAPED = re.compile(rb'\\(["\\$`\n])')

OWN_PREFIXES: Final = (b"__sbx_", b"SBX_")
"""Prefixes of the driver's names."""

_SET_BY_BASH: Final = frozenset(
    b"BASHOPTS BASHPID BASH_ALIASES BASH_ARGC BASH_ARGV BASH_ARGV0 BASH_CMDS BASH_COMMAND"
    b" BASH_LINENO BASH_SOURCE BASH_SUBSHELL BASH_VERSINFO BASH_VERSION COMP_WORDBREAKS DIRSTACK"
    b" EPOCHREALTIME EPOCHSECONDS EUID FUNCNAME GROUPS HISTCMD HOSTNAME HOSTTYPE LINENO MACHTYPE"
    b" OSTYPE PIPESTATUS PPID PWD RANDOM SECONDS SHELLOPTS SHLVL SNAKEPIT_RUN_ID SRANDOM UID"
    b" _ BASH BASH_EXECUTION_STRING BASH_MONOSECONDS BASH_TRAPSIG".split()
)
"""Variables that bash sets itself, or that are this process's own."""


@dataclass(frozen=True, slots=True)
class State:
    """What brings a shell's state back.

    Attributes
    ----------
    code
        Code that does so.
    variables
        The part of it for each variable.
    exit_trap, debug_trap
        The parts of it that set these traps, if the user has set them; with that for DEBUG, whether
        functions have it as well (``set -T``).
    has_exit_trap
        Whether any was set, be it the driver's.
    hidden
        Variables whose values are not known: functions that have ended the shell had declared
        others of these names.
    """

    code: bytes = b""
    variables: Mapping[bytes, bytes] = field(default_factory=dict)
    exit_trap: bytes = b""
    debug_trap: bytes = b""
    has_exit_trap: bool = True
    hidden: frozenset[bytes] = frozenset()

    def without_settings(self) -> State:
        """Return it without traps and options, with which bash may do nothing at all any more."""
        return State(_SETTING.sub(b"", self.code), self.variables)


def changes(
    snapshot: bytes,
    cookie: str,
    environment: Mapping[str, str],
    *,
    previous: State | None = None,
    temporary: Collection[str] = (),
    cwd: str | None = None,
) -> State:
    """Return what brings a shell's state back.

    Parameters
    ----------
    snapshot
        What `BashCode` lets bash write.
    cookie
        That of the code.
    environment
        The environment that the shell began with.
    previous
        The state before the command that has ended the shell, if one has.
    temporary
        Variables that only this command was given another value of.
    cwd
        The working directory before it, if only this command was given another one.
    """
    begin, end = (f"# {cookie} {word}\n".encode() for word in ("variables", "the rest"))
    before, _, rest = snapshot.partition(begin)
    listed, _, after = rest.partition(end)
    running, _, before = before.partition(b"\n")
    known = {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}
    known_before = {} if previous is None else previous.variables
    hidden = frozenset(_locals(running.split()[3:], before))
    passing = hidden.union(map(os.fsencode, temporary))
    kept = {name: code for name, code in known_before.items() if name in passing}
    at, seen = 0, {*passing}
    while (entry := _ENTRY.match(listed, at)) is not None:
        at = entry.end()
        flags, name, value = entry.groups()
        if name in passing:
            continue
        seen.add(name)
        if name in _SET_BY_BASH or name.startswith(OWN_PREFIXES):
            continue
        if b"x" in flags and name in known and _plain(value) == known[name]:
            continue
        kept[name] = entry.group()
    for name in known.keys() - seen - _SET_BY_BASH:
        if re.fullmatch(rb"[A-Za-z_]\w*", name):
            kept[name] = b"\\unset -v " + name + b"\n"
    if cwd is not None:
        _, _, oldpwd = known_before.get(b"OLDPWD", b"").rstrip().partition(b"=")
        back = os.fsencode(f"\\builtin cd -- {quoted(cwd)} && OLDPWD=") + oldpwd
        after = _CD.sub(lambda _: back + b"\n", after, count=1)
    has_exit_trap = _EXIT_TRAP.search(after) is not None
    after = _OWN_TRAP.sub(b"", after)
    hidden = hidden.difference(kept)
    exit_trap, debug_trap = (each.search(after) for each in (_EXIT_TRAP, _DEBUG_TRAP))
    return State(
        b"".join([_COMPATIBLE.sub(b"", before), *kept.values(), listed[at:], after]),
        kept,
        exit_trap.group() if exit_trap else b"",
        (debug_trap.group() if debug_trap else b"") + b"".join(_FUNCTRACE.findall(after)),
        has_exit_trap,
        hidden,
    )


def _locals(running: Sequence[bytes], definitions: bytes) -> Iterator[bytes]:
    """Return the names of variables that running functions have declared as theirs.

    A shell that exits in a function shows their values in place of the global ones.

    Parameters
    ----------
    running
        The functions.
    definitions
        As bash shows them, of all functions.
    """
    for function in set(running) - {b"source", b"main"}:
        body = re.search(
            rb"^" + re.escape(function) + rb" \(\) ?\n\{.*?^\}",
            definitions,
            re.MULTILINE | re.DOTALL,
        )
        for declaration in _DECLARATION.findall(b"" if body is None else body.group()):
            yield from _DECLARED.findall(declaration)


def _plain(value: bytes | None) -> bytes | None:
    """Return the value of a word in double quotes; None for other words."""
    if value is None or not value.startswith(b'"'):
        return None
    return _ESCAPED.sub(rb"\1", value[1:-1])

"""Code that the driver has bash run: its start, its command lines, its snapshots.

Bash reads one short line for each command and never sees the user's text there: that is in a file,
which it sources at top level. Every line must work under whatever the user has set: ``set -e``,
``-u``, ``noclobber``, other meanings of ``cd`` or ``printf``. So builtins are called as such, and
names have a random part.
"""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

UNWIND_SIGNAL = signal.SIGRTMIN + 7
"""Asks bash to give up the command that it runs; ``trap`` knows it as RTMIN+7."""

SNAPSHOT_END = "# end of the snapshot"
"""Last line of a snapshot: without it, the snapshot is not whole."""

UNWIND = '\\builtin set -T; \\builtin trap "\\builtin return 130" DEBUG; \\builtin return 130'
"""What bash does then: it leaves functions, loops and sourced files one after the other."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

OWN_FUNCTIONS = frozenset({"builtin", "command", "printf", "trap", "kill", "enable"})
"""Functions of these names would replace what the driver uses; a snapshot leaves them out."""


def quoted(text: str) -> str:
    """Return a word of bash that has a text as its value; it may hold any character but NUL."""
    return "'" + text.replace("'", "'\\''") + "'"


def check_environment(env: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return environment variables for a command; None stands for one that is not set.

    Raises
    ------
    TypeError, ValueError
        A name is none, or a value is not text without NUL.
    """
    for name, value in env.items():
        if not isinstance(name, str) or _NAME.match(name) is None:
            msg = (
                f"env has the name {name!r}; a variable's name is letters, digits and _, and does "
                "not start with a digit"
            )
            raise ValueError(msg)
        if value is not None and not isinstance(value, str):
            msg = f"env[{name!r}] is text, or None for a variable that is not set, not {value!r}"
            raise TypeError(msg)
        if value is not None and "\0" in value:
            msg = f"env[{name!r}] has a NUL, which no environment variable can hold"
            raise ValueError(msg)
    return dict(env)


@dataclass(frozen=True, slots=True)
class BashCode:
    """The code for one session's shells.

    Attributes
    ----------
    folder
        Their folder, for files and pipes.
    cookie
        Random part of names.
    """

    folder: Path
    cookie: str

    @property
    def tag(self) -> str:
        """Name of the variable that a command's processes have in their environment."""
        return f"SBX_{self.cookie}"

    @property
    def command_file(self) -> Path:
        """The file with the user's text."""
        return self.folder / "command"

    @property
    def snapshot_file(self) -> Path:
        """The file for a snapshot."""
        return self.folder / "snapshot"

    @property
    def _here(self) -> str:
        """The folder, as a word of bash."""
        return shlex.quote(str(self.folder))

    def write_files(self) -> None:
        """Write the files that bash sources for its own purposes."""
        name, here = self.cookie, self.folder
        (here / "take").write_text(
            f"\\builtin printf '# {name} in %s\\n' \"${{FUNCNAME[*]}}\"\n"
            "\\builtin shopt -p\n"
            "\\builtin declare -f\n"
            "\\builtin declare -F\n"
            f"\\builtin printf '\\n# {name} variables\\n'\n"
            "\\builtin declare -p\n"
            f"\\builtin printf '# {name} the rest\\n'\n"
            "\\builtin alias -p\n"
            "\\builtin umask -p\n"
            "\\builtin trap -p\n"
            '\\builtin printf \'\\\\builtin cd -- %q && OLDPWD=%q\\n\' "${PWD-}" "${OLDPWD-}"\n'
            "\\builtin set +o\n"
            f"\\builtin printf '\\n{SNAPSHOT_END}\\n'\n"
        )
        (here / "leave").write_text(
            f"\\builtin command . {quoted(str(here / 'take'))} >| {quoted(str(here / 'left'))}\n"
        )
        (here / "begin").write_text(
            "\\builtin shopt -s expand_aliases\n"
            f'__sbx_s{name}() {{ \\builtin return "$1"; }}\n'
            f"{self.exit_trap()}\n"
            f"\\builtin trap '{UNWIND}' RTMIN+7\n"
        )

    def exit_trap(self) -> str:
        """Return the line that has bash leave its state behind when it exits."""
        # Its own commands are not traced to where the user's are: set -x.
        leave = f"{{ \\builtin command . {self._here}/leave; }} 2>/dev/null"
        return f"\\builtin trap {quoted(leave)} EXIT"

    def begin(self, state: Path | None) -> str:
        """Return the first line: bash sets itself up, and says ``R``.

        Parameters
        ----------
        state
            File with the state to begin with.
        """
        lines = [f"\\builtin command . {quoted(str(self.folder / 'begin'))} >/dev/null"]
        if state is not None:
            lines.append(f"\\builtin command . {quoted(str(state))} >/dev/null 2>&1")
            lines.append(f"\\unset -f {' '.join(sorted(OWN_FUNCTIONS))} || \\builtin :")
        return "\n".join([*lines, self.reply_again("R")])

    def run(
        self,
        number: int,
        status: int,
        cwd: str | None,
        env: Mapping[str, str | None],
        *,
        has_stdin: bool,
        is_posix: bool,
    ) -> str:
        """Return the lines that run the command file, and say ``D``.

        They are short, because bash reads them byte by byte.

        Parameters
        ----------
        number
            Number of the command.
        status
            ``$?`` at its beginning.
        cwd
            Its working directory, if that is another one.
        env
            Its additional environment variables.
        has_stdin
            Whether it reads the file for its standard input.
        is_posix
            Whether bash is in POSIX mode, where it drops the line of a command whose environment it
            cannot set: it says ``N`` then.
        """
        name, here = self.cookie, self._here
        assignments = "".join(
            f"{key}={quoted(value)} " for key, value in env.items() if value is not None
        )
        # A function of that name would take the place of all that follows; keywords have none.
        before, after = [], ["\\unset -f builtin||[[ x ]]"]
        for index, key in enumerate(key for key, value in env.items() if value is None):
            kept = f"__sbx_v{name}_{index}"
            before.append(f"{kept}=${{{key}+${{{key}@a}}:${key}}}; \\builtin unset -v {key}")
            after.append(
                f'case ${kept} in *x*:*) \\builtin export {key}="${{{kept}#*:}}";;'
                f' *:*) {key}="${{{kept}#*:}}";; esac; \\builtin unset -v {kept}'
            )
        if cwd is not None:
            before.append(
                f"__sbx_p{name}=$PWD __sbx_o{name}=${{OLDPWD-}}; "
                f"\\builtin cd -- {quoted(cwd)} || \\builtin :"
            )
            after.append(f'\\builtin cd -- "$__sbx_p{name}" || \\builtin :; OLDPWD=$__sbx_o{name}')
        if status:
            before.append(f"__sbx_s{name} {status} && \\builtin :")
        if is_posix:
            assigned = (self.tag, *(key for key, value in env.items() if value is not None))
            kinds = "".join(f"${{{key}+${{{key}@a}}}}" for key in assigned)
            before.append(f"[[ {kinds} != *r* ]]||{self._print(f'N{number}')}")
        stdin = f"{here}/in" if has_stdin else "/dev/null"
        # The status is taken on a line of its own: a syntax error has spoiled the rest of this one.
        command = (
            f"{self.tag}={number} {assignments}\\builtin command . {here}/command"
            f" <{stdin} >{here}/out 2>{here}/err\n{self._status}={number}:$?"
        )
        reply = f"{';'.join(after)};{self._print(f'D{number}')}"
        return "\n".join([*before, command, reply])

    @property
    def _status(self) -> str:
        """Variable with the number of the last command that ran, and its status."""
        return f"__sbx_r{self.cookie}"

    def _print(self, word: str) -> str:
        """Return the command that says a word."""
        status = f"${{{self._status}-}}" if word.startswith("D") else ":0"
        said = f'"${{POSIXLY_CORRECT+p}}{status}" "${{PWD-}}"'
        return f"\\builtin printf '{self.cookie} {word} %s %s\\0' {said}"

    def reply_again(self, word: str) -> str:
        """Return the line that says a word, even if the user has disabled what it needs."""
        said = self._print(word)
        return f'{said} || {{ \\builtin enable printf && {said}; }} || \\builtin kill -9 "$$"'

    def last_status(self) -> str:
        """Return the line that gives a shell which answers no more the status of its command."""
        return f'(\\exit "${{{self._status}#*:}}")'

    def end_unwinding(self) -> str:
        """Return the line after an interrupt: bash runs commands again."""
        return "\\builtin trap - DEBUG; \\builtin set +T"

    def snapshot(self) -> str:
        """Return the line that writes a snapshot, and says ``S``."""
        here = self._here
        take = f"\\builtin command . {here}/take >| {here}/snapshot 2>/dev/null"
        return f"{take}\n{self.reply_again('S')}"


def read_snapshot(path: Path) -> bytes | None:
    """Return a snapshot, and remove its file; None if it was not written to its end."""
    try:
        content = path.read_bytes()
        path.unlink()
    except OSError:
        return None
    return content if content.rstrip().endswith(SNAPSHOT_END.encode()) else None

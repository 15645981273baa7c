"""Commands of ``%snakepit`` for the session's shell and for background processes."""

from __future__ import annotations

import codecs
import glob
import re
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from snakepit_kernel import CommandFailed, Process, Shell, processes
from snakepit_kernel.printable import printable
from snakepit_kernel.shells.process import signal_number
from snakepit_kernel.shells.process_log import LogChunk
from snakepit_kernel.shells.results import ShellChunk

from .parsing import Parser, command_parsers, line_parser
from .session_commands import SessionCommands
from .session_views import ProcessList

RAW_COMMANDS = frozenset({"sh", "start-process"})
"""Commands whose last argument is the rest of the line, as it is: bash reads it."""

_WORD = re.compile(r"\s*(\S+)")


class ShellCommands:
    """The commands for shells and processes; they need no pool.

    Parameters
    ----------
    sessions
        Knows the chosen session.
    """

    def __init__(self, sessions: SessionCommands) -> None:
        self._sessions = sessions

    def run(self, options: Namespace) -> object:
        """Run one of ``SHELL_COMMANDS``."""
        return getattr(self, f"_{options.command.replace('-', '_')}")(options)

    def run_cell(self, options: Namespace, code: str) -> None:
        """Run a cell in the session's shell, and show its output as it comes."""
        shell = self._shell(options.session)
        limit = {} if options.timeout is None else {"timeout": options.timeout}
        show_output(shell.stream(code, **limit))
        result = shell.last
        if result is None:
            return
        if result.restored:
            print(f"the shell of session {shell.session_id} has come back", file=sys.stderr)  # noqa: T201
        if result.timed_out:
            print(f"ended after {result.duration:.1f} s", file=sys.stderr)  # noqa: T201
        if options.check and not result.ok:
            raise CommandFailed(result)
        if not result.ok:
            print(f"exit status {result.returncode}", file=sys.stderr)  # noqa: T201
        if result.lost:
            print(f"the shell was started again; lost: {result.lost}", file=sys.stderr)  # noqa: T201

    def _sh(self, options: Namespace) -> None:
        self.run_cell(options, options.text)

    def _start_process(self, options: Namespace) -> Process:
        state = self._sessions.state(options.session)
        return state.processes.start(options.text, name=options.name)

    def _ps(self, options: Namespace) -> ProcessList:
        found = processes()
        if options.session is not None:
            found = [each for each in found if each.session_id == options.session]
        if not options.all:
            found = [each for each in found if each.is_running or each.is_here]
        return ProcessList(found)

    def _kill(self, options: Namespace) -> None:
        signum = signal_number(options.signal)
        for name in options.process:
            process = self.find(name)
            if not process.is_running:
                print(f"{process.id} {printable(process.name)} has ended already")  # noqa: T201
                continue
            process.kill(signal=signum, grace=options.grace)
            print(f"{process.id} {printable(process.name)}: {process.status}")  # noqa: T201

    def logs(self, options: Namespace) -> None:
        """Show the log of a process."""
        process = self.find(options.name)
        show_output(process.follow() if options.follow else process.logs().chunks)

    def find(self, name: str) -> Process:
        """Return a process by its id or name: the session's own first."""
        return self._sessions.state(None).processes.get(name)

    def _shell(self, session: str | None) -> Shell:
        return self._sessions.state(session).shell

    # -- completion ----------------------------------------------------------------------------

    def process_names(self) -> Iterator[str]:
        """Return the ids and names of the processes that run."""
        for process in processes():
            if process.is_running:
                yield process.id
                yield process.name

    def paths(self, start: str) -> Iterable[str]:
        """Return the paths that begin with a text, seen from the session's shell."""
        folder = self._shell(None).cwd
        for found in glob.iglob(f"{glob.escape(start)}*", root_dir=folder):  # noqa: PTH207 - as typed
            yield f"{found}/" if Path(folder, found).is_dir() else found


def show_output(chunks: Iterable[ShellChunk | LogChunk]) -> None:
    """Show the output of a command as it comes, with its colours."""
    decoders = {
        name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")
    }
    for chunk in chunks:
        _write(chunk.stream, decoders[chunk.stream].decode(chunk.data))
    for name, decoder in decoders.items():
        _write(name, decoder.decode(b"", final=True))


def _write(stream: str, text: str) -> None:
    target: TextIO = sys.stdout if stream == "stdout" else sys.stderr
    if text:
        target.write(text)
        target.flush()


def parse_raw(line: str) -> Namespace | None:
    """Parse the line of a command that hands the rest of the line to bash; None for others."""
    found = _WORD.match(line)
    if found is None or found[1] not in RAW_COMMANDS:
        return None
    parser: Parser = command_parsers(line_parser())[found[1]]
    takes_value = {option for action in parser.options() for option in action.option_strings}
    words, at = [], found.end()
    while (option := _WORD.match(line, at)) is not None and option[1].startswith("-"):
        at = option.end()
        if option[1] == "--":
            break
        words.append(option[1])
        name, has_value, _ = option[1].partition("=")
        if name in takes_value and not has_value and (value := _WORD.match(line, at)):
            words.append(value[1])
            at = value.end()
    text = line[at:].lstrip()
    if not text.strip():
        parser.error("name a command that bash is to run")
    options = parser.parse_words([*words, "--", text])
    options.command = found[1]
    return options

"""Parsers of ``%snakepit`` and ``%%snakepit``, and of their arguments."""

from __future__ import annotations

import argparse
import ast
import functools
import math
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from keyword import iskeyword
from typing import Any, NoReturn

from IPython.core.error import UsageError

from snakepit_kernel.errors import suggest
from snakepit_kernel.sessions.variable_types import CONSTRAINTS
from snakepit_kernel.validation import parse_bytes, parse_seconds

COMMANDS = {
    "start": "open a pool, or return the running one of that name",
    "stop": "end a pool and everything that its workers started",
    "restart": "end all workers of a pool and start new ones; its tools stay",
    "status": "show the workers of a pool and what they run",
    "dashboard": "show a pool live",
    "resize": "change the number of workers: %%snakepit resize 8",
    "recycle": "replace one worker or all of them by new ones; work goes on",
    "reload": "replace all workers and load their tools again; work goes on",
    "drain": "accept no new work, and wait until all work has ended",
    "resume": "accept new work again after drain",
    "tools": "list the tools, or describe one",
    "call": "call a tool: %%snakepit call price item=tea amount=2",
    "expose": "let workers call a function of this notebook, or list such functions",
    "set": "set variables: %%snakepit set temperature=0.7 --type float --max 2",
    "get": "return the value of a variable",
    "vars": "list the variables",
    "del": "delete variables",
    "watch": "print changes of variables when they happen",
    "stats": "show the size and the growth of the session",
    "use": "choose the session, its time to live, or the pool for cells and calls",
    "sessions": "list the sessions, or delete one",
    "fork": "copy the session, and continue in the copy",
    "export": "write the session to a file",
    "import": "read an exported file into the session",
    "push": "copy variables of this notebook to a worker",
    "pull": "copy variables of a worker to this notebook",
    "scatter": "cut a sequence of this notebook into parts, one for each worker",
    "gather": "join the parts of all workers to one variable of this notebook",
    "sh": "run a command in the session's shell: %%snakepit sh make test",
    "start-process": "start a command in the background",
    "ps": "list the background processes",
    "kill": "end a background process and everything that it started",
    "jobs": "list the cells and calls that run in the background",
    "wait": "wait for background jobs, and show their output here",
    "cancel": "cancel background jobs",
    "logs": "show the last output of the workers, or of a background process",
    "doctor": "check the installation",
    "help": "show this list, or the options of a command",
}

GROUPS = {
    "Pool": ("start", "stop", "restart", "resize", "recycle", "reload", "drain", "resume"),
    "Work": ("push", "pull", "scatter", "gather"),
    "Tools": ("call", "tools", "expose"),
    "Session": (
        *("use", "sessions", "set", "get", "vars", "del", "watch", "stats"),
        *("fork", "export", "import"),
    ),
    "Shells and processes": ("sh", "start-process", "ps", "kill", "logs"),
    "Jobs": ("jobs", "wait", "cancel"),
    "Look": ("status", "dashboard", "doctor", "help"),
}
"""The commands in the order in which the help lists them; each is in one group."""

SESSION_COMMANDS = frozenset(
    {
        *("set", "get", "vars", "del", "watch", "stats"),
        *("sessions", "fork", "export", "import"),
    }
)
"""Commands that need no pool."""

SHELL_COMMANDS = frozenset({"sh", "start-process", "ps", "kill"})
"""Commands for the session's shell and for background processes."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and that never leaves the interpreter."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs |= {"add_help": False, "allow_abbrev": False}
        if sys.version_info >= (3, 14):
            kwargs["color"] = False  # ipykernel sets FORCE_COLOR, and help is read as text, too
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise a `UsageError`, which IPython shows as one line."""
        raise UsageError(f"{self.prog}: {message}")

    def parse(self, line: str) -> argparse.Namespace:
        """Parse a line; the error of an invalid one says what would be right."""
        try:
            words = shlex.split(line)
        except ValueError as error:
            self.error(f"{str(error).lower()}; close the quotation")
        return self.parse_words(words)

    def parse_words(self, words: list[str]) -> argparse.Namespace:
        """Parse the words of a line; errors are those of `parse`."""
        commands = command_parsers(self)
        if commands and words and words[0] not in commands:
            self.error(f"there is no command {words[0]!r}{suggest(words[0], commands)}")
        options, unknown = self.parse_known_args(words)
        if unknown:
            known = [o for action in self.all_actions(options) for o in action.option_strings]
            self.error(f"unknown option or word {unknown[0]!r}{suggest(unknown[0], known)}")
        return options

    def options(self) -> list[argparse.Action]:
        """Return the options that take a value."""
        return [each for each in self._actions if each.option_strings and each.nargs != 0]

    def all_actions(self, options: argparse.Namespace) -> list[argparse.Action]:
        """Return the possible options."""
        command = getattr(options, "command", None)
        parser = command_parsers(self).get(command, self) if command else self
        return parser._actions  # noqa: SLF001 - argparse has no other way to list them


@functools.cache
def line_parser() -> Parser:
    """Build the parser of the line magic."""
    parser = Parser(prog="%snakepit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    parsers = {name: commands.add_parser(name, help=text) for name, text in COMMANDS.items()}
    _add_start_options(parsers["start"])
    parsers["stop"].add_argument(
        "name", nargs="?", help="name of the pool; default: the chosen one"
    )
    parsers["stop"].add_argument("--all", action="store_true", help="end all pools")
    for command in ("restart", "status", "dashboard"):
        parsers[command].add_argument("name", nargs="?", help="name of the pool")
    parsers["logs"].add_argument(
        "name", nargs="?", help="name of the pool, or id or name of a process"
    )
    parsers["logs"].add_argument(
        "--follow", action="store_true", help="continue until the process ends"
    )
    _add_shell_commands(parsers)
    _add_pool_commands(parsers)
    parsers["tools"].add_argument("tool", nargs="?", help="name of a tool")
    _add_call_options(parsers["call"])
    parsers["expose"].add_argument("function", nargs="?", help="name of the function")
    parsers["expose"].add_argument("--session", help="only for this session; default: for the pool")
    _add_session_commands(parsers)
    parsers["use"].add_argument("session", nargs="?", help="name of the session")
    parsers["use"].add_argument("--pool", help="name of the pool")
    parsers["use"].add_argument(
        "--ttl",
        type=_time_to_live,
        metavar="TIME",
        help="how long the session lives without being used: 12h, 30d, never",
    )
    _add_transfers(parsers)
    _add_job_commands(parsers)
    parsers["help"].add_argument("about", nargs="?", metavar="COMMAND", help="name of a command")
    for name, child in parsers.items():
        child.prog = f"%snakepit {name}"
    return parser


def _add_start_options(parser: Parser) -> None:
    """Add options of `Pool`, each by its name there."""
    add = parser.add_argument
    add(
        *("-w", "-n", "--workers"),
        type=_whole_or_auto,
        help="number of workers, or auto; default: one for each core",
    )
    add("-a", "--adapter", help="the tools: module:Class, module, or a class of this notebook")
    add("--name", default="default", help="name of the pool")
    add("--replace", action="store_true", help="end the running pool of that name first")
    add("--joblib", action="store_true", help="let joblib and scikit-learn use it by default")
    add = parser.add_argument_group("Workers").add_argument
    add("--preload", nargs="+", default=[], metavar="MODULE", help="modules to import in workers")
    add("--autoreload", action="store_true", help="load edited modules again in workers")
    add("--standby", type=_whole, help="workers kept ready to replace those that die")
    add("--cwd", metavar="FOLDER", help="working directory")
    add("--env", nargs="+", default=[], metavar="NAME=VALUE", help="environment variables")
    add("--kernel-name", metavar="NAME", help="kernelspec")
    add("-r", "--requirements", metavar="FILE", help="requirements file of their packages")
    add("--gpus", type=_whole_or_auto, help="number of GPUs for each worker, or auto")
    add = parser.add_argument_group("Limits of calls and cells").add_argument
    add("--timeout", type=_seconds, help="for each call or cell")
    add("--queue-timeout", type=_seconds, help="for the wait for a worker")
    add("--max-queue", type=_whole, help="calls and cells that may wait")
    add(
        "--grace",
        type=_seconds,
        help="from an interrupt until the worker is killed",
    )
    add("--retry", type=_whole, help="attempts at an idempotent call")
    add(
        "--breaker",
        type=_whole,
        help="failures in a row after which the pool refuses work for 30 s",
    )
    add = parser.add_argument_group("When a worker is replaced").add_argument
    add("--max-age", type=_seconds, help="age of the worker in seconds")
    add("--max-calls", type=_whole, help="number of its calls")
    add(
        "--max-memory",
        dest="max_memory_bytes",
        metavar="SIZE",
        type=_bytes,
        help="its memory: 500M, 2G, or bytes",
    )


def flag_of(option: str) -> str:
    """Return the flag of ``start`` for an option of `Pool`; the name itself if there is none."""
    for action in command_parsers(line_parser())["start"].all_actions(argparse.Namespace()):
        if action.dest == option:
            return action.option_strings[-1]
    return option


def _add_pool_commands(parsers: Mapping[str, Parser]) -> None:
    parsers["resize"].add_argument("workers", type=_whole, help="number of workers")
    parsers["recycle"].add_argument(
        "worker",
        nargs="?",
        type=_whole,
        help="number of the worker; default: all, one after the other",
    )
    parsers["reload"].add_argument(
        "adapter", nargs="?", help="the tools, as for start; default: those of the pool"
    )
    parsers["drain"].add_argument("--timeout", type=_seconds, help="seconds to wait")
    for command in ("resize", "recycle", "reload", "drain", "resume"):
        parsers[command].add_argument("--pool", help="name of the pool")


def _add_session_commands(parsers: Mapping[str, Parser]) -> None:
    values = parsers["set"]
    values.add_argument(
        "assignments",
        nargs="+",
        metavar="NAME=VALUE",
        help="Python literals, plain text, or @VARIABLE of this notebook",
    )
    add = values.add_argument
    add(
        "--type",
        type=lambda name: _PYTHON_TYPES.get(name, name),
        choices=CONSTRAINTS,
        help="type of a new variable; default: from its value",
    )
    add("--min", type=_number, help="smallest number")
    add("--max", type=_number, help="largest number")
    add("--choices", nargs="+", metavar="VALUE", help="the allowed values")
    add("--pattern", help="regular expression that the whole text must match")
    add("--min-length", type=_whole, help="smallest length")
    add("--max-length", type=_whole, help="largest length")
    add("--shape", type=_shape, help="lengths of the axes, such as 3,4 or 3,*: * is any length")
    add("--description", help="a text that vars shows")
    parsers["get"].add_argument("names", nargs="+", metavar="NAME", help="names of variables")
    parsers["vars"].add_argument(
        "pattern", nargs="?", default="*", help="pattern of names, such as temp_*; default: all"
    )
    parsers["del"].add_argument("names", nargs="+", metavar="NAME", help="names of variables")
    parsers["watch"].add_argument(
        "pattern", nargs="?", default="*", help="pattern of names; default: all"
    )
    parsers["watch"].add_argument("--stop", action="store_true", help="stop printing them")
    for command in ("set", "get", "vars", "del", "watch", "stats", "export", "import"):
        parsers[command].add_argument("--session", help="name of the session")
    parsers["sessions"].add_argument("--delete", metavar="NAME", help="delete a session")
    parsers["fork"].add_argument("session", metavar="NEW", help="name of the copy")
    for command in ("export", "import"):
        parsers[command].add_argument("file", metavar="FILE", help="path of the file, JSON")
    parsers["import"].add_argument(
        "--trust", action="store_true", help="also read pickles, which can run code"
    )


_PYTHON_TYPES = {"int": "integer", "str": "string", "bool": "boolean"}


def _add_shell_commands(parsers: Mapping[str, Parser]) -> None:
    for command in ("sh", "start-process"):
        parsers[command].add_argument("--session", help="name of the session")
        parsers[command].add_argument("text", metavar="COMMAND", help="the rest of the line")
    parsers["sh"].add_argument("--timeout", type=_seconds, help="seconds that the command may take")
    parsers["sh"].add_argument(
        "--check", action="store_true", help="raise an error if the status is not 0"
    )
    parsers["start-process"].add_argument("--name", help="name of the process")
    parsers["ps"].add_argument("--session", help="only those of one session")
    parsers["ps"].add_argument(
        "--all", action="store_true", help="also ended processes of other kernels"
    )
    parsers["kill"].add_argument("process", nargs="+", help="ids or names of processes")
    parsers["kill"].add_argument(
        "--signal", default="TERM", help="signal to send first; default: TERM"
    )
    parsers["kill"].add_argument(
        "--grace", type=_seconds, default=5.0, help="seconds until it is killed; default: 5"
    )


def _add_transfers(parsers: Mapping[str, Parser]) -> None:
    for command in ("push", "pull", "scatter", "gather"):
        parsers[command].add_argument("names", nargs="+", help="names of variables")
        parsers[command].add_argument("--session", help="name of the session")
    parsers["pull"].add_argument("--worker", type=_whole, help="number of the worker")
    where = parsers["push"].add_mutually_exclusive_group()
    where.add_argument("--worker", type=_whole, help="number of the worker")
    where.add_argument("--all", action="store_true", help="to every worker")


def _add_job_commands(parsers: Mapping[str, Parser]) -> None:
    parsers["wait"].add_argument(
        "jobs",
        nargs="*",
        default=[],  # else argparse says that it is required
        metavar="JOB",
        help="numbers of jobs, or variables that hold them; default: all that run",
    )
    parsers["wait"].add_argument("--timeout", type=_seconds, help="seconds to wait")
    parsers["cancel"].add_argument(
        "jobs",
        nargs="+",
        metavar="JOB",
        help="numbers of jobs, or variables that hold them; or all",
    )


def _add_call_options(parser: Parser) -> None:
    parser.add_argument("tool", help="name of a tool")
    parser.add_argument(
        "arguments",
        nargs="*",
        default=[],  # else argparse says that it is required
        metavar="NAME=VALUE",
        help="arguments: Python literals, plain text, or @VARIABLE of this notebook",
    )
    parser.add_argument("--timeout", type=_seconds, help="seconds that the call may take")
    parser.add_argument("--session", help="name of the session")
    parser.add_argument("--background", action="store_true", help="do not wait; returns a job")


@functools.cache
def cell_parser() -> Parser:
    """Build the parser of the cell magic."""
    parser = Parser(prog="%%snakepit")
    add = parser.add_argument
    add("--session", help="name of the session; default: this notebook's")
    add("--pool", help="name of the pool")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--worker", type=_whole, help="number of the worker")
    where.add_argument("--all", action="store_true", help="run in every worker")
    where.add_argument("--shell", action="store_true", help="run in the session's shell, by bash")
    add("--check", action="store_true", help="with --shell: raise an error if the status is not 0")
    add("--background", action="store_true", help="do not wait; return a job")
    add(
        *("-o", "--out"),
        metavar="NAME",
        help="variable for the result of the cell, for a list of all workers' results, or for the "
        "job",
    )
    add("--timeout", type=_seconds, help="seconds that the cell may take")
    add("--push", nargs="+", default=[], metavar="NAME", help="variables to copy there first")
    add("--pull", nargs="+", default=[], metavar="NAME", help="variables to copy here afterwards")
    return parser


def check_cell_options(options: argparse.Namespace) -> None:
    """Check that the options of a cell go together.

    Raises
    ------
    UsageError
        One would have no effect.
    """
    if options.check and not options.shell:
        msg = "%%snakepit: --check is for cells that bash runs: use it with --shell"
        raise UsageError(msg)
    for name in _OF_WORKERS:
        if options.shell and getattr(options, name):
            msg = f"%%snakepit: --{name} is for cells in a worker; with --shell bash runs the cell"
            raise UsageError(msg)
    if options.out is not None and (not options.out.isidentifier() or iskeyword(options.out)):
        msg = f"%snakepit: --out takes the name of a variable, not {options.out!r}"
        raise UsageError(msg)


_OF_WORKERS = ("pool", "background", "out", "push", "pull")
"""Options of a cell that mean nothing to a shell; argparse refuses the others."""


def command_parsers(parser: Parser) -> Mapping[str, Parser]:
    """Return the parsers of the commands, by name."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to ask
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            return action.choices
    return {}


def help_asked_for(line: str) -> str | None:
    """Return the command whose help a line asks for by ``-h``, ``--help`` or ``?``.

    It is empty for the help of all, and None if the line asks for nothing.
    """
    command, *rest = line.split() or [""]
    if command in _HELP or (command.startswith("-") and _HELP & set(rest)):
        return ""
    is_raw = command in {"sh", "start-process"}  # where the rest is for bash
    asks = _HELP & set(rest[:1] if is_raw else rest)
    return command if command in COMMANDS and asks else None


_HELP = frozenset({"-h", "--help", "?"})


def help_command(lines: list[str]) -> list[str]:
    """Turn a cell that is ``%snakepit COMMAND?`` into one that shows the help of the command."""
    asked = _QUESTION.fullmatch("".join(lines).strip()) if len(lines) < _FEW_LINES else None
    return lines if asked is None else [f"%snakepit help {asked[1]}\n"]


_QUESTION = re.compile(r"%snakepit\s+([\w-]+)\s*\?{1,2}")
_FEW_LINES = 10


def names_of(words: list[str]) -> list[str]:
    """Split names that are separated by commas, blanks or both."""
    return [name for word in words for name in word.split(",") if name]


def environment_of(pairs: list[str]) -> dict[str, str]:
    """Parse ``NAME=VALUE`` words to environment variables."""
    return dict(_split(pairs, "start: --env takes NAME=VALUE"))


def arguments_of(
    words: list[str], variables: Mapping[str, Any], command: str = "call"
) -> dict[str, Any]:
    """Parse ``NAME=VALUE`` words to values by name.

    A value is a Python literal if it parses as one, ``@NAME`` for a variable of the notebook, and
    text otherwise. Nothing is evaluated.
    """
    arguments = {}
    for name, text in _split(words, f"{command}: an argument is NAME=VALUE"):
        if text.startswith("@"):
            if text[1:] not in variables:
                known = [key for key in variables if not key.startswith("_")]
                near = suggest(text[1:], known)
                msg = f"%snakepit {command}: there is no variable {text[1:]!r}{near}"
                raise UsageError(msg)
            arguments[name] = variables[text[1:]]
            continue
        arguments[name] = literal(text)
    return arguments


def _split(words: Iterable[str], rule: str) -> Iterator[tuple[str, str]]:
    for word in words:
        name, separator, text = word.partition("=")
        if not separator or not name:
            msg = f"%snakepit {rule}, not {word!r}"
            raise UsageError(msg)
        yield name, text


def literal(text: str) -> Any:
    """Parse a text as a Python literal; return the text itself if it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        msg = f"{text!r} is not a whole number"
        raise argparse.ArgumentTypeError(msg) from None


def _whole_or_auto(text: str) -> int | str:
    return "auto" if text == "auto" else _whole(text)


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _time_to_live(text: str) -> float:
    if text == "never":
        return math.inf
    try:
        return parse_seconds(text)
    except ValueError:
        msg = f"{text!r} is not a time, such as 12h, 30d or never"
        raise argparse.ArgumentTypeError(msg) from None


def _number(text: str) -> float:
    value = literal(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{text!r} is not a number"
        raise argparse.ArgumentTypeError(msg)
    return value


def _shape(text: str) -> list[int | None]:
    try:
        return [None if axis == "*" else int(axis) for axis in text.split(",")]
    except ValueError:
        msg = f"{text!r} is not a shape: write lengths with commas, such as 3,4 or 3,*"
        raise argparse.ArgumentTypeError(msg) from None


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        msg = f"{text!r} is not a number of seconds"
        raise argparse.ArgumentTypeError(msg) from None


VALUE_NAMES: Mapping[object, str] = {
    _whole: "N",
    _whole_or_auto: "N",
    _number: "NUMBER",
    _seconds: "SECONDS",
    _shape: "N,N",
}
"""What the help calls the values of options, by the functions that parse them."""

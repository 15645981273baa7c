"""Help of ``%snakepit`` and ``%%snakepit``: in groups, as text and as html."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from snakepit_kernel.output.html import page, shown
from snakepit_kernel.output.tables import Table

from .parsing import (
    COMMANDS,
    GROUPS,
    VALUE_NAMES,
    Parser,
    cell_parser,
    command_parsers,
    line_parser,
)

WIDTH = 96
"""Characters of a line of text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A group of commands or options.

    Attributes
    ----------
    title
        Its heading.
    rows
        The commands or options, each with what it does.
    """

    title: str
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Help:
    """A page of help; displays itself as text or as html.

    Attributes
    ----------
    usage
        How it is called, with what that does.
    sections
        The groups of commands or options.
    note
        The last line, if there is one.
    """

    usage: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    note: str = ""

    def __repr__(self) -> str:
        width = max(len(name) for name, _ in self._rows())
        parts = [
            self._usage_as_text(),
            *(
                "\n".join([each.title, *_lines(each.rows, width, indent="  ")])
                for each in self.sections
            ),
            *([self.note] if self.note else []),
        ]
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        usage = "".join(
            f"<div><code>{shown(name)}</code> {shown(about)}</div>" for name, about in self.usage
        )
        tables = (
            Table(headings=(each.title, ""), rows=each.rows).as_html() for each in self.sections
        )
        note = f'<div class="snakepit-quiet">{shown(self.note)}</div>' if self.note else ""
        return page(usage, *tables, note, kind="snakepit-help")

    def _usage_as_text(self) -> str:
        if len(self.usage) == 1:  # of a command, which may be long
            ((name, about),) = self.usage
            return f"{name}\n    {about}"
        return "\n".join(_lines(self.usage, max(len(name) for name, _ in self.usage)))

    def _rows(self) -> Iterator[tuple[str, str]]:
        for section in self.sections:
            yield from section.rows
        yield "", ""  # a command without options has no sections


def help_of(about: str | None = None) -> Help:
    """Return the help of the magics, or of one command."""
    if about is not None:
        parser = command_parsers(line_parser())[about]
        return Help(usage=[(_usage(parser), _plain(COMMANDS[about]))], sections=_sections(parser))
    groups = [
        Section(title=title, rows=[(name, _plain(COMMANDS[name])) for name in names])
        for title, names in GROUPS.items()
    ]
    (options,) = _sections(cell_parser())
    return Help(
        usage=[
            ("%snakepit COMMAND ...", "runs one of the commands below"),
            ("%%snakepit [OPTIONS]", "runs the cell in a worker, or with --shell by bash"),
        ],
        sections=[*groups, Section(title="Options of %%snakepit", rows=options.rows)],
        note="%snakepit help COMMAND shows the options of a command.",
    )


def help_text(about: str | None = None) -> str:
    """Return the help of the magics, or of one command, as text."""
    return repr(help_of(about))


def _sections(parser: Parser) -> list[Section]:
    """Return the arguments of a command, and its options by their groups."""
    found = [
        (
            _TITLES.get(group.title or "", group.title or ""),
            [(_invocation(action), _plain(action.help or "")) for action in actions],
        )
        for group in parser._action_groups  # noqa: SLF001 - argparse has no other way to list them
        if (actions := group._group_actions)  # noqa: SLF001
    ]
    return [Section(title=title, rows=rows) for title, rows in found]


_TITLES = {"positional arguments": "Arguments", "options": "Options"}
"""Our headings for the groups that each parser of argparse has."""


def _usage(parser: Parser) -> str:
    actions = parser._actions  # noqa: SLF001 - argparse has no other way to list them
    names = [_positional(action) for action in actions if not action.option_strings]
    has_options = any(action.option_strings for action in actions)
    return " ".join([parser.prog, *(["[OPTIONS]"] if has_options else []), *names])


def _positional(action: argparse.Action) -> str:
    name = _value(action)
    forms = {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} ..."}
    return forms.get(str(action.nargs), name)


def _invocation(action: argparse.Action) -> str:
    if not action.option_strings:
        return _value(action)
    value = "" if action.nargs == 0 else f" {_value(action)}"
    more = " ..." if action.nargs == "+" else ""
    return ", ".join(action.option_strings) + value + more


def _value(action: argparse.Action) -> str:
    kind = VALUE_NAMES.get(action.type) if callable(action.type) else None
    return str(action.metavar or kind or action.dest.upper())


def _plain(text: str) -> str:
    """Return a help text without argparse's escapes."""
    return text.replace("%%", "%")


def _lines(rows: Sequence[tuple[str, str]], width: int, indent: str = "") -> Iterator[str]:
    """Yield rows in two columns; long texts go on in the second one."""
    for name, about in rows:
        begin = f"{indent}{name.ljust(width)}  "
        yield from textwrap.wrap(
            about,
            WIDTH,
            initial_indent=begin,
            subsequent_indent=" " * len(begin),
            drop_whitespace=True,
        ) or [begin.rstrip()]

"""Requirements of an environment: checked, and in a form that does not depend on how they stand."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from ..errors import suggest
from ..files import read_any_file
from ..redaction import redacted

DISTRIBUTION = "snakepit-kernel"
"""Name of this distribution. It comes from this installation, and cannot be required."""

SHOWN = 3
"""Requirements that are named in a line of text."""

MAX_DEPTH = 20
"""Maximum number of requirements files that refer to each other in a chain."""

_OPTIONS = {
    "-i": "--index-url",
    "--index-url": "--index-url",
    "--extra-index-url": "--extra-index-url",
    "-f": "--find-links",
    "--find-links": "--find-links",
    "--no-index": "--no-index",
    "--no-binary": "--no-binary",
    "--only-binary": "--only-binary",
}
"""Options in a file that are passed on to the installer, by all their names."""

_FILES = {"-r": False, "--requirement": False, "-c": True, "--constraint": True}
"""Options that name another file, and whether its lines are constraints."""

_REFUSED = {
    "-e": "an environment is shared and kept, and what is edited would not be seen in it",
    "--editable": "an environment is shared and kept, and what is edited would not be seen in it",
    "--hash": "what snakepit-kernel itself needs has none there, and all or none must have one",
}

_OPTION = re.compile(r"(--?[A-Za-z][\w-]*)(?:\s*=\s*|\s+|$)(.*)", re.DOTALL)
_COMMENT = re.compile(r"(?:^|\s)#.*$")


@dataclass(frozen=True, slots=True)
class Requirements:
    """What an environment must have. Two of the same meaning are equal, and have the same key.

    Attributes
    ----------
    lines
        The requirements, in the form of `packaging` and in alphabetical order.
    constraints
        The same for packages that are restricted, but not required.
    options
        Options for the installer, as they stand in a requirements file.
    """

    lines: tuple[str, ...]
    constraints: tuple[str, ...] = ()
    options: tuple[str, ...] = field(default=())

    @classmethod
    def of_list(cls, items: Sequence[str]) -> Requirements:
        """Return the requirements in a list of texts.

        Raises
        ------
        TypeError
            An item is no text.
        ValueError
            An item is no requirement.
        """
        reader = _Reader()
        for item in items:
            if not isinstance(item, str):
                msg = f"requirements must be texts such as 'pandas==2.2.*', not {item!r}"
                raise TypeError(msg)
            reader.add_requirement(item, is_constraint=False, place="")
        return reader.result()

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> Requirements:
        """Return the requirements in a requirements file, and in the files that it names.

        Raises
        ------
        ValueError
            A line cannot be used; the text names file and line.
        OSError
            A file cannot be read.
        """
        reader = _Reader()
        reader.read(Path(path).expanduser().absolute(), is_constraint=False)
        return reader.result()

    @classmethod
    def together(cls, parts: Sequence[Requirements]) -> Requirements:
        """Return the requirements of all parts."""
        return cls(
            tuple(sorted({line for part in parts for line in part.lines})),
            tuple(sorted({line for part in parts for line in part.constraints})),
            tuple(dict.fromkeys(option for part in parts for option in part.options)),
        )

    @property
    def key(self) -> str:
        """The requirements as one text, the same for all that mean the same."""
        parts = (self.lines, self.constraints, self.options)
        return "\n\n".join("\n".join(part) for part in parts)

    @property
    def shown(self) -> tuple[str, ...]:
        """The requirements for people: passwords in URLs are hidden."""
        return tuple(redacted(line) for line in self.lines)

    def __str__(self) -> str:
        return brief(self.shown)

    def __repr__(self) -> str:
        return str(list(self.shown))


def brief(requirements: Sequence[str]) -> str:
    """Return requirements as a short text: the first ones, and the number of the others."""
    more = len(requirements) - SHOWN
    text = ", ".join(requirements[:SHOWN]) or "no requirements"
    return text if more <= 0 else f"{text} and {more} more"


def check_requirements(name: str, value: Any) -> Requirements:
    """Return the requirements that an option of that name means.

    Parameters
    ----------
    name
        Name of the option.
    value
        A list of requirements, or the path of a requirements file.

    Raises
    ------
    TypeError, ValueError, OSError
        They are wrong, or the file cannot be read; the text says what would be right.
    """
    if isinstance(value, str | os.PathLike):
        try:
            return Requirements.of_file(value)
        except FileNotFoundError as error:
            if not isinstance(value, str) or error.filename != str(_absolute(value)):
                raise
            msg = (
                f"{name}: there is no requirements file {value!r}; it is a path, or a list of "
                f"requirements such as [{_example(value)!r}]"
            )
            raise FileNotFoundError(msg) from None
    if isinstance(value, list | tuple):
        return Requirements.of_list(value)
    msg = (
        f"{name} must be a list of requirements such as ['pandas==2.2.*'], or the path of a "
        f"requirements file, not {type(value).__name__} {value!r}"
    )
    raise TypeError(msg)


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()


def _example(text: str) -> str:
    """Return a text if it is a requirement, else an example of one."""
    try:
        return str(Requirement(text))
    except InvalidRequirement:
        return "pandas==2.2.*"


class _Reader:
    """Collects requirements from lists and files."""

    def __init__(self) -> None:
        self._lines: set[str] = set()
        self._constraints: set[str] = set()
        self._options: dict[str, None] = {}  # in their order, which matters to installers
        self._open: list[Path] = []

    def result(self) -> Requirements:
        return Requirements(
            tuple(sorted(self._lines)), tuple(sorted(self._constraints)), tuple(self._options)
        )

    def read(self, path: Path, *, is_constraint: bool) -> None:
        """Read a file, and those that it names."""
        if path in self._open or len(self._open) == MAX_DEPTH:
            msg = f"requirements file {str(path)!r} refers to itself"
            raise ValueError(msg)
        self._open.append(path)
        try:
            text = read_any_file(path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            msg = f"requirements file {str(path)!r} is not UTF-8: {error}"
            raise ValueError(msg) from error
        for number, line in _logical_lines(text):
            self._add_line(line, path, f"{path}, line {number}: ", is_constraint)
        self._open.pop()

    def _add_line(self, line: str, path: Path, place: str, is_constraint: bool) -> None:
        found = _OPTION.fullmatch(line)
        if found is None:
            self.add_requirement(line, is_constraint=is_constraint, place=place)
            return
        option, value = found[1], found[2].strip()
        if option in _FILES:
            self.read(path.parent / value, is_constraint=is_constraint or _FILES[option])
            return
        if option in _REFUSED:
            msg = f"{place}{option} is not supported: {_REFUSED[option]}"
            raise ValueError(msg)
        if option not in _OPTIONS:
            known = [*_FILES, *_OPTIONS]
            msg = f"{place}option {option} is not supported{suggest(option, known)}"
            raise ValueError(msg)
        option = _OPTIONS[option]
        if option == "--find-links" and "://" not in value:
            value = str(path.parent / Path(value).expanduser())
        self._options[f"{option} {value}".strip()] = None

    def add_requirement(self, text: str, *, is_constraint: bool, place: str) -> None:
        """Add a requirement; raise ValueError if it is none."""
        if re.search(r"\s--hash\b", text):
            msg = f"{place}--hash is not supported: {_REFUSED['--hash']}"
            raise ValueError(msg)
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            reason = str(error).partition("\n")[0].strip().rstrip(".")
            msg = (
                f"{place}{redacted(text)!r} is no requirement such as 'pandas==2.2.*' or "
                f"'NAME @ file:///PATH': {reason}"
            )
            raise ValueError(msg) from error
        name = canonicalize_name(requirement.name)
        if name == DISTRIBUTION:
            if is_constraint:
                return
            msg = f"{place}{DISTRIBUTION} cannot be required: workers have that of this process"
            raise ValueError(msg)
        requirement.name = name
        (self._constraints if is_constraint else self._lines).add(str(requirement))


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that say something, with the number of each: without comments, and joined."""
    joined, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        first = first or number
        if line.endswith("\\"):
            joined += line[:-1]
            continue
        found = _COMMENT.sub("", joined + line).strip()
        if found:
            yield first, found
        joined, first = "", 0
    if found := _COMMENT.sub("", joined).strip():
        yield first, found

"""Source lines of the functions that are pickled by value, for tracebacks where they run.

A cell of a notebook is no file: its lines are in `linecache`, in the process of the notebook alone.
They are sent to each worker once, ahead of the first request after a function of that cell was
pickled, and go into the worker's `linecache`.
"""

from __future__ import annotations

import linecache
import re
import sys
from collections import OrderedDict
from collections.abc import Iterable
from types import CodeType
from typing import Any

import msgspec

from ..printable import sendable

MAX_FILE_CHARS = 1 << 18
"""Longest source that is sent."""

MAX_SENT_CHARS = 1 << 21
"""Most that a worker is sent at once: of more, the newest."""

MAX_KEPT_CHARS = 1 << 23
"""Most that a worker keeps: the newest."""

_NAMES_OF_MANY = frozenset({"<string>", "<stdin>", "<unknown>", "<dynamic-code>"})
"""File names that code of several sources has."""

_FILE_LINE = re.compile(r'^( *)File "([^"\n]+)", line ', re.MULTILINE)


class Source(msgspec.Struct, frozen=True, array_like=True):
    """The source of a cell, or of other code without a file.

    Attributes
    ----------
    file
        What its code has as the name of its file.
    text
        Its lines.
    label
        What people know it by, such as ``Cell In[3]``; empty for its file name.
    """

    file: str
    text: str
    label: str = ""


class Sources:
    """The sources that this process has sent, or has been sent.

    Attributes
    ----------
    files
        Names of the files whose functions were pickled here, in that order. Their number tells what
        another process has been sent. A file is repeated when its lines have changed.
    """

    def __init__(self) -> None:
        self.files: list[str] = []
        self._lines: dict[str, list[str]] = {}
        self._received: OrderedDict[str, Source] = OrderedDict()
        self._received_chars = 0

    def note(self, code: CodeType) -> None:
        """Note that code is pickled by value: its source is sent, unless it lies in a file."""
        name = code.co_filename
        entry: Any = linecache.cache.get(name)
        if name in _NAMES_OF_MANY or entry is None or len(entry) != 4 or entry[1] is not None:
            return
        lines: list[str] = entry[2]
        if self._lines.get(name) is not lines and sum(map(len, lines)) <= MAX_FILE_CHARS:
            self._lines[name] = lines
            self.files.append(name)

    def after(self, number: int) -> list[Source]:
        """Return the sources that were noted after the first ones, as many as may be sent."""
        left = MAX_SENT_CHARS
        found: list[Source] = []
        for name in dict.fromkeys(reversed(self.files[number:])):
            text = sendable("".join(self._lines[name]))
            left -= len(text)
            if left < 0:
                break
            found.append(Source(sendable(name), text, label_of(name)))
        return found[::-1]

    def receive(self, sources: Iterable[Source]) -> None:
        """Let this process show the lines of code that another one has pickled."""
        for source in sources:
            known = self._received.pop(source.file, None)
            if known is None and source.file in linecache.cache:
                continue  # it is this process's own
            if known is not None:
                self._received_chars -= len(known.text)
            self._received[source.file] = source
            self._received_chars += len(source.text)
            lines = source.text.splitlines(keepends=True)
            linecache.cache[source.file] = (len(source.text), None, lines, source.file)
        while self._received_chars > MAX_KEPT_CHARS:
            file, oldest = self._received.popitem(last=False)
            self._received_chars -= len(oldest.text)
            linecache.cache.pop(file, None)

    def received_label(self, file: str) -> str:
        """Return the label of a source that another process has sent; empty for none."""
        source = self._received.get(file)
        return "" if source is None else source.label


sources = Sources()
"""Those of this process, global as `linecache` is."""


def label_of(file: str) -> str:
    """Return what people know a cell by, such as ``Cell In[3]``; empty for a file of any other."""
    if label := sources.received_label(file):
        return label
    module: Any = sys.modules.get("IPython.core.interactiveshell")
    if module is None or not module.InteractiveShell.initialized():
        return ""
    named = module.InteractiveShell.instance().compile.format_code_name(file)
    return " ".join(named) if named else ""


def with_cell_names(text: str) -> str:
    """Replace the file names of cells in a traceback by the names that IPython shows."""

    def name(found: re.Match[str]) -> str:
        indent, file = found.groups()
        label = label_of(file)
        return f"{indent}{label}, line " if label else found[0]

    return _FILE_LINE.sub(name, text)

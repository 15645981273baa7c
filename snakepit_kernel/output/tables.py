"""Tables, as html in the style of a pool's status and as aligned text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ..printable import duration
from .html import page, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell that has more than its text.

    Attributes
    ----------
    text
        What is shown.
    title
        What a page shows in addition while the pointer is on it.
    state
        The state of a worker, process or job, which a page marks by a colour.
    """

    text: str
    title: str = ""
    state: str = ""

    def as_html(self) -> str:
        """Return its content."""
        title = f' title="{shown(self.title)}"' if self.title else ""
        if self.state:
            dot = f'class="snakepit-state" data-state="{shown(self.state)}"'
            return f"<span {dot}{title}>{shown(self.text)}</span>"
        return f"<span{title}>{shown(self.text)}</span>" if title else shown(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The content of a table.

    Attributes
    ----------
    headings
        One for each column.
    rows
        The cells; their texts are on one line each.
    numbers
        The headings of columns that are aligned at the right.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    numbers: Collection[str] = ()

    def as_text(self) -> str:
        """Return it as lines with aligned columns."""
        rows = [self.headings, *([_text(cell) for cell in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(self._aligned(row, widths)).rstrip() for row in rows)

    def _aligned(self, row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
        for heading, text, width in zip(self.headings, row, widths, strict=True):
            yield text.rjust(width) if heading in self.numbers else text.ljust(width)

    def as_html(self) -> str:
        """Return it as a table, for a `page`. All texts of users are escaped."""
        kinds = [
            ' class="snakepit-number"' if heading in self.numbers else ""
            for heading in self.headings
        ]
        head = "".join(
            f"<th{kind}>{shown(heading)}</th>"
            for kind, heading in zip(kinds, self.headings, strict=True)
        )
        rows = "".join(
            "<tr>"
            + "".join(
                f"<td{kind}>{_html(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)
            )
            + "</tr>"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def as_page(self) -> str:
        """Return it as html that stands alone."""
        return page(self.as_html())


def _text(cell: str | Cell) -> str:
    return cell.text if isinstance(cell, Cell) else cell


def _html(cell: str | Cell) -> str:
    return cell.as_html() if isinstance(cell, Cell) else shown(cell)


def moment(at: datetime | None) -> Cell:
    """Return a point in time as "3 min ago" or "in 29 d", with the time itself as the title.

    Parameters
    ----------
    at
        The time, aware of its zone; None for never.
    """
    if at is None:
        return Cell(text="never")
    seconds = (at - datetime.now(UTC)).total_seconds()
    text = f"in {duration(seconds)}" if seconds > 0 else f"{duration(-seconds)} ago"
    return Cell(text=text, title=f"{at.astimezone():%Y-%m-%d %H:%M:%S}")

"""Tables: aligned text, and html in one style."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from snakepit_kernel.output.tables import Cell, Table, moment


def test_text_is_aligned_as_its_column_and_heading():
    table = Table(
        headings=("name", "bytes", "what"),
        rows=[("a", "1,234", Cell(text="x", title="hidden")), ("longer", "7", "")],
        numbers={"bytes"},
    )

    assert table.as_text().splitlines() == [
        "name    bytes  what",
        "a       1,234  x",
        "longer      7",
    ]


def test_html_aligns_headings_as_their_cells_and_escapes_all_text():
    evil = '<b>"'
    table = Table(
        headings=("name", "n"), rows=[(Cell(text=evil, title=evil, state=evil), evil)], numbers="n"
    )

    html = table.as_page()

    assert '<th>name</th><th class="snakepit-number">n</th>' in html
    assert '<td class="snakepit-number">&lt;b&gt;&quot;</td>' in html
    assert 'data-state="&lt;b&gt;&quot;" title="&lt;b&gt;&quot;">&lt;b&gt;&quot;</span>' in html
    assert evil not in html
    assert html.startswith('<div class="snakepit-pool"><style>')


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(29 * 86400 + 60, "in 29 d"), (-200, "3 min ago"), (-0.1, "0 s ago")],
)
def test_a_point_in_time_is_told_by_its_distance_and_exactly_as_a_title(seconds, text):
    at = datetime.now(UTC) + timedelta(seconds=seconds)

    assert moment(at) == Cell(text=text, title=f"{at.astimezone():%Y-%m-%d %H:%M:%S}")
    assert moment(None) == Cell(text="never")

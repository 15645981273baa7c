"""Source lines of functions that are pickled by value, on their way to where these run."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Callable, Iterator
from types import CodeType

import pytest

from snakepit_kernel.protocol import sources as module
from snakepit_kernel.protocol.sources import Source, Sources, with_cell_names

CELL = "/tmp/ipykernel_1/2.py"


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> Iterator[Callable[..., CodeType]]:
    """Compile code that has lines in `linecache`, as a cell has, and no file."""
    names: list[str] = []

    def make(text: str, name: str = CELL) -> CodeType:
        names.append(name)
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        return compile(text, name, "exec")

    yield make
    for name in names:
        linecache.cache.pop(name, None)


def test_a_cells_lines_are_sent_once_and_again_when_they_have_changed(cell):
    sources = Sources()
    code = cell("x = 1\n")

    sources.note(code)
    sources.note(code)
    assert sources.after(0) == [Source(CELL, "x = 1\n")]
    assert sources.after(1) == []

    sources.note(cell("x = 2\n"))
    assert sources.after(1) == [Source(CELL, "x = 2\n")]
    assert sources.after(0) == [Source(CELL, "x = 2\n")]


def test_a_file_is_not_sent_nor_code_without_lines_nor_a_name_of_many(cell):
    sources = Sources()
    linecache.getlines(__file__)

    sources.note(compile("1", __file__, "exec"))
    sources.note(compile("1", "nowhere", "exec"))
    sources.note(cell("1", "<string>"))

    assert sources.files == []


def test_what_is_sent_is_bounded_and_the_newest_goes_first(cell, monkeypatch):
    monkeypatch.setattr(module, "MAX_FILE_CHARS", 10)
    monkeypatch.setattr(module, "MAX_SENT_CHARS", 12)
    sources = Sources()

    for number in range(4):
        sources.note(cell(f"x = {number}\n", f"cell {number}"))
    sources.note(cell("much = 'too long'\n", "long cell"))

    assert [source.file for source in sources.after(0)] == ["cell 2", "cell 3"]


def test_received_lines_are_shown_and_do_not_hide_those_of_the_process_itself(cell):
    sources = Sources()
    cell("own = 1\n", "own cell")
    broken = compile("\n1 / 0\n", "other cell", "exec")

    sources.receive(
        [Source("own cell", "1"), Source("other cell", "\n1 / 0  # here\n", "Cell In[3]")]
    )
    try:
        exec(broken)
    except ZeroDivisionError:
        shown = traceback.format_exc()
    finally:
        linecache.cache.pop("other cell")

    assert "1 / 0  # here" in shown
    assert linecache.getline("own cell", 1) == "own = 1\n"
    assert sources.received_label("other cell") == "Cell In[3]"


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_KEPT_CHARS", 12)
    sources = Sources()

    for number in range(4):
        sources.receive([Source(f"cell {number}", "x = 1\n")])

    kept = [name for name in (f"cell {number}" for number in range(4)) if name in linecache.cache]
    for name in kept:
        linecache.cache.pop(name)
    assert kept == ["cell 2", "cell 3"]


def test_cells_in_a_traceback_get_the_names_that_ipython_shows(monkeypatch):
    monkeypatch.setattr(module.sources, "_received", {CELL: Source(CELL, "", "Cell In[3]")})
    text = f'  File "{CELL}", line 4, in f\n    x\n  File "/else.py", line 1, in g\n'

    assert with_cell_names(text) == (
        '  Cell In[3], line 4, in f\n    x\n  File "/else.py", line 1, in g\n'
    )

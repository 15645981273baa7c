"""``Stream.show()``: a stream as it comes."""

from __future__ import annotations

import re

import pytest

from snakepit_kernel import ToolError
from snakepit_kernel.pool.results import LiveView


def steps(count: int, fail: bool = False):
    for number in range(1, count + 1):
        yield {"progress": number / count, "message": f"step {number}", "loss": 1 / number}
        if fail:
            raise KeyError(number)
    yield "a text"
    yield {"result": count}
    yield {"progress": 1.0}


def test_chunks_with_progress_move_one_bar_and_the_others_are_printed(open_pool, capsys):
    pool = open_pool()
    pool.tool(steps)

    assert pool.stream("steps", {"count": 3}).show() == {"result": 3}

    said = capsys.readouterr()
    assert said.out == "a text\n{'result': 3}\n"
    assert re.search(r"33%\|\S+ +\| \[\d\d:\d\d<\S+, step 1, loss=1\]", said.err)
    assert "67%" in said.err
    assert said.err.split("\r")[-1].startswith("100%|██████████| [")


def test_a_stream_of_progress_alone_gives_none(open_pool, capsys):
    pool = open_pool()

    @pool.tool
    def tick():
        yield {"progress": 0.5}

    assert pool.tools.tick().show() is None
    assert capsys.readouterr().err.endswith("]\n"), "the bar stands where it was"


def test_an_error_ends_the_bar_and_is_raised(open_pool, capsys):
    pool = open_pool()
    pool.tool(steps)

    with pytest.raises(ToolError, match="KeyError: 1"):
        pool.stream("steps", {"count": 4, "fail": True}).show()

    assert re.search(r"25%.*\n$", capsys.readouterr().err)


VALUES = [
    {"progress": 45},
    {"progress": -0.1},
    {"progress": float("nan")},
    {"progress": True},
    {"progress": "0.5"},
    {"progress": None},
    {"else": 0.5},
    0.5,
    None,
]


@pytest.mark.parametrize("chunk", VALUES, ids=repr)
def test_what_is_not_a_part_of_one_is_a_value(chunk, capsys):
    with LiveView() as view:
        view.take(chunk)

    assert view.last is chunk
    assert capsys.readouterr() == (f"{chunk}\n", "")


@pytest.mark.parametrize("progress", [0, 1, 1.0000001, 0.5])
def test_a_part_of_one_moves_the_bar(progress, capsys):
    with LiveView() as view:
        view.take({"progress": progress, "nothing": None})

    said = capsys.readouterr()
    assert (view.last, said.out) == (None, "")
    assert f"{min(progress, 1):4.0%}|" in said.err
    assert "nothing" not in said.err

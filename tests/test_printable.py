"""Text of others comes out harmless, visible, and of bounded length, wherever it is shown."""

from __future__ import annotations

import dataclasses
import pickle
import sqlite3
import unicodedata
from contextlib import closing

import pytest
from snakepit_magics.session_views import SessionList, StatsView, VariableList, print_change

from snakepit_kernel import CellError, StartFailed, ToolError, WorkerDied
from snakepit_kernel.errors import PoolDegraded, SnakepitError, SurvivorsError
from snakepit_kernel.printable import printable
from snakepit_kernel.protocol.unserializable import Unserializable
from snakepit_kernel.sessions.state import open_session, sessions_of
from snakepit_kernel.store.store import open_store

EVIL = "a\x1b]0;title\x07b\u202ec\x9bd"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("\x1b[31m", r"\x1b[31m", id="escape"),
        pytest.param("\x00\x07\x08\x7f", r"\x00\x07\x08\x7f", id="C0 and DEL"),
        pytest.param("\x80\x9b\x9d", r"\x80\x9b\x9d", id="C1"),
        pytest.param("\u202a\u202e\u2066\u2069", r"\u202a\u202e\u2066\u2069", id="bidi controls"),
        pytest.param("\u200e\u200f\u061c", r"\u200e\u200f\u061c", id="bidi marks"),
        pytest.param("\u2028\u2029\x85", r"\u2028\u2029\x85", id="separators"),
        pytest.param(
            "\u200b\u200d\u2060\ufeff\u00ad", r"\u200b\u200d\u2060\ufeff\xad", id="hidden"
        ),
        pytest.param("\U000e0041\U000e0100", r"\U000e0041\U000e0100", id="tags"),
        pytest.param("\u3164\u115f\u034f\u2800", r"\u3164\u115f\u034f\u2800", id="no shape"),
        pytest.param("\ud800\udcff", r"\ud800\udcff", id="surrogates"),
        pytest.param("a\r\nb\n\tc", r"a\r\nb\n\tc", id="line ends"),
        pytest.param(
            "é ï 日本 c\u00a0d 🐍 \\x1b", "é ï 日本 c\u00a0d 🐍 \\x1b", id="other scripts"
        ),
    ],
)
def test_what_a_terminal_obeys_or_hides_becomes_visible(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_lines_keep_their_ends_and_tabs_alone() -> None:
    assert printable("a\r\nb\n\tc\x0b\x0c\rd\x1b", lines=True) == "a\nb\n\tc\\x0b\\x0c\\rd\\x1b"


def test_a_limit_holds_for_what_is_shown() -> None:
    assert printable("a" * 10, limit=10) == "a" * 10
    assert printable("a" * 11, limit=10) == "a" * 9 + "…"
    assert printable("\x1b" * 10**6, limit=10) == r"\x1b\x1b\…"


def test_of_all_characters_none_that_controls_or_formats_is_left() -> None:
    everything = "".join(map(chr, range(0x110000)))
    left = set(printable(everything, lines=True)) - {"\n", "\t"}
    assert {unicodedata.category(c) for c in left}.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})


@pytest.mark.parametrize(
    "error",
    [
        WorkerDied("shop-1.1", -6, EVIL),
        StartFailed("worker shop-1.1", EVIL, f"{EVIL}\nmore"),
        PoolDegraded("shop", EVIL),
        SurvivorsError("abc", [f"1 D {EVIL}"]),
        ToolError("ValueError", EVIL, f"Traceback\n{EVIL}"),
        CellError("ValueError", EVIL),
        SnakepitError(EVIL),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_with_text_of_another_process_is_printable_and_keeps_its_fields(
    error: SnakepitError,
) -> None:
    assert r"a\x1b]0;title\x07b\u202ec\x9bd" in str(error)
    assert printable(str(error), lines=True) == str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert copy.args == error.args


def test_an_error_that_somebody_derives_is_printable_too() -> None:
    class Another(SnakepitError):
        def __str__(self) -> str:
            return EVIL

    assert str(Another()) == r"a\x1b]0;title\x07b\u202ec\x9bd"


def test_what_others_wrote_into_a_store_is_shown_printable(tmp_path, capsys) -> None:
    """Names of metadata may be any text, and the rows of a store somebody else's or damaged."""
    with closing(open_store(tmp_path / "s.sqlite")) as store:
        session = open_session("s", store=store)
        session.variables.register("v", "integer", 1)
        session.variables.register("w", "integer", 1)
        session.programs.put("p", 1)
        session.metadata[EVIL] = 1
        (change,) = session.variables.history("v")
        with closing(sqlite3.connect(store.path)) as connection, connection:
            connection.execute("UPDATE variables SET name = ? WHERE name = 'w'", (EVIL,))
            connection.execute("UPDATE programs SET name = ?", (EVIL,))
            connection.execute("UPDATE sessions SET id = ? WHERE id = 's'", (EVIL,))
            connection.execute("UPDATE variables SET type = ?, description = ?", (EVIL, EVIL))
        again = SessionList(sessions_of(store), "s")
        stats = dataclasses.replace(session.stats(), types={EVIL: 1}, most_read=[(EVIL, 1)])
        print_change(dataclasses.replace(change, name=EVIL))
        shown = [
            *(repr(again), again._repr_html_()),
            *(repr(each) for each in (session.variables, session.programs, session.metadata)),
            *(session.variables._repr_html_(), repr(VariableList(session.variables.list()))),
            repr(StatsView(EVIL, stats)),
            repr(Unserializable(EVIL, EVIL)),
            capsys.readouterr().out,
        ]

    assert [text for text in shown if printable(text, lines=True) != text] == []
    assert [text for text in shown if r"\x1b]0;title" not in text] == []

"""A pattern of a stranger is used only if no text makes it slow."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from snakepit_kernel import SessionState
from snakepit_kernel.errors import ConstraintViolation
from snakepit_kernel.sessions import exports, json_format
from snakepit_kernel.sessions.exports import export_session, import_session
from snakepit_kernel.sessions.patterns import Slow, check_speed
from snakepit_kernel.sessions.variable_types import VariableType


@pytest.mark.parametrize(
    ("pattern", "max_length"),
    [
        ("[a-z]+", None),
        (r"\w+\s+\w+", None),
        (r"\d{4}-\d\d-\d\d", None),
        (r"(https?|ftp)://[^/]+/.*", None),
        (r"[^@\s]+@[^@\s.]+\.[a-z]{2,}", None),
        (r"(?i)(yes|no|maybe)", None),
        (r"(\w+,)*\w*;", 1000),
        (r"[\w.]+@[\w.]+\.[a-z]{2,}", 254),
        ("^(a|b)*c$", None),
        (r'"([^"\\]|\\.)*"', None),
        ("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", None),
        (".*x", 1000),
    ],
)
def test_a_pattern_of_the_usual_kind_is_used(pattern: str, max_length: int | None) -> None:
    check_speed(pattern, max_length)


@pytest.mark.parametrize(
    ("pattern", "max_length", "why"),
    [
        ("(a+)+b", 30, "in several ways"),
        ("(a*)*b", 30, "may be empty"),
        ("(a|a)*b", 30, "in several ways"),
        (r"(\w+\s?)+x", 30, "in several ways"),
        ("(?:a|aa)+b", 30, "in several ways"),
        ("(.*?,){20}x", 30, "in several ways"),
        ("a*a*b", None, "max_length bounds"),
        ("a*a*a*b", 1000, "smaller max_length"),
        ("a?" * 30 + "a" * 30, 60, "too many ways"),
        (r"(a+)\1b", 30, "reference to a group"),
        ("(?=(a+)+b)a", 30, "assert"),
        (r"[^\S]*\s", None, "max_length bounds"),
        (r"(?a:\S*)\x1cx", None, "max_length bounds"),
        ("(?i)k*\u212ax", None, "max_length bounds"),
        (r"(?i:[\x00-\U0010ffff])", None, "wide range"),
        (r"a*" + r"\B" * 200 + "b", 10**6, "more than 20 places"),
        ("(" * 400 + "a" + ")" * 400, 10, "too deeply"),
        ("a" * 1001, 10, "1,001 characters"),
    ],
)
def test_a_pattern_that_may_be_slow_is_refused(
    pattern: str, max_length: int | None, why: str
) -> None:
    with pytest.raises(Slow, match=why):
        check_speed(pattern, max_length)


def made(chance: random.Random, depth: int) -> str:
    """Make a pattern of few letters, in which much can be read in several ways."""
    kind = chance.randrange(8) if depth else 0
    if kind < 2:
        return chance.choice(["a", "b", "[ab]", "[^a]", ".", r"\w", r"\W", "(?i:k)", "\u212a"])
    if kind < 4:
        return made(chance, depth - 1) + made(chance, depth - 1)
    if kind == 4:
        return f"(?:{made(chance, depth - 1)}|{made(chance, depth - 1)})"
    how = chance.choice(["*", "+", "?", "{2,5}", "*?", "{3}"])
    return f"(?:{made(chance, depth - 1)}){how}"


def test_what_is_used_of_random_patterns_is_fast_for_texts_that_nearly_match() -> None:
    chance = random.Random(20261128)
    used = 0
    while used < 400:
        pattern, length = made(chance, 5), chance.choice([60, 300, 3000])
        try:
            check_speed(pattern, length)
        except Slow:
            continue
        used += 1
        for letters in ("a", "ab", "k", "aab"):
            text = (letters * length)[: length - 1] + "!"
            began = time.process_time()
            re.fullmatch(pattern, text)
            assert time.process_time() - began < 3, pattern


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "session.json"


def write(session: SessionState, file: Path, value: str, **constraints: Any) -> None:
    """Write a file with a variable that its maker has thought out."""
    session.variables.register("v", "string", "x")
    export_session(session, file)
    content = json.loads(file.read_text())
    content["variables"][0] |= {"value": value, "constraints": constraints}
    file.write_text(json.dumps(content))
    del session.variables["v"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("value", ["a" * 40, "b"], ids=["that hangs now", "that hangs later"])
def test_a_file_with_a_slow_pattern_is_refused_before_it_is_tried(
    session: SessionState, file: Path, value: str
) -> None:
    write(session, file, value, pattern="(a+)+b", max_length=50)

    with pytest.raises(ValueError, match=r"the pattern of 'v' .* in several ways.*--trust"):
        import_session(session, file)
    exported = {**json.loads(file.read_text()), "format": "snakepit-variables"}
    with pytest.raises(ValueError, match="the pattern of 'v'"):
        session.variables.import_(exported)

    assert list(session.variables) == []


def test_a_slow_pattern_of_a_trusted_file_is_the_users_business(
    session: SessionState, file: Path
) -> None:
    write(session, file, "aab", pattern="(a+)+b")
    import_session(session, file, trust=True)
    assert session.variables["v"] == "aab"


@pytest.mark.timeout(20)
def test_what_max_length_bounds_is_looked_at_behind_it_however_the_file_has_them(
    session: SessionState, file: Path
) -> None:
    write(session, file, "x@y.zz", pattern=r"[\w.]+@([\w.]+\.)[a-z]{2,}", max_length=200)
    import_session(session, file)

    with pytest.raises(ConstraintViolation, match="max_length=200"):
        session.variables["v"] = "a@" + "a." * 400_000 + "!"
    kind = VariableType.from_json("string", '{"pattern": "(a+)+b", "max_length": 3}')
    with pytest.raises(ConstraintViolation, match="max_length=3"):
        kind.accept("v", "a" * 40)


@pytest.mark.parametrize(
    ("limit", "module", "said"),
    [("MAX_BYTES", exports, "more than the 100 bytes"), ("MAX_ENTRIES", json_format, "entries")],
)
def test_a_file_that_is_too_large_has_to_be_trusted(
    session: SessionState,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    module: Any,
    said: str,
) -> None:
    session.metadata.update({f"n{number}": number for number in range(101)})
    export_session(session, file)
    monkeypatch.setattr(module, limit, 100)

    with pytest.raises(ValueError, match=f"{said}.*--trust"):
        import_session(session, file)
    assert import_session(session, file, trust=True) == 101


@pytest.mark.parametrize(
    "value",
    ["[" * 101 + "]" * 101, '{"a": ' * 101 + "1" + "}" * 101, "9" * 5000],
    ids=["lists", "dictionaries", "digits"],
)
def test_a_file_that_is_nested_or_long_without_end_is_refused(
    session: SessionState, file: Path, value: str
) -> None:
    write(session, file, "VALUE")
    file.write_text(file.read_text().replace('"VALUE"', value))
    with pytest.raises(ValueError, match=f"{file} is"):
        import_session(session, file)


def test_the_type_of_an_array_is_short_or_not_looked_at(session: SessionState, file: Path) -> None:
    write(session, file, "VALUE")
    array = {"$": "array", "dtype": "f8," * 100_000, "shape": [0], "base64": ""}
    file.write_text(file.read_text().replace('"VALUE"', json.dumps(array)))
    with pytest.raises(ValueError, match="an array of an unknown type"):
        import_session(session, file)

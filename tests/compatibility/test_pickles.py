"""Pickles of earlier versions are read: users keep results, errors and variables in files."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import snakepit_kernel

FIXTURES = Path(__file__).parents[1] / "fixtures"
KEPT: dict[str, dict[str, Any]] = json.loads((FIXTURES / "pickles.json").read_text())


@pytest.fixture(scope="module")
def maker(fixture_program) -> ModuleType:
    """The program that wrote the pickles: it tells what an object is."""
    return fixture_program("make_pickles")


def read(name: str, protocol: int) -> Any:
    return pickle.loads(base64.b64decode(KEPT[name][str(protocol)]))


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_pickle_of_an_earlier_version_is_what_it_was(maker, protocol):
    problems = []
    for name, kept in KEPT.items():
        try:
            found = maker.described(read(name, protocol))
        except Exception as error:
            problems.append(f"{name} cannot be read: {type(error).__name__}: {error}")
            continue
        found = without_newer(json.loads(json.dumps(found)), kept["is"])
        if found != kept["is"]:
            problems.append(f"{name} was\n    {kept['is']}\nand is\n    {found}")
    assert not problems, "\n".join(problems)


def without_newer(found: Any, kept: Any) -> Any:
    """Leave out fields that are newer than the pickle; they have been read, by their defaults."""
    if isinstance(found, dict) and isinstance(kept, dict):
        return {key: without_newer(found[key], kept[key]) for key in kept if key in found}
    if isinstance(found, list) and isinstance(kept, list) and len(found) == len(kept):
        return [without_newer(*pair) for pair in zip(found, kept, strict=True)]
    return found


@pytest.mark.parametrize("protocol", [4, 5])
def test_fields_that_are_newer_than_a_pickle_have_their_defaults(protocol):
    status = read("PoolStatus", protocol)

    assert (status.shells, status.processes) == (0, 0)
    assert pickle.loads(pickle.dumps(status, protocol)) == status


@pytest.mark.parametrize("protocol", [4, 5])
def test_an_error_of_an_earlier_version_can_be_raised_and_keeps_its_details(protocol):
    names = [name for name in KEPT if name.endswith(" of a call")]
    assert len(names) > 25
    for name in names:
        kind = getattr(snakepit_kernel, name.removesuffix(" of a call"))
        with pytest.raises(kind) as caught:
            raise read(name, protocol)
        error = caught.value
        assert str(error), name
        assert type(error.details) is snakepit_kernel.CallDetails, name
        assert type(error.details.attempts[0]) is snakepit_kernel.Attempt, name
        assert error.correlation_id == error.details.correlation_id == "0123456789abcdef", name
        assert error.__notes__ == ["a note"], name


def test_everything_public_that_can_be_kept_is_among_the_pickles():
    data = [name for name in snakepit_kernel.__all__ if is_kept(getattr(snakepit_kernel, name))]
    assert {name for name in data if name not in KEPT} == {
        *("PoolStats", "WorkerEnd", "WorkerStatus"),  # in PoolStatus
        "Variable",  # one of each type
    }


def is_kept(value: object) -> bool:
    """Whether it is a class of plain data, or of errors."""
    if not isinstance(value, type):
        return False
    return issubclass(value, Exception) or hasattr(value, "__dataclass_fields__")

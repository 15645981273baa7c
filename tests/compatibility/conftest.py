"""What tests of the guards share: the programs that wrote the fixtures."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="session")
def fixture_program() -> Iterator[Callable[[str], ModuleType]]:
    """Give the program of a name that writes a fixture, as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FIXTURES)
        yield importlib.import_module

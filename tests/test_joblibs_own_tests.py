"""joblib's own tests of its backends, run on ours."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from joblib.test import test_parallel as theirs

import snakepit_kernel.joblib as backend

BACKENDS = frozenset({"backend", "parent_backend", "child_backend"})
"""Parameters of their tests that name a backend."""

OTHERS = {
    # They are about memory that loky and multiprocessing map, or about contexts of multiprocessing.
    "test_backend_no_multiprocessing",
    "test_parallel_unordered_generator_returns_fastest_first_with_exceptions",
}
"""Tests that are about something else than a backend as such."""


@pytest.fixture(scope="module", autouse=True)
def shared_pools_end():
    yield
    backend.close()


def _parameters(mark: pytest.Mark) -> set[str]:
    names = mark.args[0]
    return set(names.replace(" ", "").split(",") if isinstance(names, str) else names)


def _on_ours(test: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return a test with our backend in place of theirs; None if it is not about backends."""
    marks = list(getattr(test, "pytestmark", ()))
    ours = [
        pytest.mark.parametrize(mark.args[0], ["snakepit"]).mark
        if mark.name == "parametrize" and _parameters(mark) <= BACKENDS
        else mark
        for mark in marks
    ]
    if ours == marks:
        return None

    @functools.wraps(test)
    def on_ours(*args: Any, **kwargs: Any) -> Any:
        return test(*args, **kwargs)

    on_ours.pytestmark = ours  # type: ignore[attr-defined]
    return on_ours


def _tests() -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, test in vars(theirs).items():
        if name.startswith("test_") and name not in OTHERS and (ours := _on_ours(test)):
            yield name, ours


globals().update(dict(_tests()))

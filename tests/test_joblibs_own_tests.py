"""joblib's own tests of its backends, run on ours."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from joblib.test import test_parallel as theirs

import snakepit_kernel.joblib as backend

BACKENDS = frozenset(
    {"backend", "parent_backend", "child_backend", "outer_backend", "inner_backend"}
)
"""Parameters of their tests that name a backend."""

OTHERS = {
    # Arrays that loky maps: ours travel another way.
    "test_auto_memmap_on_arrays_from_generator",
    "test_memmapping_leaks",
    # Programs that do not import our module.
    "test_parallel_with_interactively_defined_functions",
    "test_parallel_with_unpicklable_functions_in_args",
    "test_deadlock_with_generator",
    # Lists of a manager of multiprocessing, which only its own processes can use.
    "test_dispatch_multiprocessing",
    "test_initializer_context",
    "test_initializer_parallel",
    "test_background_thread_parallelism",  # loky's
    # Workers that are others after an error, and one job as the default: ours are neither.
    "test_error_capture",
    "test_nested_backend_in_sequential",
}
"""Tests that are about something else than a backend as such."""


pytestmark = pytest.mark.filterwarnings("default")  # their tests cause theirs


@pytest.fixture(autouse=True)
def shared_pools_end():
    yield
    backend.close()


def _parameters(mark: pytest.Mark) -> set[str]:
    names = mark.args[0]
    return set(names.replace(" ", "").split(",") if isinstance(names, str) else names)


def _on_ours(test: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return a test with our backend in place of theirs; None if it is not about backends."""
    marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name != "xfail"]
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

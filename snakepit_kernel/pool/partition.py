"""Parts of a sequence, one for each worker: cut, and joined again."""

from __future__ import annotations

import keyword
import operator
import sys
from array import array
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import chain, pairwise
from typing import Any

from ..worker import namespace

_CONCATENATED = (list, tuple, str, bytes, bytearray, array)
"""Types whose parts are joined by ``+``; their subclasses may have another meaning."""

_JOINERS = {
    "numpy.ndarray": "concatenate",
    "numpy.MaskedArray": "ma.concatenate",
    "pandas.DataFrame": "concat",
    "pandas.Series": "concat",
    "polars.DataFrame": "concat",
    "polars.Series": "concat",
    "torch.Tensor": "cat",
}
"""Functions that join the parts of a type, in the package that defines it."""


def split(sequence: Any, count: int) -> list[Any]:
    """Cut a sequence into parts of its own kind, in its order; frames and arrays by rows.

    Parameters
    ----------
    sequence
        It has a length and can be sliced.
    count
        Number of parts. Their lengths differ by one at most, and the longer ones come first.

    Raises
    ------
    TypeError
        It is no such sequence.
    """
    rows = getattr(sequence, "iloc", sequence)  # a frame's own slices may go by its labels
    try:
        if isinstance(sequence, Mapping):  # which would look for a slice among its keys
            raise TypeError
        length = len(sequence)
        rows[0:0]
    except TypeError:
        msg = (
            "scatter() takes what has a length and can be sliced, such as a list, a range, an "
            f"array or a frame, not {type(sequence).__name__}"
        )
        raise TypeError(msg) from None
    size, longer = divmod(length, count)
    ends = [size * (part + 1) + min(part + 1, longer) for part in range(count)]
    return [rows[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def join(name: str, parts: Mapping[int, Any]) -> Any:
    """Join values of workers to one value of the first one's kind.

    Parameters
    ----------
    name
        Name of the variable, for errors.
    parts
        The values, in their order, by the numbers of their workers.

    Returns
    -------
    object
        A list of the values if they are of a kind that cannot be joined, such as numbers.

    Raises
    ------
    TypeError
        Some can be joined, and others are of another kind.
    """
    (first_worker, first), *_ = parts.items()
    values = list(parts.values())
    joiner = _joiner_of(first)
    for worker, value in parts.items():
        if type(value) is not type(first) and (joiner or _joiner_of(value)):
            msg = (
                f"{name!r} cannot be joined: it is of type {type(first).__name__} in worker "
                f"{first_worker}, and of type {type(value).__name__} in worker {worker}"
            )
            raise TypeError(msg)
    return values if joiner is None else joiner(values)


def _joiner_of(value: Any) -> Any:
    """Return the function that joins values of a kind; None if they cannot be joined."""
    if isinstance(value, range):
        return _join_ranges
    if type(value) in _CONCATENATED:
        return _concatenate
    for kind in type(value).__mro__:
        package = kind.__module__.partition(".")[0]
        found = _JOINERS.get(f"{package}.{kind.__name__}")
        if found is not None:
            is_scalar = getattr(value, "shape", None) == ()
            return None if is_scalar else operator.attrgetter(found)(sys.modules[package])
    return None


def _concatenate(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if isinstance(first, list | tuple):
        return type(first)(chain.from_iterable(parts))
    if isinstance(first, str):
        return "".join(parts)
    return reduce(operator.add, parts)


def _join_ranges(parts: Sequence[range]) -> range | list[int]:
    """Join ranges to one if each begins where the one before it has ended; else to a list."""
    filled = [part for part in parts if part] or [parts[0]]
    first, last = filled[0], filled[-1]
    is_one = all(
        before.stop == after.start and before.step == after.step
        for before, after in pairwise(filled)
    )
    if is_one:
        return range(first.start, last.stop, first.step)
    return list(chain.from_iterable(parts))


def check_variable(method: str, name: object) -> None:
    """Raise ValueError unless a name can be that of a variable."""
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        msg = f"{method}() takes the name of a variable first, such as 'rows', not {name!r}"
        raise ValueError(msg)


def complete(name: str, found: Mapping[int, namespace.Found]) -> dict[int, Any]:
    """Return the values of all workers; raise NameError if a part is missing."""
    parts = {worker: each.part for worker, each in found.items() if each.part is not None}
    if parts:
        first = next(iter(parts.values()))
        workers = sorted({worker for part in parts.values() for worker in part.workers})
        lost = [worker for worker in workers if parts.get(worker) != first]
        if lost:
            msg = (
                f"{name!r} is not complete: the part of {workers_named(lost)} is lost; a worker "
                "that was replaced, or removed from the pool, has lost its names; scatter() the "
                "sequence again"
            )
            raise NameError(msg)
        found = {worker: found[worker] for worker in workers}
    missing = [worker for worker, each in found.items() if not each.is_defined]
    if missing:
        msg = (
            f"name {name!r} is not defined in {workers_named(missing)}; a worker that was replaced "
            "has lost its names"
        )
        raise NameError(msg)
    return {worker: each.value for worker, each in found.items()}


def workers_named(workers: Sequence[int]) -> str:
    """Return workers in words: "worker 2", "workers 1, 2 and 4"."""
    if len(workers) == 1:
        return f"worker {workers[0]}"
    return f"workers {', '.join(map(str, workers[:-1]))} and {workers[-1]}"

"""The types of variables and their constraints. Pure: no clock, no I/O.

=============  =============================================  ===============================
type           values                                         constraints
=============  =============================================  ===============================
``string``     text                                           min_length, max_length, pattern
``integer``    whole numbers of any size; no booleans         min, max
``float``      numbers, also nan and inf; no booleans         min, max
``boolean``    True, False
``choice``     one of ``choices``                             choices (required)
``list``       lists                                          min_length, max_length
``dict``       dictionaries                                   min_length, max_length
``bytes``      bytes                                          min_length, max_length
``array``      NumPy arrays                                   shape, min, max
``embedding``  vectors: finite numbers, a list or an array    shape, min, max
``any``        whatever can be pickled
=============  =============================================  ===============================

NumPy's scalars are accepted as numbers, and are returned as Python's. A value is never converted to
one of another meaning: neither ``"1"`` nor ``True`` is an integer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import ConstraintViolation, VariableTypeError, suggest

_LENGTHS = ("min_length", "max_length")
_BOUNDS = ("min", "max")

CONSTRAINTS: Final[dict[str, tuple[str, ...]]] = {
    "string": (*_LENGTHS, "pattern"),
    "integer": _BOUNDS,
    "float": _BOUNDS,
    "boolean": (),
    "choice": ("choices",),
    "list": _LENGTHS,
    "dict": _LENGTHS,
    "bytes": _LENGTHS,
    "array": ("shape", *_BOUNDS),
    "embedding": ("shape", *_BOUNDS),
    "any": (),
}
"""The constraints of each type."""

_WORDS: Final = {
    "string": "text",
    "integer": "a whole number",
    "float": "a number",
    "boolean": "True or False",
    "choice": "one of its choices",
    "list": "a list",
    "dict": "a dictionary",
    "bytes": "bytes",
    "array": "a NumPy array",
    "embedding": "a vector of finite numbers, as a list or a NumPy array",
}

ANY_SIZE: Final = None
"""Length in a ``shape`` of an axis of any length."""

_SCALARS = (str, int, float, bool)


@dataclass(frozen=True, slots=True)
class VariableType:
    """Type of a variable, with its constraints.

    Attributes
    ----------
    name
        Name of the type.
    constraints
        Constraints by name, normalized.
    """

    name: str
    constraints: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def checked(cls, name: object, constraints: Mapping[str, Any]) -> VariableType:
        """Make a type from a user's arguments.

        Raises
        ------
        TypeError, ValueError
            There is no such type or constraint, or a constraint is invalid.
        """
        if not isinstance(name, str) or name not in CONSTRAINTS:
            known = tuple(CONSTRAINTS)
            near = suggest(name, known) if isinstance(name, str) else f"; there are: {known}"
            msg = f"there is no type {name!r} of variables{near}"
            raise ValueError(msg)
        given = {key: value for key, value in constraints.items() if value is not None}
        for constraint in given:
            if constraint not in CONSTRAINTS[name]:
                near = suggest(constraint, CONSTRAINTS[name])
                msg = f"variables of type {name} have no constraint {constraint!r}{near}"
                raise ValueError(msg)
        normal = {key: _NORMALIZE[key](value) for key, value in _in_order(name, given).items()}
        _check_together(name, normal)
        return cls(name, normal)

    @classmethod
    def from_json(cls, name: str, constraints: str) -> VariableType:
        """Decode a type from the store.

        Raises
        ------
        TypeError, ValueError
            The stored text is damaged.
        """
        found = json.loads(constraints)
        if name not in CONSTRAINTS or not isinstance(found, dict):
            msg = f"there are no {name!r} variables with {constraints!r}"
            raise ValueError(msg)
        return cls.checked(name, found)

    def as_json(self) -> str:
        """Encode the constraints as JSON."""
        return json.dumps(self.constraints)  # with infinity and whole numbers of any size

    def accept(self, variable: str, value: object) -> Any:
        """Check a value, and convert it to this type.

        Parameters
        ----------
        variable
            Name of the variable, for the error.
        value
            The value.

        Raises
        ------
        VariableTypeError
            It is of another type.
        ConstraintViolation
            It breaks a constraint.
        """
        if self.name == "any":
            return value
        try:
            accepted = _ACCEPT[self.name](value, self.constraints)
        except _WrongType as wrong:
            given = str(wrong) or type(value).__name__
            raise VariableTypeError(variable, _WORDS[self.name], given) from None
        for constraint, bound in self.constraints.items():
            problem = _PROBLEM[constraint](accepted, bound)
            if problem:
                raise ConstraintViolation(variable, constraint, bound, problem)
        return accepted


def _in_order(name: str, constraints: Mapping[str, Any]) -> dict[str, Any]:
    """Return constraints in the order in which they are checked: the slowest last."""
    known = CONSTRAINTS.get(name, ())
    first = [key for key in known if key in constraints]
    return {key: constraints[key] for key in dict.fromkeys([*first, *constraints])}


class _WrongType(Exception):
    """A value is of another type; the text describes it if its class does not suffice."""


# -- values ------------------------------------------------------------------------------------


def _accept_string(value: object, _: object) -> str:
    if isinstance(value, str):
        return str.__str__(value)  # not the text of a subclass, of an enum for example
    raise _WrongType


def _accept_integer(value: object, _: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if _is_numpy_scalar(value, "iu"):
        return int(value)  # type: ignore[call-overload, no-any-return]
    raise _WrongType


def _accept_float(value: object, _: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _float_of(value)
    if _is_numpy_scalar(value, "fiu"):
        return _float_of(value.item())  # type: ignore[attr-defined]
    raise _WrongType


def _float_of(value: float) -> float:
    """Return the same number as a float."""
    try:
        number = float(value)
    except OverflowError:
        raise _WrongType("a whole number too large for a float") from None
    if number != value and not math.isnan(number):
        raise _WrongType("a number that no float is equal to")
    return number


def _accept_boolean(value: object, _: object) -> bool:
    if isinstance(value, bool) or _is_numpy_scalar(value, "b"):
        return bool(value)
    raise _WrongType


def _accept_choice(value: object, constraints: Mapping[str, Any]) -> object:
    given = _scalar(value)
    for choice in constraints["choices"]:
        if type(choice) is type(given) and choice == given:
            return choice
    if isinstance(given, _SCALARS):
        return given  # of a possible type: the constraint is violated, not the type
    raise _WrongType


def _scalar(value: object) -> object:
    """Convert text, numbers and booleans to Python's own types; return others unchanged."""
    if isinstance(value, bool) or _is_numpy_scalar(value, "b"):
        return bool(value)
    for kind, kinds in ((int, "iu"), (float, "f")):
        if isinstance(value, kind) or _is_numpy_scalar(value, kinds):
            return kind(value)  # type: ignore[call-overload, arg-type]
    return str.__str__(value) if isinstance(value, str) else value


def _accept_list(value: object, _: object) -> object:
    if isinstance(value, list):
        return value
    raise _WrongType


def _accept_dict(value: object, _: object) -> object:
    if isinstance(value, dict):
        return value
    raise _WrongType


def _accept_bytes(value: object, _: object) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise _WrongType


def _accept_array(value: object, _: object) -> object:
    if _is_array(value):
        return value
    raise _WrongType


def _accept_embedding(value: object, _: object) -> object:
    if _is_array(value):
        if value.ndim != 1 or value.dtype.kind not in "fiu":  # type: ignore[attr-defined]
            raise _WrongType(f"an array of {value.ndim} axes and type {value.dtype}")  # type: ignore[attr-defined]
        import numpy as np

        if not np.isfinite(value).all():  # type: ignore[call-overload]
            raise _WrongType("one with nan or inf in it")
        return value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        return [_component(item) for item in value]
    raise _WrongType


def _component(item: object) -> float:
    try:
        number = _accept_float(item, None)
    except _WrongType:
        raise _WrongType(f"a sequence with {type(item).__name__} in it") from None
    if not math.isfinite(number):
        raise _WrongType("one with nan or inf in it")
    return number


def _is_numpy_scalar(value: object, kinds: str) -> bool:
    """Whether a value is a NumPy scalar of some kinds; does not import NumPy."""
    dtype = getattr(value, "dtype", None)
    return (
        dtype is not None
        and getattr(value, "ndim", None) == 0
        and not _is_array(value)
        and getattr(dtype, "kind", "none") in kinds
    )


def _is_array(value: object) -> bool:
    return type(value).__name__ != "generic" and any(
        base.__module__ == "numpy" and base.__qualname__ == "ndarray"
        for base in type(value).__mro__
    )


_ACCEPT: Final[dict[str, Callable[[object, Mapping[str, Any]], Any]]] = {
    "string": _accept_string,
    "integer": _accept_integer,
    "float": _accept_float,
    "boolean": _accept_boolean,
    "choice": _accept_choice,
    "list": _accept_list,
    "dict": _accept_dict,
    "bytes": _accept_bytes,
    "array": _accept_array,
    "embedding": _accept_embedding,
}


# -- constraints -------------------------------------------------------------------------------


def _normal_bound(value: object) -> int | float:
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"min and max are numbers, not {type(value).__name__}"
        raise TypeError(msg)
    if math.isnan(value):
        msg = "min and max are numbers, not nan"
        raise ValueError(msg)
    return value


def _normal_length(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        msg = f"min_length and max_length are whole numbers from 0, not {value!r}"
        raise ValueError(msg)
    return value


def _normal_choices(value: object) -> list[Any]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | set | frozenset):
        msg = f"choices are a list, not {type(value).__name__}"
        raise TypeError(msg)
    choices = list(map(_scalar, value))
    if isinstance(value, set | frozenset):  # the order must not depend on the process
        choices.sort(key=lambda choice: (type(choice).__name__, choice))
    if not choices:
        msg = "choices must have at least one"
        raise ValueError(msg)
    for choice in value:
        if not isinstance(_scalar(choice), _SCALARS):
            msg = f"choices are text, numbers or booleans, not {type(choice).__name__}"
            raise TypeError(msg)
    return choices


def _normal_pattern(value: object) -> str:
    if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
        letters = [letter for letter, flag in _FLAGS.items() if value.flags & flag]
        value = f"(?{''.join(letters)}){value.pattern}" if letters else value.pattern
    if not isinstance(value, str):
        msg = f"pattern is a regular expression, not {type(value).__name__}"
        raise TypeError(msg)
    try:
        re.compile(value)
    except re.error as error:
        msg = f"pattern {value!r} is no regular expression: {error}"
        raise ValueError(msg) from None
    return value


_FLAGS: Final = {
    "a": re.ASCII,
    "i": re.IGNORECASE,
    "m": re.MULTILINE,
    "s": re.DOTALL,
    "x": re.VERBOSE,
}
"""Flags of a compiled expression, by their inline form."""


def _normal_shape(value: object) -> list[int | None]:
    axes = [value] if isinstance(value, int) else value
    if isinstance(axes, str) or not isinstance(axes, Sequence):
        msg = f"shape is a tuple of lengths, not {type(value).__name__}"
        raise TypeError(msg)
    for axis in axes:
        if axis is not ANY_SIZE and (isinstance(axis, bool) or not isinstance(axis, int)):
            msg = f"an axis of a shape is a whole number, or None for any, not {axis!r}"
            raise TypeError(msg)
    return [ANY_SIZE if axis is None or axis < 0 else axis for axis in axes]


_NORMALIZE: Final[dict[str, Callable[[Any], Any]]] = {
    "min": _normal_bound,
    "max": _normal_bound,
    "min_length": _normal_length,
    "max_length": _normal_length,
    "choices": _normal_choices,
    "pattern": _normal_pattern,
    "shape": _normal_shape,
}


def _check_together(name: str, constraints: Mapping[str, Any]) -> None:
    if name == "choice" and "choices" not in constraints:
        msg = "variables of type choice need choices: choices=['fast', 'exact']"
        raise ValueError(msg)
    for low, high in (_BOUNDS, _LENGTHS):
        if low in constraints and high in constraints and constraints[low] > constraints[high]:
            msg = f"{low}={constraints[low]!r} is more than {high}={constraints[high]!r}"
            raise ValueError(msg)
    if name == "embedding" and len(constraints.get("shape", [None])) != 1:
        msg = f"a vector has one axis: shape is its length, not {constraints['shape']}"
        raise ValueError(msg)


def _min_problem(value: Any, bound: float) -> str:
    if _holds(value, lambda item: item >= bound):
        return ""
    return f"the value must be at least {bound!r}"


def _max_problem(value: Any, bound: float) -> str:
    if _holds(value, lambda item: item <= bound):
        return ""
    return f"the value must be at most {bound!r}"


def _holds(value: Any, test: Callable[[Any], Any]) -> bool:
    """Whether a test holds, for each element where there are several. It never does for nan."""
    if isinstance(value, list):
        return all(map(test, value))
    try:
        result = test(value)
    except TypeError:
        return False  # an array of objects without an order
    return bool(result.all()) if hasattr(result, "all") else bool(result)


def _min_length_problem(value: Any, bound: int) -> str:
    return "" if len(value) >= bound else f"it has {len(value)} elements, and needs {bound}"


def _max_length_problem(value: Any, bound: int) -> str:
    return "" if len(value) <= bound else f"it has {len(value)} elements, and may have {bound}"


def _choice_problem(value: Any, choices: Sequence[Any]) -> str:
    if any(type(choice) is type(value) and choice == value for choice in choices):
        return ""
    return "the value is not one of its choices"


def _pattern_problem(value: str, pattern: str) -> str:
    return "" if re.fullmatch(pattern, value) else "the text does not match its pattern as a whole"


def _shape_problem(value: Any, shape: Sequence[int | None]) -> str:
    actual = tuple(value.shape) if _is_array(value) else (len(value),)
    fits = len(actual) == len(shape) and all(
        wanted is ANY_SIZE or wanted == length for wanted, length in zip(shape, actual, strict=True)
    )
    return "" if fits else f"its shape is {actual}"


_PROBLEM: Final[dict[str, Callable[[Any, Any], str]]] = {
    "min": _min_problem,
    "max": _max_problem,
    "min_length": _min_length_problem,
    "max_length": _max_length_problem,
    "choices": _choice_problem,
    "pattern": _pattern_problem,
    "shape": _shape_problem,
}

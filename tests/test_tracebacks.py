"""Leaving the frames of this package out of tracebacks."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from types import FunctionType
from typing import Any

import pytest

from snakepit_kernel import Pool, Session, Shell, tracebacks
from snakepit_kernel.shells.driver import CommandRequest, ShellOptions
from snakepit_kernel.shells.of_session import SessionProcesses
from snakepit_kernel.tracebacks import FULL_VARIABLE, hide_own_frames, hides_own_frames

OURS = """
def refuse():
    raise ValueError("no")

def trip():
    return {}["missing"]

def call_back(function):
    return function()

def wrap():
    try:
        trip()
    except KeyError as error:
        raise ValueError("no") from error
"""


@pytest.fixture(scope="module")
def ours() -> dict[str, Any]:
    """Functions that count as this package's own."""
    space: dict[str, Any] = {"__name__": "snakepit_kernel.made_up"}
    exec(OURS, space)
    for name in [name for name, value in space.items() if isinstance(value, FunctionType)]:
        space[f"public_{name}"] = hides_own_frames(space[name])
    return space


def frames_of(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)][1:]


def raised_by(function: Any, *args: Any) -> BaseException:
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError


def test_an_error_that_is_raised_on_purpose_shows_none_of_our_frames(ours):
    assert frames_of(raised_by(ours["public_refuse"])) == []
    assert frames_of(raised_by(ours["refuse"])) == ["refuse"]


def test_wrong_arguments_show_none_of_our_frames(ours):
    assert frames_of(raised_by(ours["public_refuse"], 1)) == []


def test_a_fault_of_this_package_keeps_all_its_frames(ours):
    assert frames_of(raised_by(ours["public_trip"])) == ["call", "trip"]


def test_the_frames_of_the_users_code_stay(ours):
    def mine():
        ours["refuse"]()

    assert frames_of(raised_by(ours["public_call_back"], mine)) == ["mine"]


def test_causes_show_none_of_our_frames_either(ours):
    error = raised_by(ours["public_wrap"])

    assert isinstance(error.__cause__, KeyError)
    assert error.__cause__.__traceback__ is None


def test_an_interrupt_anywhere_shows_none_of_our_frames(ours):
    def interrupt():
        raise KeyboardInterrupt

    interrupt_of_ours = FunctionType(interrupt.__code__, {"__name__": "zmq.poll"})

    assert frames_of(raised_by(ours["public_call_back"], interrupt_of_ours)) == []


def test_frames_of_a_compiled_module_between_show_not(ours):
    code = compile("raise KeyboardInterrupt", "zmq/backend/cython/_zmq.py", "exec")
    without_names = FunctionType(code, {})

    assert frames_of(raised_by(ours["public_call_back"], without_names)) == []


def test_coroutines_and_generators_show_none_of_our_frames(ours):
    async def coroutine():
        ours["refuse"]()

    def generator():
        yield 1
        ours["refuse"]()

    def made_ours(function: FunctionType) -> Any:
        space = {"__name__": "snakepit_kernel.made_up", "ours": ours}
        return hides_own_frames(
            FunctionType(function.__code__, space, closure=function.__closure__)
        )

    async def mine():
        await made_ours(coroutine)()

    assert frames_of(raised_by(asyncio.run, mine()))[-1] == "mine"
    assert frames_of(raised_by(list, made_ours(generator)())) == []


def test_an_environment_variable_keeps_all_frames(ours, monkeypatch):
    monkeypatch.setenv(FULL_VARIABLE, "1")
    assert frames_of(raised_by(ours["public_refuse"])) == ["call", "refuse"]

    monkeypatch.setenv(FULL_VARIABLE, "0")
    assert frames_of(raised_by(ours["public_refuse"])) == []


def test_a_class_is_left_as_it_is_but_for_what_its_public_methods_raise():
    @hides_own_frames
    class Public:
        """A class."""

        def method(self, number: int, *, key: str = "") -> int:
            """Do something."""
            return number

        def fast(self) -> None:
            hide_own_frames(ValueError())

        def _private(self) -> None: ...

    assert Public().method(3) == 3
    assert list(inspect.signature(Public.method).parameters) == ["self", "number", "key"]
    assert Public.method.__doc__ == "Do something."
    assert Public.method.__code__.co_filename == tracebacks.__file__
    assert Public.fast.__code__.co_filename == Public._private.__code__.co_filename == __file__


UNKNOWN = [
    (lambda: Pool(wokers=2), "workers"),
    (lambda: Pool.run(None, "1", chekc=True), "check"),
    (lambda: Pool.call(None, "price", timeuot=1), "timeout"),
    (lambda: Pool.session(None, "a", afinity="hint"), "affinity"),
    (lambda: Session.run_all(None, "1", pul=["a"]), "pull"),
    (lambda: asyncio.run(Session.arun(None, "1", worke=1)), "worker"),
    (lambda: Shell.run(None, "true", timeuot=1), "timeout"),
    (lambda: SessionProcesses.start(None, "true", nmae="a"), "name"),
    (lambda: CommandRequest.checked(None, "true", timeuot=1), "timeout"),
    (lambda: ShellOptions.checked(tiemout=1), "timeout"),
]


@pytest.mark.parametrize(("call", "meant"), UNKNOWN, ids=range(len(UNKNOWN)))
def test_an_unknown_option_is_told_with_the_one_that_may_be_meant(call, meant):
    error = raised_by(call)

    assert type(error) is TypeError
    assert str(error).startswith("there is no option '")
    assert str(error).endswith(f"; did you mean {meant!r}?")
    others = {"<lambda>", "run", "run_until_complete"}  # of the test, and of asyncio above it
    assert [name for name in frames_of(error) if name not in others] == []


def test_an_unknown_option_far_from_all_is_told_with_those_that_there_are():
    error = raised_by(lambda: ShellOptions.checked(zzz=1))

    assert str(error) == (
        "there is no option 'zzz'; there are: checkpoint, cwd, env, max_output, on_exit, timeout"
    )


def test_a_wrong_argument_of_the_users_own_function_is_told_as_python_tells_it(ours):
    def mine(*, amount: int) -> None: ...

    error = raised_by(ours["public_call_back"], lambda: mine(amuont=1))

    assert "got an unexpected keyword argument 'amuont'" in str(error)

"""Arguments are checked in the owner's process, before a worker is taken."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import textwrap
import time
import types

import numpy as np
import pytest
from IPython.core.completer import IPCompleter, provisionalcompleter

from snakepit_kernel import InvalidArguments

ADAPTER = '''
    import dataclasses, os, pathlib
    from typing import Annotated, Literal
    import msgspec
    from snakepit_kernel import tool

    pathlib.Path(f"imported-by-{os.getpid()}").touch()

    @dataclasses.dataclass
    class Place:
        street: str
        number: int = 1

    @tool
    def send(place: Place, amount: Annotated[int, msgspec.Meta(ge=1)] = 1,
             how: Literal["air", "sea"] = "sea") -> str:
        """Send something."""
        return f"{amount} to {place.number} {place.street} by {how}"
'''


@pytest.fixture
def post(tmp_path, monkeypatch, open_pool):
    """A pool with an adapter whose module tells who imports it."""
    (tmp_path / "post_office.py").write_text(textwrap.dedent(ADAPTER))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield open_pool(adapter="post_office")
    sys.modules.pop("post_office", None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"item": 3}, "argument 'item': Expected `str`, got `int`"),
        ({}, "missing argument 'item'"),
        ({"item": "tea", "amout": 1}, "unknown argument 'amout'"),
    ],
)
def test_a_bad_call_on_a_busy_pool_fails_at_once_and_is_not_submitted(pool, arguments, said):
    nap = pool.submit(time.sleep, 30)
    before = pool.stats().submitted
    began = time.monotonic()

    with pytest.raises(InvalidArguments, match=said):
        pool.call("price", arguments)

    assert time.monotonic() - began < 10
    assert pool.stats().submitted == before == 1
    nap.cancel()


async def awaited(pool, name, arguments):
    return await pool.acall(name, arguments)


def test_an_awaited_call_and_a_function_of_the_notebook_are_checked_alike(pool):
    import asyncio

    @pool.tool
    def double(x: int) -> int:
        return 2 * x

    with pytest.raises(InvalidArguments):
        asyncio.run(awaited(pool, "double", {"x": "1"}))
    with pytest.raises(InvalidArguments):
        pool.session("one").tools.double("1")

    assert pool.stats().submitted == 0
    assert pool.tools.double(np.int64(2)) == 4


def test_the_adapters_module_is_not_imported_in_the_owner(post, tmp_path):
    import os

    with pytest.raises(InvalidArguments, match="'amount': Expected `int` >= 1, got 0"):
        post.tools.send({"street": "Elm"}, amount=0)
    with pytest.raises(InvalidArguments, match="'how': Expected one of 'air', 'sea', got 'rail'"):
        post.tools.send({"street": "Elm"}, how="rail")

    assert post.stats().submitted == 0
    assert "post_office" not in sys.modules
    assert not (tmp_path / f"imported-by-{os.getpid()}").exists()
    assert list(tmp_path.glob("imported-by-*"))


def test_a_class_of_the_adapter_is_checked_by_the_worker_alone(post):
    with pytest.raises(InvalidArguments, match=r"'place': Expected `int`, got `str` - at `\$.numb"):
        post.tools.send({"street": "Elm", "number": "7"})
    assert post.stats().submitted == 1
    with pytest.raises(InvalidArguments, match="missing argument 'place'"):
        post.tools.send()
    assert post.stats().submitted == 1

    assert post.tools.send({"street": "Elm", "number": 7}, how="air") == "1 to 7 Elm by air"


def test_a_class_that_the_owner_has_is_checked_there_too(post):
    import post_office

    with pytest.raises(InvalidArguments, match="Unknown field 'numer'"):
        post.tools.send({"street": "Elm", "numer": 7})

    assert post.stats().submitted == 0
    assert post.tools.send(post_office.Place("Elm")) == "1 to 1 Elm by sea"


def test_a_module_that_was_reloaded_here_has_the_say_with_its_new_classes(post):
    import importlib

    import post_office

    assert post.tools.send(post_office.Place("Elm")) == "1 to 1 Elm by sea"
    importlib.reload(post_office)

    assert post.tools.send(post_office.Place("Oak")) == "1 to 1 Oak by sea"


def test_a_module_here_that_differs_from_the_workers_refuses_nothing(post):
    old = sys.modules["post_office"] = types.ModuleType("post_office")
    old.Place = dataclasses.make_dataclass("Place", [("number", str)])

    assert post.tools.send({"street": "Elm"}) == "1 to 1 Elm by sea"


def test_a_tool_as_a_method_has_the_signature_and_the_text_of_the_tool(post):
    send = post.tools.send

    assert str(inspect.signature(send)) == post.tools["send"].signature
    assert list(inspect.signature(send).parameters) == ["place", "amount", "how"]
    assert inspect.getdoc(send) == "Send something."


@pytest.mark.parametrize("use_jedi", [True, False])
@pytest.mark.parametrize("text", ["pool.tools.pr", "session.tools.pr", 'pool.tools["pr'])
def test_tab_completes_tools_in_ipython(pool, use_jedi, text):
    completer = IPCompleter(namespace={"pool": pool, "session": pool.session("one")})
    completer.use_jedi = use_jedi

    with provisionalcompleter():
        found = [item.text.lstrip(".") for item in completer.completions(text, len(text))]

    assert found == ["price"]

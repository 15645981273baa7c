"""A function is pickled anew as soon as anything in it has changed."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

from snakepit_kernel.protocol.codec import Codec
from snakepit_kernel.protocol.encoders import encoders
from snakepit_kernel.protocol.function_pickles import MAX_KEPT_BYTES, FunctionPickles

SOURCE = """
import math

rate = 2
tax = None

def price(item=1):
    "What it costs."
    return math.floor(item) * rate

def other(item=1):
    return "other"
"""


@pytest.fixture
def notebook() -> dict[str, Any]:
    """The globals of a notebook that has run `SOURCE`."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(SOURCE, namespace)
    return namespace


def restored(function: Callable[..., Any]) -> Callable[..., Any]:
    body, buffers = Codec().dumps_call(function, (), {})
    assert not buffers
    made: Callable[..., Any] = pickle.loads(body)[0]
    return made


def is_kept(function: Callable[..., Any]) -> bool:
    """Whether the pickle of a function that was pickled once is used a second time."""
    pickles, codec, counts = FunctionPickles(), Codec(), [0]

    def dumps(value: object) -> tuple[bytes, list[memoryview]]:
        counts[0] += 1
        return codec.dumps(value)

    for _ in range(3):
        pickles.get(function, dumps)
    return counts == [1]


def test_a_function_that_cannot_have_changed_is_pickled_once(notebook):
    assert is_kept(notebook["price"])
    assert is_kept(eval("lambda x: math.sqrt(x)", notebook))
    assert restored(notebook["price"])() == 2


def rebind_global(price: types.FunctionType, notebook: dict[str, Any]) -> None:
    notebook["rate"] = 3


def shadow_module(price: types.FunctionType, notebook: dict[str, Any]) -> None:
    notebook["math"] = types.SimpleNamespace(floor=lambda _: 7)


def define_default(price: types.FunctionType, notebook: dict[str, Any]) -> None:
    price.__defaults__ = (5,)


def change_code(price: types.FunctionType, notebook: dict[str, Any]) -> None:
    price.__code__ = notebook["other"].__code__


def set_attribute(price: types.FunctionType, notebook: dict[str, Any]) -> None:
    price.unit = "EUR"


def annotate(price: types.FunctionType, notebook: dict[str, Any]) -> None:
    price.__annotations__ = {"item": int}


def rename(price: types.FunctionType, notebook: dict[str, Any]) -> None:
    price.__name__ = price.__qualname__ = "cost"


def document(price: types.FunctionType, notebook: dict[str, Any]) -> None:
    price.__doc__ = "Nothing."


CHANGES = [
    *(rebind_global, shadow_module, define_default, change_code),
    *(set_attribute, annotate, rename, document),
]


def look(function: Callable[..., Any]) -> tuple[object, ...]:
    names = ("__name__", "__qualname__", "__doc__", "__defaults__", "__annotations__")
    return function(), vars(function), *(getattr(function, name) for name in names)


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_pickled_anew(notebook, change):
    price = notebook["price"]
    before = look(restored(price))

    change(price, notebook)

    assert look(restored(price)) == look(price) != before


def test_a_global_that_is_defined_later_is_there(notebook):
    exec("def taxed(): return later", notebook)
    with pytest.raises(NameError):
        restored(notebook["taxed"])()
    notebook["later"] = None

    assert restored(notebook["taxed"])() is None


def test_a_submodule_that_is_imported_later_is_there_as_well(notebook, tmp_path, monkeypatch):
    """It is named in the pickle, or the receiver would not import it."""
    package = tmp_path / "shop_with_parts"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "till.py").write_text("def add(a, b): return a + b")
    monkeypatch.syspath_prepend(tmp_path)
    exec("import shop_with_parts\ndef f(): return shop_with_parts.till.add(1, 2)", notebook)
    Codec().dumps_call(notebook["f"], (), {})
    importlib.import_module("shop_with_parts.till")

    body, _ = Codec().dumps_call(notebook["f"], (), {})

    code = "import pickle, sys; f, a, _ = pickle.load(sys.stdin.buffer); print(f(*a), end='')"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, input=body, stdout=-1, check=True, env=env).stdout
    assert said == b"3"


def test_a_module_that_is_to_be_pickled_by_value_is(notebook):
    exec("def f(): return shop.price", notebook)
    shop = notebook["shop"] = sys.modules["shop"] = types.ModuleType("shop")
    shop.price = 1
    try:
        Codec().dumps_call(notebook["f"], (), {})
        cloudpickle.register_pickle_by_value(shop)
        body, _ = Codec().dumps_call(notebook["f"], (), {})
        cloudpickle.unregister_pickle_by_value(shop)
    finally:
        del sys.modules["shop"]

    assert pickle.loads(body)[0]() == 1


@pytest.mark.parametrize(
    "source",
    [
        "lambda: data",
        "lambda x=[]: x",
        "(lambda n: lambda: n)(1)",
        "lambda: data.append",
        "lambda: bound",
        "lambda: price",
        "lambda: [data for _ in (1,)]",
        "lambda: [(lambda: data)() for _ in (1,)]",
    ],
)
def test_what_may_change_in_place_is_pickled_each_time(notebook, source):
    notebook["data"] = [1]
    notebook["bound"] = notebook["data"].append

    assert not is_kept(eval(source, notebook))


def test_a_function_of_a_module_is_not_kept_though_its_name_is_dotted(monkeypatch):
    """Its module may get another one of that name, and what was kept would be that one."""
    module = types.ModuleType("shop_of_a_test")
    exec("class Shop:\n    def price(): return 1", module.__dict__)
    monkeypatch.setitem(sys.modules, "shop_of_a_test", module)
    price = module.Shop.price
    Codec().dumps_call(price, (), {})
    module.Shop.price = lambda: 2

    assert restored(price)() == 1


@pytest.mark.parametrize("kind", [types.ModuleType, types.BuiltinFunctionType, types.FunctionType])
def test_an_encoder_that_is_registered_later_is_used(notebook, monkeypatch, kind):
    function = eval("lambda: (math, math.floor)", notebook)
    assert is_kept(function)
    monkeypatch.setitem(encoders.reducers, kind, lambda _: (str, ("encoded",)))

    assert not is_kept(function)


def test_a_list_that_grows_is_seen(notebook):
    notebook["data"] = []
    total = eval("lambda: len(data)", notebook)
    assert restored(total)() == 0
    notebook["data"].append(1)

    assert restored(total)() == 1


def test_large_pickles_are_not_kept_and_nothing_keeps_a_function_alive(notebook):
    notebook["text"] = "x" * (MAX_KEPT_BYTES + 1)
    assert not is_kept(eval("lambda: text", notebook))

    function = eval("lambda: rate", notebook)
    Codec().dumps_call(function, (), {})
    watch = weakref.ref(function)
    del function
    assert watch() is None


def test_where_code_must_not_be_sent_a_pickle_that_is_kept_is_not_sent_either(notebook):
    function = eval("lambda: 1", notebook)
    Codec().dumps_call(function, (), {})

    with pytest.raises(TypeError, match="another Python"):
        Codec(cannot_send_code_reason="another Python").dumps_call(function, (), {})

"""Bars of tqdm in a worker are drawn where the call was made."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import sys
import time

import pytest

from snakepit_kernel import CallTimeout, ToolError, WorkerDied


@pytest.fixture(autouse=True)
def marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mark the bars that are drawn in this process: a bar that a worker prints looks the same."""
    from tqdm.std import tqdm

    draw = tqdm.format_meter
    monkeypatch.setattr(tqdm, "format_meter", staticmethod(lambda **how: f"here {draw(**how)}"))


def lines(text: str) -> list[str]:
    """The lines that a terminal would keep, without the bars' blocks and the times."""
    kept = [found[-1] for line in text.split("\n")[:-1] if (found := re.findall(r"[^\r]+", line))]
    kept = [re.sub(r"\|[^|]*\|", "|", line) for line in kept]
    return [re.sub(r"\x1b\[A|\[\d.*(it/s|\?)(, )?|\]", "", line).strip() for line in kept]


KINDS = {
    "tqdm.tqdm": "from tqdm import tqdm",
    "tqdm.std.tqdm": "from tqdm.std import tqdm",
    "tqdm.auto.tqdm": "from tqdm.auto import tqdm",
    "tqdm.notebook.tqdm": "from tqdm.notebook import tqdm",
    "tqdm.asyncio.tqdm": "from tqdm.asyncio import tqdm",
    "a class of one's own": "import tqdm as t\nclass tqdm(t.tqdm):\n    pass",
    "trange": "from tqdm import trange\ntqdm = lambda r, **kw: trange(len(r), **kw)",
    "tnrange": "from tqdm.notebook import tnrange\ntqdm = lambda r, **kw: tnrange(len(r), **kw)",
}


def loop(imports: str, count: int) -> int:
    names: dict = {}
    exec(imports, names)
    return list(names["tqdm"](range(count), desc="fit"))[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bar_of_a_tool_is_drawn_here_up_to_its_end(kind, open_pool, capsys):
    pool = open_pool()
    pool.tool(loop)

    assert pool.call("loop", {"imports": KINDS[kind], "count": 20}) == 19

    said = capsys.readouterr()
    assert lines(said.err) == ["here fit: 100%| 20/20"]
    assert "here fit:   0%|" in said.err
    assert said.out == ""


def run(pool, kind: str):
    imports = KINDS["tqdm.tqdm"]
    match kind:
        case "call":
            pool.call("loop", {"imports": imports, "count": 5})
        case "session":
            pool.session("s").tools.loop(imports, 5)
        case "acall":
            asyncio.run(pool.acall("loop", {"imports": imports, "count": 5}))
        case "submit":
            pool.submit(loop, imports, 5).result()
        case "map":
            list(pool.map(loop, [imports], [5]))
        case "stream":
            assert list(pool.stream("yielding")) == [0, 1, 2, 3, 4]
        case "astream":

            async def take():
                return [chunk async for chunk in pool.astream("yielding")]

            assert asyncio.run(take()) == [0, 1, 2, 3, 4]
        case "a tool that awaits":
            pool.call("awaiting")


def yielding():
    from tqdm import tqdm

    yield from tqdm(range(5), desc="fit")


async def awaiting():
    from tqdm.asyncio import tqdm

    async for _ in tqdm(range(5), desc="fit"):
        pass


WAYS = ["call", "session", "acall", "submit", "map", "stream", "astream", "a tool that awaits"]


@pytest.mark.parametrize("way", WAYS)
def test_bars_are_drawn_whichever_way_the_call_is_made(way, open_pool, capsys):
    pool = open_pool()
    for function in (loop, yielding, awaiting):
        pool.tool(function)

    run(pool, way)

    assert lines(capsys.readouterr().err) == ["here fit: 100%| 5/5"]


def test_bars_of_calls_in_threads_follow_their_own_calls(tmp_path, monkeypatch, open_pool, capsys):
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nfrom tqdm import tqdm\nfrom snakepit_kernel import tool\n"
        "thread_safe = True\nboth = threading.Barrier(2)\n"
        "@tool\ndef meet(name: str, alone: int):\n"
        "    for i in tqdm(range(3 + alone), desc=name):\n"
        "        both.wait(20) if i < 3 else time.sleep(0.11)\n"
    )
    monkeypatch.chdir(tmp_path)
    pool = open_pool(adapter="threaded", profile="thread", threads_per_worker=2)

    async def main() -> None:
        short = pool.acall("meet", {"name": "short", "alone": 0})
        await asyncio.gather(pool.acall("meet", {"name": "long", "alone": 3}), short)

    asyncio.run(main())

    said = capsys.readouterr().err
    assert "here short: 100%" in said
    assert "here long: 100%" in said, "told although the other call had ended"


def test_a_bar_looks_as_the_tool_wants_it(open_pool, capsys):
    pool = open_pool()

    def draw():
        import numpy as np
        from tqdm.auto import tqdm

        bar = tqdm(total=np.int64(40), unit="B", unit_scale=True, colour="green", ascii=" .#")
        bar.set_description("load")
        bar.update(np.int64(10))
        bar.set_postfix(loss=0.5, step="two")
        bar.refresh()
        bar.close()

    pool.submit(draw).result()

    last = capsys.readouterr().err.split("\r")[-1]
    assert last.startswith("here load:  25%|\x1b[32m##")
    assert "10.0/40.0 [" in last
    assert "B/s, loss=0.5, step=two]" in last


def test_what_stands_beside_a_bar_may_be_anything(open_pool, capsys):
    pool = open_pool()

    def draw():
        from tqdm import tqdm

        tqdm(total=2, postfix=[1, "two"], bar_format="{l_bar}{postfix[1]}").close()
        tqdm(total=2**80, desc="much").close()
        tqdm(total=0.5, desc="part").close()

    pool.submit(draw).result()

    assert lines(capsys.readouterr().err) == [
        "here   0%| 0/2 [1, 'two'",
        f"here much:   0%| 0/{float(2**80)}",
        "here part:   0%| 0/0.5",
    ]


def test_a_bar_without_a_total_counts(open_pool, capsys):
    pool = open_pool()

    def draw():
        from tqdm import tqdm

        for _ in tqdm(iter(range(7)), desc="count"):
            pass

    pool.submit(draw).result()

    assert re.search(r"here count: 7it \[\S+ \S+it/s\] *\n$", capsys.readouterr().err)


def test_a_bar_can_be_reset_to_another_total(open_pool, capsys):
    pool = open_pool()

    def draw():
        from tqdm import tqdm

        bar = tqdm(total=3)
        bar.update(3)
        bar.reset(total=8)
        bar.update(8)
        bar.close()

    pool.submit(draw).result()

    assert lines(capsys.readouterr().err) == ["here 100%| 8/8"]


def test_the_clock_of_a_bar_is_the_workers_own(open_pool, capsys):
    """A stream is taken slowly here, and its bar says how long the worker took."""
    pool = open_pool()
    pool.tool(yielding)

    for _ in pool.stream("yielding"):
        time.sleep(0.25)

    assert "[00:00<00:00" in capsys.readouterr().err.split("\r")[-1]


def test_bars_inside_bars_are_drawn_below_them_and_leave_as_they_are_told(open_pool, capsys):
    pool = open_pool()

    def draw():
        from tqdm import tqdm, trange

        for _ in tqdm(range(2), desc="outer"):
            for _ in trange(2, desc="inner", leave=False):
                pass

    pool.submit(draw).result()

    said = capsys.readouterr().err
    assert "\n\rhere inner:   0%" in said
    assert "\n\n" not in said, "the second takes the place of the first"
    assert said.count("\r" + " " * 20) >= 2, "each inner one is wiped out"
    assert lines(said)[-1] == "here outer: 100%| 2/2"


def test_a_bar_in_a_loop_with_a_bar_is_drawn_below_it(open_pool, capsys):
    from tqdm import tqdm

    pool = open_pool()
    pool.tool(loop)

    for _ in tqdm(range(2), desc="here"):
        pool.call("loop", {"imports": KINDS["tqdm.tqdm"], "count": 2})

    said = capsys.readouterr().err
    assert "\n\rhere fit:   0%" in said
    assert "here here: 100%" in said


def test_a_disabled_bar_is_not_drawn_and_one_for_a_file_goes_there(open_pool, capsys, tmp_path):
    pool = open_pool()

    def draw(path):
        from tqdm import tqdm
        from tqdm.auto import tqdm as auto

        for kind in (tqdm, auto):
            for _ in kind(range(3), disable=True):
                pass
        with open(path, "w") as file:
            for _ in tqdm(range(3), file=file):
                pass

    pool.submit(draw, str(tmp_path / "log")).result()

    assert capsys.readouterr().err == ""
    assert "3/3" in (tmp_path / "log").read_text()


def test_lines_that_are_written_beside_a_bar_stand_above_it(open_pool, capfd, monkeypatch):
    pool = open_pool()
    monkeypatch.setattr(sys, "stdout", sys.stderr)  # as in a terminal, where both are one

    def draw():
        from tqdm import tqdm

        for number in tqdm(range(3)):
            tqdm.write(f"wrote {number}")
            print(f"printed {number}")

    pool.submit(draw).result()

    kept = lines(capfd.readouterr().err)
    assert kept == [f"{how} {n}" for n in range(3) for how in ("wrote", "printed")] + [
        "here 100%| 3/3"
    ]


def test_bars_of_pandas_work_by_themselves(open_pool, capsys):
    pool = open_pool()

    def draw():
        import pandas
        from tqdm.auto import tqdm

        tqdm.pandas(desc="rows")
        return pandas.Series([1, 2, 3]).progress_apply(lambda x: 2 * x).sum()

    assert pool.submit(draw).result() == 12
    assert lines(capsys.readouterr().err) == ["here rows: 100%| 3/3"]


# -- bars that do not come to their end ------------------------------------------------------------


def halting(how: str) -> None:
    import builtins
    import os
    import time

    from tqdm import tqdm

    builtins.bar = bar = tqdm(total=10, desc="fit")  # or it is closed when it is collected
    bar.update(3)
    bar.refresh()
    if how == "raises":
        raise KeyError(how)
    if how == "dies":
        os._exit(9)
    if how != "returns":
        time.sleep(30)


@pytest.mark.parametrize(
    ("how", "error"),
    [("returns", None), ("raises", ToolError), ("dies", WorkerDied), ("is late", CallTimeout)],
)
def test_a_bar_stands_where_it_was_when_its_call_ends(how, error, open_pool, capsys):
    pool = open_pool()
    pool.tool(halting)

    with contextlib.nullcontext() if error is None else pytest.raises(error):
        pool.call("halting", {"how": how}, timeout=0.5 if how == "is late" else None)

    assert lines(capsys.readouterr().err) == ["here fit:  30%| 3/10"]


def test_a_bar_stands_where_it_was_when_its_future_is_cancelled(open_pool, capsys):
    pool = open_pool()
    said = ""

    future = pool.submit(halting, "is cancelled")
    while "3/10" not in said:
        time.sleep(0.01)  # what is drawn is no event
        said += capsys.readouterr().err
    future.cancel()
    pool.submit(int).result()  # comes after it

    assert (said + capsys.readouterr().err).endswith("\n")


# -- without tqdm, and without a bar ---------------------------------------------------------------


def test_without_tqdm_here_a_line_tells_of_each_tenth(open_pool, capsys, monkeypatch):
    pool = open_pool()
    for module in ("tqdm", "tqdm.std", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, module, None)

    def draw():
        from tqdm import tqdm

        for _ in tqdm(range(40), desc="fit", mininterval=0):
            pass
        bar = tqdm(desc="count", mininterval=0)
        bar.update(7)
        bar.close()

    pool.submit(draw).result()

    tenths = [f"fit, {n}0%, {4 * n} of 40 it" for n in range(1, 11)]
    assert capsys.readouterr().err.splitlines() == [*tenths, "count, 7 it"]


def test_a_bar_that_cannot_be_drawn_here_is_told_in_lines(open_pool, capsys):
    """Its class adds to what its format may name; that class is in the worker alone."""
    pool = open_pool()

    def draw():
        from tqdm import tqdm

        class Own(tqdm):
            def __str__(self):
                return "fits"

        for _ in Own(range(4), bar_format="{l_bar}{something}"):
            pass
        return "well"

    assert pool.submit(draw).result() == "well"
    assert capsys.readouterr().err.splitlines()[-1] == "100%, 4 of 4 it"


def test_a_worker_imports_tqdm_only_when_a_tool_does(open_pool):
    pool = open_pool()

    def imported():
        import sys

        return [name for name in sys.modules if name.startswith(("tqdm", "ipywidgets"))]

    def source():
        import inspect

        import tqdm.std

        return inspect.getsource(tqdm.std)[:20]

    assert pool.submit(imported).result() == []
    assert pool.submit(source).result(), "and it is found as ever"


def test_tqdm_may_have_been_imported_before_the_worker_was_forked(
    open_pool, capsys, with_templates
):
    pool = open_pool(preload=["tqdm.notebook"])
    pool.tool(loop)

    pool.call("loop", {"imports": KINDS["tqdm.notebook.tqdm"], "count": 3})

    assert lines(capsys.readouterr().err) == ["here fit: 100%| 3/3"]


def test_a_fault_in_drawing_is_not_the_calls(open_pool, monkeypatch, caplog):
    from tqdm.std import tqdm

    pool = open_pool()
    pool.tool(loop)

    def broken(**_: object) -> str:
        raise RuntimeError

    monkeypatch.setattr(tqdm, "format_meter", staticmethod(broken))
    with caplog.at_level(logging.DEBUG, "snakepit_kernel"):
        assert pool.call("loop", {"imports": KINDS["tqdm.tqdm"], "count": 3}) == 2

    assert "a bar cannot be drawn; it is shown as text" in caplog.messages

"""What sessions on one worker have for themselves: names, working directory, environment."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest
from jupyter_client import BlockingKernelClient

from snakepit_kernel import ToolError

PLACES = """
import asyncio, os
from pathlib import Path
from snakepit_kernel import Adapter, tool

def here():
    return Path.cwd().name, os.environ.get("MARK")

class Places(Adapter):
    @tool
    def go(self, name: str):
        Path(name).mkdir(exist_ok=True)
        os.chdir(name)
        os.environ["MARK"] = name
        return here()

    @tool
    def where(self):
        return here()

    @tool
    def shown(self) -> str:
        import subprocess
        return subprocess.check_output("echo $MARK; pwd", shell=True, text=True)

    @tool
    def ask(self, name: str):
        before = here()
        asked = self.context.call_host_tool(name)
        return before, asked, here()

    @tool
    async def aask(self, name: str):
        before = here()
        asked = await self.context.acall_host_tool(name)
        return before, asked, here()

    @tool
    async def ago(self, name: str):
        return self.go(name)

    @tool
    def wander(self):
        for name in ("one", "two"):
            self.go(name)
            yield here()
            os.chdir("..")

    @tool
    async def awander(self):
        for name in ("one", "two"):
            self.go(name)
            yield here()
            await asyncio.sleep(0)
            os.chdir("..")

    @tool
    def main(self) -> list:
        import __main__
        return [name for name in vars(__main__) if not name.startswith("_")]

    @tool
    def set_main(self, name: str):
        import __main__
        setattr(__main__, name, 1)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "places.py").write_text(PLACES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MARK", raising=False)
    return tmp_path


@pytest.fixture
def pool(folder, open_pool):
    return open_pool(adapter="places:Places")


@pytest.fixture
def sessions(pool):
    """Two sessions and anonymous work, all on one worker."""
    return pool.session("a"), pool.session("b"), pool


# -- names -----------------------------------------------------------------------------------------


def test_sessions_on_one_worker_do_not_see_each_others_names(sessions):
    for number, session in enumerate(sessions):
        assert session.run(f"x = {number}\nmine_{number} = 1").ok

    for number, session in enumerate(sessions):
        assert session.run("x").value == number
        seen = session.run("sorted(n for n in dir() if n.startswith('mine'))").value
        assert seen == [f"mine_{number}"]


def test_a_name_of_another_session_is_not_defined(sessions):
    a, b, pool = sessions
    a.run("secret = 1")

    for session in (b, pool):
        assert session.run("secret").error.type_name == "NameError"
        with pytest.raises(NameError):
            session.pull(["secret"])


def test_outputs_inputs_and_prompts_are_each_sessions_own(sessions):
    a, b, pool = sessions
    a.run("1 + 1")
    a.run("40 + 2")
    b.run("'of b'")

    assert a.run("_, Out[1], In[1], _ih[2], _oh[2], _1, _i1").value == (
        42,
        2,
        "1 + 1",
        "40 + 2",
        42,
        2,
        "1 + 1",
    )
    result = b.run("_, len(In), sorted(Out)")
    assert result.value == ("of b", 3, [1])
    assert result.execution_count == 2
    assert pool.run("_").value == ""
    assert [session.run("0").execution_count for session in sessions] == [4, 3, 2]


def test_the_last_error_is_that_of_the_session(sessions):
    a, b, _ = sessions
    a.run("secret = 1\nsecret / 0")

    assert b.run("import sys; hasattr(sys, 'last_value')").value is False
    assert "secret" not in b.run("%tb").stdout + b.run("%tb").stderr
    assert a.run("import sys; repr(sys.last_value)").value.startswith("ZeroDivisionError")


def test_a_future_import_is_for_its_session_alone(sessions):
    a, b, _ = sessions
    code = "def f(x: undefined_name): pass\nf.__annotations__"
    a.run("from __future__ import annotations")

    assert a.run(code).value == {"x": "undefined_name"}
    assert b.run(code).error.type_name == "NameError"


def test_classes_of_a_sessions_cells_pickle_there(sessions):
    code = "import pickle\nclass Thing:\n    of = {!r}\nthing = Thing()"
    for session in sessions:
        session.run(code.format(str(session)))

    for session in sessions:
        assert session.run("pickle.loads(pickle.dumps(thing)).of").value == str(session)
    a = sessions[0]
    main = a.run("import sys; vars(sys.modules['__main__']) is globals()")
    assert main.value is True


def test_functions_of_a_session_see_its_names_also_when_another_one_calls_tools(sessions):
    a, b, _ = sessions
    a.run("rate = 3\ndef tripled(x): return rate * x")
    b.push({"rate": 100})

    assert a.run("tripled(2)").value == 6


def test_pushed_and_pulled_variables_are_the_sessions_own(sessions):
    a, b, pool = sessions
    for number, session in enumerate(sessions):
        session.push({"x": number})

    assert [session.pull("x") for session in sessions] == [{"x": 0}, {"x": 1}, {"x": 2}]
    assert a.run("y = x + z", push={"z": 5}, pull=["y"]).pulled == {"y": 5}
    assert not b.run("z").ok
    assert not pool.run("z").ok


def test_the_last_value_is_that_of_the_session(sessions):
    a, b, _ = sessions
    a.run("'of a'")
    b.run("'of b'")

    assert b.run("None").value is None
    assert a.run("_").value == "of a"


def test_functions_that_are_submitted_find_the_namespace_of_their_session(sessions):
    def look():
        from IPython import get_ipython

        return get_ipython().user_ns.get("x")

    look.__module__ = "__main__"
    for number, session in enumerate(sessions):
        session.push({"x": number})

    assert [session.submit(look).result() for session in sessions] == [0, 1, 2]
    assert [session.submit(_main_x).result() for session in sessions] == [0, 1, 2]


def _main_x():
    import __main__

    return __main__.x


_main_x.__module__ = "__main__"


def test_what_a_tool_puts_into_the_main_module_is_its_sessions_own(sessions):
    a, b, pool = sessions
    pool.run("0")

    a.call("set_main", {"name": "_"})
    assert b.run("_").value == ""
    assert a.run("_").value == 1
    a.call("set_main", {"name": "by_a"})
    pool.call("set_main", {"name": "by_nobody"})

    assert "by_a" in a.call("main")
    assert "by_nobody" in pool.call("main")
    for names in (b.call("main"), pool.session("c").call("main")):
        assert not {"by_a", "by_nobody"} & set(names)
    assert a.run("by_a").value == 1


def test_a_shell_that_is_built_in_the_call_of_a_session_shows_that_sessions_names(sessions):
    a, b, pool = sessions
    a.push({"x": 1})  # the first thing that this worker does

    assert not b.run("x").ok
    assert not pool.run("x").ok
    assert a.run("x").value == 1


def test_completion_and_inspection_know_the_names_of_the_session(sessions):
    a, b, _ = sessions
    a.run("temperature_of_a = 1")
    code = (
        "kernel = get_ipython().kernel\n"
        "matches = kernel.do_complete('temperature_', 12)['matches']\n"
        "matches, kernel.do_inspect('temperature_of_a', 3)['found']"
    )

    assert a.run(code).value == (["temperature_of_a"], True)
    assert b.run(code).value == ([], False)


def test_a_reset_leaves_other_sessions_alone(sessions):
    a, b, _ = sessions
    for session in (a, b):
        session.run("x = 1")

    a.run("%reset -f")

    assert not a.run("x").ok
    assert b.run("x").value == 1


def test_a_cell_that_awaits_keeps_its_names_while_another_session_is_served(pool):
    a, b = pool.session("a"), pool.session("b")
    b.run("x = 'of b'")

    @pool.host_tool
    def look():
        return b.call("main")

    result = a.run(
        "import asyncio, snakepit_kernel\nx = 'of a'\n"
        "seen = await snakepit_kernel.context().acall_host_tool('look')\n"
        "await asyncio.sleep(0)\ny = 'after'\n'y' in seen, 'x' in seen, x"
    )

    assert result.value == (False, True, "of a")
    assert a.run("y").value == "after"
    assert not b.run("y").ok


def test_a_cell_that_awaits_goes_on_in_its_own_environment(folder, pool):
    a, b = pool.session("a"), pool.session("b")

    @pool.host_tool
    def look():
        return b.call("ago", {"name": "of_b"})

    result = a.run(
        "import os, snakepit_kernel\nos.environ['MARK'] = 'of a'\n"
        "seen = await snakepit_kernel.context().acall_host_tool('look')\n"
        "seen, os.environ['MARK'], os.path.basename(os.getcwd())"
    )

    assert result.value == (("of_b", "of_b"), "of a", folder.name)
    assert a.run("seen").ok
    assert b.call("where") == ("of_b", "of_b")


def test_an_attached_client_sees_the_names_of_anonymous_work(sessions):
    a, _, pool = sessions
    pool.run("free = 1")
    a.run("own = 2")
    path = a.run("import ipykernel; ipykernel.get_connection_file()").value
    client = BlockingKernelClient(connection_file=path)
    client.load_connection_file()
    client.start_channels(hb=False)  # or a late beat is the end
    try:
        client.wait_for_ready(timeout=10)
        reply = client.execute_interactive(
            "added = 'own' in dir(), free",
            user_expressions={"added": "added"},
            timeout=10,
            output_hook=lambda _: None,
        )
        assert reply["content"]["user_expressions"]["added"]["data"] == {"text/plain": "(False, 1)"}
        matches = client.complete("ow", reply=True, timeout=10)["content"]["matches"]
        assert "own" not in matches
    finally:
        client.stop_channels()

    assert not a.run("added").ok
    assert pool.run("added").value == (False, 1)
    assert a.run("own").value == 2


def test_an_interrupted_cell_leaves_names_apart(sessions):
    a, b, _ = sessions
    for session in (a, b):
        session.run("x = 1")
    for _ in range(5):
        with pytest.raises(TimeoutError):
            a.run("import time; time.sleep(30)", timeout=0.05)
        b.run("y = 1")

    assert not a.run("y").ok
    assert (a.run("x").value, b.run("x, y").value) == (1, (1, 1))


# -- directory and environment ---------------------------------------------------------------------


def test_a_session_finds_its_directory_and_environment_again_and_others_do_not(folder, sessions):
    a, b, pool = sessions
    start = folder.name, None

    assert a.call("go", {"name": "of_a"}) == ("of_a", "of_a")

    assert [session.call("where") for session in (b, pool)] == [start, start]
    assert b.call("go", {"name": "of_b"}) == ("of_b", "of_b")
    assert a.call("where") == ("of_a", "of_a")
    assert pool.call("where") == start
    assert a.call("shown") == f"of_a\n{folder / 'of_a'}\n"
    assert pool.call("shown") == f"\n{folder}\n"
    assert (folder / "of_b").is_dir()


@pytest.mark.parametrize("change", ["cell", "function", "async tool", "stream", "async stream"])
def test_whatever_changes_the_directory_changes_it_for_its_session(folder, sessions, change):
    a, b, pool = sessions
    (folder / "two").mkdir()
    if change == "cell":
        a.run("import os\nos.chdir('two')\nos.environ['MARK'] = 'two'")
    elif change == "function":
        a.submit(_go_to_two).result()
    elif change == "async tool":
        a.call("ago", {"name": "two"})
    else:
        name = "wander" if change == "stream" else "awander"
        assert list(a.stream(name))[1] == ("two", "two")
        a.run("%cd -q two")

    for _ in range(2):
        assert a.call("where") == ("two", "two")
        assert a.run("import os; os.path.basename(os.getcwd()), os.environ['MARK']").value == (
            "two",
            "two",
        )
        for other in (b, pool):
            assert other.call("where") == (folder.name, None)
            assert other.run("import os; os.environ.get('MARK')").value is None


def _go_to_two():
    os.chdir("two")
    os.environ["MARK"] = "two"


_go_to_two.__module__ = "__main__"


def test_what_a_session_takes_out_of_the_environment_stays_for_others(folder, open_pool):
    pool = open_pool(env={"GIVEN": "1"})
    a = pool.session("a")

    a.run("import os; del os.environ['GIVEN']; os.environ['PATH'] = 'elsewhere'")

    assert pool.run("import os; os.environ['GIVEN'], os.environ['PATH']").value == (
        "1",
        os.environ["PATH"],
    )
    assert a.run("'GIVEN' in os.environ, os.environ['PATH']").value == (False, "elsewhere")
    assert pool.run("os.getenv('GIVEN')").value == "1"


def test_what_the_kernel_sets_up_for_itself_is_there_for_all_sessions(sessions):
    a, b, pool = sessions
    a.call("go", {"name": "of_a"})
    a.push({"x": 1})  # which builds the kernel

    pagers = {session.run("import os; os.environ.get('PAGER')").value for session in sessions}

    assert pagers == {"cat"}
    assert b.run("import os; os.environ['MPLBACKEND']").ok
    assert pool.run("import os; os.environ['MPLBACKEND']").ok


@pytest.mark.parametrize("tool", ["ask", "aask"])
@pytest.mark.parametrize("inner", ["go", "ago"])
def test_a_session_that_is_served_inside_another_ones_call_changes_nothing_there(
    folder, pool, tool, inner
):
    a, b = pool.session("a"), pool.session("b")
    a.call("go", {"name": "of_a"})

    @pool.host_tool
    def look():
        return b.call(inner, {"name": "of_b"}), pool.call("where"), b.call("where")

    before, asked, after = a.call(tool, {"name": "look"}, timeout=10)

    assert before == after == ("of_a", "of_a")
    assert asked == (("of_b", "of_b"), (folder.name, None), ("of_b", "of_b"))
    assert a.call("where") == ("of_a", "of_a")


def test_asynchronous_calls_of_two_sessions_that_take_turns_keep_apart(folder, pool):
    a, b = pool.session("a"), pool.session("b")

    @pool.tool
    async def stroll(name: str, turns: int):
        import asyncio
        import os

        from snakepit_kernel import context

        os.environ["MARK"] = name
        if name == "a":
            asked = asyncio.ensure_future(context().acall_host_tool("other"))
        seen = []
        for _ in range(turns):
            await asyncio.sleep(0.001)
            seen.append(os.environ.get("MARK"))
        if name == "a":
            await asked
        return set(seen)

    others = []

    @pool.host_tool
    async def other():
        others.append(await b.acall("stroll", {"name": "b", "turns": 50}))

    seen = asyncio.run(a.acall("stroll", {"name": "a", "turns": 100}, timeout=20))

    assert seen == {"a"}
    assert others == [{"b"}]


def test_a_directory_that_is_gone_is_told_and_the_session_begins_where_the_worker_did(
    folder, sessions, capfd
):
    a, _, pool = sessions
    a.call("go", {"name": "of_a"})
    pool.call("where")
    (folder / "of_a").rmdir()

    assert a.call("where") == (folder.name, "of_a")
    assert "directory of session 'a' cannot be entered" in capfd.readouterr().err
    assert a.call("where") == (folder.name, "of_a")
    assert "cannot be entered" not in capfd.readouterr().err


def test_a_directory_that_is_removed_while_its_session_is_there_hurts_no_other(folder, sessions):
    a, b, _ = sessions
    a.run("import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')")

    assert b.call("where") == (folder.name, None)
    result = a.run("os.getcwd()")
    assert result.value == str(folder)
    assert "cannot be entered" in result.stderr


def test_an_interrupt_in_the_middle_of_a_nested_call_leaves_sessions_apart(folder, pool):
    a, b = pool.session("a"), pool.session("b")
    a.call("go", {"name": "of_a"})

    @pool.host_tool
    def look():
        for _ in range(10_000):
            b.call("where")

    for _ in range(5):
        with pytest.raises(TimeoutError):
            a.call("ask", {"name": "look"}, timeout=0.1)

    assert b.call("where") == (folder.name, None)
    assert a.call("where") == ("of_a", "of_a")


def test_in_threads_directory_and_environment_are_those_of_the_process(open_pool):
    pool = open_pool(profile="thread", threads_per_worker=2)
    a, b = pool.session("a"), pool.session("b")

    a.run("import os; os.environ['MARK'] = '1'; x = 1")

    assert b.run("import os; os.environ['MARK']").value == "1"
    assert not b.run("x").ok


# -- forgetting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["a", "b"])
def test_a_session_that_is_recreated_finds_nothing(folder, sessions, last):
    a, b, pool = sessions
    a.call("go", {"name": "of_a"})
    a.run("x = 1")
    b.run("x = 2")
    if last == "a":
        a.run("0")

    pool._engine.forget_session("a")

    again = pool.session("a")
    assert again.call("where") == (folder.name, None)
    assert again.run("x").error.type_name == "NameError"
    assert again.run("0").execution_count == 2
    assert b.run("x").value == 2
    again.run("x = 3")
    assert pool.run("1").ok
    assert again.run("x").value == 3


@pytest.mark.parametrize("first", ["call", "cell", "pull", "submit", "push"])
def test_whatever_a_recreated_session_does_first_finds_nothing(folder, sessions, first):
    a, _, pool = sessions
    a.call("go", {"name": "of_a"})
    a.push({"x": 1})
    pool._engine.forget_session("a")

    again = pool.session("a")
    if first == "call":
        assert "x" not in again.call("main")
    elif first == "cell":
        assert again.run("import os; 'x' in dir(), os.environ.get('MARK')").value == (False, None)
    elif first == "pull":
        with pytest.raises(NameError):
            again.pull("x")
    elif first == "submit":
        assert again.submit(os.getcwd).result() == str(folder)
    else:
        again.push({"y": 1})
        assert not again.run("x").ok
        assert again.run("y").ok


def test_a_forgotten_session_has_no_host_tools_and_is_not_listed(pool):
    session = pool.session("a")

    @session.host_tool
    def own():
        return 1

    assert session.call("ask", {"name": "own"})[1] == 1
    assert pool.status().sessions == ["a"]

    pool._engine.forget_session("a")

    assert pool.status().sessions == []
    with pytest.raises(ToolError, match="there is no tool 'own'"):
        session.call("ask", {"name": "own"})


def test_a_forgotten_strict_session_takes_any_worker_again(open_pool):
    pool = open_pool(2)
    session = pool.session("a", affinity="strict_queue")
    home = session.submit(os.getpid).result()
    busy = session.submit(time.sleep, 1.0)

    pool._engine.forget_session("a")

    assert session.submit(os.getpid).result() != home
    assert not busy.done()


def test_forgetting_a_session_whose_call_runs_leaves_the_call_alone(folder, pool):
    a = pool.session("a")

    @pool.host_tool
    def forget():
        pool._engine.forget_session("a")
        return pool.call("where")

    a.push({"x": 1})
    _, asked, _ = a.call("ask", {"name": "forget"}, timeout=10)

    assert asked == (folder.name, None)
    assert not a.run("x").ok


def test_a_forgotten_session_leaves_nothing_in_the_workers_memory(pool):
    session = pool.session("a")
    session.run("import weakref\nclass Big: pass\nbig = Big()")
    pool.run(
        "import gc\nalive = lambda: (gc.collect(), "
        "sum(type(o).__name__ == 'Big' for o in gc.get_objects()))[1]"
    )
    assert pool.run("alive()").value == 1

    pool._engine.forget_session("a")

    pool.run("0")
    assert pool.run("alive()").value == 0


def test_many_threads_with_a_session_each_keep_apart_on_few_workers(folder, open_pool):
    pool = open_pool(2, adapter="places:Places", affinity="strict_queue")
    wrong = []

    def work(number: int) -> None:
        session = pool.session(f"s{number}")
        name = f"dir{number}"
        session.call("go", {"name": name})
        session.run(f"x = {number}")
        for _ in range(10):
            if session.call("where") != (name, name) or session.run("x").value != number:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong
    assert sorted(p.name for p in Path(folder).glob("dir*")) == [f"dir{n}" for n in range(6)]


def test_a_kernel_that_is_built_in_the_call_of_a_session_is_built_where_the_worker_began(
    folder, sessions
):
    a, b, pool = sessions
    (folder / "of_a").mkdir()
    (folder / "of_a" / "ipython_config.py").write_text("raise SystemExit('read in of_a')")
    a.call("go", {"name": "of_a"})

    a.push({"x": 1})

    assert a.run("x").value == 1
    assert a.call("where") == ("of_a", "of_a")
    assert [session.call("where") for session in (b, pool)] == [(folder.name, None)] * 2

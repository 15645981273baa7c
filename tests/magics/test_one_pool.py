"""One pool of a name in a notebook, whoever opens it, and however often the notebook is run."""

from __future__ import annotations

from pathlib import Path

PIDS = "print(*[worker.pid for worker in pool.status().workers])"

SHOP = """
import snakepit_kernel
class Shop(snakepit_kernel.Adapter):
    @snakepit_kernel.tool
    def price(self) -> int:
        return PRICE
"""


def is_running(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_notebook_that_is_run_twice_has_the_same_pool_at_its_second_run(notebook):
    cells = [
        "pool = %snakepit start --workers 2",
        "@pool.tool\ndef double(x: int) -> int:\n    return 2 * x",
        "%%snakepit\nvalue = 1",
        "%snakepit resize 1",
    ]
    for cell in cells:
        assert notebook.run(cell).status == "ok"
    notebook.run("first = pool")

    for cell in cells:
        shown = notebook.run(cell)
        assert shown.status == "ok"
        if "start" in cell:
            said = "pool default is running already, with these options: 1 worker\n"
            assert shown.stdout == said

    assert notebook.run("pool is first").text == "True"
    assert notebook.run("%%snakepit\nvalue").text == "1"


def test_other_options_are_an_error_that_names_them_unless_the_pool_is_to_be_replaced(notebook):
    refused = notebook.run("%snakepit start --workers 1 --grace 5 --max-memory 1G")
    assert refused.stderr.strip().endswith(
        "pool 'default' is running already, with other options: --workers is 2, not 1; --grace is "
        "2.0, not 5.0; --max-memory is None, not 1073741824. Add --replace to end it and open the "
        "new one, or --name NAME to open another one"
    )
    before = notebook.run(PIDS).stdout.split()
    assert all(map(is_running, before))

    assert notebook.run("new = %snakepit start -n 1 --replace").status == "ok"

    assert not any(map(is_running, before))
    assert notebook.run("pool.is_open, new.is_open, len(new.slots())").text == "(False, True, 1)"
    assert notebook.run("%%snakepit\n1 + 1").text == "2"


def test_a_class_of_the_notebook_that_was_defined_anew_is_the_same_adapter(open_notebook):
    notebook = open_notebook()
    notebook.run(SHOP.replace("PRICE", "3"))
    notebook.run("pool = %snakepit start --workers 1 --adapter Shop")
    notebook.run(SHOP.replace("PRICE", "4"))

    shown = notebook.run("pool = %snakepit start --workers 1 --adapter Shop")

    assert shown.stdout.splitlines() == [
        "pool default is running already, with these options: 1 worker",
        "%snakepit reload Shop gives the workers Shop as it is now",
    ]
    assert notebook.run("pool.tools.price()").text == "3"
    notebook.run("%snakepit reload Shop")
    assert notebook.run("pool.tools.price()").text == "4"
    assert notebook.run("%snakepit start --workers 1 --adapter Shop").stdout.count("\n") == 1


def test_a_pool_of_python_is_the_magics_pool_too(open_notebook):
    notebook = open_notebook()
    notebook.run("from snakepit_kernel import Pool\npool = Pool(1)")

    assert notebook.run("%%snakepit\n1 + 1").text == "2"
    assert "pool default of" in notebook.run("%snakepit status").text
    notebook.run("mine = %snakepit use --pool default")
    again = notebook.run("again = %snakepit start --workers 1")
    assert again.stdout == "pool default is running already, with these options: 1 worker\n"
    assert notebook.run("mine is pool is again").text == "True"
    assert notebook.run("%snakepit stop").stdout == "pool default has ended\n"
    assert notebook.run("pool.is_open").text == "False"


def test_a_pool_of_python_that_nothing_refers_to_ends_although_magics_have_used_it(open_notebook):
    notebook = open_notebook()
    notebook.run("from snakepit_kernel import Pool\npool = Pool(1)")
    assert "pool default of" in notebook.run("%snakepit status").text
    (pid,) = notebook.run(PIDS).stdout.split()

    ended = notebook.run(
        "import gc, os, time\ndel pool; gc.collect()\n"
        "until = time.monotonic() + 20\n"
        f"while os.path.exists('/proc/{pid}'):\n"
        "    assert time.monotonic() < until\n    time.sleep(0.02)"
    )

    assert ended.status == "ok", ended
    assert "no pool is running" in notebook.run("%snakepit status").stderr


def test_a_pool_of_a_magic_lives_without_a_name_in_the_notebook(open_notebook):
    notebook = open_notebook()
    notebook.run("_ = get_ipython().run_line_magic('snakepit', 'start --workers 1'); del _")
    notebook.run("import gc; gc.collect()")

    assert notebook.run("%%snakepit\n1 + 1").text == "2"


def test_a_restart_keeps_the_pool_with_its_tools_and_ends_all_that_it_had_started(notebook):
    notebook.run("@pool.tool\ndef double(x: int) -> int:\n    return 2 * x")
    notebook.run("@pool.host_tool\ndef ask() -> str:\n    return 'asked'")
    notebook.run("%snakepit set x=1")
    before = notebook.run(PIDS).stdout.split()
    child = notebook.run(
        "%%snakepit\nimport subprocess\nprint(subprocess.Popen(['setsid', 'sleep', '600']).pid)"
    ).stdout.strip()

    notebook.run("same = %snakepit restart")

    assert not any(map(is_running, [child, *before]))
    assert notebook.run("same is pool, pool.is_open, len(pool.slots())").text == "(True, True, 2)"
    assert notebook.run("%snakepit call double x=2").text == "4"
    asked = notebook.run(
        "%%snakepit\nimport snakepit_kernel\nc = snakepit_kernel.context()\n"
        "print(c.host_tools.ask(), c.variables['x'])"
    )
    assert asked.stdout == "asked 1\n"


def test_all_jobs_are_cancelled_at_once(notebook):
    for _ in range(2):
        notebook.run("%%snakepit --background\nimport time; time.sleep(600)")

    assert notebook.run("%snakepit cancel all").stdout == "2 of 2 jobs cancelled\n"
    notebook.run(
        "jobs = get_ipython().magics_manager.registry['SnakepitMagics'].jobs\n"
        "for job in jobs.values():\n    job.wait(20)"
    )
    assert notebook.run("[job.state for job in jobs.values()]").text == "['cancelled', 'cancelled']"
    assert notebook.run("%snakepit cancel all").stdout == "0 of 2 jobs cancelled\n"


def test_a_name_that_is_defined_elsewhere_is_told_where(notebook):
    notebook.run("%snakepit resize 1")
    notebook.run("%snakepit use nb")
    notebook.run("%%snakepit\nq = 5")
    notebook.run("pool.push({'r': 7})")
    notebook.run("%snakepit set v=1")
    notebook.run("@pool.tool\ndef price() -> int:\n    return q")
    notebook.run("here = 1")

    of_pool = notebook.run("print('\\n'.join(pool.run('q').error.traceback))").stdout
    assert "'q' is defined in this worker in the session 'nb'" in of_pool
    assert "pool.session('nb').run(…) sees it" in of_pool
    pushed = notebook.run("%%snakepit\nr").traceback
    assert "'r' is defined in this worker by work of no session: pool.run(…) sees it" in pushed
    tool = notebook.run("pool.tools.price()").traceback
    assert "Functions and tools do not see the names of cells: pass it as an argument" in tool
    function = notebook.run("pool.submit(lambda: q).result()").traceback
    assert "'q' was defined by a cell of this worker in the session 'nb'" in function
    variable = notebook.run("%%snakepit\nv").traceback
    assert "'v' is a variable of the session: snakepit_kernel.context().variables['v']" in variable
    notebooks = notebook.run("%%snakepit\nhere").traceback
    assert "'here' is defined in this notebook: %%snakepit --push here copies it" in notebooks
    a_tool = notebook.run("%%snakepit\nprice").traceback
    assert "'price' is a tool: pool.tools.price(…)" in a_tool
    own = notebook.run("%%snakepit\nexec('q', {})").traceback
    assert own.rstrip().endswith("name 'q' is not defined")
    plain = notebook.run("%%snakepit\nnowhere").traceback
    assert plain.rstrip().endswith("name 'nowhere' is not defined")


def test_joblib_uses_a_pool_by_default_where_it_is_asked_for_until_the_pool_ends(notebook):
    notebook.run("%snakepit start --workers 2 --name fits --joblib")
    notebook.run("import os\nfrom joblib import Parallel, delayed")
    pids = "pids = set(Parallel(batch_size=1)(delayed(os.getpid)() for _ in range(8)))"
    notebook.run(pids)

    assert notebook.run("os.getpid() in pids").text == "False"
    notebook.run("%snakepit stop fits")
    notebook.run(pids)
    assert notebook.run("pids == {os.getpid()}").text == "True"

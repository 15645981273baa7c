"""``%snakepit call`` and ``%snakepit expose``: bars, streams, jobs and host tools of a notebook."""

from __future__ import annotations

import pytest

WIDGET = "application/vnd.jupyter.widget-view+json"

TOOLS = """
import time

@pool.tool
def fit(steps: int):
    from tqdm import tqdm
    for step in tqdm(range(steps), desc="fit"):
        pass
    return step

@pool.tool
def train(steps: int):
    import pandas
    for step in range(1, steps + 1):
        yield {"progress": step / steps, "message": f"step {step}"}
    yield "done"
    yield pandas.DataFrame({"loss": [0.5]})

@pool.tool
def double(x: int):
    return 2 * x

@pool.tool
def fail():
    raise KeyError("no")

@pool.tool
def nap(path: str):
    try:
        time.sleep(60)
    finally:
        open(path, "w").close()

@pool.tool
def tick(path: str):
    try:
        while True:
            yield {"progress": 0.5}
            time.sleep(0.01)
    finally:
        open(path, "w").close()
"""


@pytest.fixture
def notebook(notebook):
    assert notebook.run(TOOLS).status == "ok"
    return notebook


def wait_for(notebook, job: int):
    return notebook.run(
        f"get_ipython().magics_manager.registry['SnakepitMagics'].jobs[{job}].wait(20)"
    )


# -- bars ------------------------------------------------------------------------------------------

CALLS = [
    "pool.call('fit', {'steps': 5})",
    "await pool.acall('fit', {'steps': 5})",
    "%snakepit call fit steps=5",
]


def test_a_bar_of_a_tool_is_a_widget_of_the_cell_that_called_it(notebook):
    for call in CALLS:
        shown = notebook.run(call)

        assert shown.status == "ok", shown.traceback
        assert [WIDGET in data for data in shown.data] == [True, False], call
        assert shown.data[0]["text/plain"].startswith("fit:   0%")
        assert shown.text.endswith("\n4")
        assert "comm_open" in shown.messages
        assert "comm_msg" in shown.messages, "and it moves"
        assert (shown.stdout, shown.stderr) == ("", "")


def test_a_bar_of_a_future_belongs_to_the_cell_that_submitted_it(notebook):
    notebook.run(
        "def draw(wait):\n    import time\n    from tqdm.auto import tqdm\n"
        "    time.sleep(wait)\n    for _ in tqdm(range(3)): pass"
    )

    notebook.run("future = pool.submit(draw, 0.5)")
    later = notebook.run("future.result()")
    notebook.run("others = [pool.submit(time.sleep, 0.5) for _ in pool.slots()]")
    queued = notebook.run("pool.submit(draw, 0).result()")

    assert (later.status, later.data) == ("ok", [])
    assert [WIDGET in data for data in queued.data] == [True]


def test_without_widgets_a_bar_is_text(notebook):
    shown = notebook.run(
        "import sys\nsys.modules['ipywidgets'] = None\npool.call('fit', {'steps': 5})"
    )

    assert shown.stderr.split("\r")[-1].startswith("fit: 100%")
    assert shown.text == "4"


def test_bars_of_cells_are_drawn_by_the_workers_own_kernel(notebook):
    text = notebook.run("%%snakepit\nfrom tqdm import tqdm\nfor _ in tqdm(range(3)): pass")
    widget = notebook.run("%%snakepit\nfrom tqdm.auto import tqdm\nfor _ in tqdm(range(3)): pass")

    assert "3/3" in text.stderr
    assert "comm_open" in widget.messages
    assert WIDGET in widget.data[0]


# -- streams ---------------------------------------------------------------------------------------


def test_a_stream_is_shown_live_and_gives_its_last_value(notebook):
    shown = notebook.run("last = %snakepit call train steps=4")

    bar, frame = shown.data
    assert WIDGET in bar
    assert "text/html" in frame
    assert shown.stdout == "done\n"
    assert notebook.run("last.loss[0]").text.endswith("0.5)")


def test_an_error_in_a_stream_shows_the_workers_traceback(notebook):
    notebook.run("@pool.tool\ndef broken():\n    yield {'progress': 0.5}\n    1 / 0")

    shown = notebook.run("%snakepit call broken")

    assert shown.error == ("ZeroDivisionError", "division by zero")
    assert "streams.py" not in shown.traceback


# -- jobs ------------------------------------------------------------------------------------------


def test_a_call_in_the_background_gives_a_job_that_has_its_value(notebook):
    notebook.run("job = %snakepit call double x=21 --background")
    wait_for(notebook, 1)

    assert "1  done" in notebook.run("%snakepit jobs").text
    assert "double x=21" in notebook.run("job").text
    assert notebook.run("job.value").text == "42"


def test_a_value_and_what_is_printed_appear_below_the_cell_that_began_the_job(notebook):
    shown = notebook.run(
        "job = %snakepit call double x=4 --background\njob.wait(20)\n"
        "job = %snakepit call train steps=2 --background\njob.wait(20)\njob.value.shape"
    )

    value, bar, frame, shape = shown.data
    assert (value["text/plain"], shape["text/plain"]) == ("8", "(1, 1)")
    assert WIDGET in bar
    assert "text/html" in frame
    assert shown.stdout == "done\n"


def test_a_call_in_the_background_that_fails_says_so_with_the_workers_traceback(notebook):
    shown = notebook.run("job = %snakepit call fail --background\njob.wait(20)")
    wrong = notebook.run("job = %snakepit call double x=q --background\njob.wait(20)")

    assert 'raise KeyError("no")' in shown.stderr
    assert "job 1 failed" in shown.stderr.splitlines()[-1]
    assert "argument 'x': Expected `int`, got `str`" in wrong.stderr
    assert wrong.stderr.count("\n") == 1


@pytest.mark.parametrize("tool", ["nap", "tick"])
def test_cancelling_a_job_interrupts_the_call_in_its_worker(tool, notebook, tmp_path):
    notebook.run("%snakepit call double x=1")  # a worker that has started
    notebook.run(f"%snakepit call {tool} path={tmp_path / 'ended'} --background")
    notebook.run("while 'busy' not in repr(pool.status().as_json()): time.sleep(0.01)")

    assert notebook.run("%snakepit cancel 1").status == "ok"
    wait_for(notebook, 1)

    assert "1  cancelled" in notebook.run("%snakepit jobs").text
    assert (tmp_path / "ended").exists()
    assert "job 1 cancelled" in notebook.run("%snakepit cancel 1").stdout


def test_a_cell_that_fails_in_several_workers_is_told_for_each(notebook):
    begin = "get_ipython().run_cell_magic('snakepit', '--background --all', '1 / 0')"
    wait = "get_ipython().magics_manager.registry['SnakepitMagics'].jobs[1].wait(20)"

    shown = notebook.run(f"{begin}\n{wait}")

    assert shown.stderr.count("Traceback (most recent call last)") == 1
    assert "ZeroDivisionError: division by zero (as in worker" in shown.stderr
    (told,) = [line for line in shown.stderr.splitlines() if line.startswith("job 1 failed")]
    assert told.endswith(
        ": 1 / 0: the cell failed in 2 of 2 workers: ZeroDivisionError in workers 1 and 2"
    )
    assert "1  failed" in notebook.run("%snakepit jobs").text


# -- host tools ------------------------------------------------------------------------------------

ANSWER = "def answer(question: str) -> str:\n    'Answers.'\n    return question.upper()"


def test_a_function_is_exposed_listed_and_called(notebook):
    notebook.run(ANSWER)
    assert notebook.run("%snakepit expose").stdout == "no host tools\n"

    exposed = notebook.run("%snakepit expose answer")

    signature = "answer(question: str) -> str"
    assert exposed.stdout == f"workers of pool default may call {signature}\n"
    assert notebook.run("%snakepit expose").stdout == f"{signature}\n    Answers.\n"
    assert notebook.run("pool.host_tools").text == signature
    assert f"may call:\n{signature}" in notebook.run("%snakepit tools").stdout
    asked = "import snakepit_kernel as s\ns.context().host_tools.answer('yes')"
    assert notebook.run(f"%%snakepit\n{asked}").text == "'YES'"


def test_a_function_is_exposed_to_one_session_alone(notebook):
    notebook.run(ANSWER)

    notebook.run("%snakepit expose answer --session mine")

    assert notebook.run("%snakepit expose").stdout == "no host tools\n"
    assert "answer" in notebook.run("%snakepit expose --session mine").stdout
    listed = "import snakepit_kernel as s\nlist(s.context().host_tools)"
    assert notebook.run(f"%%snakepit --session mine\n{listed}").text == "['answer']"
    assert notebook.run(f"%%snakepit\n{listed}").text == "[]"


def test_a_function_is_exposed_by_the_name_that_it_was_given(notebook):
    notebook.run("from snakepit_kernel import tool\n@tool(name='ask')\ndef f(): return 1")

    assert "may call ask()" in notebook.run("%snakepit expose f").stdout


MISTAKES = [
    ("anser", "there is no function 'anser' in this notebook; did you mean 'answer'?"),
    ("number", "number is of type int; a host tool is a function"),
    ("Kind", "Kind is a class; a host tool is a function"),
    ("gen", "host tool 'gen' is a generator; host tools return one value"),
    ("nameless", "nameless has no name of its own to be called by; define it by def"),
    ("answer --session 'a b'", "session name 'a b' must be"),
    ("answer twice", "unknown option or word 'twice'"),
]


def test_a_mistake_is_one_line_that_says_what_would_be_right(notebook):
    notebook.run(
        f"{ANSWER}\nnumber = 1\nclass Kind: pass\ndef gen(): yield 1\nnameless = lambda: 1"
    )

    for line, said in MISTAKES:
        shown = notebook.run(f"%snakepit expose {line}")

        assert shown.status == "error", line
        assert said in shown.stderr
        assert shown.stderr.strip().count("\n") == 0


def test_tab_completes_the_names_of_functions(notebook):
    notebook.run(f"{ANSWER}\nannual = 1")

    words = notebook.completions("%snakepit expose an")

    assert "answer" in words
    assert "annual" not in words
    assert "open" not in notebook.completions("%snakepit expose op"), "IPython has put it there"


def test_functions_of_the_notebook_use_ipythons_names_in_their_worker(notebook):
    notebook.run("pool = %snakepit start --workers 1 --name single")
    notebook.run("pool.push({'only_there': 7})")
    notebook.run("def shell(): return get_ipython().user_ns['only_there']")
    assert notebook.run("pool.submit(shell).result()").text == "7"
    notebook.run("def name(): return type(exit).__name__")
    assert notebook.run("pool.submit(name).result()").text == "'ZMQExitAutocall'"


def test_a_function_that_uses_the_pool_is_told_what_a_worker_has_instead(notebook):
    notebook.run("def recurse(): return pool.submit(pow, 2, 3)")

    shown = notebook.run("pool.submit(recurse)")

    assert shown.error[0] == "TypeError"
    assert "global 'pool' of function recurse (line 1" in shown.error[1]
    assert "snakepit_kernel.context()" in shown.error[1]

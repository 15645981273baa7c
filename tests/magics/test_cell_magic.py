"""``%%snakepit``: a cell in a worker looks as if it had run here."""

from __future__ import annotations

import pytest


def test_output_value_and_errors_of_a_worker_stand_where_the_cell_stands(notebook):
    shown = notebook.run(
        "%%snakepit\nimport sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7"
    )

    assert shown.status == "ok"
    assert (shown.stdout, shown.stderr, shown.text) == ("out\n", "err\n", "42")


def test_plots_and_frames_are_rich(notebook):
    shown = notebook.run(
        "%%snakepit\nimport matplotlib.pyplot as plt, pandas as pd\n"
        "plt.plot([1, 2])\nplt.show()\npd.DataFrame({'a': [1]})"
    )

    assert [set(data) for data in shown.data] == [
        {"text/plain", "image/png"},
        {"text/plain", "text/html"},
    ]


def test_output_arrives_while_the_cell_runs_and_in_order(notebook):
    shown = notebook.run(
        "%%snakepit\nfrom IPython.display import display\n"
        "print('one'); display('two'); print('three')"
    )

    assert shown.order == ["one", "'two'", "three"]


def test_a_progress_bar_of_a_worker_is_shown(notebook):
    shown = notebook.run("%%snakepit\nfrom tqdm import tqdm\nfor _ in tqdm(range(3)): pass")

    assert "3/3" in shown.stderr


def test_a_widget_of_a_worker_reaches_the_front_end(notebook):
    shown = notebook.run("%%snakepit\nimport ipywidgets\nipywidgets.IntSlider(value=3)")

    assert "comm_open" in shown.messages
    assert "application/vnd.jupyter.widget-view+json" in shown.data[0]


def test_an_exception_has_the_workers_name_and_traceback(notebook):
    shown = notebook.run("%%snakepit\ndef broken():\n    return 1 / 0\nbroken()")

    assert shown.status == "error"
    assert shown.error == ("ZeroDivisionError", "division by zero")
    assert "return 1 / 0" in shown.traceback
    assert "engine.py" not in shown.traceback, "none of our own frames"


def test_an_interrupt_stops_the_cell_and_the_workers_state_stays(notebook):
    """Acceptance case 51."""
    reply, seconds = notebook.interrupt_after(
        0.7, "%%snakepit\nkept = 123\nimport time\ntime.sleep(60)"
    )

    assert reply["ename"] == "KeyboardInterrupt"
    assert seconds < 20  # 0.3 on a machine that does nothing else
    assert notebook.run("%%snakepit\nkept").text == "123"


def test_variables_go_there_before_the_cell_and_come_back_after_it(notebook):
    notebook.run("x, y = 20, 1")

    shown = notebook.run("%%snakepit --push x,y --pull z\nz = 2 * x + 2 * y")

    assert shown.status == "ok"
    assert notebook.run("z").text == "42"


def test_a_cell_runs_in_every_worker_or_in_a_certain_one(notebook):
    everywhere = notebook.run(
        "%%snakepit --all --pull pid\nimport os\npid = os.getpid()\nprint(pid)"
    )
    pids = notebook.run("pid").text.strip("[]").split(", ")

    assert sorted(everywhere.stdout.splitlines()) == [  # printed as it comes
        f"[stdout:{worker}] {pid}" for worker, pid in enumerate(pids, 1)
    ]
    one = notebook.run("%%snakepit --worker 2\nprint(pid)").stdout.strip()
    assert pids[1] == one


def test_the_cells_of_a_notebook_share_a_session_and_its_worker(notebook):
    notebook.run("%%snakepit\nmine = 1")

    assert notebook.run("%%snakepit\nmine").text == "1"
    assert notebook.run("%%snakepit --session other\n1").status == "ok"


def test_a_deadline_interrupts_the_cell_and_is_told_with_where_it_was(notebook):
    shown = notebook.run("%%snakepit --timeout 0.3\nimport time\ntime.sleep(60)")

    assert shown.error is not None
    assert shown.error[0] == "CallTimeout"
    told, place, whose, advice = shown.traceback.splitlines()
    assert "was interrupted; its stack, the innermost call first:" in told
    assert "line 2 in <module>" in place
    assert "pool 'default', worker default-" in whose
    assert "give it more time" in advice


def test_a_worker_that_dies_is_told_in_a_few_lines(notebook):
    shown = notebook.run("%%snakepit\nimport os\nos._exit(9)")

    assert shown.error is not None
    assert shown.error[0] == "WorkerDied"
    assert "exited with status 9" in shown.traceback
    assert "engine.py" not in shown.traceback


def test_a_cell_in_the_background_shows_its_output_and_can_be_listed_and_cancelled(notebook):
    started = notebook.run("%%snakepit --background\nimport time\ntime.sleep(60)")
    assert started.text.startswith("job 1 running for 0")
    assert "%snakepit wait 1" in started.data[0]["text/html"]

    assert "1  running" in notebook.run("%snakepit jobs").text
    assert notebook.run("%snakepit cancel 1").status == "ok"
    notebook.run(_WAIT.format(1))
    assert "1  cancelled" in notebook.run("%snakepit jobs").text


def test_a_background_cell_gives_its_variables_back(notebook):
    notebook.run("%%snakepit --background --pull found\nfound = 6 * 7")
    notebook.run(_WAIT.format(1))

    assert "1  done" in notebook.run("%snakepit jobs").text
    assert notebook.run("found").text == "42"


_WAIT = "get_ipython().magics_manager.registry['SnakepitMagics'].jobs[{}].wait(20)"


MISTAKES = [
    ("--bogus", "unknown option or word '--bogus'"),
    ("--worker two", "'two' is not a whole number"),
    ("--worker 9", "there is no worker 9; there are 1, 2"),
    ("--worker 1 --all", "not allowed with argument --worker"),
    ("--push nope", "name 'nope' is not defined in this notebook"),
    ("--session 'a b'", "session name 'a b' must be"),
    ("--pool other", "there is no pool 'other'; there are: default"),
    ("--timeout 'x", "no closing quotation"),
]


def test_a_mistake_is_one_line_that_says_what_would_be_right(notebook):
    for line, said in MISTAKES:
        shown = notebook.run(f"%%snakepit {line}\n1")

        assert shown.status == "error", line
        assert said in shown.stderr
        assert shown.stderr.startswith("UsageError: ")
        assert shown.stderr.strip().count("\n") == 0


def test_a_page_of_a_worker_is_shown_in_the_pager(notebook):
    shown = notebook.run("%%snakepit\nlen?")

    (page,) = shown.pages
    assert "Return the number of items" in page["text/plain"]


def test_a_mistake_in_a_worker_is_told_once(notebook):
    shown = notebook.run("%%snakepit\n%%snakepit\n1")

    assert shown.status == "error"
    assert shown.stderr == "UsageError: Cell magic `%%snakepit` not found.\n"
    assert notebook.run("%%snakepit\nimport sys\nprint('UsageError: no', file=sys.stderr)").stderr


LATE = """%%snakepit
import asyncio, threading
from IPython.display import HTML, display

def show(text):
    print(text)
    display(HTML(text))

async def show_later():
    await asyncio.sleep(0.5)
    show("task")

task = asyncio.create_task(show_later())
threading.Timer(1.0, show, ["thread"]).start()
"""


def test_what_comes_late_appears_in_the_cell_that_started_it(notebook):
    started = notebook.run(LATE)

    notebook.client.execute("%%snakepit\nimport asyncio\nawait asyncio.sleep(2)")

    late = notebook.late_messages(started, 4)
    assert [message["content"].get("text") for message in late[::2]] == ["task\n", "thread\n"]
    assert [message["content"]["data"]["text/html"] for message in late[1::2]] == [
        "task",
        "thread",
    ]


SHOWS = """
def shows():
    from IPython.display import HTML, clear_output, display, update_display
    print("one")
    display(HTML("<b>two</b>"), display_id="two")
    print("three")
    clear_output(wait=True)
    update_display(HTML("<b>2</b>"), display_id="two")
    import matplotlib.pyplot as plt
    plt.plot([1]); plt.show(); print("four"); plt.plot([2])
"""
ORDER = [
    ("stream", "one\n"),
    ("display_data", "<b>two</b>"),
    ("stream", "three\n"),
    ("clear_output", None),
    ("update_display_data", "<b>2</b>"),
    ("display_data", None),
    ("stream", "four\n"),
    ("display_data", None),
]


def test_what_a_function_shows_appears_where_it_was_called(notebook):
    notebook.run(SHOWS)

    for call in ["pool.submit(shows).result()", "pool.tool(shows); pool.call('shows')"]:
        shown = notebook.run(call)
        assert shown.order_of_kinds() == ORDER
        assert shown.raw[1]["content"]["transient"] == {"display_id": "two"}
    assert notebook.run("pool.session('other').run('1').outputs[0]['data']").text == (
        "{'text/plain': '1'}"
    )


def test_an_update_in_a_later_call_has_the_id_of_the_display(notebook):
    notebook.run(
        "def first():\n"
        "    from IPython.display import HTML, display\n"
        "    vars(__import__('sys'))['handle'] = display(HTML('old'), display_id=True)\n"
        "def second():\n"
        "    from IPython.display import HTML\n"
        "    vars(__import__('sys'))['handle'].update(HTML('new'))\n"
        "session = pool.session('one', affinity='strict_queue')"
    )

    (shown,) = notebook.run("session.submit(first).result()").raw
    (updated,) = notebook.run("session.submit(second).result()").raw

    assert updated["msg_type"] == "update_display_data"
    assert updated["content"]["data"]["text/html"] == "new"
    assert updated["content"]["transient"] == shown["content"]["transient"]


def test_late_text_of_a_future_appears_in_the_cell_that_submitted_it(notebook):
    started = notebook.run(
        "def late():\n"
        "    import threading\n"
        "    threading.Timer(0.5, print, ['late']).start()\n"
        "pool.submit(late).result()"
    )

    notebook.client.execute("import time; time.sleep(1)")

    (late,) = notebook.late_messages(started, 1)
    assert late["content"]["text"] == "late\n"


@pytest.mark.parametrize("profile", ["process", "thread"])
def test_the_first_call_of_a_worker_shows_richly_in_threads_as_well(profile, open_notebook):
    notebook = open_notebook()
    notebook.run(
        "from snakepit_kernel import Pool\n"
        f"pool = Pool(workers=1, profile={profile!r})\n"
        "def show(n):\n"
        "    from IPython.display import HTML, display\n"
        "    display(HTML(str(n)))\n"
        "def shows(n):\n"
        "    import threading\n"
        "    thread = threading.Thread(target=show, args=(n,))\n"
        "    thread.start()\n"
        "    thread.join()\n"
        "    show(n)"
    )

    shown = notebook.run("_ = [f.result() for f in [pool.submit(shows, n) for n in range(3)]]")

    assert sorted(data["text/html"] for data in shown.data) == ["0", "0", "1", "1", "2", "2"]
    notebook.run("pool.terminate()")


def test_what_nested_calls_and_host_tools_show_stands_in_the_order_of_the_calls(notebook):
    notebook.run(
        "def show(text):\n"
        "    from IPython.display import HTML, display\n"
        "    display(HTML(text))\n"
        "pool.tool(show)\n"
        "@pool.host_tool\n"
        "def host():\n"
        "    show('host')\n"
        "    pool.call('show', {'text': 'nested'})\n"
        "def outer():\n"
        "    import snakepit_kernel\n"
        "    show('outer')\n"
        "    snakepit_kernel.context().host_tools.host()\n"
        "    show('outer')\n"
        "pool.tool(outer)"
    )

    for call in ["pool.submit(outer).result()", "pool.call('outer')"]:
        shown = notebook.run(call)
        assert [data["text/html"] for data in shown.data] == ["outer", "host", "nested", "outer"]

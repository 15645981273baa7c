"""``%%snakepit --all``: each output and each error is shown with the number of its worker."""

from __future__ import annotations

import pytest
from snakepit_magics.worker_outputs import WorkersView

from snakepit_kernel import CellError, CellResult

NUMBER = "import snakepit_kernel\nn = int(snakepit_kernel.context().worker[-3])\n"
"""Has each worker's number as ``n``: its name ends in its number and that of its process."""


@pytest.fixture
def notebook(shared_notebook):
    return shared_notebook


# -- outputs ---------------------------------------------------------------------------------------


def test_lines_of_text_have_the_numbers_of_their_workers(notebook):
    shown = notebook.run(
        f"%%snakepit --all\n{NUMBER}import sys\nprint('from', n)\nprint('two\\nlines')\n"
        "print('end', end='')\nsys.stderr.write('warning')"
    )

    for worker in (1, 2):
        mine = [line for line in shown.stdout.splitlines() if line.startswith(f"[stdout:{worker}]")]
        texts = [f"from {worker}", "two", "lines", "end"]
        assert mine == [f"[stdout:{worker}] {text}" for text in texts]
    assert sorted(shown.stderr.splitlines()) == ["[stderr:1] warning", "[stderr:2] warning"]


def test_results_and_displays_have_the_numbers_of_their_workers(notebook):
    shown = notebook.run(
        f"%%snakepit --all\n{NUMBER}from IPython.display import HTML, display\n"
        "display(HTML(f'<b>{n}</b>'))\n10 * n"
    )

    texts = sorted(data["text/plain"] for data in shown.data if "text/html" not in data)
    assert texts == ["[result:1] 10", "[result:2] 20"]
    kinds = shown.order_of_kinds()
    for worker in (1, 2):
        place = kinds.index(("display_data", f"<b>{worker}</b>"))
        assert kinds[place - 1] == ("stream", f"[display:{worker}]\n")


def test_the_results_of_all_workers_are_kept_in_a_variable(notebook):
    assert notebook.run(f"%%snakepit --all -o results\n{NUMBER}print(n)\nn * 10").status == "ok"

    assert (
        notebook.run("[(r.value, r.stdout) for r in results]").text
        == "[(10, '1\\n'), (20, '2\\n')]"
    )


# -- errors ----------------------------------------------------------------------------------------


def test_an_error_in_one_worker_is_shown_with_its_number_and_then_told_in_one_line(notebook):
    shown = notebook.run(f"%%snakepit --all --out kept\n{NUMBER}n if n == 1 else 1 / 0")

    said = "the cell failed in 1 of 2 workers: ZeroDivisionError in worker 2"
    assert shown.error == ("ZeroDivisionError", said)
    assert shown.traceback == f"ZeroDivisionError: {said}"
    assert shown.stderr.startswith("[error:2]\n")
    assert "division by zero" in shown.stderr
    assert shown.text == "[result:1] 1"
    assert notebook.run("[r.ok for r in kept]").text == "[True, False]"


def test_the_same_error_in_all_workers_is_shown_in_full_once(notebook):
    shown = notebook.run("%%snakepit --all --session same\nundefined_name")

    assert shown.stderr.count("Traceback (most recent call last)") == 1
    first, second = sorted(line for line in shown.stderr.splitlines() if "[error:" in line)
    assert {first[:9], second[:9]} == {"[error:1]", "[error:2]"}
    assert "NameError: name 'undefined_name' is not defined (as in worker" in first + second
    assert shown.error[1].endswith("2 of 2 workers: NameError in workers 1 and 2")


def test_errors_of_several_kinds_are_told_by_kind(notebook):
    shown = notebook.run(f"%%snakepit --all\n{NUMBER}1 / 0 if n == 1 else undefined_name")

    assert shown.error == (
        "CellError",
        "the cell failed in 2 of 2 workers: ZeroDivisionError in worker 1, NameError in worker 2",
    )


def test_a_name_that_is_defined_here_is_told_once_for_all(notebook):
    notebook.run("only_here = 1")

    shown = notebook.run("%%snakepit --all\nonly_here")

    assert shown.traceback.count("'only_here' is defined in this notebook") == 1


def test_a_variable_that_a_worker_does_not_have_is_its_error(notebook):
    shown = notebook.run(f"%%snakepit --all --pull m\n{NUMBER}if n == 1: m = 1")

    assert shown.error == ("NameError", "the cell failed in 1 of 2 workers: NameError in worker 2")
    assert "[error:2]\nNameError: name 'm' is not defined in the worker" in shown.stderr


def test_stop_ends_the_cell_in_all_workers_and_tells_where_they_were(notebook):
    reply, seconds = notebook.interrupt_after(
        0.7, "%%snakepit --all\nstopped = 1\nimport time\ntime.sleep(60)"
    )

    assert seconds < 20
    assert reply["ename"] == "KeyboardInterrupt"
    shown = "\n".join(reply["traceback"])
    assert all(f"in worker default-{worker}.1:" in shown for worker in (1, 2))
    assert notebook.run("%%snakepit --all --pull stopped\nstopped").status == "ok"
    assert notebook.run("stopped").text == "[1, 1]"


def test_a_worker_that_dies_is_told_beside_the_results_of_the_others(open_notebook):
    notebook = open_notebook()
    notebook.run("pool = %snakepit start --workers 2")

    shown = notebook.run(
        f"%%snakepit --all -o results\n{NUMBER}import os\nos._exit(3) if n == 2 else n"
    )

    assert shown.error == (
        "WorkerDied",
        "the cell failed in 1 of 2 workers: WorkerDied in worker 2",
    )
    assert "[error:2]\nWorkerDied: worker default-2.1 exited with status 3" in shown.stderr
    assert notebook.run("[(r.ok, r.value, r.worker) for r in results]").text == (
        "[(True, 1, 'default-1.1'), (False, None, 'default-2.1')]"
    )


# -- the results of a cell -------------------------------------------------------------------------


def test_the_result_of_a_cell_is_kept_in_a_variable_also_when_it_has_failed(notebook):
    shown = notebook.run("%%snakepit -o result\nprint('x')\n6 * 7")
    failed = notebook.run("%%snakepit --out failed\n1 / 0")

    assert (shown.stdout, shown.text) == ("x\n", "42")
    assert notebook.run("result.value, result.stdout").text == "(42, 'x\\n')"
    assert failed.error == ("ZeroDivisionError", "division by zero")
    assert notebook.run("failed.error.type_name").text == "'ZeroDivisionError'"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("-o 'a b'", "--out takes the name of a variable, not 'a b'"),
        ("-o class", "--out takes the name of a variable, not 'class'"),
        ("--shell -o x", "--out is for cells in a worker"),
    ],
)
def test_a_variable_that_cannot_be_is_a_mistake(notebook, options, said):
    shown = notebook.run(f"%%snakepit {options}\n1")

    assert shown.status == "error"
    assert said in shown.stderr
    assert shown.stderr.strip().count("\n") == 0


# -- the view by itself ----------------------------------------------------------------------------


def stream(worker, text, name="stderr"):
    return {
        "worker": worker,
        "msg_type": "stream",
        "content": {"name": name, "text": text},
        "metadata": {},
    }


def idle(worker):
    return {"worker": worker, "msg_type": "status", "content": {"execution_state": "idle"}}


def test_pieces_of_lines_do_not_mix_and_a_line_ends_with_the_cell_at_the_latest(capsys):
    view = WorkersView()

    for message in (stream(1, "a"), stream(2, "b"), stream(1, "c\nd"), stream(2, "e\n")):
        view.show(message)
    assert capsys.readouterr().err == "[stderr:1] ac\n[stderr:2] be\n"
    view.show(idle(1))
    assert capsys.readouterr().err == "[stderr:1] d\n"
    view.show(stream(1, "late"))
    assert capsys.readouterr().err == "[stderr:1] late\n"


def test_a_bar_is_shown_from_time_to_time_and_at_its_end(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("snakepit_magics.worker_outputs.time.monotonic", lambda: now[0])
    view = WorkersView()

    for seconds, text in [(0, "\r  0%"), (0.4, "\r 40%"), (1.2, "\r 80%"), (1.3, "\r100%\n")]:
        now[0] = 100.0 + seconds
        view.show(stream(1, text))

    shown = capsys.readouterr().err.splitlines()
    assert shown == ["[stderr:1]   0%", "[stderr:1]  80%", "[stderr:1] 100%"]


def test_an_error_of_which_no_message_has_come_is_shown_at_the_end(capsys):
    view = WorkersView()
    view.show(stream(1, "half"))

    view.end({1: CellResult(), 2: CellResult(error=CellError("WorkerDied", "gone"))})

    assert capsys.readouterr().err == "[stderr:1] half\n[error:2]\nWorkerDied: gone\n"

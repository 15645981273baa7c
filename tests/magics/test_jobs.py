"""Jobs: cells in the background, what they give, and how they are waited for."""

from __future__ import annotations

import pytest

UNTIL = """
import os, time
print("early", flush=True)
while not os.path.exists({path!r}):
    time.sleep(0.02)
print("late")
6 * 7
"""
"""A cell that ends when there is a file."""

TOUCH = "import pathlib, threading\nthreading.Timer(0.3, pathlib.Path({path!r}).touch).start()\n"


@pytest.fixture
def notebook(shared_notebook):
    return shared_notebook


@pytest.fixture
def job(notebook, tmp_path):
    """A job that runs until there is the file, as ``job`` in the notebook; its path."""
    path = str(tmp_path / "go")
    begun = notebook.run(f"%%snakepit --background -o job\n{UNTIL.format(path=path)}")
    assert begun.status == "ok", begun
    yield path
    notebook.run("job.cancel(); job.wait(20)")


def test_a_job_gives_the_result_of_its_cell_and_what_it_has_shown(notebook, job):
    assert notebook.run("job.status, job.done(), job.wait(0)").text == "('running', False, False)"

    waited = notebook.run(f"{TOUCH.format(path=job)}\njob.result(20)")

    assert waited.text.startswith("<CellResult ok, of default-")
    assert "value 42" in waited.text
    assert notebook.run("job.status, job.done(), job.stdout").text == (
        "('done', True, 'early\\nlate\\n')"
    )
    assert notebook.run("job.outputs[-1]['data']").text == "{'text/plain': '42'}"
    assert notebook.run("(await job).value").text == "42"
    ended = notebook.run("job").data[0]
    assert "done after" in ended["text/plain"]
    assert "<b>done</b> after" in ended["text/html"]


def test_what_a_job_has_shown_so_far_is_there_while_it_runs(notebook, job):
    shown = notebook.run("import time\nwhile not job.stdout: time.sleep(0.01)\njob.stdout")

    assert shown.text == "'early\\n'"


def test_a_job_that_has_not_ended_in_time_goes_on(notebook, job):
    late = notebook.run("job.result(0.1)")

    assert late.error[0] == "TimeoutError"
    assert late.error[1].endswith("has not ended within 0.1 s; it goes on")
    assert "running for" in notebook.run("%snakepit wait job --timeout 0.1").stdout
    assert notebook.run("job.status").text == "'running'"


def test_a_job_that_is_waited_for_shows_here_what_it_shows_from_now_on(notebook, job):
    notebook.run("import time\nwhile not job.stdout: time.sleep(0.01)")

    waited = notebook.run(f"{TOUCH.format(path=job)}job.wait_interactive()")

    assert waited.stdout == "late\n"
    assert waited.data[1]["text/plain"] == "42"
    assert waited.data[0]["text/plain"].startswith("job ")  # the bar
    again = notebook.run("%snakepit wait job")
    assert again.stdout.count("late") == 0
    assert "done after" in again.stdout


def test_stop_ends_the_wait_and_not_the_job(notebook, job):
    reply, seconds = notebook.interrupt_after(0.5, "%snakepit wait job")

    assert seconds < 10
    assert reply["ename"] == "KeyboardInterrupt"
    assert "goes on; %snakepit cancel" in "\n".join(reply["traceback"])
    assert notebook.run("job.status").text == "'running'"


def test_a_job_that_is_cancelled_by_its_variable_says_so_to_all_that_wait(notebook, job):
    assert notebook.run("%snakepit cancel job").status == "ok"

    assert notebook.run("job.result(20)").error[0] == "CancelledError"
    assert notebook.run("%snakepit wait job").error[0] == "CancelledError"
    assert notebook.run("job.status").text == "'cancelled'"


def test_a_job_that_fails_raises_as_its_cell_would(notebook):
    notebook.run("%%snakepit --background -o failed\ndef broken():\n    return 1 / 0\nbroken()")

    for _ in range(2):
        shown = notebook.run("failed.result(20)")
        assert shown.error == ("ZeroDivisionError", "division by zero")
        assert "return 1 / 0" in shown.traceback
        assert "jobs.py" not in shown.traceback
    assert notebook.run(DEPTHS).text == "(1, 1)", "each time anew"
    waited = notebook.run("%snakepit wait failed")
    number = notebook.run("failed.id").text
    assert waited.error == ("ZeroDivisionError", f"job {number} failed")
    assert "failed after" in waited.stdout


DEPTHS = """
import traceback
def depth():
    try:
        failed.result()
    except Exception as error:
        return len(traceback.extract_tb(error.__traceback__))
depth(), depth()
"""


def test_a_cell_that_lacks_a_variable_in_one_worker_fails_in_the_background_too(notebook):
    cell = "if snakepit_kernel.context().worker[-3] == '1': m = 1"
    shown = notebook.run(
        "get_ipython().run_cell_magic('snakepit', '--background --all -o lacking --pull m', "
        f"{'import snakepit_kernel' + chr(10) + cell!r})\nlacking.wait_interactive()"
    )

    assert "[error:2]\nNameError: name 'm' is not defined in the worker" in shown.stderr
    assert notebook.run("lacking.result()").error == (
        "NameError",
        "the cell failed in 1 of 2 workers: NameError in worker 2",
    )


def test_a_cell_in_all_workers_in_the_background_gives_all_their_results(notebook):
    shown = notebook.run(
        "get_ipython().run_cell_magic('snakepit', '--background --all -o both', 'print(1)\\n2')\n"
        "both.wait_interactive()"
    )

    assert sorted(shown.stdout.splitlines()) == ["[stdout:1] 1", "[stdout:2] 1"]
    assert sorted(data["text/plain"] for data in shown.data)[:2] == [
        "[result:1] 2",
        "[result:2] 2",
    ]
    assert notebook.run("[result.value for result in both.result()]").text == "[2, 2]"
    assert notebook.run("both.stdout").text == "'1\\n1\\n'"


def test_all_jobs_that_run_are_waited_for(notebook):
    for number in (1, 2):
        notebook.run(f"%%snakepit --background -o j{number}\nimport time; time.sleep(0.3)")

    shown = notebook.run("%snakepit wait")

    assert shown.stdout.count("done after") == 2
    assert notebook.run("%snakepit wait").stdout == "no job runs\n"


MISTAKES = [
    ("wait 999", "there is no job 999"),
    ("wait nope", "there is no job nope"),
    ("cancel number", "number is of type int, and no job"),
    ("wait --timeout soon", "'soon' is not a number of seconds"),
    ("gather nope", "name 'nope' is not defined in workers 1 and 2"),
    ("scatter number", "scatter() takes what has a length and can be sliced"),
    ("push number --all --worker 1", "not allowed with argument"),
]


def test_a_mistake_is_one_line_that_says_what_would_be_right(notebook):
    notebook.run("number = 3")

    for line, said in MISTAKES:
        shown = notebook.run(f"%snakepit {line}")

        assert shown.status == "error", line
        assert said in shown.stderr
        assert shown.stderr.strip().count("\n") == 0


def test_tab_completes_what_names_a_job(notebook):
    notebook.run("%%snakepit --background -o job_of_mine\n1")
    number = notebook.run("job_of_mine.wait(20); job_of_mine.id").text

    assert notebook.completions("%snakepit wait job_o") == ["job_of_mine"]
    assert number in notebook.completions("%snakepit wait ")
    assert "all" in notebook.completions("%snakepit cancel a")


def test_a_sequence_is_scattered_worked_on_and_gathered(notebook):
    notebook.run("rows, factor = [1, 2, 3, 4, 5], 10")
    notebook.run("%snakepit scatter rows")
    notebook.run("%snakepit push factor --all")
    notebook.run("%%snakepit --all\nrows = [factor * row for row in rows]\ntotal = sum(rows)")

    assert notebook.run("%snakepit gather rows, total").status == "ok"

    assert notebook.run("rows, total").text == "([10, 20, 30, 40, 50], [60, 90])"

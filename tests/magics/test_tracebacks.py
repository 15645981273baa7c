"""What a notebook shows of an error or an interrupt: the user's code, here and in the worker."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable

import pytest

from .conftest import COLOUR, Notebook

DASHES = "-" * 75

SETUP = """\
import snakepit_kernel

def price(item="coffee"):
    return {"tea": 2.5}[item]

def chunks():
    yield 1
    price()

def formatted():
    import traceback
    try:
        price()
    except KeyError:
        return traceback.format_exc()

def nap():
    import time
    print("begun")
    time.sleep(60)

def ask():
    return snakepit_kernel.context().host_tools.broken()

def broken():
    price("cake")

for tool in (price, chunks, nap, ask):
    pool.tool(tool)
pool.host_tool(broken)
session = pool.session("s")"""

REMOTE = """\
  Cell In[2], line 4, in price
    return {"tea": 2.5}[item]"""

OF_TOOL = """\
ToolError: KeyError: 'coffee'

DETAILS

in the worker:
"""

IN_CHUNKS = """\
  Cell In[2], line 8, in chunks
    price()
"""

NO_VARIABLE = (
    "there is no variable 'nope' in this session; register() adds one, in a notebook "
    "%snakepit set NAME=VALUE"
)

HERE = {
    # what is run                             what it raises
    "pool.tools.price()": f"{OF_TOOL}{REMOTE}",
    "pool.call('price', {'item': 'coffee'})": f"{OF_TOOL}{REMOTE}",
    "await pool.acall('price')": f"{OF_TOOL}{REMOTE}",
    "list(pool.tools.chunks())": f"{OF_TOOL}{IN_CHUNKS}{REMOTE}",
    "pool.tools.price(itm='tea')": (
        "InvalidArguments: price: unknown argument 'itm'; the signature is (item='coffee')"
    ),
    "pool.tools.prize": "AttributeError: there is no tool 'prize'; did you mean 'price'?",
    "session.variables['nope']": (f"VariableNotFound: {NO_VARIABLE}"),
    "session.v.nope": (f"AttributeError: {NO_VARIABLE}"),
    "session.variables.set('nope', 1)": (f"VariableNotFound: {NO_VARIABLE}"),
    "session.shell.run('false', check=True)": (
        "CommandFailed: a command ended with status 1: false"
    ),
    "list(session.shell.stream('x', cwd='/nowhere'))": None,
}
"""What goes wrong, or is told, in the cell alone; None for a text that is tested elsewhere."""

RAISED_HERE = ("pool.submit(price).result()", "list(pool.map(price, ['coffee']))")
"""What raises the error of the function itself."""


def shown_by(notebook: Notebook, code: str) -> str:
    shown = notebook.run(code)
    assert shown.status == "error", code
    text = re.sub(r"^pool 'default', worker .*$", "DETAILS", shown.traceback, flags=re.MULTILINE)
    return without_marks(text)


def without_marks(text: str) -> str:
    """Leave out the lines that mark a place in another one: Python 3.13 has more of them."""
    return re.sub(r"\n *[~^]+(?=\n|\Z)", "", text)


def in_cell(kind: str, number: int, line: str) -> str:
    head = f"{kind}{'Traceback (most recent call last)'.rjust(75 - len(kind))}"
    return f"{head}\nCell In[{number}], line 1\n----> 1 {line}\n"


@pytest.fixture
def prepared(open_notebook: Callable[..., Notebook]) -> Notebook:
    """A notebook with a pool of one worker, and the functions above."""
    notebook = open_notebook()
    assert notebook.run("pool = %snakepit start --workers 1").status == "ok"
    assert notebook.run(SETUP).status == "ok"
    return notebook


def test_an_error_of_a_call_shows_the_line_of_the_cell_and_the_lines_in_the_worker_once(prepared):
    for number, (line, text) in enumerate(HERE.items(), 3):
        shown = shown_by(prepared, line)
        kind = shown.split("\n")[1].split()[0]
        begin = f"{DASHES}\n{in_cell(kind, number, line)}\n"

        assert shown.startswith(begin), shown
        if text is not None:
            assert shown.removeprefix(begin) == text


def test_the_error_of_a_function_itself_has_its_lines_in_the_worker_as_its_cause(prepared):
    for number, line in enumerate(RAISED_HERE, 3):
        remote = f"RemoteTraceback{'Traceback (most recent call last)'.rjust(60)}"

        assert shown_by(prepared, line) == (
            f"{DASHES}\n{remote}\nRemoteTraceback: in the worker:\n{REMOTE}\n\n"
            "The above exception was the direct cause of the following exception:\n\n"
            f"{in_cell('KeyError', number, line)}\nKeyError: 'coffee'"
        )

    prepared.run("future = pool.submit(price)")
    for number in (6, 7):  # the same error again
        shown = shown_by(prepared, "future.result()")
        assert re.findall(r"^Cell .*", shown, re.MULTILINE) == [f"Cell In[{number}], line 1"]


def test_an_error_of_a_host_tool_shows_the_lines_here_and_there(prepared):
    shown = shown_by(prepared, "pool.tools.ask()")

    places = re.findall(r"^ *(Cell In.*)", shown, re.MULTILINE)
    assert places == [
        "Cell In[3], line 1",
        "Cell In[2], line 23, in ask",
        "Cell In[2], line 26, in broken",
        "Cell In[2], line 4, in price",
    ]
    assert "/snakepit_kernel/" not in shown


def test_a_worker_knows_the_lines_of_functions_of_the_notebook(prepared):
    formatted = prepared.run("print(pool.submit(formatted).result())").stdout
    in_worker = prepared.run("%%snakepit --push price\nprice()").traceback

    assert '    return {"tea": 2.5}[item]\n' in formatted
    assert "Cell In[2], line 4, in price(item)" in in_worker
    assert '----> 4     return {"tea": 2.5}[item]' in in_worker


def test_a_call_that_passes_its_deadline_shows_the_cell_and_line_where_it_was(prepared):
    shown = shown_by(prepared, "pool.call('nap', timeout=0.5)")

    assert "its stack, the innermost call first:\n  Cell In[2], line 20 in nap\n" in shown


def test_a_variable_to_pull_that_the_cell_has_not_defined_is_one_line(prepared):
    shown = prepared.run("%%snakepit --pull nope\nmine = 1")

    assert shown.stderr.startswith("UsageError: name 'nope' is not defined in the worker; ")
    assert shown.stderr.count("\n") == 1


def test_the_debugger_begins_in_the_frame_of_the_user(prepared):
    prepared.run("def buy():\n    here = 'mine'\n    return pool.tools.price()")
    assert prepared.run("buy()").status == "error"
    answers = iter(["p here", "q"])
    printed: list[str] = []

    prepared.client.execute_interactive(
        "%debug",
        allow_stdin=True,
        stdin_hook=lambda _: prepared.client.input(next(answers)),
        output_hook=lambda message: printed.append(message["content"].get("text", "")),
        timeout=60,
    )

    assert "'mine'\n" in "".join(printed)


def test_an_environment_variable_shows_all_frames(prepared):
    prepared.run("%env SNAKEPIT_FULL_TRACEBACKS=1")

    assert "/snakepit_kernel/pool/caller.py" in shown_by(prepared, "pool.tools.price()")


def stopped(notebook: Notebook, code: str) -> str:
    """Interrupt a cell a moment after it has printed something; return its traceback."""
    while not has_printed(notebook, request := notebook.client.execute(code)):
        pass  # the queue of a failed cell is dropped
    time.sleep(0.3)  # no event tells that the code has come to its next line
    notebook.manager.signal_kernel(signal.SIGINT)
    while (reply := notebook.client.get_shell_msg(timeout=30))["parent_header"][
        "msg_id"
    ] != request:
        pass
    assert reply["content"]["ename"] == "KeyboardInterrupt", reply
    return without_marks(COLOUR.sub("", "\n".join(reply["content"]["traceback"])))


def has_printed(notebook: Notebook, request: str) -> bool:
    """Wait until a cell prints something; return whether it has, and was not dropped."""
    while True:
        message = notebook.client.get_iopub_msg(timeout=30)
        if message["parent_header"].get("msg_id") != request:
            continue
        if message["msg_type"] == "stream":
            return True
        if message["content"].get("execution_state") == "idle":
            return False


def test_stop_shows_where_the_code_was_and_none_of_ours(prepared):
    head = f"KeyboardInterrupt{'Traceback (most recent call last)'.rjust(58)}"
    in_nap = "in worker default-1.1:\n  Cell In[2], line 20, in nap\n    time.sleep(60)"

    cell = "%%snakepit\nimport time\nfor n in range(600):\n    print(n)\n    time.sleep(60)"
    assert stopped(prepared, cell) == (
        f"{DASHES}\n{head}\nCell In[1], line 4\n      1 import time\n"
        "      2 for n in range(600):\n      3     print(n)\n----> 4     time.sleep(60)\n\n"
        "KeyboardInterrupt: "
    )
    for number, line in enumerate(["pool.tools.nap()", "await pool.acall('nap')"], 4):
        shown = stopped(prepared, line)
        assert shown == (
            f"{DASHES}\n{in_cell('KeyboardInterrupt', number, line)}\nKeyboardInterrupt: \n{in_nap}"
        )
    shown = stopped(prepared, "import time\nprint('begun', flush=True)\ntime.sleep(60)")
    assert shown.endswith("----> 3 time.sleep(60)\n\nKeyboardInterrupt: ")


DEAF = """%%snakepit --pool deaf
import time
print("begun")
while True:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        pass"""


def test_stop_of_a_cell_that_ignores_it_says_that_its_variables_are_gone(open_notebook):
    notebook = open_notebook()
    notebook.run("%snakepit start --name deaf --workers 1 --grace 0.3")

    assert stopped(notebook, DEAF) == (
        "KeyboardInterrupt\nworker deaf-1.1 did not respond to the interrupt, so the worker was "
        "replaced: the variables of its cells are gone"
    )

"""Variables and sessions by ``%snakepit``, and which session is a notebook's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from traitlets.config import Config

from snakepit_kernel import open_session, standby_kernels
from snakepit_kernel.processes.run_registry import Registry

BIN = Path(sys.executable).parent


@pytest.fixture
def mine(open_notebook):
    """A notebook whose session is named ``mine``."""
    return open_notebook(SNAKEPIT_SESSION="mine")


def session_of(notebook: Any) -> str:
    return notebook.run("%snakepit").stdout.split("session ")[1].split(";")[0]


def stream_after(notebook: Any, act: Callable[[], object], cell: str = "") -> tuple[str, str]:
    """Do something; return the next text that appears, and below which cell."""
    act()
    until = time.monotonic() + 20
    while time.monotonic() < until:
        message = notebook.client.get_iopub_msg(timeout=20)
        if message["msg_type"] == "stream":
            return message["content"]["text"], message["parent_header"]["msg_id"]
    pytest.fail("nothing was printed")


def in_another_process(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"from snakepit_kernel import open_session\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# -- variables -------------------------------------------------------------------------------------


VALUES = [
    ("x=7", "integer", "7"),
    ("x=0.5", "float", "0.5"),
    ("x=True", "boolean", "True"),
    ("x=text", "string", "'text'"),
    ("'x=two words'", "string", "'two words'"),
    ("x=[1,2]", "list", "[1, 2]"),
    ("\"x={'a':1}\"", "dict", "{'a': 1}"),
    ("x=None", "any", "None"),
    ("x=@here", "array", "array([0, 1])"),
    ("x=7 --type float", "float", "7.0"),
    ("x=fast --choices fast exact", "choice", "'fast'"),
    ("x=@here --type embedding --shape 2", "embedding", "array([0, 1])"),
]


def test_a_variable_is_set_got_shown_and_deleted(mine):
    mine.run("import numpy; here = numpy.arange(2)")

    for given, kind, value in VALUES:
        assert mine.run(f"%snakepit set {given}").status == "ok", given
        assert mine.run("y = %snakepit get x").status == "ok"
        assert mine.run("print(repr(y))").stdout.strip() == value
        heading, row = mine.run("%snakepit vars").text.splitlines()
        assert heading.split()[:3] == ["name", "type", "value"]
        assert row.split()[:2] == ["x", kind]
        assert "notebook" in row
        assert mine.run("%snakepit del x").status == "ok"
        assert mine.run("%snakepit vars").text == "no variables"


def test_constraints_and_a_description_are_those_of_the_variable(mine):
    assert (
        mine.run("%snakepit set t=1 --type float --min 0 --max 2 --description 'How hot.'").status
        == "ok"
    )
    assert (
        mine.run("%snakepit set name=abc --pattern [a-z]+ --min-length 2 --max-length 4").status
        == "ok"
    )

    session = open_session("mine")
    info = session.variables.info("t")
    assert (info.type, info.constraints, info.description) == (
        "float",
        {"min": 0, "max": 2},
        "How hot.",
    )
    assert session.variables.info("name").constraints == {
        "pattern": "[a-z]+",
        "min_length": 2,
        "max_length": 4,
    }
    said = mine.run("%snakepit set t=3").stderr + mine.run("%snakepit set t=3").traceback
    assert "variable 't': the value must be at most 2 (max=2)" in said
    assert mine.run("%snakepit set t=1.5").status == "ok"
    assert session.variables.info("t").version == 2
    assert mine.run("%snakepit set t=1.5 --description 'How warm.'").status == "ok"
    assert session.variables.info("t").description == "How warm."


def test_several_are_set_all_or_none_and_got_at_once(mine):
    mine.run("%snakepit set a=1 b=2.5 c=text")

    assert mine.run("%snakepit get a b c").text == "{'a': 1, 'b': 2.5, 'c': 'text'}"
    refused = mine.run("%snakepit set a=5 b=text c=other")
    assert refused.status == "error"
    assert "nothing was changed: variable 'b' takes a number, not str" in refused.traceback
    assert mine.run("%snakepit get a b c").text == "{'a': 1, 'b': 2.5, 'c': 'text'}"
    assert [v.name for v in open_session("mine").variables.list()] == ["a", "b", "c"]
    assert mine.run("%snakepit vars [ab]").text.count("\n") == 2


def test_the_options_name_another_session(mine):
    mine.run("%snakepit set x=1")
    mine.run("%snakepit set x=2 --session other")

    assert mine.run("%snakepit get x").text == "1"
    assert mine.run("%snakepit get x --session other").text == "2"
    assert "2" in mine.run("%snakepit vars --session other").text
    assert mine.run("%snakepit del x --session other").status == "ok"
    assert mine.run("%snakepit vars --session other").text == "no variables"
    assert mine.run("%snakepit get x").text == "1"


def test_tables_show_descriptions_where_there_are_any_and_when_a_session_ends(mine):
    mine.run("%snakepit set a=1")
    assert mine.run("%snakepit vars").text.splitlines()[0].split() == [
        *("name", "type", "value", "version", "set", "by", "updated")
    ]
    mine.run("%snakepit set t=0.7 --max 2 --description 'How hot.'")
    mine.run("%snakepit use --ttl 20d")

    variables, sessions = (mine.run(f"%snakepit {name}").data[0] for name in ("vars", "sessions"))

    heading, first, second = variables["text/plain"].splitlines()
    assert heading.index("description") == second.index("How hot.")
    assert heading.index("version") + len("version") == first.index("  notebook")
    assert "<th>description</th>" in variables["text/html"]
    assert ">How hot.</span></td>" in variables["text/html"]
    (row,) = [row for row in sessions["text/plain"].splitlines() if row.startswith("*")]
    assert row.endswith("in 21 d")  # a session is kept a little longer than its time to live
    expires = open_session("mine").expires.astimezone()
    assert f'title="{expires:%Y-%m-%d %H:%M:%S}">in 21 d</span>' in sessions["text/html"]


def test_a_table_of_html_shows_text_as_text(mine):
    bad = "<script>alert(1)</script>"
    open_session("mine").variables.register(
        "x", "string", bad, description=f'"{bad}', pattern=f"(?s).*|{bad}"
    )

    tables = [mine.run("%snakepit vars").data[0]["text/html"]]
    mine.run("from snakepit_kernel import open_session; v = open_session('mine').variables")
    tables.append(mine.run("v").data[0]["text/html"])

    for table in tables:
        assert table.startswith('<div class="snakepit-pool">')
        assert "<script" not in table
        assert 'title="&quot;&lt;script' in table
        assert table.count("&lt;script&gt;") == 5  # value, description, their titles, constraint
    assert "<script" not in mine.run("%snakepit sessions").data[0]["text/html"]


def test_a_long_value_is_shortened_where_it_is_shown_and_whole_where_it_is_got(mine):
    open_session("mine").variables.register("x", "string", "ab" * 500)

    assert len(mine.run("%snakepit vars").text) < 500
    assert mine.run("len(v)" if mine.run("v = %snakepit get x") else "").text == "1000"


MISTAKES = [
    ("set", "the following arguments are required: NAME=VALUE"),
    ("set x", "an argument is NAME=VALUE, not 'x'"),
    ("set x=@nope", "there is no variable 'nope'"),
    ("set x=1 --type integr", "invalid choice: 'integr'"),
    ("set x=1 --min low", "'low' is not a number"),
    ("set x=1 --shape a", "'a' is not a shape"),
    ("set 'a b=1'", "variable name 'a b' must be"),
    ("set x=text --max 3", "variables of type string have no constraint 'max'"),
    ("set t=3", "the value must be at most 2"),
    ("set t=text", "variable 't' takes a number, not str"),
    ("set t=1 --type integer", "variable 't' is registered already, as float with max=2"),
    ("set t=1 --max 5", "variable 't' is registered already"),
    ("get", "the following arguments are required: NAME"),
    ("get tt", "there is no variable 'tt' in this session"),
    ("get t tt", "there is no variable 'tt' in this session"),
    ("get t --session 'a b'", "session name 'a b' must be"),
    ("vars --sesion other", "unknown option or word '--sesion'; did you mean '--session'"),
    ("del tt", "there is no variable 'tt' in this session"),
    ("stats now", "unknown option or word 'now'"),
    ("sessions --delete nope", "there is no session 'nope'"),
    ("use 'a b'", "session name 'a b' must be"),
    ("fork", "the following arguments are required: NEW"),
    ("fork mine", "there is a session 'mine' already"),
    ("fork 'a b'", "session name 'a b' must be"),
    ("export", "the following arguments are required: FILE"),
    ("export /no/such/place/file.json", "No such file or directory"),
    ("import /no/such/file.json", "No such file or directory"),
    ("import kernel.json", "is no exported session"),
    ("import .", "it is a directory, and no exported session: '.'"),
]


def test_a_mistake_is_one_line_that_says_what_would_be_right(mine, tmp_path):
    mine.run("%snakepit set t=1.0 --max 2")
    (tmp_path / "kernel.json").write_text("{}")
    mine.run(f"import os; os.chdir({str(tmp_path)!r})")

    for line, said in MISTAKES:
        shown = mine.run(f"%snakepit {line}")

        assert shown.status == "error", line
        text = shown.stderr + shown.traceback
        assert said in text, (line, text)
        assert text.strip().count("\n") == 0, (line, text)
    assert mine.run("%snakepit vars").text.count("\n") == 1


COMPLETIONS = [
    ("%snakepit va", {"vars"}),
    ("%snakepit ses", {"sessions"}),
    ("%snakepit get tem", {"temperature"}),
    ("%snakepit set tem", {"temperature="}),
    ("%snakepit set x=1 --ty", {"--type"}),
    ("%snakepit set x=1 --type str", {"string"}),
    ("%snakepit set --m", {"--min", "--max", "--min-length", "--max-length"}),
    ("%snakepit vars tem", {"temperature"}),
    ("%snakepit del tem", {"temperature"}),
    ("%snakepit watch tem", {"temperature"}),
    ("%snakepit watch --st", {"--stop"}),
    ("%snakepit get x --session oth", {"other"}),
    ("%snakepit use oth", {"other"}),
    ("%snakepit sessions --delete oth", {"other"}),
    ("%snakepit import --tr", {"--trust"}),
    ("%snakepit help expo", {"export", "expose"}),
]


def test_tab_completes_commands_options_variables_and_sessions(mine):
    mine.run("%snakepit set temperature=0.7")
    mine.run("%snakepit set x=1 --session other")

    for line, expected in COMPLETIONS:
        assert expected <= set(mine.completions(line)), line


def test_variables_complete_as_keys_and_as_attributes(mine):
    mine.run("%snakepit set temperature=0.7")
    mine.run("import snakepit_kernel; s = snakepit_kernel.open_session('mine')")

    for jedi in (True, False):
        mine.run(f"%config Completer.use_jedi = {jedi}")
        assert "temperature" in mine.completions('s.variables["tem')
        assert any(word.endswith("temperature") for word in mine.completions("s.v.tem"))


# -- watching --------------------------------------------------------------------------------------


def test_a_change_appears_below_the_cell_that_watches_whoever_makes_it(mine):
    mine.run("%snakepit set temperature=0.5 other=1")
    watching = mine.client.execute("%snakepit watch temp*")
    while mine.client.get_shell_msg(timeout=20)["parent_header"]["msg_id"] != watching:
        pass

    def set_here() -> None:
        mine.client.execute("%snakepit set other=2 temperature=0.75")

    text, cell = stream_after(mine, set_here)
    assert text.strip() == "temperature = 0.75  (updated by notebook, version 2)"
    assert cell == watching

    def set_elsewhere() -> None:
        in_another_process("open_session('mine').variables['temperature'] = 1")

    text, cell = stream_after(mine, set_elsewhere)
    assert text.strip() == "temperature = 1.0  (updated by script, version 3)"
    assert cell == watching

    def delete_elsewhere() -> None:
        in_another_process("open_session('mine').variables.delete('temperature')")

    text, cell = stream_after(mine, delete_elsewhere)
    assert text.strip() == "temperature  (deleted by script, version 4)"
    assert cell == watching


def test_a_change_that_a_worker_makes_appears_below_the_cell_that_watches(mine):
    mine.run("pool = %snakepit start --workers 1")
    mine.run("%snakepit set x=1")
    watching = mine.client.execute("%snakepit watch")
    while mine.client.get_shell_msg(timeout=20)["parent_header"]["msg_id"] != watching:
        pass
    cell_in_worker = (
        "%%snakepit\nimport snakepit_kernel\nsnakepit_kernel.context().variables['x'] = 2"
    )

    text, cell = stream_after(mine, lambda: mine.client.execute(cell_in_worker))

    assert text.strip() == "x = 2  (updated by default-1.1, version 2)"
    assert cell == watching


def test_a_watch_that_was_stopped_tells_no_more(mine):
    mine.run("%snakepit set x=1 y=1")
    assert mine.run("%snakepit watch --stop").stdout == "nothing like * is watched\n"
    mine.run("%snakepit watch x")
    mine.run("%snakepit watch y")
    assert mine.run("%snakepit watch x --stop").stdout == ""

    text, _ = stream_after(mine, lambda: mine.client.execute("%snakepit set x=2 y=2"))

    assert text.startswith("y = 2")


# -- sessions --------------------------------------------------------------------------------------


def test_the_statistics_tell_of_growth_types_and_reads(mine):
    mine.run("%snakepit set a=1 b=2 c=text")
    mine.run("%snakepit set a=3")
    reads = int(mine.run("%snakepit stats").text.splitlines()[4].split()[1])
    for _ in range(3):
        mine.run("%snakepit get a")

    lines = mine.run("%snakepit stats").text.splitlines()

    assert lines[0] == "session    mine"
    assert lines[1].startswith("variables  3, ")
    assert lines[1].endswith(": 2 integer, 1 string")
    assert lines[3] == "growth     3 registered in the last hour, 3 in the last day; 1 updates"
    assert lines[4].startswith(f"reads      {reads + 3} in this kernel: a ")


def test_sessions_are_listed_chosen_and_deleted(mine):
    mine.run("%snakepit set x=1")
    mine.run("%snakepit use other")
    mine.run("%snakepit set x=2 y=3")

    rows = {
        (words[1], words[2]) if words[0] == "*" else (words[0], words[1]): words[0] == "*"
        for words in map(str.split, mine.run("%snakepit sessions").text.splitlines()[1:])
    }
    assert rows == {("mine", "1"): False, ("other", "2"): True}
    assert "<table>" in mine.run("%snakepit sessions").data[0]["text/html"]
    assert mine.run("%snakepit sessions --delete other").stdout == "session other is gone\n"
    assert session_of(mine) == "mine"
    assert mine.run("%snakepit get x").text == "1"
    listed = mine.run("%snakepit sessions").text
    assert "other" not in listed


def test_a_session_that_was_deleted_begins_anew(mine):
    mine.run("%snakepit set x=1")
    mine.run("%snakepit sessions --delete mine")

    assert mine.run("%snakepit vars").text == "no variables"
    assert mine.run("%snakepit set x=text").status == "ok"


def test_a_fork_is_gone_on_in_and_leaves_the_first_as_it_is(mine):
    mine.run("%snakepit set x=1")

    said = mine.run("%snakepit fork second").stdout
    mine.run("%snakepit set x=2")

    assert said == "session second is a copy of mine, and chosen now\n"
    assert session_of(mine) == "second"
    assert mine.run("%snakepit get x").text == "2"
    assert mine.run("%snakepit get x --session mine").text == "1"


def test_a_session_is_exported_and_imported(mine, tmp_path):
    file = tmp_path / "mine.json"
    mine.run("%snakepit set x=1 --max 3")
    mine.run("%snakepit set name=text")
    state = open_session("mine")
    state.programs["model"] = [1, 2]
    state.metadata["note"] = "what it is"

    assert mine.run(f"%snakepit export {file}").stdout == f"4 entries written to {file}\n"
    assert mine.run(f"%snakepit import {file} --session copy").stdout == (
        f"4 entries read from {file}\n"
    )

    copy = open_session("copy")
    assert dict(copy.variables) == {"x": 1, "name": "text"}
    assert copy.variables.info("x").constraints == {"max": 3}
    assert copy.programs["model"] == [1, 2]
    assert dict(copy.metadata) == {"note": "what it is"}


def test_what_can_run_code_is_imported_only_when_it_is_trusted(mine, tmp_path):
    file = tmp_path / "mine.json"
    mine.run("import datetime; day = datetime.date(2026, 1, 2)")
    mine.run("%snakepit set day=@day x=1")
    mine.run(f"%snakepit export {file}")

    refused = mine.run(f"%snakepit import {file} --session copy")

    assert refused.status == "error"
    assert "day can only be read as a pickle, which can run code" in refused.stderr
    assert "--trust" in refused.stderr
    assert mine.run("%snakepit vars --session copy").text == "no variables"
    assert mine.run(f"%snakepit import {file} --session copy --trust").status == "ok"
    assert mine.run("%snakepit get day --session copy").text == "datetime.date(2026, 1, 2)"


def test_what_a_worker_keeps_is_the_notebooks_and_the_other_way(mine):
    mine.run("pool = %snakepit start --workers 1")
    mine.run("%snakepit set x=1")

    mine.run(
        "%%snakepit\nimport snakepit_kernel\nc = snakepit_kernel.context()\nc.variables['x'] += 1"
    )

    assert mine.run("%snakepit get x").text == "2"
    assert "default-1.1" in mine.run("%snakepit vars").text


# -- whose session it is ---------------------------------------------------------------------------


def test_two_notebooks_never_see_each_others_variables(open_notebook):
    one, other = open_notebook(), open_notebook()
    one.run("%snakepit set x=1")

    assert session_of(one) != session_of(other)
    assert other.run("%snakepit vars").text == "no variables"
    assert "there is no variable 'x'" in other.run("%snakepit get x").traceback
    other.run("%snakepit set x=2")
    assert one.run("%snakepit get x").text == "1"
    other.run(f"%snakepit use {session_of(one)}")
    assert other.run("%snakepit get x").text == "1"


@pytest.mark.parametrize(
    ("env", "code"),
    [
        ({}, ""),
        ({"JPY_SESSION_NAME": "/home/me/My analysis.ipynb"}, ""),
        ({"SNAKEPIT_SESSION": "chosen"}, ""),
        ({}, "__vsc_ipynb_file__ = '/home/me/My analysis.ipynb'"),
    ],
    ids=["connection file", "server", "variable", "vs code"],
)
def test_a_restart_comes_back_to_the_session_with_all_that_is_in_it(open_notebook, env, code):
    notebook = open_notebook(**env)
    notebook.run(code or "pass")
    before = session_of(notebook)
    notebook.run("%snakepit set x=1")
    notebook.run(f"import snakepit_kernel; s = snakepit_kernel.open_session({before!r})")
    notebook.run("s.programs['model'] = [1]; s.metadata['note'] = 'mine'")

    notebook.restart()
    notebook.run(code or "pass")

    assert session_of(notebook) == before
    assert notebook.run("%snakepit get x").text == "1"
    notebook.run(f"import snakepit_kernel; s = snakepit_kernel.open_session({before!r})")
    assert notebook.run("s.programs['model'], s.metadata['note']").text == "([1], 'mine')"


def test_the_same_path_is_the_same_session_whoever_tells_it(open_notebook):
    path = "/home/me/My analysis.ipynb"
    server, code, other = open_notebook(JPY_SESSION_NAME=path), open_notebook(), open_notebook()
    code.run(f"__vsc_ipynb_file__ = {path!r}")
    other.run("__vsc_ipynb_file__ = '/home/you/My analysis.ipynb'")

    assert session_of(server) == session_of(code)
    assert session_of(server).startswith("My-analysis-")
    assert session_of(other) != session_of(server)


def test_a_relative_path_is_the_same_session_after_a_change_of_directory(open_notebook, tmp_path):
    notebook = open_notebook(JPY_SESSION_NAME="analysis.ipynb")
    before = session_of(notebook)

    notebook.run(f"import os; os.chdir({str(tmp_path)!r})")

    assert session_of(notebook) == before


def test_a_name_that_cannot_be_one_is_told_in_one_line(open_notebook):
    shown = open_notebook(SNAKEPIT_SESSION="a b").run("%snakepit vars")

    assert "session name 'a b' must be" in shown.stderr
    assert shown.stderr.strip().count("\n") == 0


def notebook_file(folder: Path, name: str, *sources: str) -> Path:
    v4 = nbformat.v4
    document = v4.new_notebook(
        cells=[v4.new_code_cell(source) for source in sources],
        metadata={"kernelspec": {"name": "snakepit", "display_name": "S", "language": "python"}},
    )
    nbformat.write(document, folder / name)
    return folder / name


def texts_of(path: Path) -> list[str]:
    cells = nbformat.read(path, 4).cells
    return [output.get("text", "").strip() for cell in cells for output in cell.outputs]


def test_papermill_that_injects_paths_names_the_session_by_them(tmp_path):
    first = notebook_file(tmp_path, "first.ipynb", "%snakepit set x=1\n%snakepit")
    second = notebook_file(tmp_path, "second.ipynb", "print('begun')\n%snakepit")

    def papermill(source: Path, target: str) -> list[str]:
        done = subprocess.run(
            [str(BIN / "papermill"), "--inject-paths", source.name, target],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [text for text in texts_of(tmp_path / target) if "session " in text]

    (told,) = papermill(first, "out.ipynb")
    (again,) = papermill(second, "out.ipynb")
    (elsewhere,) = papermill(second, "other.ipynb")

    name = told.split("session ")[1].split(";")[0]
    assert name.startswith("out-")
    assert f"session {name};" in again
    assert f"session {name};" not in elsewhere
    assert open_session(name).variables["x"] == 1


# -- the command line of the kernel ----------------------------------------------------------------


def write_named(write_kernelspec: Callable[..., Path], name: str, *arguments: str) -> None:
    """Write a copy of our kernelspec whose kernel has further arguments."""
    spec = json.loads((Path(__file__).parents[2] / "kernelspec" / "kernel.json").read_text())
    shown = {"display_name", "language"}
    rest = {key: value for key, value in spec.items() if key not in {"argv", *shown}}
    write_kernelspec(name, [*spec["argv"], *arguments], **rest)


@pytest.fixture
def start_named(write_kernelspec: Callable[..., Path]) -> Any:
    """Start kernels of a kernelspec; give what their first ``%snakepit`` says of the session."""
    managers: list[KernelManager] = []

    def start(name: str, *, standby: int = 0, **env: str) -> str:
        config = Config({"SnakepitProvisioner": {"standby": standby, "grace": 0.5}})
        manager = KernelManager(kernel_name=name, config=config)
        manager.start_kernel(env={**os.environ, **env})  # with a stderr of its own none is ready
        managers.append(manager)
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=30)
            texts: list[str] = []
            client.execute_interactive(
                "%snakepit", output_hook=lambda m: texts.append(m["content"].get("text", ""))
            )
        finally:
            client.stop_channels()
        return "".join(texts).split("session ")[1].split(";")[0]

    yield start
    for manager in managers:
        manager.shutdown_kernel(now=True)
        manager.context.destroy(linger=0)


@pytest.mark.parametrize("form", [["--session", "chosen"], ["--session=chosen"]])
def test_the_kernels_command_line_names_the_session(start_named, write_kernelspec, form):
    write_named(write_kernelspec, "named", *form)

    assert start_named("named") == "chosen"
    assert start_named("named", SNAKEPIT_SESSION="other", JPY_SESSION_NAME="/a/b.ipynb") == "chosen"


def wait_for_standby() -> None:
    """Wait until a kernel is kept ready: a row in the registry of runs, which tells nobody."""
    until = time.monotonic() + 20
    while not any(run.label == standby_kernels.LABEL and run.process for run in Registry().runs()):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_kernels_that_are_kept_ready_are_of_the_session_that_their_start_names(
    start_named, write_kernelspec, with_templates
):
    for name in ("red", "blue"):
        write_named(write_kernelspec, name, "--session", name)
    try:
        assert start_named("snakepit", standby=1, SNAKEPIT_SESSION="mine") == "mine"
        wait_for_standby()
        for name in ("red", "blue", "red"):
            assert start_named(name, standby=1) == name
        wait_for_standby()
        assert start_named("snakepit", standby=1, SNAKEPIT_SESSION="yours") == "yours"
    finally:
        standby_kernels.close()

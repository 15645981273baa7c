"""``%snakepit``: pools, sessions, tools and help."""

from __future__ import annotations

import inspect
import json
import re

import pytest
from snakepit_magics.help import help_of, help_text
from snakepit_magics.parsing import (
    COMMANDS,
    GROUPS,
    VALUE_NAMES,
    command_parsers,
    line_parser,
)

from snakepit_kernel import Pool


def test_without_a_pool_it_says_how_to_open_one(open_notebook):
    notebook = open_notebook()

    assert "no pool is running; %snakepit start opens one" in notebook.run("%snakepit").stdout
    assert "no pool is running" in notebook.run("%%snakepit\n1").stderr
    assert "no pool is running" in notebook.run("%snakepit call f").stderr


def test_a_pool_is_started_used_restarted_and_stopped(notebook):
    assert notebook.run("pool").text == "<Pool 'default': 2 workers, open>"
    assert "running already" in notebook.run("%snakepit start --workers 1").stderr

    assert notebook.run("%snakepit restart").text == "<Pool 'default': 2 workers, open>"
    assert notebook.run("%%snakepit\n1 + 1").text == "2"
    assert notebook.run("%snakepit stop").stdout == "pool default has ended\n"
    assert "no pool is running" in notebook.run("%snakepit status").stderr
    assert notebook.run("pool.call('f')").error == (
        "PoolClosed",
        "pool 'default' is closed: it was shut down",
    )


def test_what_a_restart_had_to_end_is_told_once_in_one_line(open_notebook):
    notebook = open_notebook()
    notebook.run("import subprocess as s; many = [s.Popen(['sleep', '600']) for _ in range(2)]")
    notebook.restart()

    assert notebook.run("%snakepit").stdout.splitlines()[0] == (
        "ended 2 processes of the last run: 2 x sleep 600"
    )
    assert "ended" not in notebook.run("%snakepit").stdout
    notebook.restart()
    assert "ended" not in notebook.run("%snakepit").stdout


PROCESSES = """
import subprocess
many = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
deaf = subprocess.Popen(
    ["bash", "-c", "trap '' TERM; echo ready; exec sleep 700"], stdout=subprocess.PIPE
)
deaf.stdout.readline()
"""


def test_the_line_after_a_restart_names_the_users_processes_and_first_what_was_killed(notebook):
    notebook.run(PROCESSES)
    notebook.run("%snakepit sh true")
    notebook.crash()  # so that its guardian ends the pool's processes as well

    assert notebook.run("%snakepit").stdout.splitlines()[0] == (
        "ended 3 processes of the last run: sleep 700 (killed), 2 x sleep 600"
    )


def test_the_end_of_a_pool_and_of_a_shell_alone_is_no_news_after_a_restart(notebook):
    notebook.run("%snakepit sh true")
    notebook.crash()

    assert notebook.run("%snakepit").stdout.startswith("no pool is running")


def test_several_pools_are_told_apart_by_name(notebook):
    notebook.run("%snakepit start --name other --workers 1")

    assert "* <Pool 'other'" in notebook.run("%snakepit").stdout
    notebook.run("%snakepit use --pool default")
    assert "pool default of" in notebook.run("%snakepit status").text
    assert "pool other of" in notebook.run("%snakepit status other").text
    assert sorted(notebook.run("%snakepit stop --all").stdout.splitlines()) == [
        "pool default has ended",
        "pool other has ended",
    ]


def test_a_pool_is_started_with_limits_and_policies(open_notebook):
    notebook = open_notebook()
    options = "--max-calls 2 --max-age 3600 --max-memory 1.5G --retry 2 --breaker 3 --gpus auto"
    assert notebook.run(f"pool = %snakepit start --workers auto {options}").status == "ok"

    config = "pool._engine.config"
    shown = notebook.run(f"({config}.max_memory_bytes, {config}.retry.attempts, {config}.max_age)")
    assert shown.text == f"({int(1.5 * 2**30)}, 2, 3600.0)"
    assert notebook.run("[pool.submit(pow, 2, 2).result() for _ in range(5)]").text == f"{[4] * 5}"
    assert notebook.run("pool.stats().recycled > 0").text == "True"
    assert (
        "'lots' is not a number of bytes"
        in notebook.run("%snakepit start --name b --max-memory lots").stderr
    )


def test_an_option_of_start_has_the_name_that_a_pool_gives_it():
    parser = command_parsers(line_parser())["start"]
    options = vars(parser.parse_args([]))

    assert set(options) - {"replace", "joblib"} <= set(inspect.signature(Pool).parameters)


def test_the_status_is_a_table_in_html_and_in_text(notebook):
    shown = notebook.run("%snakepit status")

    assert "<table>" in shown.data[0]["text/html"]
    assert "default-1.1" in shown.text


def test_tools_are_listed_described_and_called(notebook):
    notebook.run(
        "@pool.tool\ndef price(item: str, amount: int = 1) -> float:\n"
        "    'What it costs.'\n    print('counting')\n    return 2.5 * amount"
    )
    notebook.run("many = 4")

    assert notebook.run("%snakepit tools").stdout == (
        "price(item: str, amount: int = 1) -> float\n    What it costs.\n"
    )
    called = notebook.run("%snakepit call price item=tea amount=@many")
    assert (called.text, called.stdout) == ("10.0", "counting\n")
    assert notebook.run("x = %snakepit call price item='green tea'").status == "ok"
    assert notebook.run("x").text == "2.5"


def test_a_tool_is_described_by_signature_text_options_and_schema(notebook):
    assert notebook.run("%snakepit tools").stdout == "no tools\n"
    notebook.run(
        "from snakepit_kernel import tool\n@pool.tool\n@tool(idempotent=True, timeout=2.5)\n"
        "def price(item: str, amount: int = 1) -> float:\n"
        "    'What it costs.\\n\\n    In euros.'"
    )

    signature, about, more, options, schema = (
        notebook.run("%snakepit tools price").stdout.strip().split("\n\n")
    )

    assert signature == "price(item: str, amount: int = 1) -> float"
    assert (about, more) == ("What it costs.", "In euros.")
    assert options == "idempotent; timeout: 2.5 s"
    assert json.loads(schema)["properties"]["amount"] == {"type": "integer", "default": 1}
    assert '\n  "properties": {' in schema


def test_tools_complete_by_tab_as_attributes_and_as_keys(notebook):
    notebook.run("@pool.tool\ndef price(item: str) -> float:\n    'What it costs.'")

    for jedi in (True, False):
        notebook.run(f"%config Completer.use_jedi = {jedi}")
        assert any(word.endswith("price") for word in notebook.completions("pool.tools.pr"))
        assert "price" in notebook.completions('pool.tools["pr')
    asked = notebook.help("pool.tools.price")
    assert "(item: str) -> float" in asked
    assert "What it costs." in asked


MISTAKES = [
    ("statu", "there is no command 'statu'; did you mean 'status'"),
    ("call", "the following arguments are required: tool"),
    ("call nope", "there is no tool 'nope'; there are: double"),
    ("call double x=three", "argument 'x': Expected `int`, got `str`"),
    ("call double", "missing argument 'x'"),
    ("call double three", "an argument is NAME=VALUE, not 'three'"),
    ("call double x=@nope", "there is no variable 'nope'"),
    ("start --workers many", "'many' is not a whole number"),
    ("start --name a/b", "pool name 'a/b' must be"),
    ("start --name b --workers 0", "workers must be between 1 and 150, not 0"),
    ("start --name b --env COLOUR", "--env takes NAME=VALUE, not 'COLOUR'"),
    ("start --name b --cwd /no/such/place", "is not a directory"),
    ("use", "name a session, or a pool by --pool NAME"),
    ("use 'a b'", "session name 'a b' must be"),
    ("stop other", "there is no pool 'other'"),
    ("push nope", "name 'nope' is not defined in this notebook"),
    ("pull nope", "name 'nope' is not defined in the worker"),
    ("cancel 7", "there is no job 7; there are none"),
    ("tools dubble", "there is no tool 'dubble'; did you mean 'double'"),
    ("help strat", "there is no command 'strat'; did you mean 'start'?"),
    ("strat", "there is no command 'strat'; did you mean 'start'?"),
    ("start -n b", "'b' is not a whole number"),
    ("use --ttl soon", "'soon' is not a time, such as 12h, 30d or never"),
]


def test_a_mistake_is_one_line_that_says_what_would_be_right(notebook):
    notebook.run("@pool.tool\ndef double(x: int) -> int:\n    return 2 * x")

    for line, said in MISTAKES:
        shown = notebook.run(f"%snakepit {line}")

        assert shown.status == "error", line
        assert said in shown.stderr
        assert shown.stderr.strip().count("\n") == 0


def test_a_start_that_fails_names_its_cause_and_leaves_nothing(open_notebook):
    shown = open_notebook().run("%snakepit start --adapter no_such_module:Shop")

    assert shown.error is not None
    assert shown.error[0] == "StartFailed"
    assert "No module named 'no_such_module'" in shown.traceback
    assert "engine.py" not in shown.traceback


def test_a_class_of_the_notebook_can_be_the_adapter(open_notebook):
    notebook = open_notebook()
    notebook.run(
        "from snakepit_kernel import Adapter, tool\nclass Shop(Adapter):\n    @tool\n"
        "    def double(self, x: int) -> int:\n        return 2 * x"
    )

    assert notebook.run("%snakepit start --adapter Shop --workers 1").status == "ok"
    assert notebook.run("%snakepit call double x=4").text == "8"


def test_an_error_in_a_tool_shows_the_workers_traceback(notebook):
    notebook.run("@pool.tool\ndef fail():\n    raise KeyError('no')")

    shown = notebook.run("%snakepit call fail")

    assert shown.error == ("KeyError", "'no'")
    assert "raise KeyError('no')" in shown.traceback
    assert "engine.py" not in shown.traceback


def test_a_notebooks_path_names_its_session(open_notebook):
    one = open_notebook(JPY_SESSION_NAME="/home/me/My analysis.ipynb")
    other = open_notebook(JPY_SESSION_NAME="/home/you/My analysis.ipynb")

    sessions = [n.run("%snakepit").stdout.split("session ")[1].split(";")[0] for n in (one, other)]

    assert all(session.startswith("My-analysis-") for session in sessions)
    assert sessions[0] != sessions[1]


def test_a_session_can_be_chosen_and_is_listed(notebook):
    notebook.run("%%snakepit\n1")
    notebook.run("%snakepit use experiment-1")

    seen = notebook.run(
        "%%snakepit\nimport snakepit_kernel\nsnakepit_kernel.context().session_id"
    ).text

    assert seen == "'experiment-1'"
    rows = [line.split()[:2] for line in notebook.run("%snakepit sessions").text.splitlines()[1:]]
    assert ["*", "experiment-1"] in rows
    assert len(rows) > 1  # the notebook's own is there as well


def test_push_and_pull_copy_variables(notebook):
    notebook.run("x = [1, 2]")
    notebook.run("%snakepit push x --worker 1")
    notebook.run("%%snakepit --worker 1\nx.append(3)")

    notebook.run("%snakepit pull x --worker 1")

    assert notebook.run("x").text == "[1, 2, 3]"


def test_the_logs_are_shown_by_worker(notebook):
    assert "--- default-1.1" in notebook.run("%snakepit logs").stdout


COMPLETIONS = [
    ("%snakepit sta", {"start", "status"}),
    ("%snakepit start --wor", {"--workers"}),
    ("%snakepit call dou", {"double"}),
    ("%snakepit push some_v", {"some_variable"}),
    ("%snakepit use --pool def", {"default"}),
    ("%snakepit help st", {"start", "stop", "status"}),
    ("%%snakepit --back", {"--background"}),
    ("%%snakepit --push some_v", {"some_variable"}),
]


def test_tab_completes_commands_options_and_names(notebook):
    notebook.run("some_variable = 1\n@pool.tool\ndef double(x): return 2 * x")

    for line, expected in COMPLETIONS:
        assert expected <= set(notebook.completions(line)), line


def test_tab_offers_what_fits_and_nothing_else(notebook):
    notebook.run(
        "@pool.tool\ndef price(item: str, amount: int = 1): return 1\nclass Shop: pass\nitem = 2"
    )
    cases = {
        "%snakepit ": (set(COMMANDS), "command"),
        "pool = %snakepit st": ({"start", "start-process", "stats", "status", "stop"}, "command"),
        "a, b = %snakepit sto": ({"stop"}, "command"),
        "1\n%snakepit call pri": ({"price"}, "tool"),
        "%snakepit call price i": ({"item="}, "argument"),
        "%snakepit call price item=@it": ({"item=@item"}, "variable"),
        "%snakepit start --adapter Sh": ({"Shop"}, "class"),
        "%snakepit start --kernel-name snake": ({"snakepit"}, "kernel"),
        "%snakepit set x=1 --type bool": ({"boolean"}, "type"),
        "%%snakepit --backg": ({"--background"}, "option"),
    }
    for code, (expected, kind) in cases.items():
        reply = notebook.complete(code)
        assert set(reply["matches"]) == expected, code
        types = reply["metadata"]["_jupyter_types_experimental"]
        assert {each["type"] for each in types} == {kind}, code
        fragment = code[reply["cursor_start"] : reply["cursor_end"]]
        assert all(match.startswith(fragment) for match in reply["matches"]), code

    options = notebook.completions("%snakepit start --")
    assert "--workers" in options
    assert len(options) < 25
    assert "stop" not in notebook.completions("print(1 % snakepit s")
    assert "--all" not in notebook.completions("x = 1\n%%snakepit --a")


def test_the_question_mark_and_help_show_how_to_use_it(notebook):
    asked = notebook.help("%snakepit")

    assert "start" in asked
    assert "--background" in asked
    assert "--queue-timeout" in notebook.run("%snakepit help start").text


def test_help_is_asked_for_in_every_usual_way(open_notebook):
    notebook = open_notebook()

    for line in ("help start", "start --help", "start -h", "start ?", "start?", "start??"):
        shown = notebook.run(f"%snakepit {line}").text
        assert shown.startswith("%snakepit start [OPTIONS]\n"), line
    for line in ("%snakepit --help", "%snakepit -h", "%%snakepit --help\n1"):
        assert notebook.run(line).text.startswith("%snakepit COMMAND"), line
    assert notebook.run("%snakepit sh echo --help").stdout == "--help\n"


def test_the_help_lists_each_command_once_in_groups_of_aligned_columns(open_notebook):
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)
    shown = open_notebook().run("%snakepit help").data[0]

    text, html = shown["text/plain"], shown["text/html"]
    lines = text.splitlines()
    assert [line for line in lines if line in GROUPS] == list(GROUPS)
    (column,) = {line.index(COMMANDS["stop"]) for line in lines if COMMANDS["stop"] in line}
    for name, about in COMMANDS.items():
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert line.index(about.replace("%%", "%")) == column, line
        assert f"<td>{name}</td>" in html
    assert max(map(len, lines)) <= 100
    assert "%%%" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_names_all_of_its_arguments(command):
    parser = command_parsers(line_parser())[command]

    text, html = help_text(command), help_of(command)._repr_html_()

    assert text.startswith(f"%snakepit {command}")
    for action in parser._actions:
        metavar = action.metavar or VALUE_NAMES.get(action.type) or action.dest.upper()
        for name in action.option_strings or [metavar]:
            assert name in text
            assert name in html
        assert action.help.replace("%%", "%") in re.sub(r"\s+", " ", text)


def test_loading_the_extension_again_changes_nothing(notebook):
    assert "already loaded" in notebook.run("%load_ext snakepit_kernel").stdout
    assert notebook.run("%load_ext snakepit_magics").status == "ok"
    assert notebook.run("%%snakepit\n1 + 1").text == "2"


def test_unloading_the_extension_ends_its_pools(notebook):
    assert notebook.run("%unload_ext snakepit_kernel").status == "ok"

    assert notebook.run("pool.is_open").text == "False"
    assert "not found" in notebook.run("%snakepit").stderr
    assert notebook.run("%load_ext snakepit_kernel").status == "ok"
    assert "no pool is running" in notebook.run("%snakepit").stdout


def test_the_extension_works_in_another_kernel_too():
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", stderr=-3)
    try:
        shown: list[str] = []
        reply = client.execute_interactive(
            "%load_ext snakepit_kernel\npool = %snakepit start --workers 1\n"
            "print(pool.submit(pow, 2, 10).result())\npool.shutdown()",
            output_hook=lambda m: shown.append(m["content"].get("text", "")),
            timeout=60,
        )
        assert reply["content"]["status"] == "ok"
        assert "".join(shown) == "1024\n"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)

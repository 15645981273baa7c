"""What workers and adapters say is harmless where the notebook tells of it; output is as it was."""

from __future__ import annotations

EVIL = r"\x1b]0;title\x07\u202e\x9b2J"

DEFINE = f"""
import snakepit_kernel
@pool.tool
def fail() -> None:
    \"\"\"Fail. {EVIL}\"\"\"
    raise ValueError("{EVIL}")
"""


def lines_are_printable(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_what_workers_and_tools_say_does_nothing_where_it_is_told(notebook):
    notebook.run(DEFINE)

    failed = notebook.run("%snakepit call fail")
    tools = notebook.run("%snakepit tools fail").stdout

    assert failed.error == ("ValueError", EVIL)
    assert EVIL in failed.traceback
    for text in (failed.traceback, tools):
        assert EVIL in text
        assert lines_are_printable(text)


def test_a_worker_that_dies_says_its_last_harmlessly(notebook):
    died = notebook.run(f"""
pool.run("import os; os.write(2, '{EVIL}'.encode())", worker=1)
pool.run("os._exit(3)", worker=1)
""")
    status = notebook.run("%snakepit status").data[0]

    assert died.error[0] == "WorkerDied"
    assert EVIL in died.error[1]
    for text in (died.error[1], status["text/html"], status["text/plain"]):
        assert lines_are_printable(text)


def test_what_a_cell_prints_is_as_it_was_byte_for_byte(notebook):
    shown = notebook.run(f"%%snakepit\nprint('\\x1b[31mred\\x1b[0m {EVIL}')")

    assert shown.stdout == "\x1b[31mred\x1b[0m \x1b]0;title\x07\u202e\x9b2J\n"

"""What a script shows of an error or an interrupt: its own frames, and those in the worker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("failing_script.py")

OF_ASYNCIO = {"runners.py", "base_events.py"}
BELOW = {case: [[SCRIPT.name, "main"]] for case in ("acall", "astream")}
"""Frames below that of the case, where the script has functions of its own."""

KINDS = {
    **dict.fromkeys(("tool", "call", "acall", "astream", "stream", "host_tool"), "ToolError"),
    **dict.fromkeys(("submit", "mapped", "raised_twice"), "KeyError"),
    **dict.fromkeys(
        ("stop_of_call", "stop_of_acall", "stop_of_cell", "stop_of_result"), "KeyboardInterrupt"
    ),
    "cell": "CellError",
    "wrong_arguments": "InvalidArguments",
    "missing_arguments": "TypeError",
    "not_picklable": "TypeError",
    "pull": "NameError",
    "variable": "VariableNotFound",
    "variables": "BatchRejected",
    "program": "ProgramNotFound",
    "shell": "CommandFailed",
    "process": "ProcessNotFound",
    "options": "ValueError",
    "source_of_nothing": "ZeroDivisionError",
    "dies": "WorkerDied",
}

FAILED = """\
  File "SCRIPT", line 15, in fail
    return {"tea": 2.5}[item]
"""

TOOL_ERROR = f"""\
KeyError: 'coffee'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
FRAMES
snakepit_kernel.errors.ToolError: KeyError: 'coffee'

DETAILS

in the worker:
{FAILED}"""


@pytest.fixture(scope="module")
def done() -> subprocess.CompletedProcess[str]:
    """The script's end: by an error that it does not catch."""
    return subprocess.run(
        [sys.executable, str(SCRIPT)], check=False, capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def plain(text: str) -> str:
    text = re.sub(r"^pool 'default', worker .*$", "DETAILS", text, flags=re.MULTILINE)
    return without_marks(text.replace(str(SCRIPT), "SCRIPT"))


def without_marks(text: str) -> str:
    """Leave out the lines that mark a place in another one: Python 3.13 has more of them."""
    return re.sub(r"^ *[~^]+\n", "", text, flags=re.MULTILINE)


@pytest.mark.parametrize("case", KINDS)
def test_an_error_in_a_script_ends_in_a_frame_of_the_script(outcomes, case):
    found = outcomes[case]

    assert found["kind"] == KINDS[case], found["text"]
    frames = [frame for frame in found["frames"] if frame[0] not in OF_ASYNCIO]
    assert frames == [[SCRIPT.name, case], *BELOW.get(case, [])], found["text"]
    assert "/snakepit_kernel/" not in found["text"]


def test_the_whole_text_of_a_tools_error_has_the_lines_in_the_worker_once(outcomes, done):
    shown = plain(done.stderr)
    frames = shown.partition("(most recent call last):\n")[2].partition("snakepit_kernel.errors")[0]

    assert shown == TOOL_ERROR.replace("FRAMES\n", frames)
    assert re.findall(r"line \d+, in (\S+)", frames) == ["<module>", "main", "tool"]


def test_the_error_of_a_function_has_its_frames_in_the_worker_as_cause(outcomes):
    for case in ("submit", "mapped", "raised_twice"):
        shown = plain(outcomes[case]["text"])

        assert shown.startswith(
            f"snakepit_kernel.lane.replies.RemoteTraceback: in the worker:\n{FAILED}\n"
            "The above exception was the direct cause of the following exception:\n"
        ), shown
        assert shown.count("KeyError: 'coffee'") == 1
        assert shown.endswith("KeyError: 'coffee'\n")


def test_code_without_any_source_is_shown_by_its_place(outcomes):
    assert '  File "<string>", line 2, in broken\n' in outcomes["source_of_nothing"]["text"]


def test_an_error_of_a_host_tool_has_the_frames_of_both_sides(outcomes):
    shown = outcomes["host_tool"]["text"]

    assert re.findall(r"line \d+, in (\w+)", shown)[-3:] == ["ask", "broken", "fail"]
    assert "in the worker:\n" in shown
    assert "in the notebook:\n" in shown


def test_an_interrupt_says_where_the_worker_was(outcomes):
    call, acall, cell = (outcomes[f"stop_of_{what}"]["text"] for what in ("call", "acall", "cell"))

    assert "KeyboardInterrupt\nin worker default-1.1:\n" in call
    assert plain(call).endswith("in nap\n    time.sleep(60)\n")
    assert "in anap\n    await asyncio.sleep(60)\n" in plain(acall)
    assert "KeyboardInterrupt\nin worker default-1.1:\nCell In[" in cell
    assert cell.endswith("----> 3 time.sleep(60)\n")

"""Every code block of the README and of docs/ is run, each file in a fresh kernel."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.manager import start_new_kernel
from snakepit_magics.parsing import cell_parser, line_parser

import snakepit_kernel
from snakepit_kernel import Pool

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.rst"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, *languages: str) -> list[str]:
    found = BLOCK.findall(page.read_text())
    assert all(language for language, _ in found), f"{page.name} has a block without a language"
    return [code for language, code in found if language in languages]


@pytest.fixture
def run_cell(tmp_path: Path) -> Iterator[object]:
    manager, client = start_new_kernel(kernel_name="snakepit", cwd=str(tmp_path), stderr=-3)

    def run(code: str) -> None:
        shown: list[str] = []

        def keep(message: dict) -> None:
            content = message["content"]
            shown.extend([content.get("text", ""), *content.get("traceback", [])])

        reply = client.execute_interactive(code, output_hook=keep, timeout=60)
        assert reply["content"]["status"] == "ok", f"{code}\n{''.join(shown)}"

    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, run_cell):
    for code in blocks(page, "python"):
        run_cell(code)


def test_a_block_is_python_or_shell_or_plain_text():
    languages = {name for page in PAGES for name, _ in BLOCK.findall(page.read_text())}

    assert languages <= {"python", "bash", "text"}


def test_ci_runs_the_shell_commands_of_the_pages():
    """They install things, so they are for a fresh environment: that of .ci/run."""
    script = " ".join((ROOT / ".ci" / "run").read_text().replace("\\\n", " ").split())

    for page in PAGES:
        for block in blocks(page, "bash"):
            for part in re.split(r"&&|\n", block.strip()):
                command = " ".join(part.split())
                assert command in script, f"{page.name}: {command!r} is not run by .ci/run"


def test_each_public_name_has_one_place_in_the_reference():
    described = Counter(
        name
        for page in REFERENCE
        for name in re.findall(
            r"^\.\. auto\w+:: snakepit_kernel\.(\w+)$", page.read_text(), re.MULTILINE
        )
    )

    assert described == Counter(snakepit_kernel.__all__)


def test_the_guide_and_the_reference_name_each_option_of_a_pool():
    guide = "\n".join(page.read_text() for page in PAGES)
    options = [name for name in inspect.signature(Pool).parameters if name != "options"]
    assert len(options) > 20

    missing = [name for name in options if not re.search(rf"\b{name}\b", guide)]
    assert missing == []
    assert [name for name in options if not re.search(rf"\b{name}\b", Pool.__doc__)] == []


def test_the_page_of_the_magics_names_each_of_their_options():
    page = (ROOT / "docs" / "magics.md").read_text()
    options = {
        option
        for parser in (line_parser(), cell_parser())
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", _help_of(parser))
    }
    assert len(options) > 30

    assert sorted(option for option in options if f"{option}" not in page) == []


def _help_of(parser: ArgumentParser) -> str:
    """Return the help of a parser and of all its commands."""
    commands = [action for action in parser._actions if hasattr(action, "choices")]
    below = [
        _help_of(each)
        for action in commands
        if isinstance(action.choices, dict)
        for each in action.choices.values()
        if isinstance(each, ArgumentParser)
    ]
    return "\n".join([parser.format_help(), *below])


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("snakepit --version", "0."),
        ("snakepit --help", "doctor"),
        ("jupyter snakepit --help", "status"),
    ],
)
def test_the_commands_that_the_pages_name_exist(command, said):
    program, *arguments = shlex.split(command)

    done = subprocess.run(
        [str(Path(sys.executable).with_name(program)), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )

    assert said in done.stdout

"""Classes and functions of ``__main__`` on their way: real scripts, because imports hide faults."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(name: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py")],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def names_in(name: str, find: str) -> list[str]:
    """Read the names of a script's cases or checks; to import it would hide what it is about."""
    tree = ast.parse((HERE / f"{name}.py").read_text())
    if find == "CASES":
        (cases,) = (
            node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CASES"
        )
        return [ast.literal_eval(key) for key in cases.keys]
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(mark, ast.Name) and mark.id == find for mark in node.decorator_list)
    ]


@pytest.fixture(scope="module")
def classes() -> dict[str, list[str]]:
    return run("classes_of_a_notebook")


@pytest.fixture(scope="module")
def changes() -> dict[str, str]:
    return run("changes_in_a_notebook")


@pytest.mark.parametrize("name", names_in("classes_of_a_notebook", "CASES"))
def test_a_class_or_function_of_a_notebook_is_the_same_there_and_when_it_comes_back(classes, name):
    assert classes[name] == []


@pytest.mark.parametrize("name", names_in("changes_in_a_notebook", "check"))
def test_what_a_notebook_changes(changes, name):
    assert changes[name] == ""

"""`snakepit new-adapter`: what it writes works, and misuse writes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snakepit_kernel.cli.new_adapter import class_name, render

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_the_tests_of_a_new_package_pass(snakepit: Run, place: Any, tmp_path: Path) -> None:
    name = "adapter"  # which is also a name that it uses
    done = snakepit("new-adapter", name, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")

    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=tmp_path / name,
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    assert tests.returncode == 0, tests.stdout
    assert "3 passed" in tests.stdout


def test_a_tool_that_is_broken_fails_the_new_package_s_tests(
    snakepit: Run, place: Any, tmp_path: Path
) -> None:
    snakepit("new-adapter", "sample_shop", cwd=tmp_path)
    module = tmp_path / "sample_shop" / "sample_shop" / "__init__.py"
    module.write_text(module.read_text().replace('"Hello"', '"Goodbye"'))

    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path / "sample_shop",
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    assert tests.returncode == 1, tests.stdout
    assert "1 failed, 2 passed" in tests.stdout


def test_a_new_package_has_a_project_a_readme_a_module_and_tests(
    snakepit: Run, tmp_path: Path
) -> None:
    done = snakepit("new-adapter", "sample_shop", "--directory", str(tmp_path / "a" / "b"))

    assert str(tmp_path / "a" / "b") in done.stdout
    assert contents(tmp_path / "a" / "b") == {
        "pyproject.toml",
        "README.md",
        "sample_shop",
        "sample_shop/__init__.py",
        "tests",
        "tests/test_sample_shop.py",
    }
    project = tomllib.loads((tmp_path / "a" / "b" / "pyproject.toml").read_text())
    assert project["project"]["name"] == "sample-shop"
    assert project["build-system"]["build-backend"] == "hatchling.build"
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["sample_shop"]


def test_no_placeholder_is_left_in_what_is_written() -> None:
    for path, text in render("sample_shop").items():
        assert "$" not in text.replace("\n$ ", "\n"), path
        assert "template" not in path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shop", "ShopTools"),
        ("my_shop", "MyShopTools"),
        ("adapter", "AdapterTools"),
        ("tools", "Tools"),
        ("my_tools", "MyTools"),
        ("Shop2", "Shop2Tools"),
    ],
)
def test_the_adapter_is_called_after_its_package(name: str, expected: str) -> None:
    assert class_name(name) == expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("1shop", "cannot be the name of a package"),
        ("my-shop", "did you mean 'my_shop'?"),
        ("my shop", "cannot be the name of a package"),
        ("../shop", "cannot be the name of a package"),
        ("a.b", "cannot be the name of a package"),
        ("", "cannot be the name of a package"),
        ("_shop", "cannot be the name of a package"),
        ("shop_", "cannot be the name of a package"),
        ("größe", "cannot be the name of a package"),
        ("shop\n", "cannot be the name of a package"),
        ("class", "cannot be the name of a package"),
        ("tests", "choose another name"),
        ("json", "standard library"),
        ("winreg", "standard library"),  # it is one on another system
        ("numpy", "installed module"),
        ("snakepit_kernel", "installed module"),
    ],
)
def test_a_name_that_will_not_do_is_one_line_and_writes_nothing(
    snakepit: Run, tmp_path: Path, name: str, reason: str
) -> None:
    done = snakepit("new-adapter", name, cwd=tmp_path)

    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert reason in line
    assert contents(tmp_path) == set()


def test_a_directory_that_is_not_empty_is_left_as_it_is(snakepit: Run, tmp_path: Path) -> None:
    (tmp_path / "sample_shop").mkdir()
    (tmp_path / "sample_shop" / "mine.txt").write_text("mine")

    done = snakepit("new-adapter", "sample_shop", cwd=tmp_path)

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "not empty" in line
    assert contents(tmp_path) == {"sample_shop", "sample_shop/mine.txt"}


def test_a_file_in_the_place_of_the_directory_is_left_as_it_is(
    snakepit: Run, tmp_path: Path
) -> None:
    (tmp_path / "here").write_text("mine")

    done = snakepit("new-adapter", "sample_shop", "--directory", "here", cwd=tmp_path)

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "not a directory" in line
    assert (tmp_path / "here").read_text() == "mine"


def test_an_empty_directory_is_filled(place: Any, tmp_path: Path) -> None:
    (tmp_path / "sample_shop").mkdir()

    # As a module, python finds the empty folder itself, as a namespace package.
    done = subprocess.run(
        [sys.executable, "-m", "snakepit_kernel", "new-adapter", "sample_shop"],
        cwd=tmp_path,
        env=place.environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sample_shop" / "pyproject.toml").exists()


def test_the_current_directory_can_be_filled(snakepit: Run, tmp_path: Path) -> None:
    done = snakepit("new-adapter", "sample_shop", "--directory", ".", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pyproject.toml").exists()


def test_a_place_that_cannot_be_written_is_one_line(snakepit: Run) -> None:
    assert not os.path.exists("/proc/nowhere")

    done = snakepit("new-adapter", "sample_shop", "--directory", "/proc/nowhere/shop")

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1

"""Workers from kernelspecs of Python: of this environment, of another one, of another Python."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import ipykernel
import pytest
import snakepit_magics

import snakepit_kernel
from snakepit_kernel import (
    CallTimeout,
    CellsOnly,
    Pool,
    StartFailed,
    ToolError,
    Unserializable,
    register_encoder,
)
from snakepit_kernel.pool.resources.kernelspec import find_kernel

OURS = ("-m", "snakepit_kernel.kernel", "-f", "{connection_file}")
STOCK = ("-m", "ipykernel_launcher", "-f", "{connection_file}")
VERSION = snakepit_kernel.__version__
HERE = "{}.{}".format(*sys.version_info)


def make_environment(folder: Path, snakepit: str | None) -> str:
    """Make an environment with the packages of this one; return its interpreter.

    It has snakepit_kernel of a certain version, or of none.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (place,) = folder.glob("lib/*/site-packages")
    packages = [
        *Path(ipykernel.__file__).parents[1].iterdir(),
        Path(snakepit_magics.__file__).parent,
    ]
    for package in packages:
        is_other = package.name != "snakepit_kernel" and package.suffix != ".pth"  # editable
        if is_other and not (place / package.name).exists():
            (place / package.name).symlink_to(package)
    if snakepit is not None:
        shutil.copytree(Path(snakepit_kernel.__file__).parent, place / "snakepit_kernel")
        (place / "snakepit_kernel" / "_version.py").write_text(f'__version__ = "{snakepit}"\n')
    return str(folder / "bin" / "python")


@pytest.fixture(scope="module")
def with_snakepit(tmp_path_factory) -> str:
    return make_environment(tmp_path_factory.mktemp("with") / "env", VERSION)


@pytest.fixture(scope="module")
def without_snakepit(tmp_path_factory) -> str:
    return make_environment(tmp_path_factory.mktemp("without") / "env", None)


@pytest.fixture(scope="module")
def with_another_snakepit(tmp_path_factory) -> str:
    return make_environment(tmp_path_factory.mktemp("another") / "env", "0.0.7")


def test_the_stock_kernelspec_of_this_environment_gives_workers_that_do_everything(
    shop, open_pool, kernelspec
):
    pool = open_pool(kernel_name=kernelspec("stock-here", "python", *STOCK), adapter=shop)

    assert pool.call("price", {"item": "tea", "amount": 2}) == 5.0
    assert pool.submit(lambda: 6 * 7).result() == 42
    assert pool.run("x = given", push={"given": [1]}, pull="x").pulled == {"x": [1]}


@pytest.mark.parametrize("command", [OURS, STOCK], ids=["ours", "stock"])
def test_an_environment_with_snakepit_gives_workers_that_do_everything(
    command, with_snakepit, shop, open_pool, kernelspec
):
    name = kernelspec(f"with-{command[1]}".replace("_", "-"), with_snakepit, *command)
    pool = open_pool(kernel_name=name, adapter=shop)

    assert pool.call("price", {"item": "tea", "amount": 2}) == 5.0
    assert pool.submit(lambda: sys.prefix).result() == str(Path(with_snakepit).parents[1])
    assert pool.run("1 + 1").value == 2


def test_packages_of_this_environment_are_not_for_the_workers_of_another_one(
    with_snakepit, kernelspec, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    for folder in (*site.getsitepackages(), site.getusersitepackages()):
        monkeypatch.syspath_prepend(folder)

    path = find_kernel(kernelspec("with", with_snakepit, *OURS), os.environ).import_path()

    assert str(tmp_path) in path
    assert not any("site-packages" in entry or "lib-dynload" in entry for entry in path)


def test_an_environment_without_snakepit_gives_workers_that_run_cells(
    without_snakepit, open_pool, kernelspec
):
    pool = open_pool(kernel_name=kernelspec("without", without_snakepit, *STOCK))

    assert pool.run("kept = 20\nprint('hello')\nkept + 22").outputs == [
        {"output_type": "stream", "name": "stdout", "text": "hello\n"},
        {
            "output_type": "execute_result",
            "data": {"text/plain": "42"},
            "metadata": {},
            "execution_count": 1,
        },
    ]
    with pytest.raises(CallTimeout):
        pool.run("import time; time.sleep(30)", timeout=0.3)
    assert pool.run("print(kept)").stdout == "20\n"
    assert pool.run("1 / 0").error.type_name == "ZeroDivisionError"
    with pytest.raises(CellsOnly) as caught:
        pool.submit(pow, 2, 3)
    assert str(caught.value) == (
        "pow() is not possible with kernelspec 'without', whose workers run cells only: it is a "
        f"Python kernel, and runs {without_snakepit}, which has no snakepit-kernel; install it "
        f"there: {without_snakepit} -m pip install snakepit-kernel=={VERSION}"
    )


def test_a_kernelspec_of_another_version_of_ours_does_not_start_and_names_both(
    with_another_snakepit, kernelspec
):
    with pytest.raises(StartFailed) as caught:
        Pool(1, kernel_name=kernelspec("another", with_another_snakepit, *OURS))

    assert caught.value.cause == (
        f"kernelspec 'another' runs {with_another_snakepit}, which has snakepit-kernel 0.0.7, and "
        f"this process has snakepit-kernel {VERSION}; install it there: {with_another_snakepit} "
        f"-m pip install snakepit-kernel=={VERSION}"
    )


def test_a_stock_kernelspec_beside_another_version_of_ours_runs_cells(
    with_another_snakepit, kernelspec
):
    kernel = find_kernel(kernelspec("stock", with_another_snakepit, *STOCK), os.environ)

    assert "which has snakepit-kernel 0.0.7" in kernel.cells_only


def test_another_version_behind_a_program_that_hides_it_is_named_by_the_worker(
    with_another_snakepit, kernelspec
):
    name = kernelspec("hidden", "/usr/bin/env", with_another_snakepit, *OURS)

    with pytest.raises(StartFailed, match=f"it has snakepit-kernel 0.0.7, and this.*{VERSION};"):
        Pool(1, kernel_name=name)


def test_a_kernelspec_may_name_its_interpreter_by_its_own_folder(kernelspec, with_snakepit):
    name = kernelspec("relative", "{resource_dir}/python", *STOCK)
    folder = Path(os.environ["JUPYTER_DATA_DIR"], "kernels", name)
    (folder / "python").write_text(f'#!/bin/sh\nexec {with_snakepit} "$@"\n')
    (folder / "python").chmod(0o700)

    kernel = find_kernel(name, os.environ)

    assert kernel.has_lane
    assert kernel.interpreter.is_elsewhere


def test_a_stock_kernelspec_whose_interpreter_is_gone_says_so_at_once(kernelspec):
    with pytest.raises(StartFailed, match="is the interpreter of this kernelspec still installed"):
        Pool(1, kernel_name=kernelspec("gone", "/no/such/python", *STOCK))


# -- another version of Python ---------------------------------------------------------------------


def another_python() -> str | None:
    """Return an interpreter of another minor version that we support, if there is one."""
    for minor in (12, 13, 11):
        if minor == sys.version_info[1]:
            continue
        installed = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3.{minor}"))
        found = shutil.which(f"python3.{minor}")
        for program in filter(None, (*map(str, installed), found)):  # or a shim for nothing
            if (
                subprocess.run([program, "-c", ""], capture_output=True, check=False).returncode
                == 0
            ):
                return program
    return None


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> str:
    """The interpreter of an environment of another Python, with snakepit_kernel installed."""
    program = another_python()
    if program is None:
        pytest.skip("needs an interpreter of another minor version")
    folder = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([program, "-m", "venv", str(folder)], check=True)
    interpreter = str(folder / "bin" / "python")
    command = [interpreter, "-m", "pip", "install", "-q", str(Path(__file__).parents[2])]
    subprocess.run(command, check=True, capture_output=True)
    return interpreter


GATE = """
import sys
from snakepit_kernel import Adapter, tool

class Gate(Adapter):
    @tool
    def version(self) -> str:
        return "{}.{}".format(*sys.version_info)

    @tool
    def back(self, value):
        return value

    @tool
    def function(self):
        return [1, lambda: 2]
"""


@pytest.fixture
def gate(elsewhere, tmp_path, monkeypatch, kernelspec, open_pool) -> Pool:
    (tmp_path / "gate.py").write_text(GATE)
    monkeypatch.chdir(tmp_path)
    return open_pool(kernel_name=kernelspec("py", elsewhere, *OURS), adapter="gate:Gate")


@pytest.mark.timeout(300)  # with the installation of an environment
def test_tools_cells_and_values_cross_between_versions_of_python(gate):
    values = [None, True, 2**70, float("inf"), (1, {2}), b"\0", {"a": [1, 2]}, "ä"]

    assert gate.call("version") != HERE
    assert gate.call("back", {"value": values}) == values
    assert gate.run("import sys; sys.version_info[:2]").value != sys.version_info[:2]
    assert gate.submit(pow, 2, 10).result() == 1024


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "send",
    [
        lambda pool: pool.submit(lambda: 1),
        lambda pool: pool.tool(lambda: 1),
        lambda pool: pool.push({"f": lambda: 1}),
        lambda pool: pool.call("back", {"value": type("Local", (), {"__module__": "__main__"})}),
    ],
    ids=["submit", "tool", "push", "class"],
)
def test_code_does_not_travel_to_another_version_of_python_and_both_are_named(send, gate):
    with pytest.raises(TypeError, match=rf"equal versions of Python only.*Python {HERE}, the work"):
        send(gate)

    assert gate.call("back", {"value": 1}) == 1


@pytest.mark.timeout(300)
def test_an_encoder_that_is_code_disturbs_no_other_value_on_the_way_to_another_python(gate):
    class Handle:
        pass

    Handle.__module__ = "__main__"
    register_encoder(Handle, lambda handle: 1, lambda number: Handle())

    assert gate.call("back", {"value": [1]}) == [1]
    with pytest.raises(TypeError, match="equal versions of Python only"):
        gate.call("back", {"value": Handle()})


@pytest.mark.timeout(300)
def test_code_does_not_come_back_from_another_version_of_python(gate):
    assert gate.call("function") == [1, Unserializable("function")]
    assert gate.run("class Local: pass\n[1, Local()]").value == [
        1,
        Unserializable("__main__.Local"),
    ]


@pytest.mark.timeout(300)
def test_values_of_a_library_that_is_not_there_are_a_clear_error(gate):
    numpy = pytest.importorskip("numpy")

    with pytest.raises(ToolError, match="ModuleNotFoundError: No module named 'numpy'"):
        gate.call("back", {"value": numpy.ones(3)})

"""Files beside a notebook do not stand in for modules of ours or of the standard library."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.connect import write_connection_file

import snakepit_kernel
from snakepit_kernel.processes.template import TEMPLATE_VARIABLE

CELLS = (
    "%snakepit start --workers 1",
    "%%snakepit\nprint(6 * 7)",
    "from snakepit_kernel import Pool, open_session\nprint(Pool)",
    "with Pool(2) as pool: print(list(pool.map(abs, [-1, -2])), pool.status())",
    "v = open_session('s').variables; v.register('x', 'integer', 1); print(v['x'])",
    "%snakepit status",
    "%snakepit doctor",
    "%snakepit help",
    "%snakepit stop",
    "import mine\nprint(mine.x)",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose files say who imports them."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    say = f"open({str(tmp_path / 'imported')!r}, 'a').write(__name__ + '\\n')\n"
    for name in sys.stdlib_module_names:
        (folder / f"{name}.py").write_text(say)
    for name in ("snakepit_kernel", "snakepit_magics"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(say)
    (folder / "mine.py").write_text("x = 'the notebook finds what is its own'")
    return folder


def imported(folder: Path) -> str:
    log = folder.with_name("imported")
    return log.read_text() if log.exists() else ""


def unsafe_pythons() -> list[list[str]]:
    """The commands of interpreters that would look for modules where they were started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            command = process.cmdline()
            if "multiprocessing" in " ".join(command):  # this process's own
                continue
            if "python" in Path(command[0]).name and not {"-P", "-I"} & set(command):
                found.append(command)
    return found


@pytest.mark.parametrize("path", ["", ":/nowhere"])
@pytest.mark.parametrize("template", ["1", "0"])
def test_nothing_beside_a_notebook_is_taken_for_what_the_kernel_needs(
    start_kernel, folder, monkeypatch, template, path
):
    monkeypatch.setenv(TEMPLATE_VARIABLE, template)
    if path:
        monkeypatch.setenv("PYTHONPATH", path)

    async def scenario() -> str:
        async with start_kernel(launch={"cwd": str(folder)}) as kernel:
            for cell in CELLS:
                said = await kernel.run(cell, timeout=60)
                assert imported(folder) == "", cell
                assert unsafe_pythons() == [], cell
            return said

    assert asyncio.run(scenario()) == "the notebook finds what is its own"


def test_nor_where_a_client_runs_the_kernelspec_without_our_provisioner(folder, tmp_path):
    """As VS Code does, which reads the kernelspec's command and runs it."""
    spec = Path(snakepit_kernel.__file__).parents[1] / "kernelspec" / "kernel.json"
    if not spec.exists():  # installed as a wheel
        spec = Path(sys.prefix, "share/jupyter/kernels/snakepit/kernel.json")
    argv = json.loads(spec.read_text())["argv"]
    file, info = write_connection_file(str(tmp_path / "kernel.json"))

    async def scenario() -> str:
        client = AsyncKernelClient()
        client.load_connection_info(info)
        client.start_channels(hb=False)
        said: list[str] = []

        def collect(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                said.append(message["content"]["text"])

        try:
            await client.wait_for_ready(timeout=60)
            for cell in CELLS:
                said.clear()
                reply = await client.execute_interactive(cell, output_hook=collect, timeout=60)
                assert reply["content"]["status"] == "ok", reply["content"]
                assert imported(folder) == "", cell
            client.shutdown()
        finally:
            client.stop_channels()
            client.context.destroy(linger=0)
        return "".join(said).strip()

    command = [sys.executable, *argv[1:-1], file]
    with subprocess.Popen(command, cwd=folder) as process:
        try:
            assert asyncio.run(scenario()) == "the notebook finds what is its own"
        finally:
            process.terminate()

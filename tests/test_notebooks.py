"""The short notebooks give the outputs that they hold; `.ci/run` runs every notebook."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
COMPILES = pytest.mark.skipif(not shutil.which("cc"), reason="shells.ipynb needs a C compiler")
SHORT = [
    pytest.param(path, marks=[COMPILES] if path.stem == "shells" else [])
    for path in NOTEBOOKS
    if path.stem in {"tour", "sessions", "shells"}
]


@pytest.mark.parametrize("notebook", SHORT, ids=lambda path: path.stem)
def test_a_short_notebook_passes_nbval(tmp_path, notebook):
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("pytest")), "--nbval", str(notebook)),
            *("-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", "--override-ini=addopts="),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_for_our_kernel_and_holds_its_outputs(notebook):
    content = nbformat.read(notebook, 4)

    assert content.metadata.kernelspec.name == "snakepit"
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    assert sum(bool(cell.outputs) for cell in code) > len(code) / 2
    assert all(len(cell.outputs) <= 2 for cell in code), "short enough to read"

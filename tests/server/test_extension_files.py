"""The files of the extension: built from the source that is here, installed, small."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import snakepit_kernel

FOLDER = Path(__file__).parents[2] / "labextension"
PREBUILT = FOLDER / "prebuilt"
INSTALLED = Path(sys.prefix, "share/jupyter/labextensions/snakepit-kernel")
SERVER_CONFIG = Path(sys.prefix, "etc/jupyter/jupyter_server_config.d/snakepit_kernel.json")

MAX_BYTES = 64 << 10
"""Size of all built files: JupyterLab has the libraries, and the extension bundles none."""


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def source_hash() -> ModuleType:
    """The program that tells whether the built files belong to the source."""
    spec = importlib.util.spec_from_file_location("source_hash", FOLDER / "source_hash.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_built_files_belong_to_the_source(source_hash):
    written = source_hash.RECORD.read_text().strip()

    assert written == source_hash.source_hash(), "run: cd labextension && jlpm && jlpm build"


def test_the_installed_files_are_those_of_the_source():
    assert files_of(INSTALLED) == files_of(PREBUILT), "run: pip install -e ."
    assert SERVER_CONFIG.read_bytes() == (FOLDER / "server.json").read_bytes()


def test_it_has_the_version_of_the_package_and_bundles_nothing():
    manifest = json.loads((PREBUILT / "package.json").read_text())

    assert manifest["version"] == snakepit_kernel.__version__
    assert (PREBUILT / manifest["jupyterlab"]["_build"]["load"]).is_file()
    assert sum(map(len, files_of(PREBUILT).values())) < MAX_BYTES


def test_jupyter_server_is_imported_by_a_server_alone_and_pools_when_they_are_asked_for():
    code = (
        "import sys, snakepit_kernel\n"
        "(point,) = snakepit_kernel._jupyter_server_extension_points()\n"
        "module = __import__(point['module'], fromlist=['x'])\n"
        "assert 'jupyter_server' not in sys.modules\n"
        "class Server:\n"
        "    class web_app:\n"
        "        settings = {'base_url': '/user/me/'}\n"
        "        add_handlers = staticmethod(lambda host, routes: print(*(r[0] for r in routes)))\n"
        "module._load_jupyter_server_extension(Server)\n"
        "assert 'snakepit_kernel.pool.status' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("/user/me/snakepit/state /user/me/snakepit/pools/")

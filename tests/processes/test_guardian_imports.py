"""What a guardian imports: there is one above each kernel, and each module is memory of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest
from jupyter_client.manager import KernelManager

OURS = {
    "snakepit_kernel",  # a stand-in: the facade imports `typing`
    "snakepit_kernel.printable",
    "snakepit_kernel.processes",
    "snakepit_kernel.processes.guardian",
    "snakepit_kernel.processes.identity",
    "snakepit_kernel.processes.pidfd",
    "snakepit_kernel.processes.tags",
}
OTHERS = {
    *("__future__", "_collections_abc", "errno", "select"),
    *("os", "os.path", "posixpath", "genericpath", "stat", "_stat"),
    *("abc", "_abc"),  # which Python 3.14 imports with these
}
"""Of the standard library: beyond what an interpreter without site-packages has anyway."""

LISTING = """
import sys
before = set(sys.modules)
try:
    exec({code!r})
except BaseException as error:
    ended = error
modules = set(sys.modules)
import json
assert isinstance(ended, (ValueError, IndexError, KeyError, SystemExit, TypeError)), repr(ended)
print(json.dumps(sorted(modules - before)))
"""


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> str:
    """What the interpreter of an executed guardian is told to run."""
    monkeypatch.setenv("SNAKEPIT_TEMPLATE", "0")
    manager = KernelManager(kernel_name="snakepit")
    manager.start_kernel()
    try:
        commands = [each.cmdline() for each in psutil.Process().children()]
        (command,) = (each for each in commands if "-c" in each and "--" in each)
    finally:
        manager.shutdown_kernel(now=True)
    assert command[1:4] == ["-I", "-S", "-c"]
    return command[4]


def test_a_guardian_imports_no_more_than_it_did(code):
    listing = LISTING.format(code=code)
    command = [sys.executable, "-I", "-S", "-c", listing]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert found.returncode == 0, found.stderr
    modules = set(json.loads(found.stdout))
    assert {name for name in modules if name.startswith("snakepit")} == OURS
    assert modules - OURS <= OTHERS

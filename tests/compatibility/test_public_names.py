"""What users hold on to is as it was: names, signatures, commands, options, titles, events."""

from __future__ import annotations

import difflib
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("public_names.py")
SNAPSHOT = Path(__file__).parents[1] / "fixtures" / "public_names.txt"


def test_what_is_public_is_as_it_was():
    command = [sys.executable, str(PROGRAM)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert found.returncode == 0, found.stderr
    before, now = SNAPSHOT.read_text().splitlines(), found.stdout.splitlines()
    changes = list(difflib.unified_diff(before, now, "as it was", "as it is now", lineterm="", n=2))
    if changes:
        pytest.fail(
            "what users hold on to has changed; if that is wanted, and has a changelog fragment, "
            "renew the snapshot: python tests/compatibility/public_names.py > "
            f"tests/fixtures/{SNAPSHOT.name}\n" + "\n".join(changes),
            pytrace=False,
        )

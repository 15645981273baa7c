"""The command line: ``snakepit``, also available as ``jupyter snakepit``.

Only `main` is here: the console scripts import this module, and each command imports what it needs.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line of this process, and exit with its status."""
    from .commands import run

    sys.exit(run(sys.argv[1:], program=program_name(sys.argv[0])))


def program_name(script: str) -> str:
    """Return the command that the user typed, from the path of the script that it started."""
    name = script.rpartition("/")[2]
    if name == "jupyter-snakepit":
        return "jupyter snakepit"
    return "python -m snakepit_kernel" if name == "__main__.py" else "snakepit"

"""The file that marks a complete environment. Workers look for it, so it imports nothing else."""

from __future__ import annotations

from pathlib import Path

MARKER = "snakepit-environment.json"
"""File in an environment that is complete; its time of change is that of the last use."""


def is_environment(folder: str) -> bool:
    """Whether a folder is a complete environment."""
    return Path(folder, MARKER).exists()

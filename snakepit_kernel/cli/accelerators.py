"""``snakepit doctor``: what `Pool(gpus=...)` would share out."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ..pool.resources.accelerators import detect
from .findings import Finding, ok


def check_accelerators() -> Iterator[Finding]:
    """Say which accelerators there are."""
    yield ok("accelerators", str(detect(os.environ)))

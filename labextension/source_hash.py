"""Tell whether the built files belong to the source: ``python source_hash.py [--write]``.

The SHA-256 of everything that the build reads is kept with what it has made; a test compares.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
RECORD = FOLDER / "prebuilt" / "source.sha256"


def sources() -> list[Path]:
    """Return the files that the build reads, of this folder and of others."""
    return [
        FOLDER / "package.json",
        FOLDER / "yarn.lock",
        *sorted((FOLDER / "src").glob("*.js")),
        *sorted((FOLDER / "style").glob("*.css")),
        FOLDER.parent / "kernelspec" / "logo-svg.svg",
    ]


def source_hash() -> str:
    """Return the hash of the present source."""
    total = hashlib.sha256()
    for path in sources():
        content = path.read_bytes()
        total.update(f"{path.name} {len(content)}\n".encode() + content)
    return total.hexdigest()


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        RECORD.write_text(source_hash() + "\n")
    elif RECORD.read_text().strip() != source_hash():
        sys.exit("the built files do not belong to the source: npm run build")

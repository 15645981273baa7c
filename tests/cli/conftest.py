"""A place of its own for each test, and the command as a shell starts it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(sysconfig.get_path("scripts"))


@dataclass
class PidScope:
    """Private directories, and the environment that points to them."""

    root: Path

    @property
    def runtime(self) -> Path:
        return self.root / "s"

    @property
    def jupyter_runtime(self) -> Path:
        return self.root / "r"

    @property
    def data(self) -> Path:
        return self.root / "d"

    @property
    def settings(self) -> dict[str, str]:
        return {
            "SNAKEPIT_RUNTIME_DIR": str(self.runtime),
            "SNAKEPIT_DATA_DIR": str(self.data),
            "JUPYTER_RUNTIME_DIR": str(self.jupyter_runtime),
            "JUPYTER_DATA_DIR": str(self.root / "jd"),
            "JUPYTER_CONFIG_DIR": str(self.root / "jc"),
            "JUPYTER_PATH": str(self.root / "jp"),
            "IPYTHONDIR": str(self.root / "i"),
            "PATH": f"{SCRIPTS}:/usr/bin:/bin",
        }

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.settings}


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[PidScope]:
    """Give private directories with short paths, for this process and those that it starts."""
    root = Path(tempfile.mkdtemp(prefix="spc-", dir="/tmp"))
    place = PidScope(root)
    for directory in (place.runtime, place.jupyter_runtime, place.data):
        directory.mkdir(mode=0o700)
    for name, value in place.settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SNAKEPIT_RUN_ID", raising=False)
    yield place
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def snakepit(place: PidScope) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command as a shell does: ``snakepit("status", "--json").stdout``."""

    def run(
        *arguments: str, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        options.setdefault("stdout", subprocess.PIPE)
        return subprocess.run(
            [str(SCRIPTS / "snakepit"), *arguments],
            env={**place.environment, **(env or {})},
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
            **options,
        )

    return run


OWNER = """
import sys
from snakepit_kernel import Pool
with Pool(workers=2, name="shop") as pool:
    pool.submit(pow, 2, 10).result()
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def pool_owner(place: PidScope) -> Iterator[subprocess.Popen[str]]:
    """Give a process of its own that holds an open pool of two workers, named ``shop``."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        env=place.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "ready\n"
            yield owner
        finally:
            assert owner.stdin is not None
            owner.stdin.close()  # it ends its pool and exits, unless the test has killed it
            try:
                owner.wait(20)
            except subprocess.TimeoutExpired:
                owner.kill()
                raise

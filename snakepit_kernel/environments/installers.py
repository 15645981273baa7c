"""The programs that resolve requirements and install packages: ``uv``, or else ``venv`` and pip."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag

from ..errors import EnvironmentFailed, suggest
from .requirements import DISTRIBUTION

INSTALLER_VARIABLE = "SNAKEPIT_INSTALLER"
"""Environment variable that chooses the installer: ``uv``, ``pip`` or ``auto``."""

SETTINGS_PATIENCE = 10.0
"""Seconds that pip may take to list its settings."""


class Installer(ABC):
    """A program that resolves requirements and installs packages.

    Attributes
    ----------
    name
        Its name.
    """

    name: str

    @abstractmethod
    def resolve(self, request: Path, constraints: Path, lock: Path, *, upgrade: bool) -> list[str]:
        """Return the command that resolves a requirements file, and writes what it found.

        Parameters
        ----------
        request, constraints
            Requirements files.
        lock
            File that it writes.
        upgrade
            Whether to ask the index again for what it has said a short while ago.
        """

    @abstractmethod
    def read_lock(self, lock: Path) -> list[str]:
        """Return the packages in a file that was written, as lines of a requirements file.

        snakepit-kernel is left out.
        """

    @abstractmethod
    def create(self, folder: Path) -> list[str]:
        """Return the command that makes an environment without packages."""

    @abstractmethod
    def install(self, folder: Path, lock: Path) -> list[str]:
        """Return the command that installs a requirements file as it is into an environment."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """Return the environment variables of these commands."""


class Uv(Installer):
    """The program ``uv``.

    Parameters
    ----------
    program
        Its path.
    """

    name = "uv"

    def __init__(self, program: str) -> None:
        self._program = program

    def resolve(self, request: Path, constraints: Path, lock: Path, *, upgrade: bool) -> list[str]:  # noqa: D102
        return [
            *(self._program, "pip", "compile", str(request), "--constraint", str(constraints)),
            *("--output-file", str(lock), "--python", sys.executable),
            *("--no-header", "--no-annotate", "--quiet"),
            *(["--refresh"] if upgrade else []),
        ]

    def read_lock(self, lock: Path) -> list[str]:  # noqa: D102
        return _without_ourselves(lock.read_text(encoding="utf-8").splitlines())

    def create(self, folder: Path) -> list[str]:  # noqa: D102
        return [
            *(self._program, "venv", str(folder), "--python", sys.executable),
            *("--no-project", "--quiet"),
        ]

    def install(self, folder: Path, lock: Path) -> list[str]:  # noqa: D102
        python = str(folder / "bin" / "python")
        return [
            *(self._program, "pip", "install", "--python", python, "--no-deps", "--quiet"),
            *("--requirement", str(lock)),
        ]

    def environment(self) -> dict[str, str]:
        """Return the environment variables of its commands: with pip's settings, if uv has none.

        It does not read them by itself; where people must not use PyPI, they have told pip.
        """
        # Without the compiled files, each template would take half a second more.
        own = {"UV_COMPILE_BYTECODE": "1", **os.environ}
        if any(name.startswith(_OWN_INDEX) for name in own) or any(map(Path.exists, _uv_files())):
            return own
        return {**_of_pip(pip_settings()), **own}


_OWN_INDEX = ("UV_INDEX", "UV_DEFAULT_INDEX", "UV_CONFIG_FILE")
"""Beginnings of environment variables by which people tell uv where packages are."""


def _uv_files() -> list[Path]:
    """Return where the settings of uv may lie, for this user and for the machine."""
    user = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return [Path(folder, "uv", "uv.toml") for folder in (user, "/etc", "/etc/xdg")]


class Pip(Installer):
    """The modules ``venv`` and ``pip`` of this interpreter."""

    name = "pip"

    def resolve(self, request: Path, constraints: Path, lock: Path, *, upgrade: bool) -> list[str]:  # noqa: D102
        return [
            *_pip("install", "--dry-run", "--ignore-installed", "--quiet"),
            *("--report", str(lock), "--requirement", str(request)),
            *("--constraint", str(constraints)),
            *(["--no-cache-dir"] if upgrade else []),
        ]

    def read_lock(self, lock: Path) -> list[str]:  # noqa: D102
        report = json.loads(lock.read_text(encoding="utf-8"))
        return _without_ourselves(sorted(_pinned(item) for item in report["install"]))

    def create(self, folder: Path) -> list[str]:  # noqa: D102
        return [sys.executable, "-m", "venv", "--without-pip", str(folder)]

    def install(self, folder: Path, lock: Path) -> list[str]:  # noqa: D102
        python = str(folder / "bin" / "python")
        return [
            *_pip("--python", python, "install", "--no-deps", "--quiet"),
            *("--requirement", str(lock)),
        ]

    def environment(self) -> dict[str, str]:  # noqa: D102
        return {**os.environ}


def find_installer() -> Installer:
    """Return the installer to use.

    Raises
    ------
    EnvironmentFailed
        There is none, or not the chosen one.
    """
    chosen = os.environ.get(INSTALLER_VARIABLE) or "auto"
    if chosen not in {"auto", "uv", "pip"}:
        cause = (
            f"{INSTALLER_VARIABLE} {chosen!r} is not known{suggest(chosen, ['auto', 'uv', 'pip'])}"
        )
        raise EnvironmentFailed((), cause)
    program = None if chosen == "pip" else _uv_program()
    if program is not None:
        return Uv(program)
    if chosen != "uv" and importlib.util.find_spec("pip") is not None:
        return Pip()
    wanted = "uv is" if chosen == "uv" else "neither uv nor pip is"
    cause = (
        f"{wanted} installed for {sys.executable}, which installs the packages; install "
        "'snakepit-kernel[environments]' or uv there"
    )
    raise EnvironmentFailed((), cause)


def _uv_program() -> str | None:
    """Return the path of uv: that of this installation, or else that on the user's PATH."""
    own = Path(sysconfig.get_path("scripts"), "uv")
    return str(own) if os.access(own, os.X_OK) else shutil.which("uv")


def pip_settings() -> dict[str, str]:
    """Return the settings of pip, by name, that its commands use here; none where it cannot run."""
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter
            _pip("config", "list"),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SETTINGS_PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    order = ["global", "install", ":env:"]  # the later one decides
    found: dict[str, dict[str, str]] = {section: {} for section in order}
    for line in done.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in found:
            found[section][option] = str(ast.literal_eval(value))
    return {name: value for section in order for name, value in found[section].items()}


def _of_pip(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables of uv that mean the same as settings of pip."""
    variables = {
        "UV_DEFAULT_INDEX": settings.get("index-url", ""),
        "UV_INDEX": " ".join(settings.get("extra-index-url", "").split()),
        "UV_FIND_LINKS": ",".join(settings.get("find-links", "").split()),
        "UV_NO_INDEX": "true" if settings.get("no-index", "0") in {"1", "true", "yes"} else "",
        "UV_INSECURE_HOST": " ".join(settings.get("trusted-host", "").split()),
        "UV_HTTP_TIMEOUT": settings.get("timeout", ""),
        "SSL_CERT_FILE": settings.get("cert", ""),
        "ALL_PROXY": settings.get("proxy", ""),
        # pip takes the best version of all its indexes.
        "UV_INDEX_STRATEGY": "unsafe-best-match" if "extra-index-url" in settings else "",
    }
    return {name: value for name, value in variables.items() if value}


def _pip(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]


def _pinned(item: Mapping[str, Any]) -> str:
    """Return the line for an item of pip's report."""
    name, version = item["metadata"]["name"], item["metadata"]["version"]
    if not item.get("is_direct"):
        return f"{name}=={version}"
    source = item["download_info"]
    url = source["url"]
    if (repository := source.get("vcs_info")) is not None:
        url = f"{repository['vcs']}+{urldefrag(url).url}@{repository['commit_id']}"
    if source.get("subdirectory"):
        url = f"{url}#subdirectory={source['subdirectory']}"
    return f"{name} @ {url}"


def _without_ourselves(lines: Sequence[str]) -> list[str]:
    ourselves = (f"{DISTRIBUTION} ", f"{DISTRIBUTION}=", f"{DISTRIBUTION.replace('-', '_')} ")
    kept = (line.strip() for line in lines if not line.lower().startswith((*ourselves, "#")))
    return [line for line in kept if line]

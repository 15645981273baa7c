"""A wheel without code that stands for this installation in the environments of workers.

The wheel has the metadata of this installation: what it needs is resolved together with the users'
requirements, and its entry points and its kernelspec are found in the environment. Its code is not
copied: a ``.pth`` file names a folder of the environment with links to the packages of this
installation, however that was made; nothing else of it can be imported there.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ..errors import EnvironmentFailed
from .requirements import DISTRIBUTION

PACKAGES = ("snakepit_kernel", "snakepit_magics")

LINKS = "snakepit"
"""Folder in an environment with the links to the packages."""

KERNELSPEC = "snakepit"

_SAME_VERSION = "cloudpickle"
"""Code travels by value in its format, which it keeps for one version only."""

_WHEEL = (
    "Wheel-Version: 1.0\nGenerator: snakepit-kernel\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """The installation of this process, as far as environments depend on it.

    Attributes
    ----------
    version
        Version of snakepit-kernel.
    needs
        What it requires, without its extras.
    entry_points
        Text of its entry points.
    packages
        Folders of its packages, by name.
    """

    version: str
    needs: tuple[str, ...]
    entry_points: str
    packages: tuple[tuple[str, str], ...]

    @classmethod
    def find(cls) -> Installation:
        """Find it.

        Raises
        ------
        EnvironmentFailed
            It has no metadata: the package is imported from a folder where nothing has installed
            it.
        """
        try:
            found = metadata.distribution(DISTRIBUTION)
        except metadata.PackageNotFoundError:
            cause = (
                f"{DISTRIBUTION} is imported from a folder and not installed for {sys.executable}, "
                "so it is not known what it requires; install it (pip install -e FOLDER)"
            )
            raise EnvironmentFailed((), cause) from None
        return cls(
            version=found.version,
            needs=tuple(_needs(found.requires or [])),
            entry_points=found.read_text("entry_points.txt") or "",
            packages=tuple((name, _folder_of(name)) for name in PACKAGES),
        )

    @property
    def key(self) -> str:
        """All that environments depend on, Python included, as one text."""
        python = (sys.version, sys.implementation.cache_tag, sysconfig.get_platform())
        program = getattr(sys, "_base_executable", sys.executable)
        parts = (self.version, self.entry_points, *self.needs, *python, program)
        return "\n".join([*parts, *(f"{name}={folder}" for name, folder in self.packages)])

    def write_wheel(self, folder: Path) -> Path:
        """Write the wheel into a folder; return its path."""
        name = f"{DISTRIBUTION.replace('-', '_')}-{self.version}"
        path = folder / f"{name}-py3-none-any.whl"
        record = [f"{name}.dist-info/RECORD,,"]
        with zipfile.ZipFile(path, "w") as wheel:
            for member, data in self._members(name):
                wheel.writestr(member, data)
                digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
                record.append(f"{member},sha256={digest.decode()},{len(data)}")
            wheel.writestr(f"{name}.dist-info/RECORD", "\n".join([*record, ""]))
        return path

    def _members(self, name: str) -> Iterator[tuple[str, bytes]]:
        head = ["Metadata-Version: 2.1", f"Name: {DISTRIBUTION}", f"Version: {self.version}"]
        needs = [f"Requires-Dist: {need}" for need in self.needs]
        yield f"{name}.dist-info/METADATA", "\n".join([*head, *needs, ""]).encode()
        yield f"{name}.dist-info/WHEEL", _WHEEL.encode()
        yield f"{name}.dist-info/entry_points.txt", self.entry_points.encode()
        yield "snakepit_kernel.pth", f"{_way_up()}/{LINKS}\n".encode()
        for file in _kernelspec_files():
            place = f"{name}.data/data/share/jupyter/kernels/{KERNELSPEC}/{file.name}"
            yield place, file.read_bytes()

    def link(self, environment: Path) -> None:
        """Make the links to the packages in an environment."""
        folder = environment / LINKS
        folder.mkdir()
        for name, package in self.packages:
            (folder / name).symlink_to(package)


def _needs(requires: list[str]) -> Iterator[str]:
    """Yield what is required without any extra."""
    for text in requires:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        requirement.marker = None
        if canonicalize_name(requirement.name) == _SAME_VERSION:
            yield f"{_SAME_VERSION}=={metadata.version(_SAME_VERSION)}"
        else:
            yield str(requirement)


def _folder_of(package: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentFailed((), f"package {package} is not installed for {sys.executable}")
    return str(Path(spec.submodule_search_locations[0]).absolute())


def _way_up() -> str:
    """Return the relative path from the packages of an environment to its folder."""
    scheme = {"base": "/e", "platbase": "/e"}
    purelib = Path(sysconfig.get_path("purelib", "venv", vars=scheme))
    return "/".join([".."] * len(purelib.relative_to("/e").parts))


def _kernelspec_files() -> list[Path]:
    try:
        spec = KernelSpecManager().get_kernel_spec(KERNELSPEC)
    except NoSuchKernel:
        return []  # pools of this process have none either, and say so
    return sorted(file for file in Path(spec.resource_dir).iterdir() if file.is_file())

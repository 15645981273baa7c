"""``snakepit new-adapter``: writes a small package with an adapter as a starting point."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from importlib.resources import files
from pathlib import Path
from string import Template

from .._version import __version__

_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9_]*[A-Za-z0-9])?")

_FILES = {
    "pyproject.toml.template": "pyproject.toml",
    "README.md.template": "README.md",
    "package.py.template": "{name}/__init__.py",
    "tests.py.template": "tests/test_{name}.py",
}
"""The path in the package for each template."""


def create(name: str, directory: Path | None = None) -> Path:
    """Write a package with an adapter, its tests and its README.

    Parameters
    ----------
    name
        Name of the package.
    directory
        Where to write it; ``./NAME`` by default. It is created when it is missing.

    Returns
    -------
    pathlib.Path
        The directory.

    Raises
    ------
    ValueError
        The name or the directory cannot be used; the text says why. Nothing was written.
    OSError
        A file could not be written.
    """
    check_package_name(name)
    folder = Path(name) if directory is None else directory
    check_folder(folder)
    check_name_is_free(name, folder)
    contents = {folder / path: text for path, text in render(name).items()}
    for path, text in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def render(name: str) -> dict[str, str]:
    """Return the files of a package: their contents by path."""
    values = {
        "package": name,
        "project": name.replace("_", "-"),
        "adapter": class_name(name),
        "version": __version__,
    }
    templates = files(__package__) / "templates"
    return {
        target.format(name=name): Template(
            (templates / template).read_text(encoding="utf-8")
        ).substitute(values)
        for template, target in _FILES.items()
    }


def class_name(name: str) -> str:
    """Return the adapter's name: ``ShopTools`` for ``shop``."""
    camel = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    return camel.removesuffix("Tools") + "Tools"


def check_package_name(name: str) -> None:
    """Raise `ValueError` when a name cannot be that of a package."""
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        msg = (
            f"{name!r} cannot be the name of a package: "
            "it takes ASCII letters, digits and _ between them, no keyword, and a letter first"
            f"{_meant(name)}"
        )
        raise ValueError(msg)
    if name == "tests":
        msg = "'tests' is the folder of the package's tests; choose another name"
        raise ValueError(msg)


def _meant(name: str) -> str:
    near = re.sub(r"[-. ]+", "_", name)
    is_right = _NAME.fullmatch(near) and not keyword.iskeyword(near)
    return f"; did you mean {near!r}?" if is_right else ""


def check_folder(folder: Path) -> None:
    """Raise `ValueError` when a package cannot be written to a folder."""
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is not a directory; choose another one with --directory"
        raise ValueError(msg)
    if folder.exists() and any(folder.iterdir()):
        msg = f"directory {folder} is not empty; choose another one with --directory"
        raise ValueError(msg)


def check_name_is_free(name: str, folder: Path) -> None:
    """Raise `ValueError` when a module has that name already: one would shadow the other."""
    if name in sys.stdlib_module_names:
        msg = f"{name!r} is a module of Python's standard library; choose another name"
        raise ValueError(msg)
    spec = importlib.util.find_spec(name)
    if spec is None:
        return
    folders = {Path(path).absolute() for path in spec.submodule_search_locations or ()}
    if spec.origin is None and folders <= {folder.absolute()}:
        return  # the empty folder itself, which is a namespace package in the current directory
    where = spec.origin or ", ".join(map(str, sorted(folders)))
    msg = f"{name!r} is the name of an installed module ({where}); choose another name"
    raise ValueError(msg)

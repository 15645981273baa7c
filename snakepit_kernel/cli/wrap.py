"""``snakepit wrap`` and ``snakepit unwrap``: copies of kernelspecs that use our provisioner.

A *copy* is a kernelspec that `wrap` wrote. It is marked in its metadata, ``snakepit.wraps``, and
nothing else is ever overwritten or removed here.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from ..errors import suggest
from ..files import make_directory, read_json, write_file
from .installation_checks import PROVISIONER

if TYPE_CHECKING:
    from jupyter_client.kernelspec import KernelSpecManager

STOCK_PROVISIONER = "local-provisioner"
"""jupyter_client's own provisioner, which runs a kernelspec that names none."""

PREFIX = "snakepit-"

KERNELS = Path("share", "jupyter", "kernels")
"""Directory of kernelspecs below a prefix."""

# jupyter_client's rule, without names that are hidden directories or look like options.
_NAME = re.compile(r"[a-z0-9_][a-z0-9._-]*")

# jupyter_client replaces these by the interpreter that it runs in itself.
_PYTHON = {"python", f"python{sys.version_info[0]}", "python{}.{}".format(*sys.version_info)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A kernelspec that `wrap` wrote.

    Attributes
    ----------
    name
        Its name.
    wraps
        The name of its original.
    folder
        Its directory.
    """

    name: str
    wraps: str
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class WrapResult:
    """The result of `wrap`.

    Attributes
    ----------
    copy
        The kernelspec that was written.
    display_name
        The name that Jupyter shows.
    is_update
        Whether it replaced an older copy.
    found
        The directory that Jupyter finds under the copy's name; None when it does not search the
        copy's directory.
    left_out
        Links of the original that lead out of it: readers of the copy may not be allowed to read
        their targets.
    """

    copy: Copy
    display_name: str
    is_update: bool
    found: Path | None
    left_out: Sequence[Path] = ()

    def note(self) -> str:
        """Return a message about what was not copied, or an empty string."""
        if not self.left_out:
            return ""
        names = ", ".join(map(str, self.left_out))
        return f"not copied, because they are links out of {self.copy.wraps!r}: {names}"

    def line(self) -> str:
        """Return a message about what was written and how to use it."""
        done = "updated" if self.is_update else "wrote"
        name, folder = self.copy.name, self.copy.folder
        text = f"{done} {folder}; "
        if self.found is None:
            path = folder.parent.parent
            return f"{text}to use it, add {path} to JUPYTER_PATH: Jupyter does not look there"
        if not self.found.samefile(folder):
            return f"{text}it is not used: Jupyter finds {self.found} first"
        return f"{text}choose {self.display_name!r}, or: jupyter console --kernel {name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnwrapResult:
    """The result of `unwrap`; ``target`` is the target of a removed link, which is left alone."""

    copy: Copy
    target: Path | None

    def line(self) -> str:
        """Return a message about what was removed."""
        what = f"{self.copy.name!r}, a copy of {self.copy.wraps!r}"
        if self.target is not None:
            return f"removed link {self.copy.folder} ({what}); what it points to stays"
        return f"removed {self.copy.folder} ({what})"


# -- wrapping --------------------------------------------------------------------------------------


def wrap(
    name: str,
    *,
    new_name: str | None = None,
    display_name: str | None = None,
    grace: float | None = None,
    prefix: Path | None = None,
) -> WrapResult:
    """Write a copy of a kernelspec that runs under our provisioner.

    The copy is written next to its target and then renamed: it appears whole, or not at all.

    Parameters
    ----------
    name
        The installed kernelspec.
    new_name
        The copy's name; ``snakepit-NAME`` by default.
    display_name
        The name that Jupyter shows; the original's with "(Snakepit)" by default.
    grace
        Seconds between SIGTERM and SIGKILL, finite; the provisioner's own default by default.
    prefix
        Install below ``PREFIX/share/jupyter``; in the user's data directory by default.

    Raises
    ------
    ValueError
        That kernelspec cannot be wrapped, or not with these options; the text says why. Nothing was
        written.
    OSError
        The copy could not be written. An older copy is still there.
    """
    if grace is not None and not (math.isfinite(grace) and grace >= 0.0):
        raise ValueError(f"--grace must be 0 or more seconds, not {grace:g}")
    if display_name is not None and not display_name.strip():
        raise ValueError("--display-name must not be empty: Jupyter shows it")
    manager = _manager()
    name = name.lower()
    source, spec = _read_original(manager, name)
    check_provisioner_of(name, spec)
    check_program(name, source, spec)
    new_name = (PREFIX + name if new_name is None else new_name).lower()
    check_name(new_name)
    kernels = Path(manager.user_kernel_dir) if prefix is None else prefix.absolute() / KERNELS
    target = kernels / new_name
    check_target(manager, target, name)
    if kernels.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{target} is inside of {source}, which it would copy; choose another one")
    shown = (
        f"{spec.get('display_name') or name} (Snakepit)" if display_name is None else display_name
    )
    try:
        is_update = target.exists()
        make_directory(kernels)
        left_out = _write(source, target, _content(spec, name, shown, grace))
    except shutil.Error as error:
        path, _, cause = error.args[0][0]
        raise OSError(f"cannot copy {path}: {cause}") from error
    except OSError as error:
        raise OSError(
            f"cannot write {target}: {error.strerror}; mend that, or choose --prefix"
        ) from error
    found = _manager().find_kernel_specs().get(new_name)
    return WrapResult(
        copy=Copy(name=new_name, wraps=name, folder=target),
        display_name=shown,
        is_update=is_update,
        found=None if found is None else Path(found),
        left_out=left_out,
    )


def check_provisioner_of(name: str, spec: dict[str, Any]) -> None:
    """Raise `ValueError` when a kernelspec has another provisioner than jupyter_client's."""
    provisioner = spec.get("metadata", {}).get("kernel_provisioner", {})
    runs_under = provisioner.get("provisioner_name", STOCK_PROVISIONER)
    if runs_under == PROVISIONER:
        raise ValueError(
            f"kernelspec {name!r} runs under {PROVISIONER} already; use it as it is, "
            "or wrap the one that it was made from"
        )
    if runs_under != STOCK_PROVISIONER:
        raise ValueError(
            f"kernelspec {name!r} runs under another provisioner, {runs_under}, and only one can "
            "start it; wrap one that names none"
        )


def check_program(name: str, source: Path, spec: dict[str, Any]) -> None:
    """Raise `ValueError` when the program of a kernelspec cannot be executed."""
    program = str(spec["argv"][0])
    if program in _PYTHON:
        return
    for key, value in (("resource_dir", str(source)), ("prefix", sys.prefix)):
        program = program.replace(f"{{{key}}}", value)
    program = os.path.expanduser(program)  # noqa: PTH111 - a name without a slash stays one
    path = spec.get("env", {}).get("PATH")
    if path is not None:
        path = Template(path).safe_substitute(os.environ)  # as jupyter_client does
    if shutil.which(program, path=path) is not None:
        return
    cause = "is not executable" if Path(program).is_file() else "is not found"
    raise ValueError(
        f"kernelspec {name!r} starts {program}, which {cause}; install that kernel again"
    )


def check_name(name: str) -> None:
    """Raise `ValueError` when a name cannot be that of a kernelspec."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be the name of a kernelspec: it takes ASCII letters, digits and "
            ". _ - between them; choose one with --name"
        )


def check_target(manager: KernelSpecManager, target: Path, wraps: str) -> None:
    """Raise `ValueError` when a copy would overwrite or hide anything but an older copy."""
    name = target.name
    choose = "choose another name with --name"
    folders = [Path(directory) / name for directory in manager.kernel_dirs]
    known = manager.find_kernel_specs()
    if name in known:
        folders.append(Path(known[name]))  # spelt in another case, or ipykernel's own
    for folder in (target, *folders):
        if not os.path.lexists(folder):
            continue
        copy = read_copy(folder)
        if copy is None:
            raise ValueError(f"{folder} was not written by snakepit wrap; {choose}")
        if copy.wraps != wraps:
            raise ValueError(f"{folder} is a copy of {copy.wraps!r}; {choose}, or unwrap it first")


def _read_original(manager: KernelSpecManager, name: str) -> tuple[Path, dict[str, Any]]:
    """Return a kernelspec's folder, and the contents of its file."""
    known = manager.find_kernel_specs()
    if name not in known:
        raise ValueError(f"there is no kernelspec {name!r}{suggest(name, known)}")
    folder = Path(known[name])
    if not (folder / "kernel.json").exists():  # ipykernel's own, which is in no data path
        return folder, manager.get_kernel_spec(name).to_dict()
    return folder, read_spec(folder)


def read_spec(folder: Path) -> dict[str, Any]:
    """Read a ``kernel.json``.

    Raises
    ------
    ValueError
        It cannot be used; the text says why.
    """
    path = folder / "kernel.json"
    try:
        spec = read_json(path)
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"{path} is broken: {cause}; install that kernel again") from error
    wrong = _first_error(spec)
    if wrong or not isinstance(spec, dict):
        raise ValueError(f"{path} is broken: {wrong}; install that kernel again")
    return spec


def _first_error(spec: object) -> str:
    """Return a message about the first invalid field of a kernelspec, or an empty string."""
    if not isinstance(spec, dict):
        return "it holds no object"
    argv, env, metadata = spec.get("argv"), spec.get("env", {}), spec.get("metadata", {})
    if not (isinstance(argv, list) and argv and all(isinstance(word, str) for word in argv)):
        return "its argv is no list of words"
    if not (isinstance(env, dict) and all(isinstance(value, str) for value in env.values())):
        return "its env does not give texts to names"
    if not isinstance(metadata, dict):
        return "its metadata is no object"
    provisioner = metadata.get("kernel_provisioner", {})
    if not isinstance(provisioner, dict):
        return "its metadata.kernel_provisioner is no object"
    if not isinstance(provisioner.get("provisioner_name", ""), str):
        return "its metadata.kernel_provisioner.provisioner_name is no text"
    return ""


def _content(spec: dict[str, Any], wraps: str, shown: str, grace: float | None) -> dict[str, Any]:
    config = {} if grace is None else {"grace": grace}
    metadata = {
        **spec.get("metadata", {}),
        "kernel_provisioner": {"provisioner_name": PROVISIONER, "config": config},
        "snakepit": {"wraps": wraps},
    }
    return {**spec, "display_name": shown, "metadata": metadata}


def _write(source: Path, target: Path, content: dict[str, Any]) -> list[Path]:
    """Write a copy, replacing an older one; return the links that lead out of the original."""
    inside, leading_out = source.resolve(), []

    def left_out(folder: str, names: list[str]) -> set[str]:
        # copytree's own test for dangling links resolves a relative one from the current directory,
        # and it follows a link to its own folder endlessly
        found = {name for name in names if not _can_be_copied(Path(folder, name), inside)}
        for name in set(names) - found:
            path = Path(folder, name)
            if not path.resolve().is_relative_to(inside):
                found.add(name)
                if path != source / "kernel.json":
                    leading_out.append(path)
        return found | {"kernel.json"} if folder == str(source) else found

    # One folder deeper than kernelspecs are, so that Jupyter does not see it half written.
    with tempfile.TemporaryDirectory(prefix=".snakepit-", dir=target.parent) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        # Links are followed: a relative one would point elsewhere from the copy.
        shutil.copytree(source, new, ignore=left_out, copy_function=_copy_file)
        for folder, _, _ in os.walk(new):
            Path(folder).chmod(Path(folder).stat().st_mode | 0o700)  # the original may be read-only
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (new / "kernel.json").touch(mode=_mode_of_spec(source, target))
        write_file(new / "kernel.json", text + "\n")
        with _set_aside(target, old):
            new.rename(target)
    return sorted(leading_out)


def _can_be_copied(path: Path, inside: Path) -> bool:
    behind = path.resolve()
    is_loop = behind.is_relative_to(inside) and path.parent.resolve().is_relative_to(behind)
    return path.exists() and not is_loop


def _copy_file(source: str, target: str) -> None:
    """Copy a file with its permissions, except set-uid and set-gid: the copy's owner may differ."""
    if not Path(source).is_file():  # reading a pipe would block, and a device may have no end
        msg = f"`{source}` is no regular file"
        raise shutil.SpecialFileError(msg)
    shutil.copy2(source, target)
    path = Path(target)
    if path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID):
        path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o777)


def _mode_of_spec(source: Path, target: Path) -> int:
    """Return the permissions of a copy's ``kernel.json``: at most those of its original.

    Its environment may hold secrets. An updated copy gets no more permissions than it had.
    """
    mode = 0o666
    for folder in (source, target):
        with contextlib.suppress(FileNotFoundError):  # ipykernel's own has none; the first copy
            mode &= (folder / "kernel.json").stat().st_mode
    return mode


@contextlib.contextmanager
def _set_aside(path: Path, where: Path) -> Iterator[None]:
    """Move a path away if it exists, and back if the block fails."""
    is_there = os.path.lexists(path)
    if is_there:
        path.rename(where)
    try:
        yield
    except BaseException:
        if is_there:
            where.rename(path)
        raise


# -- unwrapping ------------------------------------------------------------------------------------


def unwrap(name: str) -> Iterator[UnwrapResult]:
    """Remove the copies that `wrap` wrote, in every data path of Jupyter, one after the other.

    Parameters
    ----------
    name
        The name of a copy or of its original, which need not be installed any more.

    Raises
    ------
    ValueError
        There is no such copy, or copies of several names were made of that original. Nothing was
        removed.
    OSError
        A copy could not be removed.
    """
    manager = _manager()
    for copy in choose_copies(name.lower(), find_copies(manager), manager.find_kernel_specs()):
        yield _remove(copy)


def choose_copies(name: str, copies: Sequence[Copy], installed: Collection[str]) -> list[Copy]:
    """Return the copies with a name, or else the copies of an original with that name."""
    chosen = [copy for copy in copies if copy.name == name]
    chosen = chosen or [copy for copy in copies if copy.wraps == name]
    names = sorted({copy.name for copy in chosen})
    if len(names) > 1:
        raise ValueError(f"{name!r} has several copies; say which one: {', '.join(names)}")
    if chosen:
        return chosen
    if name in installed:
        raise ValueError(f"kernelspec {name!r} is not wrapped, and no copy; nothing was removed")
    known = {copy.name for copy in copies} | {copy.wraps for copy in copies}
    raise ValueError(f"there is no wrapped kernelspec {name!r}{suggest(name, known)}")


def find_copies(manager: KernelSpecManager) -> list[Copy]:
    """Return every copy in the data paths of Jupyter, in its search order."""
    found: dict[Path, Copy] = {}
    for directory in map(Path, manager.kernel_dirs):
        with contextlib.suppress(OSError):  # most of these directories do not exist
            for folder in sorted(directory.iterdir()):
                copy = read_copy(folder)
                if copy is not None:  # once, even if two paths lead to it
                    found.setdefault(directory.resolve() / folder.name, copy)
    return list(found.values())


def read_copy(folder: Path) -> Copy | None:
    """Return the copy in a folder, or None when `wrap` did not write it."""
    try:
        metadata = read_spec(folder).get("metadata", {})
    except ValueError:
        return None
    provisioner = metadata.get("kernel_provisioner", {}).get("provisioner_name")
    mark = metadata.get("snakepit")
    wraps = mark.get("wraps") if isinstance(mark, dict) else None
    if provisioner != PROVISIONER or not isinstance(wraps, str):
        return None
    return Copy(name=folder.name.lower(), wraps=wraps, folder=folder)


def _remove(copy: Copy) -> UnwrapResult:
    """Remove a copy's directory, or only the link if it is one."""
    folder = copy.folder
    try:
        if folder.is_symlink():
            target = folder.resolve()
            folder.unlink()
            return UnwrapResult(copy=copy, target=target)
        shutil.rmtree(folder)
    except OSError as error:
        raise OSError(f"cannot remove {folder}: {error.strerror}; mend that") from error
    return UnwrapResult(copy=copy, target=None)


def _manager() -> KernelSpecManager:
    from jupyter_client.kernelspec import KernelSpecManager

    return KernelSpecManager()

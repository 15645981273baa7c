"""The doctor's checks of the installation: versions, kernelspec, provisioner, Jupyter servers."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import (
    PackageNotFoundError,
    PackagePath,
    distribution,
    entry_points,
    metadata,
    requires,
    version,
)
from pathlib import Path
from typing import Any

from ..pool.resources.accelerators import detect
from ..processes import pidfd
from ..processes.template import TEMPLATE_VARIABLE, why_not
from .findings import Finding, hint, ok, problem

DISTRIBUTION = "snakepit-kernel"
KERNEL = "snakepit"
PROVISIONER = "snakepit-provisioner"
PROVISIONER_GROUP = "jupyter_client.kernel_provisioners"

REINSTALL = f"install it again: {sys.executable} -m pip install --force-reinstall --no-deps "
REINSTALL += DISTRIBUTION

SERVER_COMMANDS = ("jupyter-lab", "jupyter-notebook", "jupyter-server", "jupyter")

ANSWER_PATIENCE = 20.0
"""Seconds that another environment's interpreter may take to answer."""

_FORK = """
import os
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
"""

# It runs in an unknown environment, with any Python 3.
_PROBE = f"""
import json, os, sys
try:
    from importlib.metadata import entry_points
    points = [point.name for point in entry_points(group={PROVISIONER_GROUP!r})]
except (ImportError, TypeError):
    points = []
try:
    from jupyter_core.paths import jupyter_path
    folders = jupyter_path("kernels")
except ImportError:
    folders = []
print(json.dumps({{
    "prefix": sys.prefix,
    "python": sys.version_info[:2],
    "provisioner": {PROVISIONER!r} in points,
    "kernelspec": any(os.path.exists(os.path.join(folder, {KERNEL!r})) for folder in folders),
}}))
"""


# -- versions --------------------------------------------------------------------------------------


def check_versions() -> Iterator[Finding]:
    """Compare the versions of Python and our dependencies with our own metadata."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    name = "versions"
    try:
        needed = [Requirement(text) for text in requires(DISTRIBUTION) or []]
        python = SpecifierSet(metadata(DISTRIBUTION)["Requires-Python"])
    except PackageNotFoundError:
        text = f"{DISTRIBUTION} is not installed in {sys.prefix}, it only lies on sys.path"
        yield problem(name, text, f"install it: {sys.executable} -m pip install {DISTRIBUTION}")
        return
    found = [f"Python {platform.python_version()}"]
    wrong = []
    if not python.contains(platform.python_version(), prereleases=True):
        wrong.append(f"Python {platform.python_version()} does not satisfy {python}")
    for requirement in needed:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        installed = _version_of(requirement.name)
        if installed is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement.name} {installed} does not satisfy {requirement.specifier}")
        else:
            found.append(f"{requirement.name} {installed}")
    if not wrong:
        yield ok(name, ", ".join(found))
    for text in wrong:
        yield problem(name, text, f"run: {sys.executable} -m pip install --upgrade {DISTRIBUTION}")


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# -- forking ---------------------------------------------------------------------------------------


def check_forking() -> Iterator[Finding]:
    """Check what a guardian needs: forking, and pidfds."""
    name = "forking"
    if sys.platform != "linux":
        yield problem(
            name,
            f"clean-up by a guardian needs Linux so far, and this is {sys.platform}",
            "run Jupyter on Linux, in a container for example",
        )
        return
    # In a new interpreter: a fork of this one, with whatever threads it has, proves less.
    tried = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-I", "-S", "-c", _FORK],
        capture_output=True,
        text=True,
        timeout=ANSWER_PATIENCE,
        check=False,
    )
    if tried.returncode != 0:
        cause = _last_line(tried.stderr) or f"exit status {tried.returncode}"
        yield problem(
            name,
            f"a process cannot be forked: {cause}",
            "raise the limit on processes (ulimit -u)",
        )
        return
    if not pidfd.is_possible():
        yield hint(
            name,
            "possible, but there are no pidfds: each process is verified in the moment before it is"
            " signalled, and one that got its pid in those microseconds would be hit",
            "use Linux 5.3 or newer, or a container that allows pidfd_open and pidfd_send_signal",
        )
        return
    if reason := why_not():
        text = f"possible, but kernels are executed, each ten times as slow as a fork: {reason}"
        yield hint(name, text, f"unset {TEMPLATE_VARIABLE}")
        return
    yield ok(name, "possible; kernels are forked from a template")


# -- kernelspec ------------------------------------------------------------------------------------


def check_bash() -> Iterator[Finding]:
    """Check that there is a bash for the shells of sessions."""
    path = shutil.which("bash")
    if path is None:
        text = "there is no bash on PATH: sessions have no shell and no background processes"
        yield hint("bash", text, "install bash")
        return
    done = subprocess.run(  # noqa: S603 - the bash that shells use
        [path, "-c", 'echo "$BASH_VERSION"'], capture_output=True, text=True, check=False
    )
    yield ok("bash", f"{path}, version {done.stdout.strip() or 'unknown'}")


def check_kernelspec() -> Iterator[Finding]:
    """Compare the kernelspec that jupyter_client finds with the one in this package."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    from traitlets import TraitError

    name = "kernelspec"
    manager = KernelSpecManager()
    try:
        spec = manager.get_kernel_spec(KERNEL)
    except NoSuchKernel:
        text = f"jupyter_client finds no kernelspec {KERNEL!r}"
        yield problem(name, text, REINSTALL)
        return
    except (OSError, ValueError, TypeError, TraitError) as error:
        folder = manager.find_kernel_specs().get(KERNEL, "")
        text = f"{folder}/kernel.json cannot be used: {error}"
        yield problem(name, text, f"remove it: rm -r {shlex.quote(folder)}, and {REINSTALL}")
        return
    folder = spec.resource_dir
    packaged = _packaged_kernel_json()
    if packaged is None:
        text = (
            f"the kernel.json that this package installed was changed or removed; found: {folder}"
        )
        yield problem(name, text, REINSTALL)
        return
    found = spec.to_dict()
    settings = _extra_settings(found, packaged)
    wrong = _differences(found, packaged)
    if wrong:
        yield problem(
            name,
            f"{folder}/kernel.json is stale or not ours: it differs in {', '.join(wrong)}",
            f"remove it: rm -r {shlex.quote(folder)}, and {REINSTALL}",
        )
    elif settings:
        yield hint(name, f"{folder} has settings of your own: {', '.join(sorted(settings))}")
    elif found["argv"][0] != packaged["argv"][0]:
        yield _check_interpreter(found["argv"][0], folder)
    else:
        yield ok(name, f"{KERNEL} in {folder}")


def _packaged_kernel_json() -> dict[str, Any] | None:
    """Return the kernelspec of this package, or None when it was changed or removed."""
    content: dict[str, Any]
    checkout = Path(__file__).parents[2] / "kernelspec" / "kernel.json"
    if checkout.exists():  # an editable install: the installed file is only a copy
        content = json.loads(checkout.read_text(encoding="utf-8"))
        return content
    for file in distribution(DISTRIBUTION).files or []:
        if file.parts[-3:] == ("kernels", KERNEL, "kernel.json"):
            return _read_unchanged(file)
    return None


def _read_unchanged(file: PackagePath) -> dict[str, Any] | None:
    """Read a JSON file that a wheel installed; return None if it was changed since."""
    try:
        content = file.read_binary()
    except OSError:
        return None
    if file.hash is not None:
        digest = hashlib.new(file.hash.mode, content).digest()
        if base64.urlsafe_b64encode(digest).decode().rstrip("=") != file.hash.value:
            return None
    value: dict[str, Any] = json.loads(content)
    return value


def _extra_settings(found: dict[str, Any], packaged: dict[str, Any]) -> set[str]:
    """Remove the user's own settings of the provisioner from a kernelspec; return their names."""
    ours = packaged["metadata"]["kernel_provisioner"]["config"]
    provisioner = found["metadata"].get("kernel_provisioner")
    config = provisioner.get("config") if isinstance(provisioner, dict) else None
    if not isinstance(config, dict):
        return set()
    extra = set(config) - set(ours)
    provisioner["config"] = {key: config[key] for key in config if key not in extra}
    return extra


def _differences(found: Mapping[str, Any], packaged: Mapping[str, Any]) -> list[str]:
    """Return the fields of a kernelspec that affect how a kernel starts and that differ."""
    wrong = [] if found["argv"][1:] == packaged["argv"][1:] else ["argv"]
    fields = ("metadata", "interrupt_mode", "language", "env")
    return wrong + [field for field in fields if found[field] != packaged.get(field, {})]


def _check_interpreter(interpreter: str, folder: str) -> Finding:
    if shutil.which(interpreter) is None:
        return problem(
            "kernelspec",
            f"{folder}/kernel.json names an interpreter that is gone: {interpreter}",
            f"remove it: rm -r {shlex.quote(folder)}, and {REINSTALL}",
        )
    return hint(
        "kernelspec",
        f"{folder}/kernel.json names an interpreter of its own: {interpreter}",
        f"{DISTRIBUTION} must be installed there too",
    )


# -- provisioner -----------------------------------------------------------------------------------


def check_provisioner() -> Iterator[Finding]:
    """Check the entry point by which jupyter_client finds our provisioner."""
    from ..provisioner import SnakepitProvisioner

    name = "provisioner"
    points = entry_points(group=PROVISIONER_GROUP, name=PROVISIONER)
    if not points:
        yield problem(name, f"this environment has no entry point {PROVISIONER!r}", REINSTALL)
        return
    for point in points:
        loaded = point.load()  # a failure is reported by the caller
        if loaded is SnakepitProvisioner:
            yield ok(name, f"{PROVISIONER} in {sys.prefix}")
        else:
            yield problem(name, f"{PROVISIONER} is {point.value}, which is not ours", REINSTALL)


def check_servers() -> Iterator[Finding]:
    """Check whether the environment of each Jupyter on PATH has the provisioner.

    jupyter_client looks for provisioners in the environment of the *server*, which may be another
    one.
    """
    name = "servers"
    commands: dict[str, list[str]] = {}
    for command in SERVER_COMMANDS:
        script = shutil.which(command)
        if script is None:
            continue
        interpreter = interpreter_of(Path(script))
        if interpreter is None:
            text = f"cannot tell which Python {script} runs"
            yield hint(name, text, f"{DISTRIBUTION} must be installed in that environment")
        else:
            commands.setdefault(interpreter, []).append(command)
    for interpreter, names in commands.items():
        yield _probe(interpreter, names)
    if not commands:
        yield ok(name, "no jupyter on PATH that could be of another environment")


def interpreter_of(script: Path) -> str | None:
    """Return the Python interpreter that a console script starts, or None when it is unknown."""
    with script.open("rb") as file:
        first, second = (file.readline(4096).decode("utf-8", "replace") for _ in range(2))
    if not first.startswith("#!"):
        return None
    words = first[2:].split()
    if second.startswith("'''exec'"):  # pip's and uv's form for long paths and paths with spaces
        words = shlex.split(second.removeprefix("'''exec'"))
    elif words and Path(words[0]).name == "env":
        words = [word for word in words[1:] if not word.startswith("-")]
    if not words or not Path(words[0]).name.startswith(("python", "pypy")):
        return None
    return shutil.which(words[0]) or words[0]


def _probe(interpreter: str, commands: list[str]) -> Finding:
    """Check whether another environment has our provisioner and our kernelspec."""
    name = "servers"
    who = f"{', '.join(commands)} on PATH: of another environment, {interpreter},"
    try:
        answer = subprocess.run(  # noqa: S603 - the interpreter that Jupyter itself would run
            [interpreter, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=ANSWER_PATIENCE,
            check=True,
            cwd=os.sep,  # nothing of the current directory may be imported
        )
        seen = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        output = _last_line(getattr(error, "stderr", None) or "")
        text = f"{who} which did not answer: {output or error}"
        return hint(name, text, f"{DISTRIBUTION} must be installed there for kernels to start")
    if _is_this_environment(seen):
        return ok(name, f"{', '.join(commands)} on PATH: of this environment")
    install = f"install it there: {interpreter} -m pip install {DISTRIBUTION}"
    if seen["provisioner"]:
        return ok(name, f"{who} which sees {PROVISIONER}")
    if seen["kernelspec"]:
        text = f"{who} which offers kernel {KERNEL!r} but does not see {PROVISIONER}"
        return problem(name, text, install)
    text = f"{who} which knows nothing of Snakepit"
    return hint(name, text, f"start Jupyter from {sys.prefix}, or {install}")


def _is_this_environment(seen: Mapping[str, Any]) -> bool:
    # Two versions of Python may share a prefix, such as /usr, and each has its own packages.
    same_version = seen["python"] == list(sys.version_info[:2])
    return same_version and Path(seen["prefix"]).samefile(sys.prefix)


def _last_line(text: str | bytes) -> str:
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def check_accelerators() -> Iterator[Finding]:
    """Report the accelerators of this machine."""
    yield ok("accelerators", str(detect(os.environ)))

"""Resolution of a kernelspec: what its workers can do, before one is started.

A worker with a lane supports everything: it runs `snakepit_kernel.kernel`. Any other kernel that
speaks the Jupyter protocol runs cells only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel

from ..._version import __version__
from ...errors import CellsOnly
from ...transport import IPYKERNEL_MODULES, KERNEL_MODULE, is_ipythons, module_of

if TYPE_CHECKING:
    from ...environments.cache import Environment

PROVISIONER = "snakepit-provisioner"
STOCK_PROVISIONER = "local-provisioner"

PROBE_PATIENCE = 10.0
"""Seconds that an interpreter may take to report what is installed for it."""

_PROBE = """
import importlib.util, json, os, sys
found = importlib.util.find_spec("snakepit_kernel")
names = {"__version__": ""}
if found is not None and found.origin:
    with open(os.path.join(os.path.dirname(found.origin), "_version.py")) as file:
        exec(file.read(), names)
print(json.dumps([list(sys.version_info[:2]), sys.prefix, names["__version__"]]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python interpreter that a kernelspec starts.

    Attributes
    ----------
    path
        The program.
    python
        Its version: major and minor.
    prefix
        Its ``sys.prefix``.
    snakepit
        Version of snakepit_kernel that it can import; empty when it cannot.
    """

    path: str
    python: tuple[int, int]
    prefix: str
    snakepit: str

    @property
    def is_elsewhere(self) -> bool:
        """Whether it uses other packages than this process."""
        return self.prefix != sys.prefix or self.python != sys.version_info[:2]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerKernel:
    """The kernel that a pool's workers run.

    Attributes
    ----------
    name
        Name of the kernelspec.
    spec
        The kernelspec, set to our provisioner; None when there is none of that name.
    cells_only
        Why it runs cells only; empty when it supports everything.
    remedy
        What to do about that.
    problem
        Why it cannot be started; empty when no obstacle is known.
    interpreter
        Its interpreter; None when it is that of this process or could not be queried.
    """

    name: str
    spec: KernelSpec | None = None
    cells_only: str = ""
    remedy: str = ""
    problem: str = ""
    interpreter: Interpreter | None = None

    @property
    def has_lane(self) -> bool:
        """Whether its workers support more than cells."""
        return not self.cells_only

    @property
    def is_python(self) -> bool:
        """Whether it is ipykernel or our own kernel."""
        return self.spec is not None and is_ipythons(self.spec.argv)

    @property
    def python(self) -> tuple[int, int]:
        """Version of Python that it runs; assumed to be ours when it is not known."""
        return sys.version_info[:2] if self.interpreter is None else self.interpreter.python

    @property
    def cannot_send_code_reason(self) -> str:
        """Why functions cannot be sent by value; empty when they can."""
        if self.python == sys.version_info[:2]:
            return ""
        here, there = (".".join(map(str, v)) for v in (sys.version_info[:2], self.python))
        return (
            f"code travels between equal versions of Python only, and this is Python {here}, the "
            f"workers of kernelspec {self.name!r} run Python {there}; put it into a module that "
            "both can import"
        )

    def require_lane(self, what: str) -> None:
        """Check that its workers support more than cells.

        Raises
        ------
        CellsOnly
            They do not; the error says that ``what`` was requested.
        """
        if self.cells_only:
            raise CellsOnly(what, self.name, self.cells_only, self.remedy)

    def import_path(self) -> list[str]:
        """Return the entries of ``sys.path`` that suit its workers.

        They are absolute and in the same order; an empty entry, for the working directory of a
        worker, precedes that of this process. For an interpreter of another environment the
        packages of this one are left out: they may not suit its Python or its other packages.
        """
        paths: dict[str, None] = {}
        for entry in sys.path:
            if not entry:
                paths[""] = None
            with contextlib.suppress(FileNotFoundError):  # the working directory was removed
                paths[os.path.abspath(entry)] = None  # noqa: PTH100 - much faster
        if self.interpreter is not None and self.interpreter.is_elsewhere:
            own = _own_packages()
            return [path for path in paths if not path.startswith(own)]
        return list(paths)


def find_kernel(name: str, env: Mapping[str, str]) -> WorkerKernel:
    """Look up a kernelspec, and determine what its workers can do.

    Parameters
    ----------
    name
        Name of the kernelspec.
    env
        The workers' environment variables.
    """
    manager = KernelSpecManager()
    try:
        found = manager.get_kernel_spec(name)
    except NoSuchKernel:
        problem = ""
        if name in manager.find_kernel_specs():
            problem = f"kernelspec {name!r} names a kernel provisioner that is not installed here"
        return WorkerKernel(name=name, problem=problem)
    spec = deepcopy(found)
    named = spec.metadata.get("kernel_provisioner", {})
    runs_under = named.get("provisioner_name", STOCK_PROVISIONER)
    if runs_under not in {PROVISIONER, STOCK_PROVISIONER}:
        problem = (
            f"kernelspec {name!r} runs under another provisioner, {runs_under}, and only one can "
            "start it; name a kernelspec that has none"
        )
        return WorkerKernel(name=name, spec=spec, problem=problem)
    if runs_under != PROVISIONER:
        named = {"provisioner_name": PROVISIONER, "config": {}}
    spec.metadata = {**spec.metadata, "kernel_provisioner": named}
    module = module_of(spec.argv)
    if module == KERNEL_MODULE:
        return _of_snakepit(name, spec, env)
    if module in IPYKERNEL_MODULES:
        return _of_ipykernel(name, spec, env)
    return WorkerKernel(
        name=name,
        spec=spec,
        cells_only=f"it is a kernel for {spec.language or 'another language'}",
        remedy="run it as a cell, or open a pool with kernel_name='snakepit' as well",
    )


def in_environment(kernel: WorkerKernel, environment: Environment) -> WorkerKernel:
    """Return our own kernel with the interpreter of an environment, which has this very package."""
    if kernel.spec is None:
        return kernel  # its start reports that
    spec = deepcopy(kernel.spec)
    spec.argv = [str(environment.python), *spec.argv[1:]]
    spec.env = {**spec.env, **environment.variables}
    interpreter = Interpreter(
        path=str(environment.python),
        python=sys.version_info[:2],
        prefix=str(environment.folder),
        snakepit=__version__,
    )
    return replace(kernel, spec=spec, interpreter=interpreter, problem="")


def _of_snakepit(name: str, spec: KernelSpec, env: Mapping[str, str]) -> WorkerKernel:
    interpreter = _interpreter_of(spec, env)
    problem = ""
    if interpreter is not None and interpreter.snakepit != __version__:
        problem = (
            f"kernelspec {name!r} runs {_installed(interpreter)}, and this process has "
            f"snakepit-kernel {__version__}; {_installation(interpreter)}"
        )
    return WorkerKernel(name=name, spec=spec, interpreter=interpreter, problem=problem)


def _of_ipykernel(name: str, spec: KernelSpec, env: Mapping[str, str]) -> WorkerKernel:
    """Replace ipykernel by our own kernel, if the interpreter has it installed."""
    interpreter = _interpreter_of(spec, env)
    is_own = interpreter is None and _program_of(spec, env) == sys.executable
    if is_own or (interpreter is not None and interpreter.snakepit == __version__):
        module = spec.argv.index("-m") + 1
        spec.argv = [*spec.argv[:module], KERNEL_MODULE, *spec.argv[module + 1 :]]
        config = {**spec.metadata["kernel_provisioner"].get("config", {}), "tag_command": True}
        spec.metadata["kernel_provisioner"] = {"provisioner_name": PROVISIONER, "config": config}
        return WorkerKernel(name=name, spec=spec, interpreter=interpreter)
    if interpreter is None:
        reason, remedy = "its interpreter could not be asked for more", "look whether it runs"
    else:
        reason = f"it is a Python kernel, and runs {_installed(interpreter)}"
        remedy = _installation(interpreter)
    return WorkerKernel(
        name=name, spec=spec, interpreter=interpreter, cells_only=reason, remedy=remedy
    )


def _installed(interpreter: Interpreter) -> str:
    """Describe an interpreter and its version of snakepit-kernel, for errors."""
    has = (
        f"snakepit-kernel {interpreter.snakepit}" if interpreter.snakepit else "no snakepit-kernel"
    )
    return f"{interpreter.path}, which has {has}"


def _installation(interpreter: Interpreter) -> str:
    return f"install it there: {interpreter.path} -m pip install snakepit-kernel=={__version__}"


def _program_of(spec: KernelSpec, env: Mapping[str, str]) -> str | None:
    """Return the path of a kernelspec's program; None when there is no such program."""
    program = spec.argv[0]
    for key, value in (("resource_dir", spec.resource_dir), ("prefix", sys.prefix)):
        program = program.replace(f"{{{key}}}", value)  # as jupyter_client does
    program = os.path.expanduser(program)  # noqa: PTH111 - a name without a slash stays one
    own = {"python", f"python{sys.version_info[0]}", "python{}.{}".format(*sys.version_info)}
    if program in own:  # for these jupyter_client uses its own interpreter
        return sys.executable
    return shutil.which(program, path=spec.env.get("PATH", env.get("PATH")))


def _interpreter_of(spec: KernelSpec, env: Mapping[str, str]) -> Interpreter | None:
    """Query the interpreter of a kernelspec; None when it is our own or the query fails."""
    program = _program_of(spec, env)
    if program is None or program == sys.executable:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - the interpreter of an installed kernelspec
            [program, "-c", _PROBE],
            env={**env, **spec.env},
            cwd="/",  # else modules in the working directory would count as installed
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_PATIENCE,
            check=True,
        )
        python, prefix, version = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None  # its start will report what is wrong
    major, minor = python
    return Interpreter(path=program, python=(major, minor), prefix=prefix, snakepit=version)


def _own_packages() -> tuple[str, ...]:
    """Return the path prefixes of the packages of this interpreter."""
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    zipped = Path(sysconfig.get_path("stdlib")).with_name(
        "python{}{}.zip".format(*sys.version_info)
    )
    return (*places, str(zipped), *site.getsitepackages(), site.getusersitepackages())

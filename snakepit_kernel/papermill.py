"""The engine ``snakepit`` of papermill: notebooks run in supervised kernels forked from a template.

``papermill --engine snakepit in.ipynb out.ipynb`` writes what papermill writes without it; when the
notebook is over, on whatever path, nothing that it started is left. `snakepit run` runs many
notebooks so.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from jupyter_client.manager import AsyncKernelManager
from papermill.engines import NBClientEngine
from traitlets import Unicode
from traitlets.config import Config

from .transport import module_of

ENGINE = KERNEL = "snakepit"

STOCK_MODULES = ("ipykernel_launcher", "ipykernel")
"""Modules whose kernels ours behaves as."""

_running: dict[str, RunningKernel] = {}


class RunningKernel(AsyncKernelManager):
    """The manager of one notebook's kernel, which can be killed from another thread."""

    notebook = Unicode(help="What the kernel runs: its key for `kill_kernel`.").tag(config=True)

    async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
        """Start the kernel, and make it known under its notebook."""
        self._loop = asyncio.get_running_loop()
        await super().start_kernel(**options)
        _running[self.notebook] = self

    async def shutdown_kernel(  # type: ignore[override]
        self, now: bool = False, restart: bool = False
    ) -> None:
        """End the kernel and everything that it has started."""
        _running.pop(self.notebook, None)
        await super().shutdown_kernel(now=now, restart=restart)

    def kill_soon(self) -> None:
        """Kill the kernel; the thread that runs its notebook gets an error."""
        self._loop.call_soon_threadsafe(
            lambda: asyncio.ensure_future(self.signal_kernel(signal.SIGKILL))
        )


def kill_kernel(notebook: str) -> bool:
    """Kill the kernel that runs a notebook; return whether there was one."""
    kernel = _running.get(notebook)
    if kernel is None:
        return False
    kernel.kill_soon()
    return True


class SnakepitEngine(NBClientEngine):
    """Runs a notebook as papermill does, in a kernel of ours where it asks for this Python's."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        *,
        preload: Sequence[str] = (),
        standby: int = 0,
        notebook: str = "",
        **options: Any,
    ) -> Any:
        """Run a notebook.

        Parameters
        ----------
        nb_man, kernel_name, options
            Those of papermill's own engine.
        preload
            Modules that the kernels' template imports ahead, once for all.
        standby
            Number of kernels to start ahead for the next notebooks of this process.
        notebook
            Key for `kill_kernel`.
        """
        config = Config(options.pop("config", {}))
        config.SnakepitProvisioner.merge({"preload": list(preload), "standby": standby})
        config.RunningKernel.notebook = notebook or f"{id(nb_man)}"
        return super().execute_managed_notebook(
            nb_man,
            equivalent_kernel(kernel_name),
            kernel_manager_class=RunningKernel,
            config=config,
            **options,
        )


def equivalent_kernel(name: str) -> str:
    """Return the name of our kernel where a kernelspec is that of this Python, else that name.

    A kernelspec with an environment, or arguments, of its own is another kernel.
    """
    manager = KernelSpecManager()
    try:
        spec = manager.get_kernel_spec(name)
        manager.get_kernel_spec(KERNEL)
    except NoSuchKernel:
        return name
    is_stock = (
        module_of(spec.argv) in STOCK_MODULES
        and not spec.env
        and "kernel_provisioner" not in spec.metadata
        and len(spec.argv) in {5, 6}
        and _is_this_python(spec.argv[0])
    )
    return KERNEL if is_stock else name


def _is_this_python(program: str) -> bool:
    if Path(program).name == program and program.startswith("python"):
        return True  # jupyter_client itself starts such a one as this Python
    found = shutil.which(program)
    # Not resolved: the interpreter of a virtual environment is a link, and is known by its place.
    return found is not None and Path(found).absolute() == Path(sys.executable).absolute()

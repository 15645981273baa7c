"""Detection of accelerators, and their assignment to workers.

No framework is imported for that: device files and environment variables are sufficient.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...loggers import get_logger

Gpus = Literal["auto"] | int | Sequence[int | str] | None

CUDA = "CUDA_VISIBLE_DEVICES"
ROCR = "ROCR_VISIBLE_DEVICES"
HIP = "HIP_VISIBLE_DEVICES"

ANSWER_PATIENCE = 10.0
"""Seconds that ``nvidia-smi`` may take."""

ROOT = Path("/")

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerators:
    """The accelerators of one kind that a process may use.

    Attributes
    ----------
    kind
        ``"cuda"``, ``"rocm"``, ``"mps"``, or empty when there are none.
    variable
        Environment variable that selects which of them a process sees; empty if none does.
    devices
        Their names, in the form that this variable takes.
    """

    kind: str = ""
    variable: str = ""
    devices: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.devices:
            return "no accelerators"
        return f"{self.kind} {', '.join(self.devices)}"


def detect(environ: Mapping[str, str], root: Path = ROOT) -> Accelerators:
    """Return the accelerators that a process with this environment may use.

    Parameters
    ----------
    environ
        Environment variables, which may hide some accelerators.
    root
        Where ``/proc``, ``/dev`` and ``/sys`` are.
    """
    devices = cuda_devices(environ, root)
    if devices:
        return Accelerators(kind="cuda", variable=CUDA, devices=devices)
    devices = rocm_devices(environ, root)
    if devices:
        variable = ROCR if ROCR in environ and HIP not in environ else HIP
        return Accelerators(kind="rocm", variable=variable, devices=devices)
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return Accelerators(kind="mps", devices=("0",))
    return Accelerators()


def cuda_devices(environ: Mapping[str, str], root: Path = ROOT) -> tuple[str, ...]:
    """Return the names of the CUDA devices that a process may use.

    Where ``CUDA_VISIBLE_DEVICES`` is set, these are its entries, which may be the ids of GPUs or of
    MIG instances; else numbers, or the ids of MIG instances where GPUs are partitioned.
    """
    if CUDA in environ:
        return visible(environ[CUDA])
    nodes = [entry for entry in _entries(root / "dev") if re.fullmatch(r"nvidia\d+", entry)]
    cards = nodes or _entries(root / "proc/driver/nvidia/gpus")
    if cards and not any(root.glob("proc/driver/nvidia/capabilities/gpu*/mig/gi*")):
        return tuple(map(str, range(len(cards))))
    listed = listed_devices(_nvidia_smi(environ))
    return listed or tuple(map(str, range(len(cards))))


def visible(text: str) -> tuple[str, ...]:
    """Parse the value of ``CUDA_VISIBLE_DEVICES`` or a similar variable.

    Like CUDA, it stops at the first entry that names no device.
    """
    names: list[str] = []
    for word in (word.strip() for word in text.split(",")):
        if not re.fullmatch(r"\d+|(GPU|MIG)-\S+", word):
            break
        if word not in names:
            names.append(word)
    return tuple(names)


def listed_devices(text: str) -> tuple[str, ...]:
    """Return the devices that ``nvidia-smi -L`` lists: for a partitioned GPU its MIG instances."""
    devices: list[str] = []
    for line in text.splitlines():
        if found := re.match(r"GPU (\d+):", line):
            devices.append(found[1])
        elif found := re.match(r"\s+MIG .*\(UUID: (MIG-[^)\s]+)\)", line):
            if devices and devices[-1].isdecimal():
                devices.pop()  # its GPU, which cannot be used whole
            devices.append(found[1])
    return tuple(devices)


def _nvidia_smi(environ: Mapping[str, str]) -> str:
    program = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if program is None:
        return ""
    try:
        done = subprocess.run(  # noqa: S603 - the driver's program, on the user's PATH
            [program, "-L"],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ANSWER_PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""  # without access to the driver nothing else can use the GPUs either
    return done.stdout


def rocm_devices(environ: Mapping[str, str], root: Path = ROOT) -> tuple[str, ...]:
    """Return the names of the ROCm devices that a process may use.

    Where ``HIP_VISIBLE_DEVICES`` or ``ROCR_VISIBLE_DEVICES`` is set, these are its entries.
    """
    nodes = [
        node
        for node in root.glob("sys/class/kfd/kfd/topology/nodes/*/properties")
        if _simd_count(node) > 0  # else it is a CPU
    ]
    for variable in (HIP, ROCR):
        if variable in environ:
            return visible(environ[variable]) if nodes else ()
    return tuple(map(str, range(len(nodes))))


def _simd_count(properties: Path) -> int:
    try:
        found = re.search(r"^simd_count (\d+)$", properties.read_text("ascii"), re.MULTILINE)
    except (OSError, ValueError):
        return 0
    return int(found[1]) if found else 0


def _entries(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except OSError:
        return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Allotment:
    """Assignment of accelerators to workers: a slot always gets the same ones.

    Attributes
    ----------
    found
        The accelerators to assign.
    each
        How many each worker gets; None to leave the environment unchanged.
    """

    found: Accelerators = Accelerators()
    each: int | None = None

    def devices(self, slot: int) -> tuple[str, ...]:
        """Return the devices of a slot, counted from 1."""
        devices, each = self.found.devices, self.each or 0
        first = (slot - 1) * each
        return tuple(devices[(first + i) % len(devices)] for i in range(each))

    def environment(self, slot: int) -> dict[str, str]:
        """Return the variables that restrict the worker in a slot to its own devices."""
        if self.each is None:
            return {}
        if self.each == 0:
            return dict.fromkeys((CUDA, ROCR, HIP), "")
        if not self.found.variable:
            return {}
        return {self.found.variable: ",".join(self.devices(slot))}

    def label(self, slot: int) -> str | None:
        """Return a label of the devices of a slot; None if it has none of its own."""
        return f"{self.found.kind} {','.join(self.devices(slot))}" if self.each else None


def allot(gpus: Gpus, workers: int, environ: Mapping[str, str], root: Path = ROOT) -> Allotment:
    """Assign accelerators to workers.

    Parameters
    ----------
    gpus
        The pool's option, see `Pool`.
    workers
        Number of workers.
    environ
        Environment variables of the workers.
    root
        Where ``/proc``, ``/dev`` and ``/sys`` are.

    Raises
    ------
    TypeError, ValueError
        The option is wrong or cannot be satisfied; the text names what was found.
    """
    if gpus is None:
        return Allotment()
    found = detect(environ, root)
    if gpus == "auto":
        each = 1 if found.devices else None
    elif isinstance(gpus, int) and not isinstance(gpus, bool):
        each = _checked_number(gpus, found)
    elif isinstance(gpus, Sequence) and not isinstance(gpus, str | bytes):
        each, found = 1, _named(gpus, found)
    else:
        msg = f"gpus must be 'auto', a number for each worker, or a list of devices, not {gpus!r}"
        raise (ValueError if isinstance(gpus, str) else TypeError)(msg)
    if each and workers * each > len(found.devices):
        logger.warning(
            "%d workers with %d of %d accelerators each (%s) share them",
            *(workers, each, len(found.devices), found),
        )
    return Allotment(found=found, each=each)


def _checked_number(gpus: int, found: Accelerators) -> int:
    if 0 <= gpus <= len(found.devices):
        return gpus
    if gpus < 0:
        msg = f"gpus must be at least 0, not {gpus}"
    else:
        msg = f"gpus={gpus} for each worker is more than there are; found: {found}"
    raise ValueError(msg)


def _named(gpus: Sequence[Any], found: Accelerators) -> Accelerators:
    names = []
    for name in gpus:
        if isinstance(name, bool) or not isinstance(name, int | str):
            msg = f"gpus must name devices by numbers or ids, not by {name!r}"
            raise TypeError(msg)
        names.append(str(name))
        if names[-1].isdecimal() and names[-1] not in found.devices:
            msg = f"gpus names device {name}, which was not found; found: {found}"
            raise ValueError(msg)
        if not visible(names[-1]):
            msg = f"gpus names {name!r}, which is neither a number nor an id (GPU-…, MIG-…)"
            raise ValueError(msg)
    if not names:
        msg = "gpus=[] names no device; 0 hides them all from the workers"
        raise ValueError(msg)
    kind, variable = (found.kind, found.variable) if found.devices else ("cuda", CUDA)
    return Accelerators(kind=kind, variable=variable, devices=tuple(names))

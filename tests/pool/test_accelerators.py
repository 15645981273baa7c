"""Which accelerators there are, from files and the environment, and which worker sees which."""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path

import pytest

from snakepit_kernel import Pool
from snakepit_kernel.pool.resources.accelerators import allot, detect, listed_devices, visible
from snakepit_kernel.pool.status import PoolStatus, WorkerStatus

NO_PROGRAMS = {"PATH": "/nowhere"}


@pytest.fixture(autouse=True)
def nothing_is_hidden(monkeypatch):
    for variable in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)


def add_nvidia(root: Path, cards: int, nodes: int | None = None) -> Path:
    """Make the files of a machine with GPUs of NVIDIA."""
    for number in range(cards):
        (root / f"proc/driver/nvidia/gpus/0000:{number:02}:00.0").mkdir(parents=True)
    (root / "dev").mkdir(exist_ok=True)
    for name in ("nvidiactl", "nvidia-uvm", *(f"nvidia{n}" for n in range(nodes or 0))):
        (root / "dev" / name).touch()
    return root


def add_rocm(root: Path, *simd_counts: int) -> Path:
    """Make the files of a machine with GPUs of AMD; 0 stands for a processor."""
    for number, count in enumerate(simd_counts):
        node = root / f"sys/class/kfd/kfd/topology/nodes/{number}"
        node.mkdir(parents=True)
        (node / "properties").write_text(f"cpu_cores_count 8\nsimd_count {count}\nmem_banks 1\n")
    return root


def add_nvidia_smi(folder: Path, text: str) -> dict[str, str]:
    """Make a program; return the environment in which it is found."""
    program = folder / "nvidia-smi"
    program.write_text(f'#!/bin/sh\n[ "$1" = -L ] && /bin/cat <<END\n{text}END\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"PATH": str(folder)}


# -- what there is --------------------------------------------------------------------------------


def test_a_machine_without_files_of_a_driver_has_nothing(tmp_path):
    assert str(detect(NO_PROGRAMS, tmp_path)) == "no accelerators"


def test_gpus_are_counted_by_the_nodes_of_their_devices(tmp_path):
    found = detect(NO_PROGRAMS, add_nvidia(tmp_path, 4, nodes=2))  # a container that got two

    assert (found.kind, found.variable, found.devices) == (
        "cuda",
        "CUDA_VISIBLE_DEVICES",
        ("0", "1"),
    )


def test_gpus_whose_nodes_are_made_when_they_are_used_are_counted_by_the_driver(tmp_path):
    assert detect(NO_PROGRAMS, add_nvidia(tmp_path, 3)).devices == ("0", "1", "2")


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("2,3", ("2", "3")),
        (" 1 , 0 ", ("1", "0")),
        ("MIG-4f4a-1,GPU-8f6d", ("MIG-4f4a-1", "GPU-8f6d")),
        ("MIG-GPU-8f6d/1/0", ("MIG-GPU-8f6d/1/0",)),
        ("0,-1,2", ("0",)),
        ("0,0", ("0",)),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
    ],
)
def test_what_the_environment_names_is_what_there_is(text, devices, tmp_path):
    add_nvidia(tmp_path, 4, nodes=4)

    assert visible(text) == devices
    assert detect({**NO_PROGRAMS, "CUDA_VISIBLE_DEVICES": text}, tmp_path).devices == devices


LISTED = """\
GPU 0: NVIDIA A100 (UUID: GPU-11)
  MIG 3g.20gb     Device  0: (UUID: MIG-21)
  MIG 3g.20gb     Device  1: (UUID: MIG-22)
GPU 1: NVIDIA A100 (UUID: GPU-12)
"""


def test_a_divided_gpu_is_its_instances():
    assert listed_devices(LISTED) == ("MIG-21", "MIG-22", "1")
    assert listed_devices("") == ()


def test_the_driver_says_by_its_files_that_a_gpu_is_divided(tmp_path):
    add_nvidia(tmp_path, 2, nodes=2)
    (tmp_path / "proc/driver/nvidia/capabilities/gpu0/mig/gi1").mkdir(parents=True)
    environ = add_nvidia_smi(tmp_path, LISTED)

    assert detect(environ, tmp_path).devices == ("MIG-21", "MIG-22", "1")
    assert detect(NO_PROGRAMS, tmp_path).devices == ("0", "1")


def test_without_files_nvidia_smi_is_asked(tmp_path):
    environ = add_nvidia_smi(tmp_path, "GPU 0: NVIDIA H200 (UUID: GPU-11)\n")

    assert detect(environ, tmp_path / "empty").devices == ("0",)


def test_an_nvidia_smi_that_fails_finds_nothing(tmp_path):
    environ = add_nvidia_smi(tmp_path, "")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: x'; exit 9\n")

    assert detect(environ, tmp_path / "empty").devices == ()


def test_rocm_counts_the_nodes_that_compute(tmp_path):
    found = detect(NO_PROGRAMS, add_rocm(tmp_path, 0, 256, 256))

    assert (found.kind, found.variable, found.devices) == (
        "rocm",
        "HIP_VISIBLE_DEVICES",
        ("0", "1"),
    )


@pytest.mark.parametrize(
    ("given", "variable", "devices"),
    [
        ({"ROCR_VISIBLE_DEVICES": "1"}, "ROCR_VISIBLE_DEVICES", ("1",)),
        ({"HIP_VISIBLE_DEVICES": "0"}, "HIP_VISIBLE_DEVICES", ("0",)),
        (
            {"ROCR_VISIBLE_DEVICES": "0,1", "HIP_VISIBLE_DEVICES": "1"},
            "HIP_VISIBLE_DEVICES",
            ("1",),
        ),
    ],
)
def test_rocm_heeds_its_own_variables(given, variable, devices, tmp_path):
    found = detect({**NO_PROGRAMS, **given}, add_rocm(tmp_path, 0, 256, 256))

    assert (found.variable, found.devices) == (variable, devices)


# -- who gets what --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "workers", "seen"),
    [
        (None, 2, [{}, {}]),
        ("auto", 3, [{"CUDA_VISIBLE_DEVICES": d} for d in "012"]),
        (2, 2, [{"CUDA_VISIBLE_DEVICES": d} for d in ("0,1", "2,3")]),
        ([3, "GPU-8f"], 3, [{"CUDA_VISIBLE_DEVICES": d} for d in ("3", "GPU-8f", "3")]),
    ],
    ids=str,
)
def test_each_slot_sees_its_own(gpus, workers, seen, tmp_path):
    allotment = allot(gpus, workers, NO_PROGRAMS, add_nvidia(tmp_path, 4, nodes=4))

    assert [allotment.environment(slot) for slot in range(1, workers + 1)] == seen
    assert [allotment.environment(slot) for slot in range(1, workers + 1)] == seen


def test_more_workers_than_devices_share_them_in_turn_with_a_warning(tmp_path, caplog):
    allotment = allot("auto", 5, NO_PROGRAMS, add_nvidia(tmp_path, 2, nodes=2))

    assert [allotment.label(slot) for slot in range(1, 6)] == [
        *("cuda 0", "cuda 1", "cuda 0", "cuda 1", "cuda 0")
    ]
    assert "5 workers with 1 of 2 accelerators each (cuda 0, 1) share them" in caplog.text


def test_zero_hides_all_and_auto_without_any_changes_nothing(tmp_path):
    hidden = allot(0, 1, NO_PROGRAMS, add_nvidia(tmp_path, 2, nodes=2)).environment(1)

    assert set(hidden.values()) == {""}
    assert "CUDA_VISIBLE_DEVICES" in hidden
    assert allot("auto", 1, NO_PROGRAMS, tmp_path / "empty").environment(1) == {}


@pytest.mark.parametrize(
    ("gpus", "error", "said"),
    [
        (3, ValueError, "gpus=3 for each worker is more than there are; found: cuda 0, 1"),
        (-1, ValueError, "gpus must be at least 0, not -1"),
        ([0, 2], ValueError, "gpus names device 2, which was not found; found: cuda 0, 1"),
        (["first"], ValueError, "gpus names 'first', which is neither a number nor an id"),
        ([], ValueError, r"gpus=\[\] names no device"),
        ([1.5], TypeError, "gpus must name devices by numbers or ids, not by 1.5"),
        ("all", ValueError, "gpus must be 'auto', a number for each worker, or a list of devices"),
        (True, TypeError, "gpus must be 'auto'"),
        (1.0, TypeError, "gpus must be 'auto'"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_refused_with_what_was_found(gpus, error, said, tmp_path):
    with pytest.raises(error, match=said):
        allot(gpus, 1, NO_PROGRAMS, add_nvidia(tmp_path, 2, nodes=2))


# -- in a pool ------------------------------------------------------------------------------------


def test_workers_see_their_devices_from_the_start_and_so_do_their_successors(
    open_pool, tmp_path, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,MIG-7")
    (tmp_path / "early.py").write_text(
        "import os\nfrom snakepit_kernel import tool\nSEEN = os.environ['CUDA_VISIBLE_DEVICES']\n"
        "@tool\ndef seen():\n    return SEEN\n"
    )
    monkeypatch.chdir(tmp_path)
    pool = open_pool(2, adapter="early", gpus="auto")
    look = "import os, early; early.SEEN, os.environ['CUDA_VISIBLE_DEVICES']"

    assert [r.value for r in pool.run_all(look)] == [("4", "4"), ("MIG-7", "MIG-7")]
    os.kill(pool.status().workers[1].pid, signal.SIGKILL)
    while not any(worker.name == "default-2.2" for worker in pool.status().workers):
        time.sleep(0.01)
    assert pool.run(look, worker=2, timeout=20).value == ("MIG-7", "MIG-7")
    assert [worker.device for worker in pool.status().workers] == ["cuda 4", "cuda MIG-7"]
    assert "device" in str(pool.status())
    assert "cuda MIG-7" in pool.status()._repr_html_()


def test_a_pool_without_devices_has_no_column_for_them(open_pool):
    pool = open_pool(gpus=None)

    assert "device" not in str(pool.status())
    assert pool.status().workers[0].device is None


def test_a_status_of_an_older_version_has_no_devices():
    worker = WorkerStatus(
        name="p-1.1",
        pid=1,
        state="ready",
        seconds=0,
        calls=0,
        memory_bytes=None,
        running=None,
        run_id="r",
    )
    data = PoolStatus(name="p", owner_pid=1, adapter="none", workers=[worker]).as_json()
    del data["workers"][0]["device"]

    assert PoolStatus.from_json(data).workers == [worker]


def test_workers_kept_ready_have_no_device_so_the_two_options_exclude_each_other():
    with pytest.raises(ValueError, match="standby cannot be combined with gpus"):
        Pool(1, gpus="auto", standby=1)

"""Control groups: where they can be made, and that they are gone with their processes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from snakepit_kernel.processes.os_limits import Cgroup, NotDelegated, find_parent

MOUNT = "30 25 0:26 {root} {point} rw,nosuid - cgroup2 cgroup2 rw\n"


def machine(tmp_path: Path, own: str, groups: dict[str, str], root: str = "/") -> Path:
    """Make the files of a machine: each group with the controllers that it hands on.

    Returns the place of what stands for ``/proc/self``.
    """
    mount = tmp_path / "cgroup"
    for name, controllers in groups.items():
        folder = mount / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.controllers").write_text("cpu memory pids\n")
        (folder / "cgroup.subtree_control").write_text(f"{controllers}\n")
        (folder / "cgroup.procs").touch()
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "mountinfo").write_text(
        "24 1 0:22 / / rw - ext4 /dev/vda rw\n" + MOUNT.format(root=root, point=mount)
    )
    (proc / "cgroup").write_text(f"4:memory:/old\n0::{own}\n")
    return proc


def test_groups_are_made_beside_our_own_in_the_nearest_that_hands_both_on(tmp_path):
    groups = {"": "cpu memory", "user": "cpu memory", "user/app": "memory", "user/app/us": ""}
    proc = machine(tmp_path, "/user/app/us", groups)

    assert find_parent(["memory", "cpu"], proc) == tmp_path / "cgroup" / "user"
    assert find_parent(["memory"], proc) == tmp_path / "cgroup" / "user" / "app"


def test_a_mount_that_shows_a_part_of_the_tree_is_understood(tmp_path):
    proc = machine(tmp_path, "/docker/us", {"": "memory", "us": ""}, root="/docker")

    assert find_parent(["memory"], proc) == tmp_path / "cgroup"


def test_a_group_that_cannot_be_written_is_none(tmp_path):
    proc = machine(tmp_path, "/us", {"": "memory", "us": ""})
    (tmp_path / "cgroup" / "cgroup.procs").unlink()  # root may write whatever there is

    with pytest.raises(
        NotDelegated, match=r"no cgroup above this process \(it is in .*/us\) hands"
    ):
        find_parent(["memory"], proc)


def test_a_controller_that_is_not_there_is_named(tmp_path):
    proc = machine(tmp_path, "/us", {"": "memory", "us": ""})

    with pytest.raises(NotDelegated, match="does not have the controller 'rdma' on this machine"):
        find_parent(["rdma"], proc)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("mountinfo", "24 1 0:22 / / rw - ext4 /dev/vda rw\n", "cgroup v2 is not mounted"),
        ("cgroup", "4:memory:/old\n", "this process is in no cgroup of v2"),
    ],
)
def test_a_machine_without_groups_says_so(file, text, said, tmp_path):
    proc = machine(tmp_path, "/us", {"": "memory", "us": ""})
    (proc / file).write_text(text)

    with pytest.raises(NotDelegated, match=said):
        find_parent(["memory"], proc)


def test_limits_are_written_in_the_words_of_the_kernel(tmp_path):
    group = Cgroup(tmp_path)

    group.make(memory_bytes=1 << 30, cpus=1.5)

    written = {file.name: file.read_text() for file in group.path.iterdir()}
    assert written == {
        "memory.max": "1073741824",
        "memory.oom.group": "1",
        "memory.swap.max": "0",
        "cpu.max": "150000 100000",
    }
    (group.path / "memory.events").write_text("low 0\noom 1\noom_kill 0\n")
    assert not group.ran_out_of_memory
    (group.path / "memory.events").write_text("low 0\noom 1\noom_kill 2\n")
    assert group.ran_out_of_memory


def test_a_real_group_takes_a_process_and_goes_when_that_has_ended():
    try:
        parent = find_parent(())
        group = Cgroup(parent)
        group.make(memory_bytes=None, cpus=None)
    except (NotDelegated, OSError) as error:
        pytest.skip(f"needs a cgroup v2 that can be written: {error}")
    with subprocess.Popen(["sleep", "60"]) as process:
        group.add(process.pid)
        assert (group.path / "cgroup.procs").read_text().split() == [str(process.pid)]
        group.remove()
        assert group.path.exists()  # somebody is in it
        process.kill()

    group.remove()

    assert not group.path.exists()

"""Workers with packages of their own: real environments, and what may go wrong with them.

They need the dependencies of this package from the index, as pip is configured. One environment is
made for all tests that only use one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

from snakepit_kernel import EnvironmentFailed, Pool, WorkerDied
from snakepit_kernel.environments.cache import EnvironmentCache
from snakepit_kernel.environments.environment import _Maker, acquire
from snakepit_kernel.environments.file_lock import FileLock
from snakepit_kernel.environments.own_wheel import Installation
from snakepit_kernel.environments.requirements import Requirements

from ..pool.conftest import by_value, kernelspec, wait_for_all_sockets  # noqa: F401 - fixtures

pytestmark = pytest.mark.usefixtures("by_value")

Shown = list[tuple[str, dict[str, Any]]]

SNAKEPIT = str(Path(sysconfig.get_path("scripts"), "snakepit"))


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the environments of other tests out of sight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNAKEPIT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory, wheel: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    wheel(folder, "parcel", "1.0", "import os\nloaded_in = os.getpid()\n")
    return folder


@pytest.fixture(scope="module")
def file(wheels: Path) -> Path:
    """A requirements file."""
    path = wheels.parent / "requirements.txt"
    path.write_text(f"--find-links {wheels}\nparcel\n")
    return path


@pytest.fixture(scope="module")
def pool(file: Path) -> Iterator[Pool]:
    with Pool(1, requirements=file, name="parcels") as opened:
        opened.run("1")  # its channels are built with its first cell
        wait_for_all_sockets()
        yield opened


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Callable[..., Shown]]:
    """Run cells in a notebook's kernel, which was forked from a template."""
    manager, client = start_new_kernel(kernel_name="snakepit", cwd=str(tmp_path), stderr=-3)

    def run(code: str) -> Shown:
        shown: Shown = []
        client.execute_interactive(
            code, output_hook=lambda m: shown.append((m["msg_type"], m["content"])), timeout=60
        )
        return shown

    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def environments() -> list[str]:
    return sorted(environment.name for environment in EnvironmentCache().all())


def half_made() -> list[Path]:
    """Return the folders in the cache that are no environments."""
    cache = Path(os.environ["SNAKEPIT_CACHE_DIR"])
    folders = [path for path in cache.glob("*/*") if path.is_dir()]
    return [path for path in folders if path.name not in environments()]


# -- what workers have -------------------------------------------------------------------------


def test_workers_have_the_requirements_and_nothing_else_of_the_notebooks(pool):
    def look():
        import importlib.util
        import sys

        import parcel

        return parcel.version, sys.prefix, importlib.util.find_spec("pandas")

    version, prefix, pandas = pool.submit(look).result()

    assert version == "1.0"
    assert environments() == [Path(prefix).name]
    assert pandas is None


def test_workers_run_this_very_package_and_find_its_metadata(pool):
    def look():
        from importlib import metadata

        import snakepit_magics
        from jupyter_client.kernelspec import KernelSpecManager

        import snakepit_kernel

        provisioners = metadata.entry_points(group="jupyter_client.kernel_provisioners")
        return (
            [snakepit_kernel.__file__, snakepit_magics.__file__],
            metadata.version("snakepit-kernel"),
            "snakepit-provisioner" in provisioners.names,
            "snakepit" in KernelSpecManager().find_kernel_specs(),
            metadata.version("cloudpickle"),
        )

    files, *found = pool.submit(look).result()

    import snakepit_magics

    import snakepit_kernel

    here = [snakepit_kernel.__file__, snakepit_magics.__file__]
    assert list(map(os.path.realpath, files)) == list(map(os.path.realpath, here))
    versions = metadata.version("snakepit-kernel"), metadata.version("cloudpickle")
    assert found == [versions[0], True, True, versions[1]]


def test_our_own_needs_are_those_of_this_installation_and_code_travels_in_its_format():
    needs = Installation.find().needs

    assert f"cloudpickle=={metadata.version('cloudpickle')}" in needs
    assert any(need.startswith("ipykernel>=") for need in needs)
    assert not any(need.startswith(("papermill", "uv", "pytest")) for need in needs)


def test_modules_are_preloaded_in_the_template_of_the_environment(pool, file, with_templates):
    def look():
        import os
        import sys

        return sys.modules["parcel"].loaded_in == os.getpid()

    with Pool(1, requirements=file, preload=["parcel"], name="preloaded") as preloaded:
        assert preloaded.submit(look).result() is False


def test_programs_of_the_environment_come_first(pool):
    def look():
        import os
        import shutil
        import sys

        return os.environ["VIRTUAL_ENV"] == sys.prefix, shutil.which("python"), sys.executable

    is_set, found, program = pool.submit(look).result()

    assert is_set
    assert found == program


def test_tools_cells_and_sessions_work_as_ever(pool):
    @pool.tool
    def double(x: int) -> int:
        return 2 * x

    session = pool.session("s")
    session.variables.register("x", "integer", 20)

    assert pool.call("double", {"x": 21}) == 42
    assert pool.run("import parcel\nparcel.version").value == "1.0"
    assert (
        session.run("import snakepit_kernel\nsnakepit_kernel.context().variables['x']").value == 20
    )


def test_a_value_of_a_package_that_workers_lack_names_the_requirements(pool):
    numpy = pytest.importorskip("numpy")

    with pytest.raises(ModuleNotFoundError, match="No module named 'numpy'") as caught:
        pool.submit(len, numpy.ones(3)).result()
    (note,) = (each for each in caught.value.__notes__ if "'numpy'" in each)
    assert "add the package that has this module to the requirements" in note


def test_the_status_names_the_environment(pool):
    status = pool.status()

    assert status.environment == "parcel"
    assert status.title.endswith("adapter none, environment parcel")
    assert "environment parcel" in status._repr_html_()


def test_a_worker_that_died_and_a_pool_that_was_restarted_are_in_it_again(pool, file):
    with Pool(1, requirements=file, name="mortal") as mortal:
        with pytest.raises(WorkerDied):
            mortal.submit(os.abort).result()
        assert mortal.submit(_version).result() == "1.0"

        mortal.restart()
        assert mortal.submit(_version).result() == "1.0"
        mortal.terminate()
        assert mortal._engine._lease._lock.descriptor == -1  # the environment may be pruned now
        mortal.restart()
        assert mortal.submit(_version).result() == "1.0"


# -- once for all ------------------------------------------------------------------------------


def test_another_pool_uses_it_at_once(pool, file, monkeypatch, capfd):
    monkeypatch.setenv("SNAKEPIT_INSTALLER", "none")  # any use of one would be an error

    with Pool(1, requirements=str(file), name="second") as second:
        assert second.submit(_version).result() == "1.0"
    assert capfd.readouterr().err == ""


def test_what_was_resolved_stays_until_it_is_upgraded(pool, file, wheels, wheel, capfd):
    before = environments()
    newer = wheel(wheels, "parcel", "1.1")
    try:
        acquire(Requirements.of_file(file)).release()
        assert environments() == before

        done = _snakepit("env", "make", "--requirements", str(file), "--upgrade")

        (made,) = set(environments()) - set(before)
        assert done.stdout == f"{EnvironmentCache().folder(made)}\n"
        assert "parcel==1.1" in EnvironmentCache().find(made).resolution.packages
        lease = acquire(Requirements.of_file(file))
        assert lease.environment.name == made
        lease.release()
        assert pool.submit(_version).result() == "1.0"
    finally:
        newer.unlink()
        _forget(set(environments()) - set(before))
        acquire(Requirements.of_file(file)).release()


def test_an_environment_in_use_is_listed_as_such_and_not_pruned(pool):
    listed = _snakepit("env", "list").stdout
    pruned = _snakepit("env", "prune", "--all").stdout

    (name,) = environments()
    assert re.search(rf"^{name} +parcel +\d+ +\d+ MiB +\d+ s ago +in use$", listed, re.MULTILINE)
    assert pruned.startswith(f"{name} (parcel) is in use, and stays\n0 environments removed")


def test_two_that_want_the_same_at_once_make_it_once(file, cache_folder):
    lock = EnvironmentCache().request_lock(_Maker(Requirements.of_file(file))._key)
    command = [SNAKEPIT, "env", "make", "--requirements", str(file)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for each in both:
        told = each.stderr.readline()
        assert told.endswith(f"waiting for process {os.getpid()}, which makes it …\n"), told

    lock.release()
    answers = [each.communicate() for each in both]

    assert [each.returncode for each in both] == [0, 0]
    assert [out for out, _ in answers] == [f"{EnvironmentCache().folder(*environments())}\n"] * 2
    assert sorted("installing" in told for _, told in answers) == [False, True]


def test_a_wheel_that_was_built_anew_makes_another_environment(wheel, tmp_path, cache_folder):
    path = wheel(tmp_path, "parcel", "1.0")
    found = Requirements.of_list([f"parcel @ {path.as_uri()}"])
    keys = []
    for size in (1, 2):
        wheel(tmp_path, "parcel", "1.0", "#" * size)
        keys.append(_Maker(found)._key)

    assert keys[0] != keys[1]


# -- what goes wrong ---------------------------------------------------------------------------


def test_what_cannot_be_resolved_is_told_in_the_resolvers_words(pool, wheels):
    before = environments()

    with pytest.raises(EnvironmentFailed) as caught:
        Pool(1, requirements=["parcel==9"], name="nine")

    error = caught.value
    assert error.requirements == ("parcel==9",)
    assert str(error).startswith("no environment could be made for parcel==9: ")
    assert "could not resolve the requirements; it says:\n" in str(error)
    assert "parcel" in error.output
    assert environments() == before
    assert half_made() == []


def test_a_requirement_that_excludes_our_own_is_the_resolvers_error(pool):
    with pytest.raises(EnvironmentFailed) as caught:
        Pool(1, requirements=["cloudpickle<1"], name="old")

    assert "snakepit-kernel" in caught.value.output
    assert "cloudpickle" in caught.value.output


def test_without_a_network_the_error_names_the_index(monkeypatch, cache_folder):
    for name in ("UV_DEFAULT_INDEX", "PIP_INDEX_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_CACHE_DIR", str(cache_folder.parent / "uv"))

    with pytest.raises(EnvironmentFailed) as caught:
        acquire(Requirements.of_list(["no-such-package-of-ours"]))

    assert "127.0.0.1:9" in caught.value.output
    assert half_made() == []


def test_a_full_disk_leaves_nothing_half_made(file, cache_folder):
    """The cache is a file system of 3 MiB, in a mount namespace of its own."""
    cache_folder.mkdir(mode=0o700)
    script = f"""
        mount -t tmpfs -o size=3m,mode=700 none {cache_folder} || exit 9
        {SNAKEPIT} env make --requirements {file}
        echo status $?
        find {cache_folder} -mindepth 2 -type d
    """
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        ["unshare", *as_root, "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout == "status 1\n", done.stderr
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_maker_that_ends_in_the_middle_leaves_no_process_and_nothing_that_is_used(
    number, file, cache_folder, living
):
    command = [SNAKEPIT, "env", "make", "--requirements", str(file)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as maker:
        for told in iter(maker.stderr.readline, ""):
            if "installing" in told:
                break
        assert "installing" in told
        maker.send_signal(number)
        maker.communicate()
    assert maker.returncode == (130 if number == signal.SIGINT else -number)

    for process in living():
        assert process.wait_gone()
    assert environments() == []
    if number == signal.SIGINT:
        assert half_made() == []
        return
    done = _snakepit("env", "make", "--requirements", str(file))
    (name,) = environments()
    assert done.stdout == f"{EnvironmentCache().folder(name)}\n"
    assert half_made() == []


def test_an_installer_that_outlives_its_killed_maker_holds_the_locks_until_it_is_gone(
    file, cache_folder, living
):
    command = [SNAKEPIT, "env", "make", "--requirements", str(file)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as maker:
        while len(below := _processes(living(), "--no-deps")) < 2:
            assert maker.poll() is None
        for pid in below:  # the guardian first, which ends the installer
            os.kill(pid, signal.SIGSTOP)
        maker.kill()
        maker.communicate()

    locks = sorted(
        path.relative_to(cache_folder).parts[0] for path in cache_folder.glob("*/*.lock")
    )
    assert locks == ["environments", "requests"]
    assert [_is_free(path) for path in cache_folder.glob("*/*.lock")] == [False, False]
    for pid in below:
        os.kill(pid, signal.SIGCONT)
    for each in living():
        assert each.wait_gone()
    assert [_is_free(path) for path in cache_folder.glob("*/*.lock")] == [True, True]


def _processes(found: list[Any], word: str) -> list[int]:
    """Return the process ids whose command lines have a word, the older process first."""
    pids = []
    for pid in sorted(each.pid for each in found):
        with contextlib.suppress(OSError):  # it has ended
            if word in Path(f"/proc/{pid}/cmdline").read_text():
                pids.append(pid)
    return pids


def _is_free(path: Path) -> bool:
    try:
        FileLock(path, exclusive=True).release()
    except BlockingIOError:
        return False
    return True


def test_another_kernelspec_and_requirements_exclude_each_other():
    with pytest.raises(ValueError, match="requirements cannot be combined with kernel_name 'ir'"):
        Pool(1, requirements=["six"], kernel_name="ir")


# -- in a notebook -----------------------------------------------------------------------------


def test_a_notebook_has_it_by_a_magic_and_the_same_line_gives_the_same_pool(pool, file, notebook):
    start = f"%snakepit start --workers 1 -r {file}"
    notebook(f"pool = {start}")
    notebook("%%snakepit --pull found\nimport parcel, sys\nfound = parcel.version, sys.prefix")

    again = notebook(f"same = {start}\nsame is pool, found")
    other = notebook("%snakepit start --workers 1")

    (name,) = environments()
    text = f"(True, ('1.0', '{EnvironmentCache().folder(name)}'))"
    assert " ".join(again[-2][1]["data"]["text/plain"].split()) == text
    assert "--requirements is ['parcel'], not None" in str(other)


def test_a_notebook_runs_the_interpreter_of_another_kernelspec_and_no_fork_of_its_own(
    pool, notebook, kernelspec
):
    (name,) = environments()
    python = EnvironmentCache().find(name).python
    kernelspec("elsewhere", str(python), "-m", "snakepit_kernel.kernel", "-f", "{connection_file}")

    shown = notebook(
        "from snakepit_kernel import Pool\nwith Pool(1, kernel_name='elsewhere') as elsewhere:\n"
        "    print(elsewhere.submit(lambda: __import__('parcel').version).result())"
    )

    assert ("stream", {"name": "stdout", "text": "1.0\n"}) in shown


def test_a_notebook_shows_one_line_that_is_updated_and_a_short_error(notebook, tmp_path):
    (tmp_path / "r.txt").write_text("parcel==9\n")

    shown = notebook("%snakepit start --workers 1 -r r.txt")

    displays = [(kind, content) for kind, content in shown if kind.endswith("display_data")]
    assert [kind for kind, _ in displays][:2] == ["display_data", "update_display_data"]
    assert len({content["transient"]["display_id"] for _, content in displays}) == 1
    lines = [content["data"]["text/plain"] for _, content in displays]
    assert lines[0] == "environment of parcel==9: resolving …"
    assert re.fullmatch(r"environment of parcel==9: failed after \d+\.\d s", lines[-1])
    assert "stream" not in [kind for kind, _ in shown]
    (error,) = (content for kind, content in shown if kind == "error")
    assert error["ename"] == "EnvironmentFailed"
    assert "snakepit_kernel/" not in "".join(error["traceback"])


def _version() -> str:
    import parcel

    return parcel.version


def _snakepit(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([SNAKEPIT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def _forget(names: set[str]) -> None:
    """Remove environments, and what was resolved to them."""
    cache = EnvironmentCache()
    for name in names:
        shutil.rmtree(cache.folder(name))
    cache.prune(1e9)

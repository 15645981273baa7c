"""The installers: both do the same, and uv knows the settings of pip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from snakepit_kernel import EnvironmentFailed
from snakepit_kernel.environments.installers import Installer, Pip, Uv, find_installer

UV = Path(sysconfig.get_path("scripts"), "uv")


@pytest.fixture(params=["uv", "pip"])
def installer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Installer:
    monkeypatch.setenv("SNAKEPIT_INSTALLER", request.param)
    found = find_installer()
    assert found.name == request.param
    return found


def run(installer: Installer, command: list[str], cwd: Path) -> None:
    done = subprocess.run(
        command, cwd=cwd, env=installer.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_both_resolve_and_install_what_is_asked_for(installer, wheel, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for version in ("1.0", "1.1", "2.0"):
        wheel(wheels, "parcel", version, needs=["stamp>=1"])
    wheel(wheels, "stamp", "1.0")
    wheel(wheels, "stamp", "3.0")
    direct = wheel(tmp_path, "label", "5.0")
    request, constraints = tmp_path / "request.txt", tmp_path / "constraints.txt"
    options = f"--no-index\n--find-links {wheels}\n"
    request.write_text(f"{options}parcel<2\nlabel @ {direct.as_uri()}\n")
    constraints.write_text("stamp<2\n")
    lock, install = tmp_path / "lock.txt", tmp_path / "install.txt"

    run(installer, installer.resolve(request, constraints, lock, upgrade=True), tmp_path)
    packages = installer.read_lock(lock)
    install.write_text(options + "".join(f"{line}\n" for line in packages))
    folder = tmp_path / "made"
    run(installer, installer.create(folder), tmp_path)
    run(installer, installer.install(folder, install), tmp_path)

    assert packages == [f"label @ {direct.as_uri()}", "parcel==1.1", "stamp==1.0"]
    code = "import json, label, parcel, stamp, sys; print(json.dumps([sys.prefix, *sys.path]))"
    python = folder / "bin" / "python"
    prefix, *path = json.loads(subprocess.check_output([python, "-I", "-c", code]))
    assert prefix == str(folder)
    assert [entry for entry in path if entry.endswith("site-packages")] == [
        str(next(folder.glob("lib/*/site-packages")))
    ]


def test_without_uv_pip_does_it(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))

    assert isinstance(find_installer(), Pip)

    (tmp_path / "uv").write_text("#!/bin/sh\n")
    (tmp_path / "uv").chmod(0o700)
    assert isinstance(find_installer(), Uv)

    (tmp_path / "uv").chmod(0o600)
    monkeypatch.setenv("SNAKEPIT_INSTALLER", "uv")
    with pytest.raises(EnvironmentFailed, match="uv is not installed|uv is installed") as caught:
        find_installer()
    assert "snakepit-kernel[environments]" in str(caught.value)


def test_an_installer_that_is_not_known_is_an_error(monkeypatch):
    monkeypatch.setenv("SNAKEPIT_INSTALLER", "uvx")

    with pytest.raises(EnvironmentFailed, match="SNAKEPIT_INSTALLER 'uvx' is not known.*uv"):
        find_installer()


def test_uv_gets_the_settings_of_pip_where_it_has_no_index_of_its_own(monkeypatch, tmp_path):
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://in.house/simple\nextra-index-url =\n  https://a/simple\n"
        "  https://b/simple\nfind-links = /one /two\n[install]\ntrusted-host = in.house\n"
    )
    for name in [*os.environ]:
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_FIND_LINKS", "/three")

    env = Uv(sys.executable).environment()

    assert {name: value for name, value in env.items() if name.startswith("UV_")} == {
        "UV_COMPILE_BYTECODE": "1",
        "UV_DEFAULT_INDEX": "https://in.house/simple",
        "UV_INDEX": "https://a/simple https://b/simple",
        "UV_FIND_LINKS": "/three",
        "UV_INSECURE_HOST": "in.house",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    monkeypatch.setenv("UV_INDEX", "https://mine/simple")
    assert "UV_DEFAULT_INDEX" not in Uv(sys.executable).environment()
    monkeypatch.delenv("UV_INDEX")
    (tmp_path / "uv").mkdir()
    (tmp_path / "uv" / "uv.toml").write_text('index-url = "https://mine/simple"\n')
    assert "UV_DEFAULT_INDEX" not in Uv(sys.executable).environment()

"""`snakepit status --watch` on a terminal, and `--prometheus`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from prometheus_client.parser import text_string_to_metric_families

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SNAKEPIT = Path(sysconfig.get_path("scripts"), "snakepit")


@pytest.fixture
def watch(place: Any, snakepit: Run) -> Iterator[Callable[..., pexpect.spawn]]:
    """Start the command on a terminal of its own."""
    children: list[pexpect.spawn] = []

    def start(*arguments: str) -> pexpect.spawn:
        env = {**place.environment, "TERM": "xterm"}
        child = pexpect.spawn(
            str(SNAKEPIT),
            ["status", "--watch", *arguments],
            env=env,
            dimensions=(60, 160),
            encoding="utf-8",
            timeout=30,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.close(force=True)


def test_it_shows_the_pools_anew_until_ctrl_c(
    watch: Any, snakepit: Run, pool_owner: subprocess.Popen[str]
) -> None:
    screen = watch("--interval", "0.2")
    screen.expect("pool shop of process")
    screen.expect("shop-2.1")
    (pool,) = json.loads(snakepit("status", "--json").stdout)["pools"]

    os.kill(pool["workers"][0]["pid"], signal.SIGKILL)

    screen.expect("shop-1.2")
    screen.expect(r"shop-1\.1, \d+ s ago: died after")
    screen.sendintr()
    screen.expect(pexpect.EOF)
    screen.close()
    assert screen.exitstatus == 0
    assert "Traceback" not in screen.before
    assert "\x1b[?1049l" in screen.before  # the terminal is as it was


def test_it_goes_on_without_pools(watch: Any, place: Any) -> None:
    screen = watch("--interval", "0.1")
    for _ in range(3):
        screen.expect("no live pools")
    screen.sendintr()
    screen.expect(pexpect.EOF)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--watch"], "--watch draws on a terminal, and the output is none"),
        (["--watch", "--json"], "exclude each other"),
        (["--prometheus", "--runs"], "exclude each other"),
        (["--interval", "2"], "--interval is for --watch"),
        (["--watch", "--interval", "0"], "0.0 is not in the range"),
        (["--watch", "--interval", "nan"], "must be a number of seconds"),
    ],
)
def test_misuse_is_one_line(snakepit: Run, options: list[str], said: str) -> None:
    done = snakepit("status", *options)

    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_prometheus_gets_the_numbers_of_the_live_pools(
    snakepit: Run, pool_owner: subprocess.Popen[str]
) -> None:
    done = snakepit("status", "--prometheus")

    families = {family.name: family for family in text_string_to_metric_families(done.stdout)}
    (memory, _) = families["snakepit_worker_memory_bytes"].samples
    assert memory.labels == {"pool": "shop", "owner": str(pool_owner.pid), "slot": "1"}
    assert memory.value > 2**20
    assert sum(sample.value for sample in families["snakepit_pool_workers"].samples) == 2

"""What somebody sees who works with a pool in JupyterLab."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

CELLS = (
    "import os, time\npool = %snakepit start --workers 2 --name shop",
    "%snakepit status",
    "dashboard = %snakepit dashboard\ndashboard",
    "futures = [pool.submit(time.sleep, 0.5) for _ in range(12)]",
    "os.kill(pool.status().workers[0].pid, 9)",
    "with pool.timeline() as timeline:\n    list(pool.map(time.sleep, [0.05, 0.02] * 5))\ntimeline",
    "%snakepit stop",
)


def test_the_status_and_the_dashboard_show_a_pool_at_work(open_lab, tmp_path):
    lab = open_lab(*CELLS)

    lab.run(0)
    status = lab.run(1)
    expect(status.locator("tbody tr")).to_have_count(2)
    expect(status.locator("tbody")).to_contain_text("shop-1.1")

    dashboard = lab.run(2).locator(".snakepit-dashboard")
    expect(dashboard.locator('[data-state="ready"]')).to_have_count(2)

    lab.run(3)
    expect(dashboard.locator('[data-state="busy"]')).to_have_count(2)
    expect(dashboard.locator("tbody")).to_contain_text("sleep")
    lab.page.screenshot(path=tmp_path / "working.png")
    expect(dashboard.locator('[data-state="ready"]')).to_have_count(2)
    expect(dashboard.get_by_text("12", exact=True)).to_be_visible()

    lab.run(4)
    expect(dashboard.locator(".snakepit-tile", has_text="died")).to_contain_text("1")
    expect(dashboard.locator("tbody")).to_contain_text("shop-1.2")
    expect(dashboard.locator(".snakepit-died")).to_contain_text("was killed by SIGKILL")

    expect(lab.run(5).locator(".snakepit-timeline g")).to_have_count(10)
    lab.page.screenshot(path=tmp_path / "died.png")

    lab.run(6)
    expect(dashboard.locator(".snakepit-notice")).to_contain_text(
        "the pool is closed: it was shut down"
    )
    expect(dashboard.locator(".snakepit-old tbody tr")).to_have_count(2)
    lab.page.screenshot(path=tmp_path / "closed.png")
    assert lab.errors == []


def test_a_dashboard_says_that_its_kernel_is_gone_or_cannot_be_reached(open_lab, tmp_path):
    lab = open_lab(CELLS[0], CELLS[2], "os.kill(os.getpid(), 9)", CELLS[0], CELLS[2])
    lab.run(0)
    first = lab.run(1).locator(".snakepit-dashboard")
    expect(first.locator('[data-state="ready"]')).to_have_count(2)

    lab.page.keyboard.press("Shift+Enter")
    expect(first.locator(".snakepit-notice")).to_contain_text(
        "the kernel of this dashboard is gone"
    )
    expect(first.locator(".snakepit-old tbody tr")).to_have_count(2)
    lab.page.screenshot(path=tmp_path / "gone.png")

    lab.page.get_by_role("button", name="Ok").click()  # JupyterLab tells of the kernel's restart
    expect(lab.page.locator("#jp-main-statusbar")).to_contain_text("Python 3 (Snakepit) | Idle")
    lab.cell(3).locator(".cm-content").click()
    for number, prompt in ((3, "[1]:"), (4, "[2]:")):
        lab.page.keyboard.press("Shift+Enter")
        expect(lab.cell(number).locator(".jp-InputPrompt")).to_have_text(prompt)
    second = lab.cell(4).locator(".snakepit-dashboard")
    expect(second.locator('[data-state="ready"]')).to_have_count(2)
    expect(second.locator(".snakepit-notice")).to_have_count(0)
    lab.server.process.kill()
    expect(second.locator(".snakepit-notice")).to_contain_text(
        "there is no connection to the kernel"
    )
    lab.page.screenshot(path=tmp_path / "lost.png")


def test_a_dashboard_that_nobody_sees_is_not_refreshed(open_lab):
    # The page tells of it a moment later; a cell that awaits lets that message in.
    wait = "import asyncio\nwhile dashboard.shown is {}: await asyncio.sleep(0.05)\ndashboard.shown"
    cells = (CELLS[0], CELLS[2], wait.format(True), wait.format(False))
    lab = open_lab(*cells, theme="JupyterLab Dark")
    lab.run(0)
    dashboard = lab.run(1)
    expect(dashboard.locator(".snakepit-dashboard")).to_be_visible()

    lab.see(dashboard, is_shown=False)
    expect(lab.run(2)).to_contain_text("False")
    lab.see(dashboard, is_shown=True)
    expect(lab.run(3)).to_contain_text("True")
    assert lab.errors == []

"""What somebody sees who works with a pool in JupyterLab."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

CELLS = (
    "import os, time\npool = %snakepit start --workers 2 --name shop",
    "%snakepit status",
    "%snakepit dashboard",
    "futures = [pool.submit(time.sleep, 0.5) for _ in range(12)]",
    "os.kill(pool.status().workers[0].pid, 9)",
    "%snakepit stop",
)


@pytest.mark.parametrize("theme", ["JupyterLab Light", "JupyterLab Dark"])
def test_the_status_and_the_dashboard_show_a_pool_at_work(open_lab, tmp_path, theme):
    lab = open_lab(*CELLS, theme=theme)

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
    lab.page.screenshot(path=tmp_path / "died.png")

    lab.run(5)
    expect(dashboard).to_contain_text("closed")
    assert lab.errors == []

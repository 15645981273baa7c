"""JupyterLab's sidebar of pools and workers, as somebody sees it who works with it."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

CELLS = (
    "import time\npool = %snakepit start --workers 2 --name shop",
    "p = pool.session('work').processes.start('echo begun; exec sleep 600', name='training')",
    "future = pool.submit(time.sleep, 600)",
    "%%snakepit --background\nimport time\ntime.sleep(600)",
)

CONTRAST = """(element) => {
    const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
    const luminance = (color) => {
        const part = (value) => {
            const share = value / 255;
            return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        };
        const [red, green, blue] = color.map(part);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    let behind = element;
    const fill = () => getComputedStyle(behind).backgroundColor;
    while (numbers(fill())[3] === 0) behind = behind.parentElement;
    const below = numbers(fill()).slice(0, 3);
    const [red, green, blue, opacity = 1] = numbers(getComputedStyle(element).color);
    const blend = (value, index) => value * opacity + below[index] * (1 - opacity);
    const shown = [red, green, blue].map(blend);
    const [dark, light] = [shown, below].map(luminance).sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
}"""
"""The ratio of an element's colour to that behind it, as the W3C defines it."""

READABLE = 4.5
"""The least ratio for text of usual size."""


def open_panel(lab):
    """Open the sidebar as a user does; find it."""
    lab.page.locator('.jp-SideBar [data-id="snakepit-panel"]').click()
    panel = lab.page.locator("#snakepit-panel")
    expect(panel).to_be_visible()
    return panel


def assert_readable(panel):
    for shown in ("h2", "h3", ".jp-Snakepit-state", ".jp-Snakepit-quiet", "button"):
        assert panel.locator(shown).first.evaluate(CONTRAST) >= READABLE, shown


def confirm(lab, label):
    lab.page.locator(".jp-Dialog").get_by_role("button", name=label).click()


def test_the_panel_shows_a_notebook_at_work_and_its_buttons_act(open_lab, tmp_path):
    lab = open_lab(*CELLS)
    for number in range(3):
        lab.run(number)
    panel = open_panel(lab)

    kernel = panel.get_by_role("region", name="Kernel of shop.ipynb")
    pool = kernel.get_by_role("region", name="Pool shop")
    workers = pool.get_by_role("list", name="Workers of pool shop").get_by_role("listitem")
    expect(workers).to_have_count(2)
    busy = workers.filter(has_text="sleep")
    expect(busy).to_contain_text("busy")
    assert_readable(panel)
    lab.page.screenshot(path=tmp_path / "light.png")

    busy.get_by_role("button", name="Interrupt worker").click()
    expect(workers.filter(has_text="busy")).to_have_count(0)

    pool.get_by_role("button", name="Recycle worker shop-1.1").click()
    expect(pool.locator('[data-worker="shop-1.2"]')).to_contain_text("ready")
    pool.get_by_role("button", name="Kill worker shop-2.1").click()
    confirm(lab, "Cancel")
    pool.get_by_role("button", name="Kill worker shop-2.1").click()
    confirm(lab, "Kill")
    expect(pool.locator('[data-worker="shop-2.2"]')).to_contain_text("ready")

    processes = kernel.get_by_role("list", name="Processes of shop.ipynb")
    processes.get_by_role("button", name="Open the log of process training").click()
    log = lab.page.locator(".jp-Snakepit-log")
    expect(log).to_contain_text("begun")
    processes.get_by_role("button", name="Kill process training").click()
    confirm(lab, "Kill")
    expect(processes.get_by_role("listitem")).to_contain_text("killed 143")
    expect(log).to_contain_text("[the process has ended: killed]")

    panel.get_by_role("button", name="Open shop.ipynb").click()
    lab.cell(3).locator(".cm-content").click()
    lab.page.keyboard.press("Control+Enter")
    jobs = kernel.get_by_role("list", name="Jobs of shop.ipynb")
    expect(jobs).to_contain_text("Job 1")
    jobs.get_by_role("button", name="Cancel job 1").click()
    expect(jobs).to_have_count(0)

    pool.get_by_role("button", name="Stop pool shop").click()
    confirm(lab, "Stop")
    expect(pool).to_have_count(0)
    assert lab.errors == []


def test_the_panel_is_readable_in_the_dark_theme_and_asks_only_while_it_is_seen(open_lab, tmp_path):
    lab = open_lab(*CELLS, theme="JupyterLab Dark")
    panel = open_panel(lab)
    expect(panel).to_contain_text("Run %snakepit start in a notebook")
    lab.cell(0).locator(".cm-content").click()
    lab.run(0)
    expect(panel.locator("[data-worker]")).to_have_count(2)
    assert_readable(panel)
    lab.page.screenshot(path=tmp_path / "dark.png")

    requests = []
    lab.page.on("request", lambda request: requests.append(request.url))
    with lab.page.expect_request("**/snakepit/state?*"):
        pass  # it asks as long as it is seen
    open_tab = lab.page.locator('.jp-SideBar [data-id="snakepit-panel"]')
    open_tab.click()
    expect(panel).to_be_hidden()
    requests.clear()
    lab.page.wait_for_timeout(2500)  # more than the time between two requests
    assert [url for url in requests if "/snakepit/" in url] == []
    with lab.page.expect_request("**/snakepit/state?*"):
        open_tab.click()
    assert lab.errors == []

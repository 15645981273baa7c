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


WIDGETS = """%%snakepit
import ipywidgets as w
from IPython.display import display
slider, button, out = w.IntSlider(value=3, max=10), w.Button(description="press"), w.Output()
seen = []
slider.observe(lambda change: seen.append(change["new"]), "value")
def press(_):
    with out:
        print("pressed", len(seen) > 0)
button.on_click(press)
display(slider, button, out)"""

WIDGET_CELLS = (
    "pool = %snakepit start --workers 1 --name shop",
    WIDGETS,
    "%%snakepit\nw.interact(lambda x: f'square {x * x}', x=(0, 10))\nNone",
    "%%snakepit\nprint('value', slider.value, seen[-1])",
    "%%snakepit\nname = input('name? ')\nprint('hello', name)",
    "pool.recycle()",
)


def test_widgets_of_a_worker_are_alive_and_its_cells_ask(open_lab):
    lab = open_lab(*WIDGET_CELLS)
    lab.run(0)
    widgets = lab.run(1)
    handle = widgets.locator(".noUi-handle")
    expect(handle).to_be_visible()
    handle.focus()
    lab.page.keyboard.press("ArrowRight")
    lab.page.keyboard.press("ArrowRight")
    expect(widgets.locator(".widget-readout")).to_have_text("5")
    widgets.get_by_role("button", name="press").click()
    expect(widgets.locator(".jupyter-widgets-output-area, .jp-OutputArea").last).to_contain_text(
        "pressed True"
    )

    lab.cell(2).locator(".cm-content").click()
    interact = lab.run(2)
    expect(interact).to_contain_text("square 25")
    interact.locator(".noUi-handle").focus()
    lab.page.keyboard.press("ArrowRight")
    expect(interact).to_contain_text("square 36")

    lab.cell(3).locator(".cm-content").click()
    expect(lab.run(3)).to_contain_text("value 5 5")

    lab.page.keyboard.press("Shift+Enter")
    question = lab.cell(4).locator("input.jp-Stdin-input")
    expect(question).to_be_visible()
    question.fill("Ada")
    question.press("Enter")
    expect(lab.cell(4).locator(".jp-Cell-outputWrapper")).to_contain_text("hello Ada")

    lab.cell(5).locator(".cm-content").click()
    lab.run(5)
    expect(widgets).to_contain_text("The widgets of this cell are gone: worker shop-1.1 has ended")
    assert lab.errors == []

"""Pages of the service in a browser."""

import contextlib
import subprocess
import sys

import pytest


@contextlib.contextmanager
def opened(browser, url, *, width=1280, height=800, **options):
    """The page of a service, of which nothing may be refused by its policy, nor fail, nor come from elsewhere."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Policy" in said.text else None)
    page.on("request", lambda request: None if request.url.startswith(url) else wrong.append(request.url))
    try:
        open_page(page, url)
        yield page
    finally:
        context.close()
    assert not wrong


def open_page(page, url):
    page.goto(url)
    page.locator("#model:enabled").wait_for()


def focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")


def tab_to(page, wanted):
    """Presses Tab until an element has the focus, which must be seen: by its id, or its text."""
    for _ in range(30):
        page.keyboard.press("Tab")
        if focused(page) == wanted:
            style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert style == "solid", f"the focus on {wanted} can't be seen"
            return
    raise AssertionError(f"{wanted} can't be reached with the Tab key")


def run_copied(page, name, folder):
    """What the code prints that is copied as curl or as Python."""
    page.get_by_role("button", name=f"Copy as {name}").click()
    code = page.evaluate("navigator.clipboard.readText()")
    command = {"curl": ["bash", "-c"], "Python": [sys.executable, "-c"]}[name]
    ran = subprocess.run([*command, code], capture_output=True, text=True, cwd=folder, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def assert_accessible(page, width=375):
    """Nothing violates axe's rules, nor is wider than the window."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    violations = axe.run(page).response["violations"]
    assert not [(each["id"], [node["target"] for node in each["nodes"]]) for each in violations]

"""Chromium for the tests of pages: looks at them as a reader does, and runs axe-core on them.

axe-core (MPL-2.0) is not part of this repository. `npm install axe-core` puts it into node_modules, which
is found from the working directory; or name its file: SAFETUNE_AXE=/path/to/axe.min.js.
"""
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

WIDTHS, SCHEMES = (1280, 375), ("light", "dark")


def chromium_path() -> str | None:
    "The browser, or None."
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("SAFETUNE_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def axe_path() -> Path | None:
    "axe.min.js, or None."
    named = os.environ.get("SAFETUNE_AXE")
    places = [Path(named)] if named else [folder / "node_modules/axe-core/axe.min.js"
                                          for folder in (Path.cwd(), *Path.cwd().parents)]
    return next((place for place in places if place.is_file()), None)


@contextmanager
def chromium():
    "A headless browser."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium_path(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser, path: Path, width: int = 1280, scheme: str = "light", part: str = "", **options):
    "A page of a file; `page.alarms` lists what ran or was asked of the network though nothing may."
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
    page = context.new_page()
    page.alarms = []
    page.on("dialog", lambda dialog: (page.alarms.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: page.alarms.append(f"script error {error}"))
    page.on("console", lambda message: page.alarms.append(f"console {message.text}"))
    page.on("request", lambda request: request.url.startswith(("data:", f"file://{path}")) or
            page.alarms.append(f"request {request.url}"))
    try:
        page.goto(f"file://{path}" + (f"#{part}" if part else ""))
        yield page
    finally:
        context.close()


def overflow(page) -> int:
    "Pixels by which the page is wider than its window."
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def axe(page, source: str) -> list[str]:
    "What axe-core finds wrong by WCAG 2.2 AA and its best practices, one line each."
    session = page.context.new_cdp_session(page)    # the policy of the page allows no script, the debugger may
    session.send("Runtime.evaluate", {"expression": source})
    found = session.send("Runtime.evaluate", {"expression": "axe.run(document, {resultTypes: ['violations']})",
                                              "awaitPromise": True, "returnByValue": True})
    result = found["result"]["value"]
    assert result["passes"], "axe did not run"
    return [f"{rule['id']} ({rule['impact']}): {node['html'][:160]} {node['failureSummary'][:200]}"
            for rule in result["violations"] for node in rule["nodes"][:3]]

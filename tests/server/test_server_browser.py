"""The search page in a real browser: type, see, choose by keys, and be told when the server is gone.

`make test-browser` installs what it needs; elsewhere this is skipped where there is no Chromium. The page is drawn into
the folder MACHXC_SCREENSHOTS, if that is set.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from machxc.server.settings import ServerSettings
from server_tools import Running, running

PATIENCE = 60  # seconds
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars", "--disable-dev-shm-usage",
)  # fmt: skip


def missing() -> str | None:
    """Why there is no browser to test with."""
    for name in ("chromium", "chromedriver"):
        if shutil.which(name) is None:
            return f"there is no {name}: make test-browser installs it"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed: make test-browser installs it"
    return None


if (reason := missing()) and os.environ.get("MACHXC_BROWSER") != "required":
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def server(files: Path) -> Iterator[Running]:
    with running(files / "texts", examples=("w3a w3b",)) as server:
        yield server


class Page:
    """The search page, open in a browser."""

    def __init__(self, browser: Any, url: str, path: str = "/") -> None:
        self.browser = browser
        browser.get("about:blank")
        browser.get_log("browser")
        browser.get(url + path)
        self.until(lambda: "30" in self.text("facts"))

    def until(self, condition: Callable[[], bool]) -> None:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        ignored = (StaleElementReferenceException,)
        WebDriverWait(self.browser, PATIENCE, 0.02, ignored).until(lambda _: condition())

    def element(self, name: str) -> Any:
        return self.browser.find_element("id", name)

    def text(self, name: str) -> str:
        return str(self.element(name).text)

    def type(self, *keys: str) -> None:
        """To whatever has the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def labels(self) -> list[str]:
        return [element.text for element in self.browser.find_elements("css selector", "#results .name")]

    def chosen(self) -> str:
        return str(self.browser.find_element("css selector", "#results [aria-selected=true] .name").text)

    def pixels(self) -> str:
        """What the heat map shows."""
        return str(self.browser.execute_script("return document.getElementById('map').toDataURL()"))

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_type_and_see(browser: Any, server: Running) -> None:
    page = Page(browser, server.client.url)
    page.type("w3a w3b")  # the box has the focus from the beginning
    page.until(lambda: page.labels()[:1] == ["topic 03"])
    assert len(page.labels()) == 10
    page.until(lambda: page.element("sketch-body").is_displayed())
    tokens = browser.find_elements("css selector", "#tokens li")
    assert {"w3a", "w3b"} <= {token.text.partition("+")[0] for token in tokens}
    steps = browser.find_elements("css selector", "#narrowing .value")
    assert (steps[0].text, steps[-1].text) == ("30", "1")
    assert "?q=w3a%20w3b" in browser.current_url
    page.type("\ue003" * 7)  # Backspace
    page.until(lambda: page.labels() == [] and not page.element("sketch-body").is_displayed())
    assert page.errors() == []


def test_keys_choose_a_label_and_mark_its_buckets(browser: Any, server: Running) -> None:
    page = Page(browser, server.client.url, "/?q=w3a%20w4b")
    page.until(lambda: page.element("sketch-body").is_displayed())
    names, first = page.labels(), page.pixels()
    assert page.chosen() == names[0]
    page.type("\ue015")  # down
    assert page.chosen() == names[1]
    assert page.element("query").get_attribute("aria-activedescendant") == "label-1"
    assert page.pixels() != first
    page.type("\ue013", "\ue013")  # up, and from the first to the last
    assert page.chosen() == names[-1]
    page.type("\ue007")  # Enter
    page.until(lambda: names[-1] in page.text("toast"))
    page.type("\ue00c")  # Escape
    page.until(lambda: page.labels() == [])
    assert browser.switch_to.active_element.get_attribute("id") == "query"


def test_an_example_is_a_click_away(browser: Any, server: Running) -> None:
    page = Page(browser, server.client.url)
    browser.find_element("css selector", "#examples button").click()
    page.until(lambda: page.labels()[:1] == ["topic 03"])


def test_the_page_says_when_the_server_is_gone_and_goes_on_when_it_is_back(browser: Any, files: Path) -> None:
    with running(files / "texts") as first:
        page = Page(browser, first.client.url)
        page.type("w5a")
        page.until(lambda: page.labels()[:1] == ["topic 05"])
        port = int(first.client.url.rpartition(":")[2])
    page.type(" w5b")
    page.until(lambda: "does not answer" in page.text("problem"))
    with Running(first.service.engine, ServerSettings(port=port)):
        page.until(lambda: not page.element("problem").is_displayed())
        assert page.labels()[0] == "topic 05"


def test_the_key_is_asked_for(browser: Any, files: Path) -> None:
    with running(files / "texts", api_key="k") as server:
        browser.get(server.client.url)
        form = Page.__new__(Page)
        form.browser = browser
        form.until(lambda: form.element("key-form").is_displayed())
        form.type("k", "\ue007")
        form.until(lambda: "30" in form.text("facts"))
        form.element("query").send_keys("w7a")
        form.until(lambda: form.labels()[:1] == ["topic 07"])


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)], ids=str)
def test_it_fits_and_is_drawn(browser: Any, server: Running, width: int, dark: bool) -> None:
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page = Page(browser, server.client.url, "/?q=w3a%20w4b")
    page.until(lambda: page.element("sketch-body").is_displayed())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(18, 17, 24)") == dark
    if folder := os.environ.get("MACHXC_SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder) / f"search-{width}-{'dark' if dark else 'light'}.png"))
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_of_the_api(browser: Any, server: Running) -> None:
    browser.get(f"{server.client.url}/docs")
    page = Page.__new__(Page)
    page.browser = browser
    page.until(lambda: "/v1/search" in page.text("routes") and "SearchRequest" in page.text("objects"))
    assert page.errors() == []


def test_nothing_is_asked_of_anybody_else(browser: Any, server: Running) -> None:
    page = Page(browser, server.client.url, "/?q=w3a")
    page.until(lambda: page.element("sketch-body").is_displayed())
    asked = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert asked
    assert all(address.startswith(server.client.url) for address in asked)

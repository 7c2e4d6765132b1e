"""The playground in a real Chromium: `make browser-test`."""

import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright
from serving_support import served

pytestmark = pytest.mark.browser

SWITCHES = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "no Chromium here: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=SWITCHES)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_context(viewport={"width": 1240, "height": 860}).new_page()
    page.troubles = []
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on("console", lambda message: page.troubles.append(message.text) if message.type == "error" else None)
    yield page
    page.context.close()


def test_a_compression_by_keyboard_and_another_budget_without_another_reading(page):
    with served() as (url, app):
        page.goto(url)
        asked = []
        page.on("request", lambda request: asked.append(request.url.removeprefix(url)))
        page.get_by_role("button", name="Show an example").click()
        page.get_by_label("Query").focus()
        page.keyboard.press("Enter")
        expect(page.locator("mark").filter(has_text="Edmund Hillary and Tenzing Norgay")).to_have_count(1)
        assert asked == ["/v1/compress"]
        read = windows(app)
        assert read >= 1
        kept = page.locator("#tokens").inner_text()
        budget = page.get_by_label("Budget")
        budget.focus()
        page.keyboard.press("End")
        expect(page.locator("#said")).to_have_text("100 % of the characters")
        expect(page.locator("#compression")).to_have_text("1.0×")
        for _ in range(45):
            page.keyboard.press("ArrowLeft")
        expect(page.locator("#said")).to_have_text("9.2 % of the characters")
        page.wait_for_function("document.querySelector('#compression').textContent !== '1.0×'")
        assert kept != ""
        assert set(asked) == {"/v1/compress", "/v1/select"}
        assert asked.count("/v1/compress") == 1
        assert windows(app) == read
        page.get_by_role("button", name="For the prompt").click()
        expect(page.locator("#shown .doc")).to_have_count(1)
        page.get_by_role("button", name="In its documents").click()
        page.keyboard.press("Home")
        if target := os.environ.get("CPRS_SCREENSHOT"):
            page.evaluate("document.querySelector('#budget').value = 70")
            page.locator("#budget").dispatch_event("input")
            page.wait_for_timeout(500)
            page.screenshot(path=Path(target))
        assert page.troubles == []


def windows(app):
    return app.state.desk.metrics.registry.get_sample_value("cprs_windows_total")


def test_characters_beyond_the_basic_plane_and_markup_stay_what_they_are(page):
    with served() as (url, _):
        page.goto(url)
        page.get_by_label("Documents").fill(
            "\U0001f600\U0001f600 <b>Everest</b> was climbed by Tenzing Norgay. \U0001f600 Bread is brown."
        )
        page.get_by_label("Query").fill("Who climbed Everest?")
        page.get_by_role("button", name="Compress").click()
        expect(page.locator("mark").first).to_contain_text("Tenzing Norgay.")
        assert page.locator("#shown b").count() == 0
        assert page.troubles == []


def test_a_token_is_asked_for_and_errors_are_told(page):
    with served(token="s3cret") as (url, _):
        page.goto(url)
        page.get_by_role("button", name="Show an example").click()
        page.get_by_role("button", name="Compress").click()
        expect(page.get_by_role("alert")).to_contain_text("send the server's token")
        page.get_by_label("Token").fill("s3cret")
        page.keyboard.press("Enter")
        expect(page.locator("mark").filter(has_text="Norgay")).to_have_count(1)
        page.get_by_label("Query").fill("")
        page.get_by_role("button", name="Compress").click()
        expect(page.get_by_role("alert")).to_contain_text("query and instruction are both empty")

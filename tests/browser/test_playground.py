"""The playground in Chromium: a real compression, by mouse and by keyboard."""

import re
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright
from samples import ANSWER, CAPITALS, QUESTION
from served import GatedCritic, serving, wait_until

from cprs_integrations import CPRSEngine

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium")
    assert path, "Chromium is not installed; on Debian: apt-get install chromium"
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Opens pages that must not ask anybody but their server for anything, nor break a rule of their own."""
    troubles, contexts = [], []

    def open_(served, **options):
        context = chromium.new_context(viewport={"width": 1280, "height": 880}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request", lambda request: request.url.startswith((served.url, "data:", "blob:")) or troubles.append(request.url)
        )
        page.on("console", lambda told: "Content Security Policy" in told.text and troubles.append(told.text))
        page.goto(served.url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture(scope="module")
def served(engine):
    with serving(engine) as found:
        yield found


def ask(page, text, query):
    page.get_by_label("Documents").fill(text)
    page.get_by_label("Query").fill(query)
    page.get_by_role("button", name="Compress").click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_compression_and_another_budget_without_a_forward_pass(open_page, served, engine, scheme, request):
    page = open_page(served, color_scheme=scheme)
    page.get_by_role("button", name="Try an example").click()
    expect(page.locator("mark").first).to_be_visible()
    text, query = page.get_by_label("Documents").input_value(), page.get_by_label("Query").input_value()
    scored = engine.score(text, query)

    def kept():
        return [re.sub(r"\d\.\d\d$", "", found) for found in page.locator("mark").all_inner_texts()]

    def expected(**bounds):
        return [text[span.start : span.end] for span in scored.select(**bounds).documents[0].spans]

    assert kept() == expected(max_ratio=0.2)
    before = served.service.scheduler.windows
    budget = page.get_by_role("slider")
    budget.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#selected")).to_contain_text("no forward pass")
    expect(page.locator("#shown")).to_have_text("at most 15 %")
    expect(page.locator("#share")).to_contain_text(f"of {len(text):,}")
    assert kept() == expected(max_ratio=0.15)
    assert len(scored.select(max_ratio=0.15).text) <= 0.15 * len(text)
    if scheme == "light" and (target := request.config.getoption("--screenshot")):
        page.screenshot(path=target)
    page.get_by_label("no budget").check()
    expect(page.locator("#shown")).to_have_text("no bound")
    expect(page.locator("mark")).to_have_count(len(expected()))
    assert served.service.scheduler.windows == before
    page.get_by_role("button", name="For the prompt").click()
    expect(page.get_by_label("Text for the prompt")).to_have_text(scored.select().text)


DROP = """text => {
  const carried = new DataTransfer();
  carried.items.add(new File([text], "dropped.txt", { type: "text/plain" }));
  const told = { dataTransfer: carried, bubbles: true, cancelable: true };
  for (const kind of ["dragover", "drop"]) document.querySelector("#text").dispatchEvent(new DragEvent(kind, told));
}"""


def test_a_dropped_file_is_a_document(open_page, served):
    page = open_page(served)
    page.evaluate(DROP, " ".join(CAPITALS))
    expect(page.get_by_role("button", name="Remove dropped.txt")).to_be_visible()
    expect(page.locator(".over")).to_have_count(0)
    page.get_by_label("Query").fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator("article", has_text="dropped.txt").locator("mark", has_text=ANSWER)).to_have_count(1)


def test_chosen_files_are_documents_and_offsets_hold_beyond_the_basic_plane(open_page, served):
    page = open_page(served)
    for number, text in enumerate(CAPITALS):
        page.locator("#picker").set_input_files(
            {"name": f"{number}.txt", "mimeType": "text/plain", "buffer": f"\U0001f5fb\U0001f5fb {text}".encode()}
        )
    expect(page.get_by_role("button", name="Remove 3.txt")).to_be_visible()
    page.get_by_role("button", name="Remove 1.txt").click()
    page.get_by_label("Query").fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator("mark", has_text=ANSWER)).to_have_count(1)
    found = page.locator("article", has_text="3.txt").locator("mark").inner_text()
    assert re.sub(r"\d\.\d\d$", "", found) in f"\U0001f5fb\U0001f5fb {CAPITALS[3]}"
    expect(page.locator("article")).to_have_count(3)


def test_everything_is_reached_by_keyboard_and_named(open_page, served):
    page = open_page(served)
    names, focused = [], page.locator(":focus")
    for _ in range(9):
        page.keyboard.press("Tab")
        names.append(focused.get_attribute("id"))
        assert focused.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
    assert names == ["text", "add", "example", "query", "instruction", "granularity", "ratio", "own", "go"]
    page.get_by_label("Documents").fill(" ".join(CAPITALS))
    page.get_by_label("Query").fill(QUESTION)
    page.get_by_label("Documents").focus()
    page.keyboard.press("Control+Enter")
    expect(page.locator("mark", has_text=ANSWER)).to_have_count(1)
    page.get_by_label("Query").fill("something else")
    expect(page.locator("#status")).to_contain_text("compress again")


def test_markup_in_a_document_is_text(open_page, served):
    page = open_page(served)
    ask(page, "<img src=x onerror=alert(1)> <script>alert(2)</script> Edmund Hillary climbed Mount Everest.", QUESTION)
    expect(page.locator("article")).to_contain_text("<img src=x onerror=alert(1)>")
    assert page.locator("article img").count() == 0


def test_what_is_missing_or_wrong_is_said(open_page, served):
    page = open_page(served)
    page.get_by_role("button", name="Compress").click()
    expect(page.get_by_role("alert")).to_contain_text("There is no text yet")
    expect(page.get_by_label("Documents")).to_be_focused()
    ask(page, "Paris.", "")
    expect(page.get_by_role("alert")).to_contain_text("There is no question yet")
    ask(page, "Paris.", "word " * 5_000)
    expect(page.get_by_role("alert")).to_contain_text("query and instruction are")


def test_a_token_is_asked_for_once(open_page, known):
    with serving(known, token="sesame") as served:
        page = open_page(served)
        ask(page, " ".join(CAPITALS), QUESTION)
        for token in ("wrong", "sesame"):
            page.get_by_role("textbox", name="Token").fill(token)
            page.keyboard.press("Enter")
        expect(page.locator("mark", has_text=ANSWER)).to_have_count(1)
        page.get_by_role("slider").press("ArrowRight")
        expect(page.locator("#selected")).to_contain_text("no forward pass")


def test_stop_hangs_up_and_the_page_goes_on(open_page):
    critic = GatedCritic({"Hillary": 0.9})
    with serving(CPRSEngine(critic=critic)) as served:
        page = open_page(served)
        ask(page, " ".join(CAPITALS), QUESTION)
        page.get_by_role("button", name="Stop").click()
        wait_until(lambda: served.service.taken == 0)
        critic.gate.set()
        page.get_by_role("button", name="Compress").click()
        expect(page.locator("mark", has_text=ANSWER)).to_have_count(1)

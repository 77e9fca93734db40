"""The whole page in a browser: it works in both languages, complains of nothing, and asks nobody else."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import uvicorn
from fastapi import FastAPI

from lushan.serving.hosted import HostedModel
from lushan.serving.page import mount_page, tune_tab
from lushan.serving.page.texts import texts_of
from lushan.serving.page.tuning import Plan
from tests.bad_inputs import good_rows, write_lines
from tests.browser import Page, opened_browser
from tests.served import wait_until
from tests.unit.serving.page.conftest import make_server

# Of gradio, when it counts what it did.
pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")

SEEN = """
[...document.querySelectorAll('button, label, [role=tab]')].find(
    each => each.offsetParent && !each.closest('.visually-hidden') && each.textContent.trim().startsWith(TEXT))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with opened_browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def app(
    tmp_path_factory: pytest.TempPathFactory, tuned: HostedModel, talker: HostedModel
) -> FastAPI:
    """Give a server with the page."""
    return mount_page(make_server([tuned, talker], tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def address(app: FastAPI) -> Iterator[str]:
    """Give where the server listens."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def seen(text: str) -> str:
    """Give JavaScript for what is seen and begins with a text."""
    return SEEN.strip().replace("TEXT", json.dumps(text))


def click(page: Page, text: str) -> None:
    page.wait_for(f"{seen(text)} && true")
    page.evaluate(f"{seen(text)}.click()")


def press_enter(page: Page, text: str) -> None:
    """Work a button as people without a mouse do."""
    page.wait_for(f"{seen(text)} && true")
    page.evaluate(f"{seen(text)}.focus()")
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
    for kind in ("keyDown", "keyUp"):
        page.send("Input.dispatchKeyEvent", type=kind, **key)


def write(page: Page, label: str, text: str) -> None:
    """Write into the field with a label."""
    page.wait_for(f"{seen(label)} && true")
    page.evaluate(f"{seen(label)}.querySelector('textarea, input').focus()")
    page.send("Input.insertText", text=text)


def upload(page: Page, file: Path) -> None:
    """Choose a file in the upload that is seen."""
    inputs = (
        "[...document.querySelectorAll('input[type=file]')].find(x => x.parentElement.offsetParent)"
    )
    page.wait_for(f"{inputs} && true")
    found = page.send("Runtime.evaluate", expression=inputs)["result"]["objectId"]
    page.send("DOM.setFileInputFiles", files=[str(file)], objectId=found)


def assert_is_quiet(page: Page) -> None:
    """Nothing was asked of another machine, and the console has no error."""
    hosts = {urlsplit(url).hostname for url in page.urls if url.startswith(("http", "ws"))}
    assert hosts == {"127.0.0.1"}
    assert page.complaints == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_text_is_answered_with_bars_in_the_language_of_the_browser(
    language: str, browser: Page, address: str
) -> None:
    texts = texts_of(language)
    browser.open(address, language=f"{language}-XX,{language};q=0.9")
    write(browser, texts("column.text"), "What a great film!")
    press_enter(browser, texts("try.ask"))
    browser.wait_for("document.querySelectorAll('.lushan-bars li').length == 2")
    assert texts("answer.how_sure") in browser.evaluate("document.body.innerText")
    assert browser.evaluate("document.documentElement.lang") == texts("language_tag")
    assert urlsplit(browser.evaluate("location.href")).path == f"/ui/{language}/"
    assert_is_quiet(browser)


def test_nothing_is_wider_than_a_phone(browser: Page, address: str) -> None:
    browser.open(f"{address}/ui/en/", width=360)
    browser.wait_for(f"{seen('Ask the model')} && true")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("language", ["en", "zh"])
def test_upload_asks_in_the_language_of_the_page_and_names_its_limit(
    language: str, browser: Page, address: str
) -> None:
    texts = texts_of(language)
    browser.open(f"{address}/ui/{language}/")
    click(browser, texts("file.tab"))
    expected = [texts("upload.drop", most=200), texts("upload.or"), texts("upload.click")]
    for each in expected:
        browser.wait_for(f"document.body.innerText.includes({json.dumps(each)})")


def test_file_that_is_larger_than_any_other_body_becomes_a_table(
    browser: Page, address: str, tmp_path: Path
) -> None:
    table = tmp_path / "large.csv"
    row = ",".join(["a" * 1000, "good\n"])
    table.write_text("text,label\n" + row * 5000, encoding="utf-8")
    assert table.stat().st_size > 4_000_000
    browser.open(f"{address}/ui/en/")
    click(browser, "Tune")
    upload(browser, table)
    browser.wait_for("document.body.innerText.includes('Guessed from the columns text, label')")


def test_on_a_phone_a_choice_takes_the_whole_width(browser: Page, address: str) -> None:
    widest = "Math.min(...[...document.querySelectorAll('.form > .block')].filter(x => x.offsetParent).map(x => x.offsetWidth))"
    browser.open(f"{address}/ui/en/", width=390)
    browser.wait_for(f"{seen('Ask the model')} && true")
    assert browser.evaluate(widest) > 300


def test_conversation_is_shown_as_it_is_written(browser: Page, address: str) -> None:
    attack = "<img src=x onerror='window.attacked=1'> ${1}"
    browser.open(f"{address}/ui/en/")
    click(browser, "Chat")
    write(browser, "Your message", attack)
    click(browser, "Send")
    browser.wait_for("document.querySelector('.lushan-assistant')?.innerText.length > 0")
    assert browser.evaluate("document.querySelector('.lushan-user').innerText") == attack
    assert browser.evaluate("window.attacked") is None
    assert_is_quiet(browser)


def test_answer_that_is_stopped_is_written_no_further(
    browser: Page, address: str, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.state.worker, "seconds_per_token", 5.0)
    monkeypatch.setattr(app.state.worker, "num_closed", 0)
    browser.open(f"{address}/ui/en/")
    click(browser, "Chat")
    write(browser, "Your message", "Soup?")
    click(browser, "Send")
    browser.wait_for("document.querySelector('.lushan-assistant') !== null")
    click(browser, "Stop")
    deadline = time.monotonic() + 25  # less than the whole answer takes
    while not app.state.worker.num_closed and time.monotonic() < deadline:
        time.sleep(0.05)
    assert app.state.worker.num_closed == 1


def test_message_that_is_sent_while_an_answer_is_written_stays_in_its_box(
    browser: Page, address: str, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.state.worker, "seconds_per_token", 0.3)
    monkeypatch.setattr(app.state.worker, "num_closed", 0)
    browser.open(f"{address}/ui/en/")
    click(browser, "Chat")
    write(browser, "Your message", "Soup?")
    click(browser, "Send")
    browser.wait_for("document.querySelector('.lushan-assistant') !== null")
    write(browser, "Your message", "Salad?")
    click(browser, "Send")
    wait_until(lambda: app.state.worker.num_closed == 1)
    assert browser.evaluate(f"{seen('Your message')}.querySelector('textarea').value") == "Salad?"
    users = "[...document.querySelectorAll('.lushan-user')].map(each => each.innerText).join()"
    assert browser.evaluate(users) == "Soup?"


@pytest.fixture
def _copies(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a run copied in place of the minutes that tuning takes."""
    code = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"
    command = [sys.executable, "-c", code, str(tiny_run)]
    monkeypatch.setattr(Plan, "command", lambda plan: [*command, str(plan.out)])
    monkeypatch.setattr(tune_tab, "preflight_html", lambda *_: "<p>Nothing blocks a run.</p>")
    base = SimpleNamespace(name="tiny", is_default=True)
    monkeypatch.setattr(tune_tab, "bases", lambda: [base])


@pytest.mark.usefixtures("_copies")
def test_table_becomes_a_model_that_can_be_tried(
    browser: Page, address: str, tmp_path: Path
) -> None:
    browser.open(f"{address}/ui/en/")
    click(browser, "Tune")
    upload(browser, write_lines(tmp_path / "My reviews.jsonl", good_rows()))
    browser.wait_for("document.body.innerText.includes('Nothing blocks a run.')")
    assert (
        browser.evaluate(f"{seen('Name of the run')}.querySelector('input').value") == "My-reviews"
    )
    click(browser, "Start tuning")
    browser.wait_for("document.querySelector('iframe.lushan-report')?.sandbox.length === 0")
    click(browser, "Try it")
    browser.wait_for("document.body.innerText.includes('My-reviews can now be chosen')")
    click(browser, "Runs")
    browser.wait_for("document.querySelector('.lushan-finished')?.innerText === 'finished'")
    assert_is_quiet(browser)

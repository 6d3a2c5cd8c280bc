"""The pages of now in a real browser: they follow workers, keep what the reader has set, and work behind a proxy."""

import random
import subprocess
import sys
import threading
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from benchmarks.support import synthetic
from benchmarks.support.synthetic import make_study
from budgettune.dashboard.app import listen, make_app
from budgettune.report import front_figures
from budgettune.spec.study_spec import load_spec
from budgettune.storage.connection import writing
from budgettune.storage.writes import insert_trials
from budgettune.study.handle import create_study
from budgettune.study.sampling import search_space, storing
from budgettune.web.app import Answers
from tests.support.browser import PATIENCE_MS, until
from tests.support.proxies import proxied

pytestmark = pytest.mark.browser

SMALL = [
    "train.epochs=2",
    "search.scale=[1.0, 1.4, 2.0]",
    "search.batch_size=[64, 128]",
    "search.prune_rate=[0.0, 0.3]",
]
TELL_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`refused by the page's policy: ${event.violatedDirective} ${event.blockedURI}`));
"""


@contextmanager
def served(url, prefix=""):
    app = make_app(url, answers=Answers, figures=front_figures, prefix=prefix)
    with listen(app, "127.0.0.1", 0, prefix=prefix) as address:
        yield address.rstrip("/")


@contextmanager
def opened(browser, address):
    """Open a page; fail where the browser complains, or something is asked of elsewhere."""
    complaints = []
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    context.add_init_script(TELL_VIOLATIONS)
    page = context.new_page()
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    host = urlsplit(address).netloc
    page.on("request", lambda each: urlsplit(each.url).netloc not in (host, "") and complaints.append(each.url))
    page.asked = []
    page.on("request", lambda each: page.asked.append(urlsplit(each.url).path))
    page.goto(address)
    yield page
    context.close()
    assert complaints == []


def work(url, trials):
    command = [sys.executable, "-m", "budgettune", "worker", "--threads", "1", "--trials", str(trials)]
    return subprocess.Popen([*command, "--storage", url], stderr=subprocess.DEVNULL)


def states(page):
    return page.locator(".states").inner_text()


def test_a_page_follows_real_workers_and_keeps_what_its_reader_has_set(browser, sqlite_url):
    create_study(load_spec("digits").with_overrides(SMALL), sqlite_url).close()
    with served(sqlite_url) as address, opened(browser, f"{address}/answers") as page:
        page.get_by_role("link", name="digits").click()
        page.wait_for_url("**/answers/digits")
        until(page, "!!document.querySelector('.states')")
        assert "12 waiting" in states(page)
        assert work(sqlite_url, 8).wait(600) == 0
        until(page, "document.querySelectorAll('.budget').length === 1")
        until(page, "!!document.querySelector('.recommendation .headline')")
        assert "how sure" in page.locator(".recommendation").inner_text()
        assert "in time with" in page.locator(".recommendation").inner_text()

        # What the reader sets, opens, zooms into and types in stays; a page that was loaded anew would forget the mark.
        page.evaluate("window.isTheSame = true")
        page.locator("#machine0-slider").evaluate(
            "slider => { slider.value = 400; slider.dispatchEvent(new Event('input', { bubbles: true })); }"
        )
        page.locator("details summary").first.click()
        page.locator("#machine0-seconds").focus()
        until(page, "document.querySelector('[data-figure=machine0-answer]').isDrawn")
        budget = page.locator("#machine0-seconds").input_value()
        slider = page.locator("#machine0-slider").input_value()
        until(page, "document.querySelector('.recommendation')?.textContent.includes('expected')")
        assert work(sqlite_url, 4).wait(600) == 0
        until(page, "document.querySelector('.states').textContent.includes('12 finished')")
        until(page, "document.querySelector('main').textContent.includes('12 trials')")
        assert page.evaluate("window.isTheSame") is True
        assert page.locator("#machine0-seconds").input_value() == budget
        assert page.evaluate("document.activeElement.id") == "machine0-seconds"
        assert page.locator("details").first.get_attribute("open") is not None
        assert abs(int(page.locator("#machine0-slider").input_value()) - int(slider)) < 1000
        drawn = "document.querySelector('[data-figure=machine0-front]')"
        until(page, f"({drawn}.scrollIntoView(), {drawn}.isDrawn)")
        points = f"{drawn}._fullData.reduce((sum, each) => sum + (each.mode === 'markers' ? each._length : 0), 0)"
        until(page, f"{points} >= 12")


def test_a_page_goes_on_with_a_server_that_was_started_again(browser, sqlite_url):
    study, apps = make_study(sqlite_url, 6, epochs=3), [make_app(sqlite_url, answers=Answers)]
    has_trials = "document.querySelector('main')?.textContent.includes('{} trials')"
    with (
        listen(lambda *request: apps[-1](*request), "127.0.0.1", 0) as address,
        opened(browser, f"{address}answers/synthetic") as page,
    ):
        until(page, has_trials.format(6))
        page.evaluate("window.isTheSame = true")
        apps.append(make_app(sqlite_url, answers=Answers))
        with writing(study.engine) as connection:
            insert_trials(
                connection,
                study.study_id,
                [synthetic.complete_row(study.spec, 6, synthetic.result(random.Random(6)), ())],
            )
        until(page, has_trials.format(7))
        assert page.evaluate("window.isTheSame") is True


def test_who_waits_for_a_first_page_gets_it_from_a_server_that_was_started_again(browser, sqlite_url, monkeypatch):
    monkeypatch.setattr("budgettune.web.pages.FIRST_PATIENCE_SECONDS", 0.05)
    make_study(sqlite_url, 6, epochs=3)
    is_over = threading.Event()
    apps = [make_app(sqlite_url, answers=lambda *how: Answers(*how, build=lambda *_: is_over.wait()))]
    with (
        listen(lambda *request: apps[-1](*request), "127.0.0.1", 0) as address,
        opened(browser, f"{address}answers/synthetic") as page,
    ):
        until(page, "document.body.textContent.includes('comes by itself')")
        apps.append(make_app(sqlite_url, answers=Answers))
        until(page, "document.querySelector('main')?.textContent.includes('6 trials') && 'Plotly' in window")
        is_over.set()


def test_a_recommendation_is_of_the_budget_that_the_slider_shows(browser, sqlite_url):
    make_study(sqlite_url, 40, epochs=3)
    with served(sqlite_url) as address, opened(browser, f"{address}/answers/synthetic") as page:
        until(page, "!!document.querySelector('.recommendation .headline')")
        field = page.locator("#machine0-seconds")
        field.fill("1000")
        until(page, "document.querySelector('.recommendation').textContent.includes('16m40s')")
        until(page, "document.querySelector('.recommendation').getAttribute('aria-busy') === 'false'")
        assert [path for path in page.asked if path.endswith("/recommend")]
        until(page, "document.querySelector('.recommendation .headline').textContent.includes('16m40s')")
        assert "in time with" in page.locator(".recommendation").inner_text()


def test_what_to_train_is_asked_again_where_the_answer_is_of_before(browser, sqlite_url):
    study = make_study(sqlite_url, 12, epochs=3)
    with served(sqlite_url) as address, opened(browser, f"{address}/answers/synthetic") as page:
        until(page, "!!document.querySelector('.recommendation .headline')")
        held = []
        page.route("**/recommend?*", lambda route: held.append(route))
        page.locator("#machine0-seconds").fill("1000")
        wait_for(page, lambda: len(held) == 1)
        reply = held[0].fetch()
        held[0].fulfill(response=reply, headers={**reply.headers, "Retry-After": "1"})
        wait_for(page, lambda: len(held) == 2)

        # A newer page comes while the server is still thinking.
        params = {name: values[0] for name, values in synthetic.PAPER_SEARCH.items()}
        made = synthetic.result(random.Random(1), params, epochs=3)
        row = synthetic.complete_row(study.spec, 12, made, storing(search_space(study.spec))(params))
        with writing(study.engine) as connection:
            insert_trials(connection, study.study_id, [row])
        until(page, "document.querySelector('.states').textContent.includes('13 finished')")
        until(page, "document.querySelector('main').textContent.includes('13 trials')")
        page.wait_for_timeout(1_000)
        assert len(held) == 2
        held[1].continue_()
        wait_for(page, lambda: len(held) == 3)
        held[2].continue_()
        until(page, "document.querySelector('.recommendation').getAttribute('aria-busy') === 'false'")
        page.wait_for_timeout(2_000)
        assert len(held) == 3


def wait_for(page, condition):
    """Wait for what happens here, while the page goes on."""
    for _ in range(PATIENCE_MS // 100):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError("never so")


def test_nothing_is_asked_while_nobody_sees_the_page(browser, sqlite_url):
    make_study(sqlite_url, 6, epochs=3)
    with served(sqlite_url) as address, opened(browser, f"{address}/answers") as page:
        page.evaluate("Object.defineProperty(document, 'hidden', { value: true, configurable: true })")
        page.wait_for_timeout(6_000)
        page.asked.clear()
        page.wait_for_timeout(8_000)
        assert page.asked == []
        page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
        until(page, "true")
        wait_for(page, lambda: page.asked)


@pytest.mark.parametrize("strips", [False, True], ids=["a proxy that keeps the prefix", "a proxy that strips it"])
def test_all_pages_work_under_a_prefix_behind_a_proxy(browser, sqlite_url, strips):
    make_study(sqlite_url, 12, epochs=3)
    with served(sqlite_url, "/tune") as own, proxied(urlsplit(own).port, "/tune", strips=strips) as (address, strays):
        with opened(browser, f"{address}/") as page:
            page.wait_for_url("**/tune/dashboard*")
            page.get_by_text("synthetic").first.click()
            page.wait_for_url("**/tune/dashboard/studies/1")
            page.get_by_text("Hyperparameter").first.wait_for()
            page.goto(f"{address}/dashboard/studies/1/smartSelection")
            link = page.get_by_role("link", name="Download CSV File")
            link.wait_for()
            assert link.get_attribute("href").startswith("/tune/csv/1")
        with opened(browser, f"{address}/answers") as page:
            page.get_by_role("link", name="synthetic").click()
            page.wait_for_url("**/tune/answers/synthetic")
            until(page, "!!document.querySelector('.recommendation .headline')")
            plot = "document.querySelector('[data-figure=machine0-front]')"
            until(page, f"({plot}.scrollIntoView(), {plot}.isDrawn)")
        assert strays == []

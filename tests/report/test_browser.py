"""The page in a real browser: it opens offline without an error, the slider changes the answer, a phone shows it whole.

Needs Playwright and a Chromium: `pip install 'budgettune[browser]'`, and on Debian `apt-get install chromium`.
"""

from contextlib import contextmanager
from dataclasses import replace

import pytest

from benchmarks.support.synthetic import BOX, PAPER_SEARCH, make_records
from budgettune.report.figures import FIGURES
from budgettune.report.page import answers, build_page, contents
from budgettune.report.view import overview
from budgettune.text import format_duration
from tests.report.test_objective import LESS, own_records
from tests.support.browser import PATIENCE_MS, until

pytestmark = pytest.mark.browser

DESK = {"width": 1100, "height": 900}
PHONE = {"width": 375, "height": 700}
RECORDS = make_records(80, repeats=2)
BEST = answers(overview(RECORDS), "study")


@contextmanager
def visit(browser, file, records, aim=None, **settings):
    """Open a study's page offline; fail where the browser complains of an error or something asks the network."""
    search = PAPER_SEARCH if aim is None else None
    file.write_text(build_page(contents("study", records, search, aim=aim)), encoding="utf-8")
    complaints = []
    context = browser.new_context(offline=True, **settings)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: request.url.startswith("http") and complaints.append(request.url))
    page.goto(file.as_uri())
    yield page
    context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """Return the page of 80 trials with all its figures drawn, for tests that leave it as it is or set the slider."""
    file = tmp_path_factory.mktemp("report") / "page.html"
    with visit(browser, file, RECORDS, viewport=DESK) as opened:
        draw_all(opened)
        yield opened


def draw_all(page):
    """Scroll through the page until every figure of the shown machine is drawn.

    Playwright's own scrolling wants a figure to stand still for two frames, which it may not while others are drawn.
    """
    for place in range(page.locator(".plot:visible").count()):
        plot = f"[...document.querySelectorAll('.plot')].filter(plot => plot.offsetParent)[{place}]"
        until(page, f"(plot => (plot.scrollIntoView(), plot.isDrawn))({plot})")


def test_every_figure_is_drawn_offline_without_an_error(page):
    expected = sum(figure.about == "trials" for figure in FIGURES.values())
    assert page.locator(".plot").count() == page.locator(".plot .bglayer").count() == expected


COVERED = """
(() => {
  const covers = (bar, text) =>
    text.width && bar.left < text.right && text.left < bar.right && bar.top < text.bottom && text.top < bar.bottom;
  const box = (element) => element.getBoundingClientRect();
  return [...document.querySelectorAll(".plot")].flatMap((plot) => {
    const bar = box(plot.querySelector(".modebar"));
    const near = [...plot.closest(".card").querySelectorAll(".finding, .annotation text, .legend, .ytick text, .bg")];
    return near.filter((each) => covers(bar, box(each))).map((each) => `${plot.dataset.figure}: ${each.textContent}`);
  });
})()
"""


def test_the_buttons_of_a_figure_cover_no_text_on_a_desk_or_a_phone(browser, page, tmp_path):
    assert page.locator(".modebar").count() == page.locator(".plot").count()
    assert page.evaluate(COVERED) == []
    with visit(browser, tmp_path / "page.html", RECORDS, viewport=PHONE) as phone:
        draw_all(phone)
        assert phone.evaluate(COVERED) == []


def test_findings_and_guides_take_the_whole_width_of_their_card(page):
    lost = "each.parentElement.clientWidth - each.clientWidth"
    pixels = page.evaluate(f"[...document.querySelectorAll('.finding, .guide')].map(each => {lost})")
    assert 0 < max(pixels) < 40  # the padding of the card


def test_the_main_figure_has_a_point_for_every_finished_trial(page):
    layer = page.locator("[data-figure=machine0-front] .scatterlayer")
    under_labels = layer.locator(".textpoint text").count()
    assert under_labels > 0
    assert layer.locator(".points path.point").count() - under_labels == len(RECORDS)


def test_the_slider_changes_the_answer_by_keyboard(page):
    headline = page.locator(".result .headline")
    slider = page.get_by_role("slider", name="Training time that I have")
    slider.focus()
    page.keyboard.press("Home")
    assert headline.inner_text().startswith("No finished trial trains within")
    seen = set()
    for _ in range(12):
        page.keyboard.press("PageUp")
        budget_seconds = float(page.locator("input[type=number]").input_value())
        fitting = [answer for answer in BEST if answer.seconds <= budget_seconds]
        assert headline.inner_text().endswith(
            f"trial {fitting[-1].number}" if fitting else format_duration(budget_seconds) + "."
        )
        assert slider.get_attribute("aria-valuetext") == format_duration(budget_seconds)
        seen.add(headline.inner_text())
    assert len(seen) > 3


def test_a_typed_budget_is_answered_with_the_configuration_and_marked(page):
    middle = BEST[len(BEST) // 2]
    page.locator("input[type=number]").fill(f"{middle.seconds + 1e-6:.6f}")
    text = page.locator(".result").inner_text()
    assert f"{middle.text} in {format_duration(middle.seconds)}: trial {middle.number}" in text
    assert middle.command in text
    facts = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))
    assert facts == dict(middle.facts)
    chosen = page.evaluate("document.querySelector('.plot').data.find(trace => trace.meta === 'chosen').y")
    assert chosen == [pytest.approx(middle.value)]
    page.locator("input[type=number]").fill("-1")
    assert "above zero" in page.locator(".result").inner_text()


def test_durations_are_written_as_everywhere_else(page):
    for seconds in (0.004, 0.25, 1, 59.9, 59.96, 60, 89.7, 3599.4, 3599.6, 7_300, 86_390, 90_000):
        assert page.evaluate(f"duration({seconds})") == format_duration(seconds)


def test_dark_and_light_follow_the_system(page):
    colours = "[document.querySelector('.plot')._fullLayout.font.color, getComputedStyle(document.body).color]"
    light = page.evaluate(colours)
    assert light == ["#1b1f27", "rgb(27, 31, 39)"]
    page.emulate_media(color_scheme="dark")
    until(page, "document.querySelector('.plot')._fullLayout.font.color === '#e6e8ec'")
    assert page.evaluate(colours) == ["#e6e8ec", "rgb(230, 232, 236)"]


def test_paper_gets_every_figure_dark_on_white_within_its_margins_also_from_a_dark_screen(browser, tmp_path):
    with visit(browser, tmp_path / "page.html", RECORDS, viewport=DESK, color_scheme="dark") as page:
        page.emulate_media(media="print", color_scheme="dark")
        page.set_viewport_size({"width": 680, "height": 900})  # between the margins of A4
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        until(page, "[...document.querySelectorAll('.plot')].every(plot => plot.isDrawn)")
        fonts = page.evaluate("[...document.querySelectorAll('.plot')].map(plot => plot._fullLayout.font.color)")
        assert set(fonts) == {"#1b1f27"}
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 31, 39)"
        assert page.evaluate("document.documentElement.scrollWidth") == 680
        assert page.locator(".legend .scrollbar[height]:not([height='0'])").count() == 0  # no entry is out of sight
        page.emulate_media(media="screen", color_scheme="dark")
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        until(page, "document.querySelector('.plot')._fullLayout.font.color === '#e6e8ec'")


def test_a_phone_shows_it_without_scrolling_sideways_and_may_be_turned(browser, tmp_path):
    panels = "document.querySelector('[data-figure=machine0-panels]').layout.grid"
    with visit(browser, tmp_path / "page.html", RECORDS, viewport=PHONE, color_scheme="dark", has_touch=True) as page:
        draw_all(page)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        assert page.evaluate(f"{panels}.rows") == 5
        page.set_viewport_size(DESK)
        until(page, f"{panels}.columns === 3")
        until(page, "document.querySelector('[data-figure=machine0-front]')._fullLayout._size.w > 700")
        assert page.evaluate("document.documentElement.scrollWidth") == DESK["width"]


def test_machines_are_shown_one_at_a_time_and_hostile_names_do_not_run(browser, tmp_path):
    hostile = "<img src=x onerror=\"document.title='hacked'\">"
    made = make_records(30, machines=[BOX, BOX, replace(BOX, device_name=hostile)])
    records = [replace(r, params={hostile: f"{r.number % 3}{hostile}", "scale": r.params["scale"]}) for r in made]
    with visit(browser, tmp_path / "page.html", records, viewport=DESK) as page:
        page.get_by_label("Machine").select_option("machine1")
        draw_all(page)
        best = answers(overview(record for record in records if record.device_name.startswith("<")), "study")[-1]
        assert page.locator("#machine1 .headline").inner_text().endswith(f"trial {best.number}")
        assert not page.locator("#machine0").is_visible()
        assert page.locator("img").count() == 0
        assert page.title() == "study: training time and accuracy"


def test_an_objective_that_is_minimised_is_named_marked_and_fits_a_phone(browser, tmp_path):
    records = [replace(r, measures={"memory": 10 * r.train_seconds}) for r in own_records()]
    aim = replace(LESS, limits={"memory": 800.0})
    found = answers(overview(records, aim=aim), "study")
    with visit(browser, tmp_path / "page.html", records, aim, viewport=PHONE) as phone:
        draw_all(phone)
        assert phone.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        for answer in (found[0], found[-1]):
            phone.locator("input[type=number]").fill(f"{answer.seconds + 1e-6:.6f}")
            headline = phone.locator(".result .headline").inner_text()
            assert (
                headline
                == f"bits per byte {answer.value:.4g} in {format_duration(answer.seconds)}: trial {answer.number}"
            )
            chosen = phone.evaluate("document.querySelector('.plot').data.find(trace => trace.meta === 'chosen').y")
            assert chosen == [pytest.approx(answer.value)]
        assert phone.locator("[data-figure=machine0-front] .ytitle").text_content() == "bits per byte (less is better)"
        assert phone.title() == "study: training time and bits per byte"
        assert phone.evaluate(COVERED) == []


def test_a_study_without_trials_opens_too(browser, tmp_path):
    with visit(browser, tmp_path / "page.html", []) as page:
        assert "budgettune worker" in page.locator(".notice").first.inner_text()

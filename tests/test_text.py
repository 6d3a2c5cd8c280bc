import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgettune.text import format_duration, listing, parse_duration, warn_once


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45", 45), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5h", 5400), ("250ms", 0.25), (" 2H ", 7200), (60, 60)],
)
def test_durations_are_read_as_people_write_them(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "5x", "5s3m", "1m1m", "-5s", "0", "nan", "inf", True, "1 2", "5s!"])
def test_what_is_no_duration_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="1h30m"):
        parse_duration(text)


@given(st.floats(min_value=1e-3, max_value=1e7))
def test_a_printed_duration_reads_back_to_within_its_precision(seconds):
    assert math.isclose(parse_duration(format_duration(seconds)), seconds, rel_tol=0.06)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.25s"),
        (8.12, "8.1s"),
        (59.96, "1m00s"),
        (90, "1m30s"),
        (7500, "2h05m"),
        (273_600, "3d04h"),
        (-90, "-1m30s"),
    ],
)
def test_durations_are_printed_short(seconds, text):
    assert format_duration(seconds) == text


def test_a_list_of_names_ends_in_an_ellipsis_where_it_is_long():
    assert listing(["ant", "bee"]) == "ant, bee"
    assert listing([*"abcdefg"], most=3) == "a, b, c …"


def test_a_warning_is_logged_once_and_on_one_line(caplog):
    logger = logging.getLogger("budgettune.tests")
    for _ in range(2):
        warn_once(logger, "a name\nof two lines")
    assert caplog.messages == ["a name\\nof two lines"]

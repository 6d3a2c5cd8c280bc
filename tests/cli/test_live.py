"""`study show --watch`: what it tells of a study, on a real terminal, in a pipe, and how it leaves."""

import contextlib
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from budgettune.cli.live import drawn, snapshot, watch
from budgettune.cli.output import Screen
from budgettune.cli.text_plot import ASCII, Glyphs, scatter
from budgettune.errors import StorageBusy
from budgettune.records import TrialRecord
from budgettune.storage.studies import Prospect, keep_prospect
from budgettune.study.handle import create_study
from budgettune.study.summary import trials_per_hour
from budgettune.worker.signals import StopFlag
from tests.support.studies import RESULT, SPEC, sampled

COMMAND = [sys.executable, "-m", "budgettune", "study", "show", "--watch", "--every", "100ms"]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


def plot(points, marked=(), width=30, height=5, glyphs=ASCII):
    return scatter(
        points, marked, width=width, height=height, x_text="{:g}s".format, y_text="{:.0%}".format, glyphs=glyphs
    )


def test_a_plot_puts_the_fast_left_the_accurate_up_and_marks_the_front():
    lines = plot([(1.0, 0.5), (3.0, 0.7), (5.0, 0.9)], [(1.0, 0.5), (5.0, 0.9)])
    assert lines == [
        "90% +                        O",
        "    |",
        "    |            .",
        "    |",
        "50% +O",
        "    +-------------------------",
        "     1s                     5s",
    ]


@pytest.mark.parametrize("width", [30, 78])
def test_a_plot_keeps_to_its_width_and_uses_a_log_axis_for_wide_ranges(width):
    lines = plot([(0.1, 0.1), (1.0, 0.5), (1000.0, 0.9)], width=width)
    assert max(map(len, lines)) <= width
    assert lines[-1].endswith("log scale")
    assert lines[2].index(".") < width / 2  # a quarter of the way from 0.1 to 1,000


def test_a_plot_of_nothing_is_nothing_and_of_one_point_is_a_point():
    assert plot([]) == []
    assert plot([(float("nan"), 1.0), (1.0, float("inf"))]) == []
    assert sum(line.count("O") for line in plot([(2.0, 0.5)], [(2.0, 0.5)])) == 1


def ended(number, started, completed):
    """Return a trial that ran from one second of an hour to another."""
    return TrialRecord(
        number=number,
        state="COMPLETE",
        params={},
        started_at=f"2026-01-01T10:{started // 60:02d}:{started % 60:02d}+00:00",
        completed_at=f"2026-01-01T10:{completed // 60:02d}:{completed % 60:02d}+00:00",
    )


def test_throughput_counts_what_ran_side_by_side_since_the_last_idle_time():
    assert trials_per_hour([]) is None
    assert trials_per_hour([TrialRecord(number=0, state="COMPLETE", params={})]) is None
    assert trials_per_hour([ended(0, 0, 60)]) == 60
    pairs = [ended(number, 60 * (number // 2), 60 * (number // 2 + 1)) for number in range(6)]
    assert trials_per_hour(pairs[::-1]) == 120
    later = [ended(6, 1000, 1030), ended(7, 1030, 1060)]
    assert trials_per_hour([*later[::-1], *pairs[::-1]]) == 120
    assert trials_per_hour([ended(8, 1000, 1030), *pairs[::-1]]) == 120


@pytest.fixture
def study(sqlite_url):
    """Return a study of four cells, two of them complete and one running."""
    study = create_study(SPEC, sqlite_url)
    for _ in range(2):
        study.complete(study.claim(), RESULT)
    study.claim()
    return study


def text_of(study, **options):
    console = Screen(file=io.StringIO(), width=80, **options)
    console.print(drawn(snapshot(study), console))
    return console.file.getvalue()


def test_it_tells_states_throughput_time_left_and_front_in_80_columns_and_24_lines(study):
    text = text_of(study)
    assert "2 of 4 complete, 1 running, 1 waiting" in text
    assert re.search(r"trials/hour, about \S+ left, 4.0s trained", text)
    assert "●" in text
    assert "newest: trial 1, 2.0s, accuracy 50.00%" in text
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) < 24
    assert "\x1b" not in text


def test_a_study_without_trials_and_a_terminal_without_unicode_do(sqlite_url):
    study = create_study(SPEC, sqlite_url)
    console = Screen(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=80)
    console.print(drawn(snapshot(study), console))
    study.complete(study.claim(), RESULT)
    console.print(drawn(snapshot(study), console))
    console.file.seek(0)
    text = console.file.read()
    assert "0 of 4 complete, 4 waiting" in text
    assert "nothing runs" in text
    assert Glyphs().marked not in text
    assert "O the front" in text


def test_a_search_with_a_price_tells_how_near_its_end_is(sqlite_url):
    study = create_study(sampled("cost", {"scale": [0.5, 1.0]}, worth="5s"), sqlite_url)
    assert "expected" not in text_of(study)
    keep_prospect(study.engine, study.study_id, Prospect(gain=0.5, seconds=2.0, has_ended=False))
    assert "the next trial is expected to gain 0.5 points for 2.0s" in text_of(study).replace("\n", " ")


def test_it_ends_when_nothing_is_left(study):
    while (claim := study.claim()) is not None:
        study.complete(claim, RESULT)
    study.reconcile(lease_seconds=0)  # the one that the fixture left running
    study.complete(study.claim(), RESULT)
    console = Screen(file=io.StringIO(), width=80)
    watch(study, console, 60.0, StopFlag())
    assert "nothing is left to run" in console.file.getvalue()


def test_a_server_without_a_connection_left_is_asked_again(study, monkeypatch):
    refused = iter([StorageBusy("no connection left")])

    def refused_once(watched):
        for error in refused:
            raise error
        return snapshot(watched)

    monkeypatch.setattr("budgettune.cli.live.snapshot", refused_once)
    monkeypatch.setattr("budgettune.storage.patience.time", SimpleNamespace(sleep=lambda seconds: None))
    stop, console = StopFlag(), Screen(file=io.StringIO(), width=80)
    stop.request()
    watch(study, console, 60.0, stop)
    assert "of 4 complete" in console.file.getvalue()


class Terminal:
    """A command on a pseudo-terminal of 80 columns."""

    def __init__(self, command, environment):
        self.text = ""
        master, slave = pty.openpty()
        environment = {**os.environ, **environment, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self.master = master
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        with contextlib.suppress(OSError):  # the other end is closed
            while chunk := os.read(self.master, 65_536):
                self.text += chunk.decode(errors="replace")

    def wait_for(self, text):
        deadline = time.monotonic() + 30
        while text not in self.text and time.monotonic() < deadline:
            time.sleep(0.02)
        assert text in self.text

    def end(self, number):
        self.process.send_signal(number)
        status = self.process.wait(timeout=20)
        self.reader.join(timeout=20)
        os.close(self.master)
        return status


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_on_a_terminal_it_follows_the_study_and_leaves_it_clean(study, sqlite_url, number, status):
    terminal = Terminal(COMMAND, {"BUDGETTUNE_STORAGE": sqlite_url})
    terminal.wait_for("2 of 4 complete")
    study.complete(study.claim(), RESULT)
    terminal.wait_for("3 of 4 complete")
    assert terminal.end(number) == status
    assert "\x1b[32m●" in terminal.text  # colour on a terminal
    hidden, shown = terminal.text.rfind("\x1b[?25l"), terminal.text.rfind("\x1b[?25h")
    assert shown > hidden >= 0  # the cursor is back
    assert "Traceback" not in terminal.text
    assert max(len(line) for line in CONTROL.sub("", terminal.text).splitlines()) <= 80


def test_in_a_pipe_it_prints_plain_snapshots(study, sqlite_url):
    environment = {**os.environ, "BUDGETTUNE_STORAGE": sqlite_url, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True, env=environment) as process:
        lines = []
        while sum("of 4 complete" in line for line in lines) < 2:
            assert select.select([process.stdout], [], [], 30)[0]
            lines.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d\n", lines[0])
    assert not CONTROL.search("".join(lines))


def test_watching_and_data_for_programs_exclude_each_other(study, sqlite_url):
    command = [*COMMAND, "--format", "json", "--storage", sqlite_url]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert "--watch is for people" in finished.stderr

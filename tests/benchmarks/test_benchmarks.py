"""Every benchmark runs in a tiny setting, prints its tables and writes its numbers. What they measure is not judged."""

import importlib
import json
import math
import multiprocessing
import statistics

import pytest
import torch

from benchmarks import dashboard, many_workers, promise, repeats, report, service, throughput
from benchmarks.support import common, local_pgbouncer
from benchmarks.support.traffic import Traffic
from budgettune.spec.pruning import STRATEGIES

pytestmark = pytest.mark.slow


TINY = ["--data", "digits", "--images", "200", "--batch-size", "50", "--blocks", "1", "--rounds", "1"]


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Return what runs a script in this process and gives its printed text and its JSON."""
    threads = torch.get_num_threads()

    def call(name: str, *arguments: str) -> tuple[str, dict]:
        file = tmp_path / "numbers.json"
        main = importlib.import_module(f"benchmarks.{name}").main
        with torch.random.fork_rng():
            main([*TINY, "--same-process", "--threads", "1", "--json", str(file), *arguments])
        return capsys.readouterr().out, json.loads(file.read_text())

    yield call
    torch.set_num_threads(threads)


def test_throughput_compares_three_columns_that_do_the_same_visits(run):
    text, numbers = run("throughput", "--scales", "1.1", "--epochs", "2", "--workers", "0", "--matmul-size", "64")
    assert "| scale | column" in text
    assert "times faster than the paper's recipe (target: at least 5.0)" in text
    paper, same, defaults = numbers["speed"]
    assert paper["visits"] == same["visits"] == defaults["visits"] == 200 + 140
    assert paper["widths"] == same["widths"] == "17/35/70"
    assert paper["multiply-adds (M)"] == same["multiply-adds (M)"]
    assert defaults["widths"] == "16/32/72"
    assert paper["times faster"] == 1
    assert paper["GB/s"] is None
    # In bf16 activations have half the bytes; what is cast from fp32 is counted too.
    assert 1 < same["MB/image"] / defaults["MB/image"] < 2 or defaults["precision"] == "fp32"
    assert "; a copy: " in text
    assert numbers["machine"]["threads"] == 1
    assert "hostname" not in numbers["machine"]


def test_throughput_times_random_images_where_there_are_no_files(run, tmp_path):
    where = ["--data", "fashion-mnist", "--root", str(tmp_path), "--image-size", "8"]
    text, numbers = run("throughput", *where, "--scales", "1", "--epochs", "1", "--workers", "0", "--matmul-size", "64")
    assert "the files of Fashion-MNIST are not here: random images" in text
    assert [row["visits"] for row in numbers["speed"]] == [200] * 3


def test_the_bytes_of_a_step_are_those_of_its_operations():
    images, model = torch.zeros(10, 4), torch.nn.Linear(4, 2, bias=False)
    with Traffic() as traffic:
        model(images).view(2, 10).relu_()
    # The product reads images and weights and writes 20 numbers, which ReLU reads and writes again.
    assert traffic.bytes == 4 * (40 + 8 + 20 + 20 + 20)


def test_throughput_compares_accuracy_over_seeds(run):
    text, numbers = run("throughput", "--accuracy", "--image-size", "8", "--epochs", "1", "--workers", "0")
    assert "| to paper" in text
    assert [row["precision"] for row in numbers["accuracy"][:4]] == ["fp32"] * 4
    assert [row["widths"] for row in numbers["accuracy"][2:4]] == ["17/35/70", "16/32/72"]
    assert all(len(runs) == 3 for runs in numbers["runs"].values())


def test_pruning_cost_covers_every_strategy(run):
    arguments = ["--image-size", "8", "--sizes", "400", "--epochs", "2"]
    text, numbers = run("pruning_cost", *arguments)
    assert "saved / dropped" in text
    assert [row["strategy"] for row in numbers["costs"]] == list(STRATEGIES)
    asked = {row["strategy"]: (row["looked at per epoch"], row["helper epochs"]) for row in numbers["costs"]}
    assert asked["stale-quantile"] == ("0.00", "0")
    assert asked["selective-backprop"] == ("0.90", "0")  # its first epoch chooses nothing
    assert asked["el2n"] == ("0.00", "3")  # before the first epoch
    assert asked["craig"] == ("0.20", "0")
    assert [row["visits"] for row in numbers["savings"][:3]] == [400, 280, 280]


@pytest.mark.slow
def test_processes_are_held_against_one(run):
    text, numbers = run("processes", "--epochs", "2", "--budget", "0.3", "--batches", "50")
    assert "| batch | processes" in text
    assert [row["processes"] for row in numbers["processes"]] == [1, 2]
    assert numbers["processes"][0]["times one process"] == 1
    assert numbers["processes"][1]["together ms"] > 0
    assert [row["rate at the end"] for row in numbers["deadline"]] == [0, 0]


def test_deadline_ends_near_the_budget_at_both_batches(run):
    text, numbers = run("deadline", "--budgets", "0.3", "--step-seconds", "5", "--probe-seconds", "0.2")
    assert "| budget s" in text
    assert len(numbers["deadline"]) == 2
    assert all(row["rate at the end"] == 0 for row in numbers["deadline"])
    assert all(run["seconds"] > 0 and run["steps"] > 0 for run in numbers["runs"])


def test_a_fresh_process_starts_its_own_workers_as_a_usual_one():
    assert common.fresh_process(multiprocessing.get_start_method) == multiprocessing.get_all_start_methods()[0]


def test_alternating_begins_each_round_at_another_job():
    assert [job for _, job in common.alternate("abc", 3)] == list("abcbcacab")


def test_a_difference_that_so_few_seeds_cannot_tell_is_called_noise():
    mean, error = common.mean_and_error([1.0, 2.0, 3.0])
    assert (mean, error) == (2.0, pytest.approx(statistics.stdev([1.0, 2.0, 3.0]) / 3**0.5))
    assert common.verdict(2.0, 0.5, seeds=20) == "better"
    assert common.verdict(-2.0, 0.5, seeds=20) == "WORSE"
    assert common.verdict(2.0, 0.5, seeds=3) == "noise"  # 4.3 standard errors are needed with two degrees of freedom
    assert common.verdict(-2.0, 1.5, seeds=20) == common.verdict(9.0, float("inf"), seeds=1) == "noise"


def test_a_device_that_is_not_here_is_refused_in_one_line(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match=r"^error: device cuda is not here"):
        common.start(lambda: throughput.main(["--device", "cuda", "--same-process"]))


def test_the_dashboard_benchmark_has_workers_alone_and_beside_both_servers(tmp_path, capsys):
    file = tmp_path / "numbers.json"
    small = [
        "--trials",
        "60",
        "--clients",
        "2",
        "--workers",
        "1",
        "--each",
        "5",
        "--rounds",
        "1",
        "--trial-seconds",
        "0",
    ]
    dashboard.main([*small, "--poll-seconds", "0.3", "--databases", "sqlite", "--json", str(file)])
    numbers = json.loads(file.read_text())["sqlite"]
    assert "| slower by" in capsys.readouterr().out
    servers = ["budgettune", "answers", "optuna-dashboard"]
    assert [row["beside"] for row in numbers["workers"]] == ["nobody", *servers]
    assert [(row["server"], row["failed"]) for row in numbers["visitors"]] == [(name, 0) for name in servers]
    assert all(row["polls"] >= 2 for row in numbers["visitors"])


def test_the_report_is_timed_beside_optunas_own_plot(tmp_path, capsys):
    report.main(["--trials", "5", "--rounds", "1", "--json", str(tmp_path / "numbers.json")])
    (row,) = json.loads((tmp_path / "numbers.json").read_text())["report"]
    assert "| trials | build s" in capsys.readouterr().out
    assert row["trials"] == 5
    assert row["page MB"] > 1


def test_the_service_is_compared_with_plain_optuna_in_three_parts(tmp_path, capsys):
    file = tmp_path / "numbers.json"
    few = ["--cells", "40", "--trials", "2", "--workers", "2", "--grid", "40", "--sizes", "60", "--rounds", "1"]
    service.main(["--databases", "sqlite", *few, "--json", str(file)])
    assert "| statements" in capsys.readouterr().out
    numbers = json.loads(file.read_text())
    statements = {row["what"]: row["statements"] for row in numbers["cost"]}
    assert statements["claim, complete (ours)"] < statements["ask, tell"]
    assert statements["heartbeat (ours)"] == 1
    work = {row["by"]: row for row in numbers["workers"]}
    assert [work["ours"][fact] for fact in ("complete", "doubled", "lost", "open rows", "crashed")] == [40, 0, 0, 0, 0]
    assert {row["question"] for row in numbers["answers"]} > {"study.best_trials", "budgettune best"}


def test_promises_are_trained_until_the_time_is_up_and_judged(tmp_path, capsys):
    file = tmp_path / "numbers.json"
    data = ["--data", "digits", "--images", "200", "--image-size", "8", "--threads", "1", "--json", str(file)]
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        promise.main([*data, "--studies", "1", "--trials", "6", "--budgets", "0.4"])
    torch.set_num_threads(threads)
    assert "inside the interval of 90%" in capsys.readouterr().out
    (only,) = json.loads(file.read_text())["promises"]
    assert only["accuracy_low"] < only["accuracy"] < only["accuracy_high"]
    assert math.isfinite(only["late_seconds"])


def test_automatic_repeats_are_held_against_as_many_spread_evenly(tmp_path, capsys):
    file = tmp_path / "numbers.json"
    repeats.main(["--studies", "2", "--json", str(file)])
    assert "hypervolume missed" in capsys.readouterr().out
    auto, evenly, once, three, five = json.loads(file.read_text())
    assert auto["runs"] == evenly["runs"]
    assert [row["runs"] for row in (once, three, five)] == ["80", "240", "400"]


@pytest.mark.skipif(local_pgbouncer.program() is None, reason="pgbouncer is not installed")
def test_many_workers_run_each_cell_once_and_what_they_hold_and_ask_is_counted(tmp_path, capsys):
    file = tmp_path / "numbers.json"
    sizes = ["--workers", "12", "--cells", "40", "--direct", "6", "--direct-cells", "40", "--training", "3"]
    times = ["--idle", "2", "--settle", "1", "--seconds", "1", "--processes", "2", "--trial-seconds", "0.01"]
    many_workers.main([*sizes, *times, "--json", str(file)])
    assert "### Many workers at once, through a pooler" in capsys.readouterr().out
    numbers = json.loads(file.read_text())
    for part in ("pooler", "server"):
        (row,) = numbers[part]
        assert (row["cells"], row["complete"], row["recorded"]) == (40, 40, 40)
        assert row["doubled"] == row["ended by errors"] == 0
    assert 1 <= numbers["pooler"][0]["server connections"] <= 8
    assert [row["study"] for row in numbers["connections"]] == ["grid", "tpe"]
    assert numbers["idle"][0]["idle workers"] == 2

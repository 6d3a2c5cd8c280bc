"""Real, tiny comparisons: runs, resuming after signals, failures in their rows, the command and the Python call."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import budgettune
from budgettune.comparison import run as comparing
from budgettune.comparison.decision import decided
from budgettune.comparison.result import Arm, read_comparison
from budgettune.comparison.run import compare, with_wrong_labels
from budgettune.errors import DeviceLost, SpecError, UsageError
from budgettune.spec.study_spec import load_spec
from budgettune.spec.tables import DataSpec
from budgettune.training import team
from budgettune.training.data.load import load_data
from budgettune.training.device import Device
from budgettune.training.pruning import Strategy
from budgettune.worker.signals import StopFlag

QUICK = ["data.evaluate_on=test", "train.batch_size=256", "clock.warmup_steps=1", "search={}"]
SPEC = load_spec("digits").with_overrides(QUICK)
ONE_RATE = {"seeds": 2, "full_seeds": 2, "lrs": [0.01]}
AT_ONE_RATE = ["--seeds", 2, "--full-seeds", 2, "--lr", 0.01]
HERE = frozenset(["tests"])
FAULTY = f"{__name__}:Faulty"


class Faulty(Strategy):
    """Fails by a fault of its own, differently at different prune rates."""

    def plan(self, epoch, progress):
        if self.spec.prune_rate < 0.5:
            raise torch.OutOfMemoryError("out of memory")
        raise ValueError("no plan")


class Scripted:
    """A witness that says what it is told to say."""

    def __init__(self, *statuses):
        self.statuses = list(statuses)

    def start(self):
        pass

    def stop(self):
        return self.statuses.pop(0) if self.statuses else "clean", {}


def told_to_say(threads, *statuses):
    torch.set_num_threads(threads or 1)
    return Device(torch.device("cpu")).machine(), Scripted(*statuses)


@pytest.fixture
def quiet(monkeypatch):
    """Let the machine always be quiet."""
    monkeypatch.setattr(comparing, "prepare_process", lambda device, threads: told_to_say(threads))


def sets(*overrides):
    return [word for override in (*QUICK, *overrides) for word in ("--set", override)]


def by_arm(comparison):
    return {str(row.arm): row for row in comparison.standings(comparison.budgets[0])}


# --- runs -----------------------------------------------------------------------------------------------------------


def test_strategies_train_for_equal_seconds_with_equal_seeds():
    lines = []
    found = compare(SPEC, ["0.4s"], **ONE_RATE, strategies=["full"], device="cpu", threads=1, say=lines.append)
    assert sorted(by_arm(found)) == ["full", "random 0.3"]
    assert len({run.seed for run in found.runs}) == 2
    for run in found.runs:
        assert 0 < run.measured.prune_seconds < run.measured.train_seconds
        assert run.measured.status in ("clean", "disturbed", "unverified")
        assert (run.tries, run.failure) == (1, None)
    assert by_arm(found)["full"].realised_prune_rate == 0
    assert by_arm(found)["random 0.3"].realised_prune_rate == pytest.approx(0.3, abs=0.01)
    assert found.machine.threads == 1
    assert lines[0] == "digits, 8/16/32 × 1, batch 256, fp32"
    assert lines[1] == "1.6s of training: 4 scored at one rate for all, tuned for none"
    assert "4 runs to do" in lines[2]
    assert "left" in lines[3] and "left" not in lines[-1]
    assert found.judged_on["scored"].count == 360
    assert by_arm(found)["full"].tuned is None
    assert "the learning rate falls" not in "".join(lines)


def test_a_disturbed_run_is_run_again_as_the_spec_says(monkeypatch):
    statuses = ["disturbed", "clean", "disturbed", "disturbed", "disturbed"]
    monkeypatch.setattr(comparing, "prepare_process", lambda device, threads: told_to_say(threads, *statuses))
    repeating = SPEC.with_overrides(["clock.on_disturbed=repeat", "train.lr_schedule=constant"])
    lines = []
    found = compare(repeating, [0.05], **ONE_RATE, strategies=["full"], say=lines.append)
    assert [(run.tries, run.measured.status) for run in found.runs][:3] == [
        (2, "clean"),
        (3, "disturbed"),
        (1, "clean"),
    ]
    assert "the learning rate falls linearly to zero" in lines[2]
    assert found.spec["train"]["lr_schedule"] == "linear"
    monkeypatch.setattr(comparing, "prepare_process", lambda device, threads: told_to_say(threads, "disturbed"))
    assert compare(SPEC, [0.05], **ONE_RATE, strategies=["full"]).runs[0].tries == 1


@pytest.mark.slow
def test_a_run_that_fails_is_kept_with_its_reason_and_resuming_tries_it_again(quiet, tmp_path, caplog):
    def go(**more):
        return compare(
            SPEC, [0.3], **ONE_RATE, strategies=[FAULTY], prune_rates=[0.3, 0.6], allow_import=HERE, out=out, **more
        )

    out = tmp_path / "c.json"
    rows = by_arm(go())
    assert (rows["full"].runs, rows["random 0.6"].runs) == (2, 2)
    memory, bug = rows[f"{FAULTY} 0.3"], rows[f"{FAULTY} 0.6"]
    assert (memory.failed, bug.failed) == (2, 2)
    assert memory.failures[0].startswith("out-of-memory: no memory left on cpu")
    assert bug.failures == ("ValueError: no plan",)
    lines = []
    assert len(go(resume=True, say=lines.append).runs) == 10
    assert "4 runs to do, 6 of 10 done before" in lines[2]


def test_each_strategy_runs_at_the_rate_that_was_best_for_it_on_validation_images(quiet, tmp_path):
    """Also where it is killed between two tuning runs, and where a rate makes every run fail."""
    out, lines = tmp_path / "c.json", []

    def go(**more):
        sgd = SPEC.with_overrides(["train.optimizer=sgd"])
        values = {"seeds": 2, "full_seeds": 4, "tune_seeds": 1, "lrs": [0.1, 1e30], "strategies": ["full"]}
        # Long enough for a second step on a busy machine: the first loss is from before the rate did anything.
        return compare(sgd, [0.5], **values, out=out, say=lines.append, **more)

    stop = StopFlag()
    cut = go(should_stop=lambda: stop.cuts_short or (len(lines) > 5 and stop.request()))
    assert [run.purpose for run in cut.runs] == ["tuning"] * len(cut.runs)
    assert 0 < len(cut.runs) < 6
    lines.clear()
    found = go(resume=True)
    assert found.runs[0] == cut.runs[0]
    assert lines[1] == "6.0s of training: 6 runs to tune the learning rate (3.0s), 6 scored"
    tuning = [run for run in found.runs if run.purpose == "tuning"]
    scored = [run for run in found.runs if run.purpose == "scored"]
    assert len(tuning) == len(scored) == 6
    assert found.runs == (*tuning, *scored)
    assert {run.lr for run in scored} == {0.1}
    assert {run.failure is not None for run in tuning if run.lr == 1e30} == {True}
    assert {run.seed for run in tuning}.isdisjoint(run.seed for run in scored)
    assert {str(each) for each in found.judged_on.values()} == {"359 validation images", "360 test images"}
    assert [row.tuned.lr for row in found.standings(0.5)] == [0.1, 0.1]
    assert [row.runs for row in found.standings(0.5)] == [4, 2]
    assert len(go(resume=True).runs) == 12


def test_a_loss_that_is_not_finite_is_reported_in_its_row(quiet, run):
    words = [*sets("train.optimizer=sgd"), "--lr", "1e30"]
    status, out, _ = run(
        "compare", "digits", "--budget", 0.6, *AT_ONE_RATE[:4], "--strategies", "full", "--device", "cpu", *words
    )
    assert status == 0
    assert "failed runs of full: 2 (non-finite-loss: the loss of epoch 0" in out
    assert "no finished run of full" in out


def test_code_that_this_box_does_not_allow_ends_a_comparison_before_its_first_run(quiet, tmp_path):
    with pytest.raises(UsageError, match="--allow-import"):
        compare(SPEC, [0.3], strategies=[FAULTY], out=tmp_path / "c.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": 1}, "at least 2"),
        ({"full_seeds": 9}, "at least the 10 seeds of the others"),
        ({"tune_seeds": 0}, "at least 1"),
        ({"lrs": [0.0]}, "learning rate 0: give rates above 0"),
        ({"shuffle_labels": 1.0}, "from 0 to below 1"),
        ({"resume": True}, "--out"),
        ({"budgets": ()}, "--budget 30s"),
        ({"device": "tpu"}, "use auto, cpu"),
        ({"out": Path(__file__)}, "add --resume"),
        ({"out": Path(__file__), "resume": True}, "no comparison"),
    ],
)
def test_a_comparison_that_cannot_work_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        compare(SPEC, **{"budgets": [0.1], **arguments})


def test_resuming_asks_for_the_same_settings_and_machine(quiet, tmp_path, monkeypatch):
    out = tmp_path / "c.json"
    compare(SPEC, [0.05], **ONE_RATE, strategies=["full"], out=out)
    other = SPEC.with_overrides(["train.lr=0.5"])
    for arguments, message in [
        ({"spec": other, "lrs": [0.5]}, "what differs: train:"),
        ({"spec": SPEC, "shuffle_labels": 0.1}, "what differs: --shuffle-labels:"),
    ]:
        with pytest.raises(UsageError, match=message):
            compare(**{"budgets": [0.05], **ONE_RATE, "out": out, "resume": True, **arguments})
    document = json.loads(out.read_text())
    document["machine"]["device_name"] = "Abacus"
    document["judged_on"]["scored"]["count"] = 9
    out.write_text(json.dumps(document))
    with pytest.raises(UsageError, match=r"the images \(9 test .*the machine \(Abacus x"):
        compare(SPEC, [0.05], **ONE_RATE, out=out, resume=True)


@pytest.mark.slow
def test_a_file_of_an_older_version_opens_untuned_and_can_be_tuned(quiet, tmp_path):
    out = tmp_path / "c.json"
    compare(SPEC, [0.05], **ONE_RATE, strategies=["full"], out=out)
    document = json.loads(out.read_text()) | {"format": "budgettune-comparison-1"}
    del document["judged_on"]
    for run in document["runs"]:
        del run["lr"], run["purpose"]
        run["measured"]["test_accuracy"] = run["measured"].pop("accuracy")
    out.write_text(json.dumps(document))
    old = read_comparison(out)
    assert [(row.lr, row.tuned) for row in old.standings(0.05)] == [(0.01, None)] * 2
    assert str(old.judged_on["scored"]) == "test images"
    more = {**ONE_RATE, "tune_seeds": 1, "lrs": [0.01, 0.02]}
    found = compare(SPEC, [0.05], **more, strategies=["full"], out=out, resume=True)
    assert found.runs[:4] == old.runs
    assert all(row.tuned is not None and row.runs == 2 for row in found.standings(0.05))


def test_two_comparisons_do_not_write_one_file(quiet, tmp_path):
    out, refused = tmp_path / "c.json", []

    def second(line):
        if "to do" in line:
            with pytest.raises(UsageError, match="another comparison is writing") as error:
                compare(SPEC, [0.05], **ONE_RATE, strategies=["full"], out=out, resume=True)
            refused.append(error)

    compare(SPEC, [0.05], **ONE_RATE, strategies=["full"], out=out, say=second)
    assert refused
    assert list(tmp_path.iterdir()) == [out]


def test_more_seeds_and_budgets_join_what_is_there(quiet, tmp_path):
    out = tmp_path / "c.json"
    before = compare(SPEC, [0.05], **ONE_RATE, strategies=["full"], out=out)
    lines = []
    more = {**ONE_RATE, "seeds": 3, "full_seeds": 3}
    after = compare(SPEC, [0.08], **more, strategies=["full"], out=out, resume=True, say=lines.append)
    assert after.runs[:4] == before.runs
    assert after.budgets == (0.05, 0.08)
    assert [row.runs for row in after.standings(0.08)] == [3, 3]
    assert read_comparison(out) == after
    assert "6 runs to do, 0 of 6 done before" in lines[2]
    assert decided(SPEC.with_overrides(["pruning.when=auto", f"pruning.evidence={out}", "train.budget=1s"]))


# --- wrong labels ---------------------------------------------------------------------------------------------------


def test_exactly_a_share_of_the_labels_is_wrong_and_always_the_same():
    data = load_data(DataSpec(name="digits"))
    before = data.train.labels.clone()
    noisy = with_wrong_labels(data, 0.2, seed=0)
    wrong = noisy.train.labels != before
    assert int(wrong.sum()) == round(0.2 * len(before))
    assert set(noisy.train.labels.tolist()) == set(range(10))
    assert torch.equal(data.train.labels, before)
    assert torch.equal(noisy.held_out.labels, data.held_out.labels)
    assert torch.equal(with_wrong_labels(data, 0.2, seed=0).train.labels, noisy.train.labels)
    assert not torch.equal(with_wrong_labels(data, 0.2, seed=1).train.labels, noisy.train.labels)
    assert torch.equal(with_wrong_labels(data, 0.0, seed=0).train.labels, before)


def test_every_run_trains_on_the_wrong_labels(quiet, monkeypatch):
    seen = []
    real = team.train
    monkeypatch.setattr(team, "train", lambda *a, data, **k: seen.append(data.train.labels) or real(*a, data=data, **k))
    compare(SPEC, [0.05], **ONE_RATE, strategies=["full"], shuffle_labels=0.5)
    clean = load_data(SPEC.data).train.labels
    assert [round(float((labels != clean).float().mean()), 2) for labels in seen] == [0.5] * 4


def test_a_comparison_ends_where_its_gpu_is_lost_and_keeps_what_ran(quiet, tmp_path, monkeypatch):
    real, out, trained = team.train, tmp_path / "c.json", []

    def breaking(*args, **kwargs):
        trained.append(1)
        if len(trained) == 3:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return real(*args, **kwargs)

    monkeypatch.setattr(team, "train", breaking)
    monkeypatch.setattr(Device, "is_lost", lambda self: len(trained) == 3)
    with pytest.raises(DeviceLost, match=r"an illegal memory access .*: go on in a new process with --resume"):
        compare(SPEC, [0.05], **ONE_RATE, strategies=["full"], out=out)
    assert len(read_comparison(out).runs) == 2
    assert len(compare(SPEC, [0.05], **ONE_RATE, strategies=["full"], out=out, resume=True).runs) == 4


@pytest.mark.slow
def test_processes_of_a_run_learn_the_same_wrong_labels():
    """Unequal weights would be an error, and labels of their own would make them so."""
    found = compare(
        SPEC.with_overrides(["train.processes=2"]), [0.2], **ONE_RATE, strategies=["full"], shuffle_labels=0.5
    )
    assert found.machine.processes == 2
    assert found.machine.key.endswith("×2")
    assert [run.failure for run in found.runs] == [None] * 4


# --- command --------------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_writes_json_and_a_figure(quiet, run, tmp_path):
    words = ["--budget", "0.05s", "--budget", "100ms", *AT_ONE_RATE, "--prune-rate", 0.3, "--prune-rate", 0.5]
    files = ["--out", "c.json", "--figure", "c.html"]
    status, out, err = run("compare", "digits", *words, "--strategies", "full, stale-quantile", *sets(), *files)
    assert status == 0
    assert "0.05s of training" in out and "0.1s of training" in out
    assert "stale-quantile 0.5" in out
    assert "20 of 20: " in err
    assert "10 of 10 runs had a clean clock" in out
    assert len(read_comparison(tmp_path / "c.json").runs) == 20
    assert "Plotly.newPlot" in (tmp_path / "c.html").read_text()
    again = ["compare", "digits", *words, "--strategies", "stale-quantile", *sets(), "--out", "c.json", "--resume"]
    status, out, err = run(*again, "--format", "csv")
    assert (status, "0 runs to do" in err) == (0, True)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["strategy"], row["prune_rate"]) for row in rows[:3]] == [
        ("full", "0.0"),
        ("random", "0.3"),
        ("random", "0.5"),
    ]
    assert json.loads(run(*again, "--format", "json")[1]) == json.loads((tmp_path / "c.json").read_text())
    decided = sets("pruning.when=auto", "pruning.evidence=c.json", "train.budget=0.1s")
    status, out, _ = run("study", "create", "digits", *decided)
    assert status == 0
    assert "pruning, decided on c.json: " in out and "at 0.1s on digits" in " ".join(out.split())


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--budget", "soon"], 2, "not a duration"),
        (["--budget", "1s", "--seeds", 1], 2, "--seeds"),
        (["--budget", "1s", "--lr", "3e-3,fast"], 2, "'fast' is no number"),
        ([], 1, "give --budget 30s"),
        (["--budget", "1s", "--strategies", "magic"], 1, "'magic' is unknown"),
        (["--budget", "1s", "--resume"], 1, "--out"),
        (["--budget", "1s", "--out", "nowhere/c.json"], 1, "cannot be written"),
    ],
)
def test_a_command_that_cannot_work_says_so_with_its_status(quiet, run, words, status, message):
    got, out, err = run("compare", "digits", *words)
    assert got == status
    assert message in " ".join(err.replace("│", " ").split())
    assert out == ""


def test_the_python_call_stays_a_call(quiet):
    for _ in range(2):
        found = budgettune.compare(SPEC, [0.05], **ONE_RATE, strategies=["full"])
        assert Arm("random", 0.3) in {run.arm for run in found.runs}
    with pytest.raises(SpecError, match="nowhere"):
        budgettune.compare("nowhere")


# --- signals --------------------------------------------------------------------------------------------------------


def process(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "budgettune", "compare", "digits", "--threads", "1", "--device", "cpu", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )


def wait_for_runs(path, count):
    deadline = time.monotonic() + 90
    while not (path.exists() and len(read_comparison(path).runs) >= count):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
    return read_comparison(path).runs


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_where_it_stopped(quiet, tmp_path):
    out = tmp_path / "c.json"
    words = ["--budget", "0.4s", *map(str, AT_ONE_RATE), "--strategies", "full", *sets(), "--out", str(out)]
    first = process(*words)
    wait_for_runs(out, 1)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130
    assert f"add --resume to go on with {out}" in err
    second = process(*words, "--resume")
    kept = wait_for_runs(out, len(read_comparison(out).runs) + 1)
    second.kill()
    second.communicate(timeout=60)
    assert len(kept) < 4
    runs = compare(SPEC, [0.4], **ONE_RATE, strategies=["full"], device="cpu", threads=1, out=out, resume=True).runs
    assert runs[: len(kept)] == kept
    assert len({run.key for run in runs}) == len(runs) == 4


def test_what_is_finished_comes_back_when_told_to_stop(quiet):
    stop = StopFlag()
    found = compare(
        SPEC,
        [0.05],
        **ONE_RATE,
        strategies=["full"],
        should_stop=lambda: stop.cuts_short,
        say=lambda line: _stop_at(line, stop),
    )
    assert len(found.runs) == 1


def _stop_at(line, stop):
    if line.startswith("1 of"):
        stop.request()

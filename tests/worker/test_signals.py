"""Requests to stop, heard within two seconds wherever a process is, and what they leave behind."""

import fcntl
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from budgettune.errors import StopRequested
from budgettune.spec.study_spec import load_spec
from budgettune.storage.trials import trial_records
from budgettune.study import sampling
from budgettune.study.handle import create_study
from budgettune.training.data import cache, images
from budgettune.training.data.cache import cache_path
from budgettune.training.data.images import ImageSet
from budgettune.training.learner import Learner
from budgettune.training.profile.probe import Probe
from budgettune.training.trainer import TrainingRun
from budgettune.worker import signals
from budgettune.worker.loop import run_worker
from budgettune.worker.options import WorkerOptions
from budgettune.worker.signals import SIGNALS, StopFlag
from tests.support.image_files import pixels

SECONDS = 2.0
TINY = ["train.epochs=1", "train.batch_size=256", "clock.warmup_steps=1", "search={scale = [1.0]}"]
OPTIONS = WorkerOptions(device="cpu", threads=1, poll_seconds=0.05, allow_import=frozenset(["tests"]))


told_at = 0.0  # monotonic seconds


def tell_to_stop():
    global told_at
    told_at = time.monotonic()
    os.kill(os.getpid(), signal.SIGTERM)


def told_to_stop_in_long_work(*_, **__):
    """Stand in for work that takes long, in the middle of which a signal comes."""
    tell_to_stop()
    time.sleep(10)
    raise AssertionError("not interrupted")


def stopped_worker(url, *overrides):
    """Run a worker that is told to stop by the way; return its study, its summary and how long it took to end."""
    study = create_study(load_spec("digits").with_overrides([*TINY, *overrides]), url)
    with StopFlag() as stop:
        summary = run_worker(url, study.name, OPTIONS, stop=stop)
    return study, summary, time.monotonic() - told_at


def own_images(spec):
    if os.environ.get("SLOW_IMAGES"):
        told_to_stop_in_long_work()
    images, labels = pixels(300, 8, 8), np.arange(300) % 2
    return images, labels, images, labels


class Slow(nn.Module):
    def __init__(self, **_):
        super().__init__()
        told_to_stop_in_long_work()


def compiled(model, **_):
    def call(*_):
        told_to_stop_in_long_work()

    return call


PHASES = {
    "images of a function": (["data.name=tests.worker.test_signals:own_images"], None),
    "download": (["data.name=cifar10"], ("torchvision.datasets.CIFAR10.download", told_to_stop_in_long_work)),
    "building of a model": (["model.name=tests.worker.test_signals:Slow"], None),
    "warm-up": ([], (Learner, "warm_up", told_to_stop_in_long_work)),
    "compilation": (["train.compile=true"], ("torch.compile", compiled)),
    "evaluation": ([], (TrainingRun, "_accuracy", told_to_stop_in_long_work)),
    "scoring": (
        ["pruning.strategy=el2n", "pruning.prune_rate=0.5"],
        (Learner, "score_batch", told_to_stop_in_long_work),
    ),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_outside_the_step_loop_hands_the_trial_back_at_once(phase, sqlite_url, tmp_path, monkeypatch):
    overrides, patch = PHASES[phase]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLOW_IMAGES", "yes")
    if patch is not None:
        monkeypatch.setattr(*patch)
    study, summary, seconds = stopped_worker(sqlite_url, *overrides)
    assert seconds < SECONDS
    assert summary.signal_number == signal.SIGTERM
    assert_handed_back(study)


class ToldToStopWhenCollected:
    def __del__(self):
        tell_to_stop()
        time.sleep(0.05)  # in which the handler runs, and what it raises gets nowhere


def collecting_garbage(*_, **__):
    ToldToStopWhenCollected()
    time.sleep(10)
    raise AssertionError("not interrupted")


def test_a_signal_while_garbage_is_collected_is_neither_lost_nor_reported(sqlite_url, monkeypatch, capfd):
    monkeypatch.setattr(Learner, "warm_up", collecting_garbage)
    study, summary, seconds = stopped_worker(sqlite_url)
    assert seconds < SECONDS
    assert summary.signal_number == signal.SIGTERM
    assert_handed_back(study)
    assert "Exception ignored" not in capfd.readouterr().err


def assert_handed_back(study):
    assert (study.counts()["RUNNING"], study.counts()["WAITING"]) == (0, 1)
    (waiting,) = trial_records(study.engine, study.study_id, states=["WAITING"])
    assert waiting.attempt == 1


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Return a folder of small images that take as long to read as large photographs, and a signal at the tenth."""
    for number in range(400):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(8, 8, seed=number)).save(path)
    read, opened = Image.open, iter(range(1_000))

    def slowly(*args):
        if next(opened) == 10:
            tell_to_stop()
        time.sleep(0.05)
        return read(*args)

    monkeypatch.setattr(Image, "open", slowly)
    return tmp_path / "photos"


@pytest.mark.parametrize("cached", [False, True])
def test_a_signal_while_photographs_are_read_leaves_no_half_cache(cached, photographs, sqlite_url, tmp_path):
    overrides = ["data.name=folder", f"data.root={photographs}", *[f"data.cache={tmp_path}/cache"] * cached]
    study, _, seconds = stopped_worker(sqlite_url, *overrides)
    assert seconds < SECONDS
    assert_handed_back(study)
    assert [path.suffix for path in tmp_path.glob("cache/*")] == [".lock"] * cached


def test_a_signal_while_another_worker_writes_the_cache_is_heard(photographs, sqlite_url, tmp_path, monkeypatch):
    path = cache_path(str(tmp_path / "cache"), photographs, None)
    path.parent.mkdir()
    monkeypatch.setattr(cache, "open_cache", lambda *_: threading.Timer(0.2, tell_to_stop).start())
    with Path(f"{path}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        overrides = ["data.name=folder", f"data.root={photographs}", f"data.cache={tmp_path}/cache"]
        study, _, seconds = stopped_worker(sqlite_url, *overrides)
    assert seconds < SECONDS
    assert_handed_back(study)


def test_a_signal_while_steps_are_probed_claims_no_trial(sqlite_url, monkeypatch):
    monkeypatch.setattr(Probe, "measure", told_to_stop_in_long_work)
    study, _, seconds = stopped_worker(sqlite_url, "predict.probe=60s")
    assert seconds < SECONDS
    assert study.counts()["FAIL"] == 0
    assert_handed_back(study)


def test_a_signal_while_a_sampler_thinks_hands_its_point_back(sqlite_url, monkeypatch):
    monkeypatch.setattr(sampling, "propose", told_to_stop_in_long_work)
    search = "search={scale = {low = 1.0, high = 2.0}}"
    study, _, seconds = stopped_worker(sqlite_url, search, "sampler.name=gp", "sampler.trials=3")
    assert seconds < SECONDS
    assert study.counts()["RUNNING"] == 0
    monkeypatch.undo()
    assert study.claim().attempt == 1


def test_a_large_set_is_resized_in_parts_between_which_a_signal_is_heard(monkeypatch):
    held = torch.from_numpy(pixels(50, 3, 9, 9))
    whole = ImageSet(held, torch.zeros(50)).resized(4).images
    monkeypatch.setattr(images, "_RESIZED_BYTES", 8 * 3 * 9 * 9)
    parts = []
    interpolate = images.functional.interpolate
    monkeypatch.setattr(images.functional, "interpolate", lambda *a, **k: parts.append(a) or interpolate(*a, **k))
    assert torch.equal(ImageSet(held, torch.zeros(50)).resized(4).images, whole)
    assert len(parts) == 7


def test_a_childs_order_to_stop_reaches_it_outside_the_step_loop():
    read, write = os.pipe()
    with StopFlag() as stop:
        threading.Thread(target=stop._read_orders, args=(read,), daemon=True).start()
        threading.Timer(0.2, os.write, [write, b"15\n"]).start()
        began = time.monotonic()
        with pytest.raises(StopRequested), stop.interrupting():
            time.sleep(10)
    assert time.monotonic() - began < SECONDS
    assert stop.signal_number == signal.SIGTERM


def test_a_request_is_raised_once_and_never_outside():
    with StopFlag() as stop:
        tell_to_stop()
        assert stop.cuts_short
        with pytest.raises(StopRequested), stop.interrupting():
            raise AssertionError("went on")
        stop.request()
    with StopFlag(drains=True) as stop, stop.interrupting():
        tell_to_stop()
    assert stop.is_set


def test_ctrl_c_in_a_program_that_calls_the_worker_hands_back_and_goes_on_up(sqlite_url, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "_accuracy", interrupted)
    study = create_study(load_spec("digits").with_overrides(TINY), sqlite_url)
    with pytest.raises(KeyboardInterrupt):
        run_worker(sqlite_url, study.name, OPTIONS)
    assert_handed_back(study)


@pytest.fixture
def handlers():
    """Put back how this process takes signals, which a command changes for good."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


COMMANDS = {
    "train while it evaluates": (["train", "--set", "scale=1.0"], (TrainingRun, "_accuracy")),
    "compare while it reads images": (
        ["compare", "digits", "--budget", "0.1s"],
        ("budgettune.comparison.run.load_data",),
    ),
    "compare while it evaluates": (["compare", "digits", "--budget", "0.1s"], (TrainingRun, "_accuracy")),
    "recommend while it probes": (["recommend", "--budget", "1s", "--probe", "9s"], (Probe, "measure")),
    "profile": (["profile", "digits", "--set", "search={scale=[1.0]}"], (Probe, "measure")),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_a_signal_ends_every_command_that_trains_with_its_own_status(what, run, handlers, sqlite_url, monkeypatch):
    create_study(load_spec("digits").with_overrides(TINY), sqlite_url)
    words, place = COMMANDS[what]
    monkeypatch.setattr(*place, told_to_stop_in_long_work)
    status, _, err = run(*words)
    assert status == 143, err
    assert "error" not in err
    assert time.monotonic() - told_at < SECONDS


def test_a_terminal_that_closes_hands_the_trial_back_however_often_it_says_so(sqlite_url, monkeypatch):
    def hung_up(*_):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(10)

    monkeypatch.setattr(TrainingRun, "_accuracy", hung_up)
    monkeypatch.setattr(signals, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(signals.os, "_exit", lambda status: pytest.fail("ended at once"))
    study = create_study(load_spec("digits").with_overrides(TINY), sqlite_url)
    with StopFlag() as stop:
        summary = run_worker(sqlite_url, study.name, OPTIONS, stop=stop)
        os.kill(os.getpid(), signal.SIGHUP)
    assert summary.signal_number == signal.SIGHUP
    assert_handed_back(study)


@pytest.fixture
def nohup(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_under_nohup_a_terminal_that_closes_stops_nobody(nohup):
    with StopFlag() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.wait(0.05)


@pytest.mark.parametrize(("again_seconds", "ended"), [(60.0, []), (0.0, [143])])
def test_a_second_signal_ends_the_process_unless_it_comes_with_the_first(again_seconds, ended, monkeypatch):
    """Also while the handler cannot run, as in a call that waits for a locked database."""
    statuses = []
    monkeypatch.setattr(signals, "AGAIN_SECONDS", again_seconds)
    monkeypatch.setattr(StopFlag, "_on_signal", lambda *_: None)
    monkeypatch.setattr(signals.os, "_exit", statuses.append)
    with StopFlag():
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "second-signal"]
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
    thread.join(5)
    assert statuses == ended


def test_a_pool_of_a_studys_own_is_ended_by_its_own_signals_and_ends_nobody():
    forked = multiprocessing.get_context("fork")
    runs = forked.Event()
    with StopFlag() as stop, stop.interrupting():
        child = forked.Process(target=lambda: (runs.set(), time.sleep(30)))
        child.start()
        assert runs.wait(10)  # Python drops a signal that comes while it sets up the child
        child.terminate()
        child.join(10)
        assert not stop.wait(0.05)
    assert child.exitcode == -signal.SIGTERM

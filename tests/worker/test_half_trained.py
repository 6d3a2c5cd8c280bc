"""Trials that are cut off go on where they were, in another worker; which file is whose, and when it goes."""

import random
import signal
import time
from dataclasses import replace

import pytest

from budgettune.records import Claim
from budgettune.spec.study_spec import load_spec
from budgettune.storage.trials import trial_records
from budgettune.study.handle import create_study, delete_study
from budgettune.training.session import train_one
from budgettune.worker.half_trained import OLD_SECONDS, HalfTrainedFolder
from budgettune.worker.loop import run_worker
from budgettune.worker.options import Listener, WorkerOptions
from budgettune.worker.signals import StopFlag
from tests.support.permissions import without_overrides
from tests.support.processes import command, wait_until
from tests.support.studies import RESULT, let_lease_run_out
from tests.trial.test_checkpoint import half

OPTIONS = WorkerOptions(device="cpu", threads=1, poll_seconds=0.05, checkpoint_every_seconds=0.0)
STORMS = 6
TINY = ["train.epochs=5", "train.batch_size=128", "clock.warmup_steps=1", "prune_rate=0.3"]


def test_only_a_folder_that_this_user_may_write_to_is_usable(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "file").touch()
    with without_overrides():
        for name, is_usable in {"new/folder": True, "closed/below": False, "file": False}.items():
            assert HalfTrainedFolder(str(tmp_path / name), 30.0).is_usable == is_usable
    assert not HalfTrainedFolder(str(tmp_path), None).is_usable


def make(url, *overrides, search="{scale = [1.0]}"):
    return create_study(load_spec("digits").with_overrides([*TINY, f"search={search}", *overrides]), url)


class StopsAfter(Listener):
    """Asks the worker to stop after an epoch."""

    def __init__(self, epoch):
        self.epoch_number, self.stop, self.seen = epoch, StopFlag(), []

    def epoch(self, claim, spec, record):
        self.seen.append(record.epoch)
        if record.epoch == self.epoch_number:
            self.stop.request()


def work(study, epoch=None, options=OPTIONS):
    listener = StopsAfter(epoch)
    return run_worker(study.url, study.name, options, stop=listener.stop, listener=listener), listener.seen


def files():
    folder = HalfTrainedFolder(None, 30.0).folder
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def completed(study):
    """Return each complete trial with what else its row keeps."""
    records = trial_records(study.engine, study.study_id, states=["COMPLETE"])
    storage = study.storage
    ids = [storage.get_trial_id_from_study_id_trial_number(study.study_id, each.number) for each in records]
    return [(each, storage.get_trial(number).user_attrs) for each, number in zip(records, ids, strict=True)]


def assert_as_uninterrupted(study):
    assert completed(study)
    for record, kept in completed(study):
        whole = train_one(study.spec, record.params, seed=record.seed, device="cpu", threads=1).result
        assert kept["weights_sha256"] == whole.weights_sha256, record
        assert [point.value for point in record.curve] == [point.value for point in whole.curve]


def test_a_trial_that_was_handed_back_goes_on_and_ends_as_if_nothing_had_been(storage_url):
    study = make(storage_url)
    summary, seen = work(study, epoch=2)
    assert (summary.completed, seen) == (0, [0, 1, 2])
    assert len(files()) == 1
    summary, seen = work(study)
    assert (summary.completed, seen) == (1, [3, 4])
    assert files() == []
    ((record, kept),) = completed(study)
    assert kept["details"]["resumed"] == [3]
    assert record.attempt == 1
    assert [point.epoch for point in record.curve] == [0, 1, 2, 3, 4]
    times = [point.train_seconds for point in record.curve]
    assert times == sorted(times)
    assert_as_uninterrupted(study)
    assert study.verify().whole


def test_a_trial_whose_worker_was_lost_goes_on(sqlite_url, monkeypatch):
    study = make(sqlite_url)
    hand_back = type(study).hand_back
    with monkeypatch.context() as context:
        context.setattr(type(study), "hand_back", lambda *args: True)  # as if the process were gone
        work(study, epoch=1, options=replace(OPTIONS, heartbeat_seconds=0.01))
    assert type(study).hand_back is hand_back
    let_lease_run_out(study)
    summary, seen = work(study)
    assert (summary.completed, seen) == (1, [2, 3, 4])
    ((record, _),) = completed(study)
    assert record.attempt == 1  # it had moved on
    assert_as_uninterrupted(study)
    assert study.verify().whole


@pytest.mark.slow
def test_another_box_finds_it_in_a_shared_folder_and_not_without(sqlite_url, tmp_path, monkeypatch):
    study, shared = make(sqlite_url, search="{scale = [1.0, 1.2]}"), tmp_path / "shared"
    options = WorkerOptions(**{**vars(OPTIONS), "checkpoints": str(shared)})
    work(study, epoch=2, options=options)
    monkeypatch.setenv("BUDGETTUNE_SPOOL", str(tmp_path / "of another box"))
    summary, seen = work(study, epoch=None, options=options)
    assert (summary.completed, seen) == (2, [0, 1, 2, 3, 4, 3, 4])  # the other one waited before it
    assert list(shared.iterdir()) == []


def test_it_is_switched_off(sqlite_url):
    study = make(sqlite_url)
    options = WorkerOptions(**{**vars(OPTIONS), "checkpoint_every_seconds": None})
    work(study, epoch=2, options=options)
    assert files() == []
    assert work(study, options=options)[1] == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_a_damaged_file_is_no_error(sqlite_url, caplog):
    study = make(sqlite_url)
    work(study, epoch=2)
    path = HalfTrainedFolder(None, 30.0).folder / files()[0]
    path.write_bytes(path.read_bytes()[:-1])
    assert work(study)[1] == [0, 1, 2, 3, 4]
    assert caplog.text.count("begins anew") == 1
    assert study.verify().whole


def test_a_trial_that_failed_by_itself_begins_anew(sqlite_url, monkeypatch):
    study = make(sqlite_url, "train.lr=1e30", "train.lr_schedule=constant")
    work(study)
    assert files() == []
    assert study.counts()["COMPLETE"] == 0


def claim_of(slot=(0, 0)):
    return Claim(trial_id=1, number=0, params={}, cell=slot[0], repeat=slot[1], attempt=1, seed=1)


def test_a_machine_of_another_kind_begins_anew(sqlite_url):
    study, folder = make(sqlite_url), HalfTrainedFolder(None, 0.0)
    folder.of(study, claim_of(), "cpu x1").save(half())
    assert folder.of(study, claim_of(), "gpu").load() is None
    assert folder.of(study, claim_of(), "cpu x1").load() == half()


def test_nobody_has_a_home(sqlite_url, no_home):
    study, folder = make(sqlite_url), HalfTrainedFolder(None, 0.0)
    assert folder.of(study, claim_of(), "cpu").path is None
    folder.forget(study, claim_of())
    assert folder.tidy(study) == 0


def test_what_is_of_no_use_goes(storage_url, tmp_path, monkeypatch):
    monkeypatch.setenv("BUDGETTUNE_CHECKPOINTS", str(tmp_path / "kept"))
    gone = make(storage_url, "name=gone")
    study = make(storage_url, search="{scale = [1.0, 1.2]}")
    folder = HalfTrainedFolder(None, 0.0)

    def keep(of, slot):
        place = folder.of(of, claim_of(slot), "cpu")
        place.save(half())
        return place.path

    claim = study.claim()
    finished, open_one, of_gone = keep(study, claim.slot), keep(study, (1, 0)), keep(gone, (0, 0))
    assert folder.tidy(study) == 0
    study.complete(claim, RESULT)
    delete_study(storage_url, "gone")
    of_others = folder.folder / "0123-1-0-0.half"
    writing = folder.folder / ".0123-1-0-0.half.abc"
    for path in (of_others, writing, folder.folder / "something else"):
        path.touch()
    assert folder.tidy(study) == 2
    assert not finished.exists()
    assert not of_gone.exists()
    assert folder.tidy(study, now=time.time() + OLD_SECONDS + 60) == 3
    assert [path.name for path in folder.folder.iterdir()] == ["something else"]
    assert not open_one.exists()


def test_a_worker_is_told_on_the_command_line(run):
    from budgettune.cli.options import duration_or_none

    assert [duration_or_none(text) for text in ("0", "0s", "0.0", "90s")] == [0, 0, 0, 90]
    assert duration_or_none("none") == float("inf")
    status, _, said = run("worker", "--checkpoint-every", "often")
    assert status == 2
    assert "often" in said
    for seconds, words in ((None, "none"), (0.0, "0.0")):
        options = WorkerOptions(checkpoint_every_seconds=seconds, checkpoints="/shared")
        assert options.words() == ["--checkpoints", "/shared", "--checkpoint-every", words]


@pytest.mark.chaos
def test_a_storm_of_kills_and_stops_ends_in_the_weights_of_an_uninterrupted_study(storage_url, tmp_path):
    """Workers of two boxes are stopped and killed as they work; every trial ends with the weights it would have had."""
    search = '{scale = [1.0, 1.2], "pruning.strategy" = ["random", "infobatch", "selective-backprop"]}'
    study = make(storage_url, "train.epochs=20", "sampler.max_attempts=50", search=search)
    shared, chance = tmp_path / "shared", random.Random(1)
    words = (study.name, "--checkpoints", str(shared), "--checkpoint-every", "0s", "--device", "cpu")
    boxes = [{"BUDGETTUNE_SPOOL": str(tmp_path / name)} for name in ("one", "other")]
    for number in range(STORMS):
        kept = {path.name: path.stat().st_mtime_ns for path in shared.glob("*.half")}
        workers = [command(storage_url, *words, **box) for box in boxes]
        try:
            wait_until(lambda kept=kept: study.is_finished() or more_kept(shared, kept))
            time.sleep(chance.uniform(0.0, 2.5))
        finally:
            for index, worker in enumerate(workers):
                worker.send_signal(signal.SIGKILL if (number + index) % 2 else signal.SIGTERM)
            said = [worker.communicate(timeout=60)[1] for worker in workers]
        assert not any("Traceback" in text for text in said), said
        let_lease_run_out(study)
        study.reconcile()
    run_worker(study.url, study.name, WorkerOptions(**{**vars(OPTIONS), "checkpoints": str(shared)}))
    assert study.verify().whole
    assert study.counts()["COMPLETE"] == 6
    assert sum(bool(kept["details"].get("resumed")) for _, kept in completed(study)) >= 3
    assert_as_uninterrupted(study)


def more_kept(folder, before):
    """Return how many half-trained trials were saved since."""
    seen = 0
    for path in folder.glob("*.half"):
        try:
            seen += path.stat().st_mtime_ns != before.get(path.name)
        except FileNotFoundError:
            continue
    return seen

"""Workers in this process and in processes of their own: recorded results, failures, signals, several at once."""

import signal
import sys
import threading
import time
from dataclasses import replace

import pytest
from torch import nn

from budgettune import api
from budgettune.errors import BudgetTuneError, DataError, DeviceLost, StorageError, StudyNotFound, UsageError
from budgettune.spec.study_spec import load_spec
from budgettune.storage.trials import trial_records
from budgettune.study.handle import StudyHandle, create_study, load_study
from budgettune.training.device import Device
from budgettune.training.session import train_one
from budgettune.worker.loop import run_worker
from budgettune.worker.options import Listener, WorkerOptions
from budgettune.worker.signals import StopFlag
from budgettune.worker.watchdog import HUNG_STATUS
from tests.support.processes import command, wait_until

TINY = [
    "train.epochs=1",
    "train.batch_size=256",
    "pruning.strategy=random",
    "clock.warmup_steps=1",
    "search={scale = [1.0, 2.0], prune_rate = [0, 0.5]}",
]
OPTIONS = WorkerOptions(device="cpu", poll_seconds=0.05, allow_import=frozenset(["tests"]))


@pytest.fixture(autouse=True)
def spool(tmp_path, monkeypatch):
    monkeypatch.setenv("BUDGETTUNE_SPOOL", str(tmp_path / "spool"))
    return tmp_path / "spool"


def make(url, *overrides) -> StudyHandle:
    return create_study(load_spec("digits").with_overrides([*TINY, *overrides]), url)


def test_a_worker_fills_a_study_with_whole_records(storage_url):
    study = make(storage_url)
    summary = run_worker(storage_url, study.name, OPTIONS)
    assert (summary.completed, summary.failed) == (4, 0)
    assert study.verify().whole
    for record in trial_records(study.engine, study.study_id):
        assert record.state == "COMPLETE"
        assert record.seed == study.spec.trial_seed(record.cell, 0)
        assert 0 < record.test_accuracy < 1
        assert record.curve[-1].accuracy == record.value == record.validation_accuracy
        assert 0.95 * record.train_seconds < record.phases.on_clock <= record.train_seconds
        assert record.prune_seconds == record.phases.pruning
        assert record.keep_fraction == pytest.approx(1 - record.params["prune_rate"], abs=0.001)
        assert record.machine.threads > 0
        assert record.status in ("clean", "disturbed", "unverified")
        assert record.device_name == record.machine.key


def test_without_a_name_every_open_study_is_served_in_order_of_creation(sqlite_url):
    for name in ("second", "first"):
        make(sqlite_url, f"name={name}", "search={scale = [1.0]}")
    done = []

    class Order(Listener):
        def completed(self, study, claim, result):
            done.append(study.name)

    run_worker(sqlite_url, None, OPTIONS, listener=Order())
    assert done == ["second", "first"]


def test_limits_end_a_worker_between_trials(sqlite_url):
    study = make(sqlite_url)
    assert run_worker(sqlite_url, None, WorkerOptions(device="cpu", trials=1)).completed == 1
    assert run_worker(sqlite_url, None, WorkerOptions(device="cpu", timeout_seconds=1e-9)).completed == 0
    assert study.counts()["WAITING"] == 3


def test_a_worker_that_waits_takes_up_a_study_that_comes_later(sqlite_url):
    stop = StopFlag()
    options = WorkerOptions(device="cpu", wait=True, poll_seconds=0.05)
    thread = threading.Thread(target=run_worker, args=(sqlite_url, None, options), kwargs={"stop": stop})
    thread.start()
    time.sleep(0.2)
    study = make(sqlite_url, "search={scale = [1.0]}")
    wait_until(lambda: study.verify().whole)
    stop.request()
    thread.join(20)
    assert not thread.is_alive()


def test_without_a_study_to_work_on_the_next_step_is_named(sqlite_url):
    with pytest.raises(StorageError, match="study create"):
        run_worker(sqlite_url, None, OPTIONS)
    make(sqlite_url).close()
    with pytest.raises(StudyNotFound, match="digits"):
        run_worker(sqlite_url, "other", OPTIONS)


class Broken(nn.Module):
    def __init__(self, **_):
        super().__init__()
        raise ZeroDivisionError("a mistake of the user's")


def test_code_that_always_fails_stops_the_worker_before_it_uses_up_every_attempt(sqlite_url):
    study = make(sqlite_url, f"model.name={__name__}:Broken", "sampler.repeats=3")
    with pytest.raises(BudgetTuneError, match=r"5 trials in a row failed .* a mistake of the user's"):
        run_worker(sqlite_url, None, OPTIONS)
    failures = [r.failure for r in trial_records(study.engine, study.study_id, states=["FAIL"])]
    assert failures == ["error: ZeroDivisionError: a mistake of the user's"] * 5


def test_a_worker_whose_device_is_lost_ends_and_only_a_slot_that_loses_it_again_pays(sqlite_url, monkeypatch, run):
    monkeypatch.setattr(Device, "is_lost", lambda device: True)
    study = make(sqlite_url, f"model.name={__name__}:Broken", "search={scale = [1.0]}", "sampler.max_attempts=2")
    lost = r"cpu answers this process no more \(ZeroDivisionError: .*\): start the worker again"
    for attempt in (1, 1, 2):
        (waiting,) = trial_records(study.engine, study.study_id, states=["WAITING"])
        assert waiting.attempt == attempt
        with pytest.raises(DeviceLost, match=lost):
            run_worker(sqlite_url, None, OPTIONS)
    assert study.is_finished()
    (given_up,) = study.verify().given_up
    assert [reason.partition(":")[0] for reason in given_up.reasons] == ["device-lost"] * 2
    study.retry()
    status, _, said = run("worker", "--device", "cpu", "--allow-import", "tests")
    assert status == HUNG_STATUS
    assert "error: cpu answers this process no more" in said


class Losing(nn.Module):
    def __init__(self, **_):
        super().__init__()
        raise DeviceLost("a capture was left in its middle")


def test_a_trial_that_costs_its_process_the_device_fails_and_the_worker_ends(sqlite_url):
    study = make(sqlite_url, f"model.name={__name__}:Losing", "search={scale = [1.0]}", "sampler.max_attempts=2")
    with pytest.raises(DeviceLost, match="in its middle"):
        run_worker(sqlite_url, None, OPTIONS)
    (failed,) = trial_records(study.engine, study.study_id, states=["FAIL"])
    assert failed.failure == "device-lost: a capture was left in its middle"


class Ending(nn.Module):
    def __init__(self, **_):
        super().__init__()
        sys.exit(0)


def ending_images(spec):
    sys.exit("no such folder")


def test_code_of_a_study_that_calls_exit_leaves_no_claim_behind(sqlite_url):
    study = make(sqlite_url, f"model.name={__name__}:Ending", "search={scale = [1.0]}", "sampler.max_attempts=1")
    assert run_worker(sqlite_url, study.name, OPTIONS).failed == 1
    (record,) = trial_records(study.engine, study.study_id)
    assert record.failure == "error: RuntimeError: it called sys.exit(0)"
    other = make(sqlite_url, "name=other", f"data.name={__name__}:ending_images", "search={scale = [1.0]}")
    with pytest.raises(DataError, match=r"it called sys\.exit\('no such folder'\)"):
        run_worker(sqlite_url, "other", OPTIONS)
    assert (other.counts()["RUNNING"], other.counts()["WAITING"]) == (0, 1)


def test_a_box_that_cannot_take_part_hands_the_trial_back_and_says_why(sqlite_url, tmp_path):
    study = make(sqlite_url, f"model.name={__name__}:Broken")
    with pytest.raises(UsageError, match="allow"):
        run_worker(sqlite_url, None, WorkerOptions(device="cpu"))
    other = make(sqlite_url, "name=other", "data.name=folder", f"data.root={tmp_path}/none")
    with pytest.raises(DataError):
        run_worker(sqlite_url, "other", OPTIONS)
    for handle in (study, other):
        waiting = trial_records(handle.engine, handle.study_id, states=["WAITING"])
        assert [record.attempt for record in waiting] == [1, 1, 1, 1]


def test_a_worker_of_another_kind_of_machine_refuses_unless_told_to_mix(sqlite_url, caplog):
    study = make(sqlite_url, "machine.device_name=Abacus")
    with pytest.raises(UsageError, match=r"takes its times on Abacus, and this worker is .*--allow-mixed"):
        run_worker(sqlite_url, study.name, OPTIONS)
    assert run_worker(sqlite_url, None, OPTIONS).completed == 0
    assert "left out: study" in caplog.text
    assert run_worker(sqlite_url, study.name, replace(OPTIONS, trials=1, allow_mixed=True)).completed == 1
    assert study.counts()["COMPLETE"] == 1


def test_a_study_names_files_only_where_the_box_has_opened_a_folder(sqlite_url, tmp_path):
    study = make(sqlite_url, "data.name=folder", f"data.root={tmp_path}/secret")
    with pytest.raises(UsageError, match=rf"data.root: .*--allow-root {tmp_path}/secret"):
        run_worker(sqlite_url, study.name, replace(OPTIONS, allow_root=frozenset([f"{tmp_path}/open"])))
    with pytest.raises(DataError):  # allowed, and not there
        run_worker(sqlite_url, study.name, replace(OPTIONS, allow_root=frozenset([str(tmp_path)])))


def test_a_result_is_offered_again_while_the_database_does_not_answer(sqlite_url, monkeypatch):
    study = make(sqlite_url, "search={scale = [1.0]}")
    answers = iter([StorageError("away"), StorageError("away")])
    complete = StudyHandle.complete

    def sometimes(self, claim, result, **kind):
        for error in answers:
            raise error
        return complete(self, claim, result)

    monkeypatch.setattr(StudyHandle, "complete", sometimes)
    assert run_worker(sqlite_url, None, OPTIONS).completed == 1
    assert study.verify().whole


def test_a_result_that_the_database_did_not_take_is_delivered_by_the_next_worker(sqlite_url, spool, monkeypatch):
    study = make(sqlite_url, "search={scale = [1.0]}")

    stop = StopFlag()

    def away(self, claim, result, **_):
        stop.request()
        raise StorageError("away")

    with monkeypatch.context() as patch:
        patch.setattr(StudyHandle, "complete", away)
        assert run_worker(sqlite_url, None, OPTIONS, stop=stop).completed == 0
    assert len(list(spool.iterdir())) == 1
    assert run_worker(sqlite_url, None, OPTIONS).completed == 0
    assert study.verify().whole
    assert not list(spool.iterdir())


def test_a_database_that_stops_answering_for_a_while_ends_no_worker(sqlite_url, monkeypatch):
    study = make(sqlite_url, "search={scale = [1.0]}")
    claim, calls = StudyHandle.claim, iter([False, True])

    def sometimes(self, *around, **lease):
        if next(calls, False):
            raise StorageError("away")
        return claim(self, *around, **lease)

    monkeypatch.setattr(StudyHandle, "claim", sometimes)
    assert run_worker(sqlite_url, None, OPTIONS).completed == 1
    assert study.verify().whole


def test_a_trial_that_takes_too_long_is_recorded_as_failed(sqlite_url):
    study = make(sqlite_url, "search={scale = [1.0]}", "train.epochs=100000", "sampler.max_attempts=1")
    assert run_worker(sqlite_url, None, WorkerOptions(device="cpu", trial_timeout_seconds=0.5)).failed == 1
    (record,) = trial_records(study.engine, study.study_id)
    assert record.failure.startswith("timeout: took longer than 0.5s")
    assert study.is_finished()


def test_a_worker_that_drains_finishes_its_trial_first(sqlite_url):
    study = make(sqlite_url)
    stop = StopFlag(drains=True)

    class Signalled(Listener):
        def claimed(self, study, claim):
            stop._on_signal(signal.SIGTERM, None)

    summary = run_worker(sqlite_url, None, OPTIONS, stop=stop, listener=Signalled())
    assert (summary.completed, summary.signal_number) == (1, signal.SIGTERM)
    assert study.counts()["WAITING"] == 3


def test_heartbeats_survive_a_database_that_does_not_answer(sqlite_url, monkeypatch):
    make(sqlite_url, "search={scale = [1.0]}", "train.epochs=3")
    beats = []

    def beat(self, trial_id, kept_epochs):
        beats.append(trial_id)
        raise StorageError("away")

    monkeypatch.setattr(StudyHandle, "heartbeat", beat)
    assert run_worker(sqlite_url, None, WorkerOptions(device="cpu", heartbeat_seconds=0.01)).completed == 1
    assert len(beats) > 3


def test_a_disturbed_trial_is_repeated_where_the_study_asks_for_it(sqlite_url, monkeypatch):
    from budgettune.machine.witness import Witness

    verdicts = iter(["disturbed", "clean"])
    monkeypatch.setattr(Witness, "stop", lambda self: (next(verdicts), {}))
    study = make(sqlite_url, "search={scale = [1.0]}", "clock.on_disturbed=repeat")
    run_worker(sqlite_url, None, OPTIONS)
    (record,) = trial_records(study.engine, study.study_id)
    assert record.status == "clean"


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", "gp", "cost"])
@pytest.mark.slow
def test_sampled_studies_end_at_their_number_of_points_without_repeating_one(sqlite_url, sampler):
    search = 'search={prune_rate = {low = 0.0, high = 0.5}, "train.lr" = {low = 1e-4, high = 1e-2, log = true}}'
    study = make(sqlite_url, search, f"sampler.name={sampler}", "sampler.trials=5")
    run_worker(sqlite_url, None, OPTIONS)
    points = [tuple(r.params.values()) for r in trial_records(study.engine, study.study_id)]
    assert len(points) == len(set(points)) == 5
    assert study.is_finished()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.slow
def test_a_signal_hands_the_cell_back_and_ends_the_worker_soon(storage_url, number, status):
    study = make(storage_url, "train.epochs=100000")
    worker = command(storage_url)
    wait_until(lambda: study.counts()["RUNNING"] == 1)
    time.sleep(1)
    worker.send_signal(number)
    assert worker.wait(30) == status
    assert study.counts() == {"RUNNING": 0, "COMPLETE": 0, "PRUNED": 0, "FAIL": 1, "WAITING": 4}
    waiting = trial_records(study.engine, study.study_id, states=["WAITING"])
    assert {record.attempt for record in waiting} == {1}
    worker.stderr.close()


@pytest.mark.slow
def test_two_workers_share_a_study_and_no_cell_runs_twice(storage_url):
    study = make(storage_url, "search={scale = [1.0, 2.0], prune_rate = [0, 0.2, 0.5], batch_size = [200, 256]}")
    workers = [command(storage_url) for _ in range(2)]
    for worker in workers:
        errors = worker.communicate(timeout=120)[1]
        assert worker.returncode == 0, errors
    records = trial_records(study.engine, study.study_id)
    assert sorted(record.cell for record in records) == list(range(12))
    assert {record.state for record in records} == {"COMPLETE"}


def test_a_killed_workers_cell_is_run_by_another(sqlite_url):
    study = make(sqlite_url, "search={scale = [1.0]}", "train.epochs=100000")
    worker = command(sqlite_url)
    wait_until(lambda: study.counts()["RUNNING"] == 1)
    time.sleep(0.5)
    worker.kill()
    worker.communicate()
    assert study.claim() is None
    time.sleep(1.2)
    study.reconcile(lease_seconds=1)
    assert load_study(sqlite_url).claim().attempt == 2


def test_one_configuration_trains_without_being_recorded(sqlite_url):
    study = make(sqlite_url)
    trained = train_one(study.spec, {"scale": 1.0}, seed=3, device="cpu", threads=1)
    assert trained.result.machine.threads == 1
    assert trained.result.seed == 3
    assert study.counts()["COMPLETE"] == 0


def test_the_python_calls_do_what_the_commands_do(sqlite_url):
    import budgettune as bt

    study = bt.create_study("digits", storage=sqlite_url, overrides=TINY)
    assert bt.run_worker(study, bt.WorkerOptions(device="cpu")).completed == 4
    records = bt.trial_records(study)
    answer = bt.best_under_budget(study, "1h")[0]
    assert answer.validation_accuracy == max(record.validation_accuracy for record in records)
    assert bt.pareto_front("digits", storage=sqlite_url)[-1].number == answer.number
    assert bt.load_study(storage=sqlite_url).name == "digits"
    assert bt.train(study, answer.params, seed=answer.seed, device="cpu").result.test_accuracy == answer.test_accuracy
    assert api.hypervolume_of(study)[0] > 0
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        bt.nothing  # noqa: B018
    assert set(bt.__all__) <= set(dir(bt))

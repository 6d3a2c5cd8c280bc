"""A dashboard's storage says what Optuna's says, reads only what has changed, and cannot write."""

import math
import sqlite3
import time
from datetime import UTC, datetime

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from budgettune.dashboard import live_storage
from budgettune.dashboard.live_storage import NOT_SHOWN, LiveStorage
from budgettune.storage.connection import open_storage
from budgettune.study.handle import create_study, delete_study
from tests.support.studies import RESULT, SPEC, records


@pytest.fixture
def live(storage_url):
    """Return a dashboard's storage on an empty database, and Optuna's own."""
    optunas = open_storage(storage_url, create=True)
    inner = open_storage(storage_url, read_only=True)
    yield LiveStorage(inner), optunas
    optunas.engine.dispose()
    inner.engine.dispose()


@pytest.fixture
def reads(monkeypatch):
    """Return the numbers of the trials that are read in full, a list for each batch."""
    batches = []
    original = live_storage._frozen
    monkeypatch.setattr(
        live_storage,
        "_frozen",
        lambda connection, lines, skipped: (
            batches.append([line.number for line in lines]) or original(connection, lines, skipped)
        ),
    )
    return batches


def test_trials_of_other_programs_are_those_that_optuna_reads(live):
    storage, optunas = live
    study = optuna.create_study(storage=optunas, directions=["minimize", "maximize"])
    space = {
        "lr": FloatDistribution(1e-4, 1e-1, log=True),
        "batch": IntDistribution(1, 9),
        "kind": CategoricalDistribution(["a", None, 3.5]),
    }
    params = {"lr": 0.01, "batch": 3, "kind": None}
    some = {"params": params, "distributions": space, "user_attrs": {"machine": {"a": 1}, "text": "é"}}
    study.add_trials(
        [
            create_trial(values=[1.0, math.inf], system_attrs={"x": [1]}, **some),
            create_trial(values=[-math.inf, 0.0], intermediate_values={0: 1.0, 3: math.nan, 4: -math.inf}, **some),
            create_trial(state=TrialState.FAIL, **some),
            create_trial(state=TrialState.WAITING),
            create_trial(state=TrialState.PRUNED, intermediate_values={1: math.inf}, **some),
        ]
    )
    study.ask(space)
    seen = storage.get_all_trials(1)
    assert str(seen) == str(optunas.get_all_trials(1))  # as text, because NaN differs from itself
    assert isinstance(seen[0].datetime_start, datetime)
    finished = storage.get_all_trials(1, states=(TrialState.COMPLETE,))
    assert [trial.number for trial in finished] == [0, 1]


@pytest.fixture(params=["Asia/Tokyo", "America/St_Johns", "UTC"])
def zone(request, monkeypatch):
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def test_times_are_local_ones_as_optuna_shows_them_in_any_time_zone(zone, storage_url, live):
    storage, optunas = live
    study = create_study(SPEC, storage_url)
    study.complete(study.claim(), RESULT)
    study.claim()
    others = optuna.create_study(storage=optunas)
    others.add_trial(create_trial(value=1.0))
    others.ask()
    for study_id in (1, 2):
        ours, theirs = (each.get_all_trials(study_id) for each in (storage, optunas))
        for name in ("datetime_start", "datetime_complete", "duration"):
            assert [getattr(trial, name) for trial in ours] == [getattr(trial, name) for trial in theirs]
    began = storage.get_all_trials(1)[0].datetime_start
    assert abs((datetime.now() - began).total_seconds()) < 600
    (record, *_) = records(study)
    assert datetime.fromisoformat(record.started_at) == began.astimezone(UTC)  # what we print says its zone


def test_our_trials_come_without_the_documents_that_no_page_shows(storage_url, live):
    storage, optunas = live
    study = create_study(SPEC, storage_url)
    study.complete(study.claim(), RESULT)
    seen, whole = (each.get_all_trials(study.study_id)[0] for each in (storage, optunas))
    assert set(NOT_SHOWN) <= set(whole.user_attrs)
    assert seen.user_attrs == {key: value for key, value in whole.user_attrs.items() if key not in NOT_SHOWN}
    assert (seen.params, seen.values) == (whole.params, whole.values)


def test_only_what_has_changed_is_read_again(storage_url, live, reads):
    storage, _ = live
    study = create_study(SPEC, storage_url)
    storage.get_all_trials(study.study_id)
    storage.get_all_trials(study.study_id)
    assert reads == [[0, 1, 2, 3]]
    claim = study.claim()
    assert [trial.state.name for trial in storage.get_all_trials(study.study_id)][:2] == ["RUNNING", "WAITING"]
    storage.get_all_trials(study.study_id)
    assert reads[1:] == [[0], [0]]  # what runs may change at any time
    study.complete(claim, RESULT)
    assert storage.get_all_trials(study.study_id)[0].values == [2.0, 0.5]
    storage.get_all_trials(study.study_id)
    assert reads[3:] == [[0]]


def test_a_study_made_anew_under_an_old_name_is_not_mixed_with_the_old_one(storage_url, live):
    storage, _ = live
    study = create_study(SPEC, storage_url)
    study.complete(study.claim(), RESULT)
    storage.get_all_trials(study.study_id)
    delete_study(storage_url, "ours")
    with pytest.raises(KeyError):
        storage.get_all_trials(study.study_id)
    study = create_study(SPEC, storage_url)
    assert {trial.state.name for trial in storage.get_all_trials(study.study_id)} == {"WAITING"}


def test_the_database_itself_refuses_what_a_dashboard_must_not_write(live):
    storage, optunas = live
    study_id = optunas.create_new_study([optuna.study.StudyDirection.MINIMIZE], "s")
    with pytest.raises(optuna.exceptions.StorageInternalError):
        storage.delete_study(study_id)
    with pytest.raises(optuna.exceptions.StorageInternalError):
        storage.set_study_user_attr(study_id, "key", "value")
    assert optunas.get_study_user_attrs(study_id) == {}


def test_reading_waits_for_no_writer_of_an_sqlite_file(sqlite_url):
    study = create_study(SPEC, sqlite_url)
    storage = LiveStorage(open_storage(sqlite_url, read_only=True))
    writer = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")  # would hold up anybody else who means to write for a minute
    assert len(storage.get_all_trials(study.study_id)) == 4
    assert [found.study_name for found in storage.get_all_studies()] == ["ours"]
    writer.close()

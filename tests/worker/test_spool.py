"""Results on their way: kept before they are delivered, delivered once, never in the way."""

import errno
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from budgettune.errors import StorageError
from budgettune.spec.study_spec import load_spec
from budgettune.storage.answers import state_counts
from budgettune.study.handle import StudyHandle, create_study, delete_study
from budgettune.text import warn_once
from budgettune.worker.loop import run_worker
from budgettune.worker.options import WorkerOptions
from budgettune.worker.spool import Spool, Spooled, default_folder, storage_identity
from tests.support.studies import result


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool")


def make(url, *overrides):
    spec = load_spec("digits").with_overrides(["search={scale = [1.0, 2.0]}", "train.batch_size=256", *overrides])
    return create_study(spec, url)


def away(*_, **__):
    raise StorageError("away")


def test_a_file_holds_all_and_no_password(spool, sqlite_url):
    study = make(sqlite_url)
    claim = study.claim()
    finished = replace(result(), step_ms_mad=0.1, batch_shapes=(256,))
    path = spool.keep(study, claim, finished)
    assert Spooled.from_json(path.read_text()).result == finished
    assert Spooled.from_json(path.read_text()).claim == claim
    assert path.stat().st_mode & 0o077 == 0
    assert sorted(json.loads(path.read_text())) == [
        "allow_mixed",
        "claim",
        "result",
        "spec",
        "storage",
        "study",
        "study_id",
    ]


def test_the_same_database_is_known_by_whatever_user_and_password():
    one, same, other = (
        storage_identity(f"postgresql://{login}@host:5432/{name}")
        for login, name in (("a:secret", "db"), ("b:other", "db"), ("a:secret", "db2"))
    )
    assert one == same != other
    assert storage_identity("sqlite:///a.db") == storage_identity("sqlite:///./a.db") != storage_identity("sqlite:///b")


def test_a_result_is_delivered_again_until_the_database_answers(spool, sqlite_url, monkeypatch):
    study = make(sqlite_url)
    claim = study.claim()
    complete, answers = StudyHandle.complete, itertools.chain([away, away], itertools.repeat(None))
    monkeypatch.setattr(StudyHandle, "complete", lambda *args, **kind: (next(answers) or complete)(*args, **kind))
    assert spool.deliver(study, claim, result(), 60, lambda seconds: False) is True
    assert list(spool.folder.iterdir()) == []
    assert study.counts()["COMPLETE"] == 1


def test_what_a_stopped_worker_leaves_is_delivered_once_by_the_next(spool, storage_url, monkeypatch):
    study = make(storage_url)
    claim = study.claim()
    with monkeypatch.context() as patch:
        patch.setattr(StudyHandle, "complete", away)
        assert spool.deliver(study, claim, result(), 60, lambda seconds: True) is None
        assert spool.deliver_all(storage_url) == 0
        with pytest.raises(StorageError):
            spool.deliver(study, claim, result(), 0, lambda seconds: False)
    (path,) = spool.folder.iterdir()
    text = path.read_text()
    assert spool.deliver_all("sqlite:///another.db") == 0
    assert spool.deliver_all(storage_url) == 1
    path.write_text(text)  # the first worker was killed before it removed the file
    assert spool.deliver_all(storage_url) == 1
    assert list(spool.folder.iterdir()) == []
    assert study.counts()["COMPLETE"] == 1


def test_a_late_result_is_kept_as_an_extra(spool, sqlite_url):
    study = make(sqlite_url)
    claim = study.claim()
    spool.keep(study, claim, result())
    study.fail(claim, "lost", "gone")
    again = next(taken for taken in iter(study.claim, None) if taken.cell == claim.cell)
    study.complete(again, result())
    assert spool.deliver_all(sqlite_url) == 1
    assert study.counts()["COMPLETE"] == 2
    assert not study.verify().doubled


def test_damaged_files_and_those_of_a_study_made_anew_are_set_aside(spool, sqlite_url):
    study = make(sqlite_url)
    path = spool.keep(study, study.claim(), result())
    path.with_name(f"{storage_identity(sqlite_url)}-damaged.json").write_text('{"claim": {}')
    delete_study(sqlite_url, study.name)
    assert spool.deliver_all(sqlite_url) == 0
    assert {file.suffix for file in spool.folder.iterdir()} == {".set-aside"}
    anew = make(sqlite_url, "train.epochs=7")
    path.with_name(path.name + ".set-aside").replace(path)
    assert spool.deliver_all(sqlite_url) == 0
    assert state_counts(anew.engine, anew.study_id)["COMPLETE"] == 0


def test_a_box_that_takes_no_file_delivers_all_the_same(tmp_path, sqlite_url):
    (tmp_path / "file").write_text("")
    study = make(sqlite_url)
    assert Spool(tmp_path / "file" / "spool").deliver(study, study.claim(), result(), 1, lambda seconds: True)


def test_the_folder_is_the_users_own(monkeypatch):
    monkeypatch.delenv("BUDGETTUNE_SPOOL", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert str(default_folder()) == "/state/budgettune/spool"
    monkeypatch.setenv("BUDGETTUNE_SPOOL", "/mine")
    assert str(default_folder()) == "/mine"


@pytest.fixture
def nothing_said_before():
    warn_once.cache_clear()


@pytest.mark.parametrize("environment", [{}, {"BUDGETTUNE_SPOOL": "~/spool"}, {"XDG_STATE_HOME": "~nobody-here/x"}])
def test_without_a_home_a_worker_trains_and_says_once_what_would_keep_copies(
    environment, no_home, nothing_said_before, sqlite_url, monkeypatch, caplog
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    study = make(sqlite_url, "train.epochs=1", "clock.warmup_steps=1")
    assert run_worker(sqlite_url, None, WorkerOptions(device="cpu", threads=1)).completed == 2
    assert study.verify().whole
    assert [record.message for record in caplog.records] == [
        "results have no local copy until the database has them (there is no home folder): "
        "set BUDGETTUNE_SPOOL to a folder that this user may write to"
    ]


def not_allowed(path, *_, **__):
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


@pytest.mark.parametrize("place", ["a file", "below a file", "a name that is too long", "not allowed"])
def test_a_folder_that_cannot_be_made_stops_no_result(place, sqlite_url, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    names = {"a file": "file", "below a file": "file/spool", "a name that is too long": "x" * 300}
    monkeypatch.setenv("BUDGETTUNE_SPOOL", str(tmp_path / names.get(place, "spool")))
    study = make(sqlite_url)
    if place == "not allowed":  # root may do everything
        for method in ("glob", "mkdir"):
            monkeypatch.setattr(Path, method, not_allowed)
    kept = Spool()
    assert kept.deliver_all(sqlite_url) == 0
    for _ in range(2):
        assert kept.deliver(study, study.claim(), result(), 1.0, lambda seconds: False)
    assert caplog.text.count("set BUDGETTUNE_SPOOL") == 1

"""Studies in files that a user may read and not write: in every state that a worker leaves them in."""

import shutil
import sqlite3
import tempfile

import pytest
import sqlalchemy as sa

from budgettune.dashboard.live_storage import LiveStorage
from budgettune.errors import StorageError
from budgettune.storage.connection import open_engine, open_storage, reading
from budgettune.study.handle import create_study, load_study
from tests.support.permissions import read_only
from tests.support.studies import grid, result

STATES = ["closed", "open elsewhere", "worker killed", "copied without -shm"]


@pytest.fixture
def folder(request, tmp_path):
    """Return a folder with the file of a finished study, in one of the STATES; its last trial is in the -wal file."""
    state = getattr(request, "param", "closed")
    made, shown = tmp_path / "made", tmp_path / "shown"
    made.mkdir()
    study = create_study(grid(repeats=2), f"sqlite:///{made / 'study.db'}")
    numbers = iter(range(8))
    while (claim := study.claim()) is not None:
        at = next(numbers)
        seconds = 5.0 * claim.params["scale"] * (1 - claim.params["prune_rate"]) + 0.01 * at
        assert study.complete(claim, result(seconds, 0.8 + 0.01 * at))
    if state == "closed":
        study.close()
    if state == "open elsewhere":
        shown = made
    else:
        shutil.copytree(made, shown, ignore=shutil.ignore_patterns("*.lock", "*-shm" if "without" in state else ""))
    yield shown
    study.close()


def url_of(folder, options=""):
    return f"sqlite:///file:{folder / 'study.db'}?{options}uri=true" if options else f"sqlite:///{folder / 'study.db'}"


COMMANDS = [
    ("best", "--budget", "1m"),
    ("front",),
    ("recommend", "--budget", "1m"),
    ("study", "list"),
    ("study", "show"),
    ("study", "verify"),
    ("study", "export", "--format", "json"),
    ("report", "--out", "report.html"),
]


@pytest.mark.parametrize("folder", STATES, indirect=True)
@pytest.mark.parametrize("options", ["", "mode=ro&"], ids=["plain", "mode=ro"])
def test_every_answer_works_in_a_folder_without_write_permission(folder, run, options):
    before = sorted(path.name for path in folder.iterdir())
    with read_only(folder):
        for command in COMMANDS if not options else COMMANDS[5:6]:
            status, printed, complaint = run(*command, "--storage", url_of(folder, options))
            assert status == 0, (command, complaint)
            if command[-1] == "verify":
                assert printed == "8 of 8 cells × repeats have exactly one complete trial\n"
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("folder", STATES, indirect=True)
def test_the_dashboards_storage_reads_it(folder):
    with read_only(folder):
        storage = open_storage(url_of(folder), read_only=True)
        live = LiveStorage(storage)
        [study] = live.get_all_studies()
        assert len(live.get_all_trials(study._study_id)) == 8
        storage.engine.dispose()


@pytest.mark.parametrize("folder", STATES[::3], indirect=True)
@pytest.mark.parametrize("command", ["create digits --name other", "delete study --yes", "retry --cell 0"])
def test_what_would_write_it_says_what_is_missing(folder, run, command):
    with read_only(folder):
        status, printed, complaint = run("study", *command.split(), "--storage", url_of(folder))
    assert ("give this user write permission" in complaint and status == 1) or printed.startswith(
        "nothing was given up"
    )


def test_reading_a_file_of_somebody_else_leaves_nothing_that_keeps_its_owner_from_writing(folder):
    with read_only(folder, folder_too=False):
        assert load_study(url_of(folder)).verify().whole
    assert [path.name for path in folder.iterdir()] == ["study.db"]


@pytest.mark.parametrize("folder", STATES[1:2], indirect=True)
def test_a_link_in_a_read_only_folder_leads_to_what_a_worker_has_just_written(folder, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    (links / "study.db").symlink_to(folder / "study.db")
    with read_only(links):
        assert load_study(url_of(links)).verify().whole


def test_a_reader_sees_what_a_writer_of_another_mount_adds(folder):
    with read_only(folder):
        engine = open_engine(url_of(folder))
    assert names(engine) == ["study"]
    add_study(folder)  # as through a mount that may be written: nothing of it stays beside the file
    with read_only(folder):
        assert names(engine) == ["study", "another"]


def test_what_was_read_while_somebody_wrote_is_refused(folder):
    with read_only(folder):
        engine = open_engine(url_of(folder))
        refusal = pytest.raises(StorageError, match="somebody began to write it while it was read: ask again")
        with refusal, reading(engine) as connection:
            assert connection.execute(sa.text("SELECT count(*) FROM studies")).scalar() == 1
            add_study(folder)
        assert names(engine) == ["study", "another"]


@pytest.mark.parametrize("folder", STATES[3:], indirect=True)
def test_a_copy_that_was_read_is_taken_away(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with read_only(folder):
        study = load_study(url_of(folder))
        assert list(tmp_path.glob("budgettune-*"))
        study.close()
        del study
    assert not list(tmp_path.glob("budgettune-*"))


def names(engine):
    with reading(engine) as connection:
        return list(connection.execute(sa.text("SELECT study_name FROM studies ORDER BY study_id")).scalars())


def add_study(folder):
    """Write as somebody who may."""
    for path in (folder, folder / "study.db"):
        path.chmod(0o755)
    connection = sqlite3.connect(folder / "study.db")
    connection.execute("INSERT INTO studies (study_name) VALUES ('another')")
    connection.commit()
    connection.close()
    for path in (folder / "study.db", folder):
        path.chmod(0o555)

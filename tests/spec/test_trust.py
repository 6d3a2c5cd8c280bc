"""Which folders a study may name files in."""

from pathlib import Path

import pytest

from budgettune.errors import UsageError
from budgettune.spec.trust import allowed_folders, check_paths

SERVER = "postgresql://anna@db/budgettune"


def check(text, allowed):
    check_paths([("data.cache", None), ("data.root", text)], allowed)


def test_a_database_of_this_box_is_trusted_unless_folders_are_named():
    assert allowed_folders(None, "sqlite:///study.db") is None
    check("/etc", None)
    with pytest.raises(UsageError):
        check("/etc", allowed_folders(["/srv/images"], "sqlite:///study.db"))


def test_a_study_of_a_server_gets_the_working_folder_and_what_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for fine in ("data", str(tmp_path / "data"), "deep/er/../data"):
        check(fine, allowed_folders(None, SERVER))
    for outside in ("/etc", "..", "data/../../etc", "~"):
        with pytest.raises(UsageError, match=r"data\.root: .*--allow-root"):
            check(outside, allowed_folders(None, SERVER))
    check("/etc/images", allowed_folders(["/etc"], SERVER))


def test_links_are_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to("/etc")
    with pytest.raises(UsageError):
        check("data", allowed_folders(None, SERVER))


def test_a_service_that_runs_in_the_top_folder_has_opened_nothing(monkeypatch):
    monkeypatch.chdir(Path("/"))
    with pytest.raises(UsageError):
        check("etc", allowed_folders(None, SERVER))

"""Passwords of database URLs are printed nowhere, whatever they hold and however the URL is spelled."""

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgettune.errors import BudgetTuneError, StorageError
from budgettune.storage.url import parse_url, shown, storage_url
from budgettune.text import redact
from budgettune.worker.spool import storage_identity

UNREADABLE = [
    "postgresql://anna:Se@cr/et@host/db",
    "postgresql://anna:Se@cret@host/db",
    "postgresql://anna:Se@cr?et@host/db",
    "postgresql://anna:Se@cr?e=t@host/db",
    "postgresql://anna:Se@cr#et@host/db",
    "postgresql://an/na:Secret@host/db",
    "postgresql:///anna:Secret@host/db",
    "postgresql://anna:Secret",
    "postgresql://anna:Secret:host/db",
    "postgresql:anna:Secret@host/db",
    "postgresql//anna:Secret@host/db",
    "anna:Secret@host/db",
    "jdbc:postgresql://anna:Secret@host/db",
    "host=host user=anna password='Se cret'",
    "postgresql://anna:Se\ncret@host/db",
    "mysql://anna:Se@cr/et@host/db",
]


@pytest.mark.parametrize("url", UNREADABLE)
def test_nothing_of_a_url_that_cannot_be_read_is_printed(url, run, monkeypatch):
    monkeypatch.setenv("BUDGETTUNE_STORAGE", url)
    status, out, err = run("front")
    assert status == 1
    with pytest.raises(StorageError) as caught:
        parse_url(storage_url())
    assert_nothing_of_it(out + err)
    assert_nothing_of_it("".join(traceback.format_exception(caught.value)))  # what --debug shows


@pytest.mark.parametrize(
    "words", [["worker"], ["study", "list"], ["study", "create", "digits"], ["dashboard"], ["demo"]]
)
def test_no_command_prints_it(words, run, monkeypatch):
    monkeypatch.setenv("BUDGETTUNE_STORAGE", UNREADABLE[0])
    status, out, err = run(*words)
    assert status == 1
    assert_nothing_of_it(out + err)


def assert_nothing_of_it(printed):
    printed = printed.replace("postgresql://USER:PASSWORD@HOST/DATABASE", "")
    assert [piece for piece in ("Se", "cr", "et@", "host", "anna") if piece in printed] == []


def test_the_message_says_how_to_write_what_a_password_holds():
    with pytest.raises(StorageError, match=r"write .* with @ as %40, / as %2F, : as %3A, .* in user and password"):
        parse_url("postgresql://anna:p@a/ss@host/db")
    assert parse_url("postgresql://anna:p%40a%2Fss@host/my%40db").password == "p@a/ss"


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=4))
def test_no_password_of_printable_characters_is_shown(password):
    """Between marks, so that what a message says by itself is not taken for a piece of it."""
    url = f"postgresql://anna:§{password}§@host/db"
    try:
        printed = shown(parse_url(url))
    except StorageError as error:
        printed = str(error)
    assert "§" not in printed
    assert "§" not in str(BudgetTuneError(f"about {url}"))


@pytest.mark.parametrize(
    ("url", "host", "password"),
    [
        ("postgresql://anna@server:secret@server.example/db", "server.example", "secret"),  # as Azure names users
        ("postgresql://anna:p/w@host/db", "host", "p/w"),
        ("postgresql://anna:p[w@host/db", "host", "p[w"),
        ("postgresql://anna:p#w?x@host/db", "host", "p#w?x"),
        ("postgresql://anna:p w@host/db", "host", "p w"),
        ("postgresql://anna:secret@host/db?application_name=me@work", "host", "secret"),
        ("  postgresql://anna:secret@host/db ", "host", "secret"),
        ('"postgresql://anna:secret@host/db"', "host", "secret"),
    ],
)
def test_what_could_be_read_still_is_and_hides_its_password(url, host, password):
    parsed = parse_url(storage_url(url))
    assert (parsed.host, parsed.password) == (host, password)
    assert password not in shown(parsed)
    assert password not in redact(f"see {url}") or " " in password
    assert storage_identity(storage_url(url)) == storage_identity(f"postgresql://{host}/db")


def test_a_url_given_as_a_study_keeps_its_password_to_itself(run, sqlite_url):
    run("study", "create", "digits")
    status, out, err = run("front", "postgresql://anna:secret@host/db")
    assert status == 1
    assert "postgresql://anna:***@host/db" in err
    assert "secret" not in out + err


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("password='my se cret' host=h", "password=*** host=h"),
        ("postgresql://h/d?sslpassword=x&user=a", "postgresql://h/d?sslpassword=***&user=a"),
        ("postgresql://h/d?pwd=x", "postgresql://h/d?pwd=***"),
        ("passfile=/home/anna/.pgpass", "passfile=/home/anna/.pgpass"),
    ],
)
def test_passwords_by_name_are_redacted(text, redacted):
    assert redact(text) == redacted


@pytest.mark.parametrize("name", ["p@th", "a:b", "50% off", "what's #1"])
def test_files_may_be_named_as_passwords_are(name, tmp_path):
    url = f"sqlite:///{tmp_path / name.replace('%', '%25')}.db"
    assert str(tmp_path) in shown(parse_url(url))
    assert "@" not in name or "p@th" in shown(parse_url(url)) or "p%40th" in shown(parse_url(url))

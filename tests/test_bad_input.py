"""Input that is not what we expect, from people and from other programs: a clear line, never a traceback.

Everything that reads a study is tried on texts, numbers and rows that nobody in his right mind would write.
"""

import json
import math
import os
import pty
import random
import re
import shutil
import sqlite3
import string
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import budgettune as bt
from benchmarks.support import synthetic
from budgettune import api
from budgettune.cli.main import app
from budgettune.errors import BudgetTuneError, SpecError, StorageError, StudyNotFound
from budgettune.records import Claim
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.answers import best_under_budget
from budgettune.storage.connection import open_engine, open_storage, writing
from budgettune.storage.schema import study_user_attributes, trial_params, trial_user_attributes, trials
from budgettune.storage.trials import trial_records
from budgettune.study.export import export
from budgettune.study.handle import (
    StudyHandle,
    create_study,
    delete_study,
    load_study,
)
from budgettune.study.summary import list_studies, readable_studies
from budgettune.text import one_line, parse_duration, printable
from budgettune.web.app import Answers
from tests.support.wsgi import Visitor

ESCAPE = "\x1b]0;owned\x07"
"""What gives a terminal's window another title."""
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")
ANYTHING = st.text(st.characters(), max_size=40)
NASTY = [
    "\x1b[31m", ESCAPE, "\u202egnp.exe", "[red]", "[/]", "[/red]", "\\", "a\nb", "\r", "\x7f", "\0", "\ud800", "👩‍👧",
    ":smile:", "'; DROP TABLE studies; --", '"', "%s %d {0} {name}", "$(id)", "../../etc/passwd", "-h", "--help", " ",
    "x" * 10_000,
]  # fmt: skip
HUGE = int("9" * 400)


def complaint(call, *arguments, **options):
    """Return what a call gives, or the one line that it complains with."""
    try:
        return call(*arguments, **options)
    except BudgetTuneError as error:
        assert_one_line(str(error))
        return error


def study_names(url):
    return [row.name for row in readable_studies(open_engine(url))]


def assert_one_line(text):
    assert text
    assert len(text) < 5_000
    assert "\n" not in text
    assert not OBEYED.search(text), ascii(text)
    text.encode()


def run(*words, **environment):
    """Run a command in this process; return its exit status, all that it printed, and standard output alone."""
    done = CliRunner().invoke(app, [str(word) for word in words], env=environment)
    if isinstance(done.exception, BudgetTuneError):
        assert_one_line(str(done.exception))
    elif done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert not OBEYED.search(done.output.replace("\r\n", "\n")), ascii(done.output)
    return done.exit_code, done.output, done.stdout


# --- Texts ----------------------------------------------------------------------------------------------------------


@given(ANYTHING)
def test_shown_texts_hold_nothing_that_a_terminal_obeys(text):
    assert not OBEYED.search(printable(text))
    assert "\n" not in one_line(text)
    assert one_line(one_line(text)) == one_line(text)
    one_line(text).encode()


@pytest.mark.parametrize("text", ["plain", "Fränzi’s “Studie” 🚀👩‍👧", "名前　\xa0", "\\x1b [red] {}"])
def test_texts_without_control_characters_stay_as_they_are(text):
    assert one_line(text) == printable(text) == text


# --- Durations ------------------------------------------------------------------------------------------------------

PIECES = st.sampled_from([*"0159.-+ eE_\0\n٣９", "ms", "s", "m", "h", "d", "inf", "nan", "1e400"])
DURATIONS = st.one_of(
    st.lists(PIECES, max_size=6).map("".join), st.floats(), st.integers(), st.just(HUGE), st.none(), st.booleans(),
    st.lists(st.integers(), max_size=2), ANYTHING,
)  # fmt: skip


@given(DURATIONS)
@example("9" * 5_000)
@example(HUGE)
def test_a_duration_is_seconds_above_zero_or_refused(value):
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        assert "write it like" in str(error)
    else:
        assert 0 < seconds < math.inf


@given(DURATIONS)
@example(HUGE)
def test_a_budget_of_a_spec_is_a_duration_or_refused(value):
    spec = complaint(StudySpec.from_document, {"name": "a", "train": {"budget": value}})
    assert isinstance(spec, (StudySpec, SpecError))


# --- Study files and overrides --------------------------------------------------------------------------------------

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), ANYTHING,
    st.sampled_from([*NASTY, HUGE, -HUGE, 1e308, 1e-320, "grid", "tpe", "digits", "cifar10", "5s", "a.b:c"]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["low", "high", "step", "log", "x"]), inner, max_size=4)
    ),
    max_leaves=5,
)
FIELDS = [
    f"{table}.{field}"
    for table, model in StudySpec.model_fields.items()
    if hasattr(model.annotation, "model_fields")
    for field in model.annotation.model_fields
]
KEYS = ANYTHING | st.sampled_from(
    [*FIELDS, "name", "search", "data", "model.options", "search.scale", "search.train.lr"]
)


def documents():
    """Return study files that are right in most places, and anything in the others."""

    def filled(pairs):
        document = {"name": "a"}
        for key, value in pairs.items():
            table, dot, field = key.partition(".")
            if not dot:
                document[table] = value
            elif isinstance(document.setdefault(table, {}), dict):
                document[table][field] = value
        return document

    return st.dictionaries(KEYS, VALUES, max_size=4).map(filled)


@given(documents())
@settings(max_examples=300)
def test_a_study_file_is_a_spec_or_one_line_of_complaint(document):
    spec = complaint(StudySpec.from_document, document)
    if isinstance(spec, StudySpec):
        assert StudySpec.from_json(spec.to_json()) == spec
        complaint(spec.cells)
        complaint(spec.twin_note)
        complaint(spec.with_overrides, ["train.lr=0.1"])


@given(ANYTHING | st.text(string.punctuation + string.digits + "\n ae", max_size=60))
@example("a = " + "[" * 100_000)
@example("a = " + "9" * 5_000)
def test_a_toml_text_is_a_spec_or_one_line_of_complaint(text):
    assert isinstance(complaint(StudySpec.from_toml, text), (StudySpec, SpecError))


@given(ANYTHING | st.sampled_from(["{", "[" * 5_000, "9" * 5_000, "NaN", "[]", "1", '"x"', '{"name": NaN}']))
def test_a_spec_in_the_database_is_a_spec_or_one_line_of_complaint(text):
    assert isinstance(complaint(StudySpec.from_json, text), (StudySpec, SpecError))


def as_toml(value):
    return value if isinstance(value, str) else json.dumps(value)


OVERRIDES = st.lists(
    ANYTHING | st.tuples(KEYS, VALUES.map(as_toml)).map("=".join) | st.tuples(KEYS, ANYTHING).map("=".join), max_size=4
)


@given(OVERRIDES)
@settings(max_examples=300)
@example(["search=3", "train.lr=1"])
@example(["train=3", "train.epochs=1"])
@example(["model.options=3", "model.options.x=1"])
@example(["train.lr=" + "[" * 100_000])
@example(["train.epochs=" + "9" * 5_000])
def test_overrides_give_a_spec_or_one_line_of_complaint(overrides):
    assert isinstance(complaint(StudySpec(name="a").with_overrides, overrides), (StudySpec, SpecError))


def test_an_override_is_one_value_and_smuggles_in_no_other():
    assert StudySpec(name="a").with_overrides(["data.root=1\nname = 'b'"]).data.root == "1\nname = 'b'"


# --- Storage URLs ---------------------------------------------------------------------------------------------------

SCHEMES = ["sqlite", "postgresql", "postgres", "sqlite+pysqlite", "sqlite+aiosqlite", "sqlite+x", "postgresql+psycopg"]
SCHEMES += ["postgresql+asyncpg", "postgresql+pg8000", "mysql", "mongodb", "http", "", "SQLITE", "sqlite\n"]
# Nothing listens there: no test may knock at a real door.
HOSTS = ["127.0.0.1:1", "u:p@127.0.0.1:1", "127.0.0.1:99999", "127.0.0.1:x", "u@[::1]:1", "[::1", "u:%ZZ@127.0.0.1:1"]
QUERIES = [
    "uri=true", "mode=ro", "mode=memory", "uri=maybe", "timeout=soon", "foo=bar", "connect_timeout=x", "host=/nowhere",
    "sslmode=odd", "application_name=%00", "=", "&&", "options=-c x", "port=1,2", "cached_statements=many", "vfs=none",
]  # fmt: skip


def urls():
    places = [":memory:", "file:a.db", "//", ".", "/", "/dev/null", "/proc/1/mem", "~", "%00"]
    paths = ANYTHING | st.sampled_from([*NASTY, *places])
    hosts = st.just("") | st.sampled_from(HOSTS)
    queries = st.lists(st.sampled_from(QUERIES) | ANYTHING, max_size=2).map("&".join)
    return st.builds("{}://{}/{}?{}".format, st.sampled_from(SCHEMES), hosts, paths, queries) | ANYTHING


@pytest.fixture(scope="module")
def nowhere(tmp_path_factory):
    """Work in an empty folder, which stays empty."""
    folder = tmp_path_factory.mktemp("nowhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
        assert list(folder.iterdir()) == []


@given(urls())
@settings(max_examples=300)
@example("sqlite:///" + "x" * 10_000)
@example("sqlite:///a\0b")
@example("sqlite:///x.db?foo=1")
@example("postgresql://127.0.0.1:1/db?foo=bar")
@example("postgresql://127.0.0.1:1/db?connect_timeout=soon")
def test_a_url_that_leads_nowhere_is_one_line_of_complaint(nowhere, url):
    assert isinstance(complaint(open_engine, url), StorageError)


# --- A database that others wrote to, too ---------------------------------------------------------------------------

HEALTHY = {"name": "healthy", "search": {"scale": [1.0, 1.2]}}
GRID = {"name": "grid", "search": {"scale": [1.0, 1.2], "prune_rate": [0.0, 0.3]}}
SAMPLED = {
    "name": "sampled",
    "search": {"train.lr": {"low": 0.1, "high": 0.5}, "scale": [1.0, 1.2]},
    "sampler": {"name": "random", "trials": 3, "repeats": 2},
}


def work(document, url, *, complete, fail=0, running=0):
    """Create a study and bring some of its trials that far."""
    with create_study(StudySpec.from_document(document), url) as study:
        rng = random.Random(0)
        for _ in range(complete):
            study.complete(study.claim(), synthetic.result(rng))
        for _ in range(fail):
            study.fail(study.claim(), "error", "no luck")
        for _ in range(running):
            study.claim()


def theirs(url):
    """Use Optuna as others do: one objective, early stopping, attributes of their own."""

    def objective(trial):
        trial.suggest_float("lr", 1e-4, 1e-1, log=True)
        trial.suggest_int("layers", 1, 3)
        trial.set_user_attr("cell", "prison")
        trial.report(0.5, 1)
        if trial.number == 1:
            raise optuna.TrialPruned
        return trial.suggest_categorical("loss", [0.1, None])

    storage = open_storage(url)
    study = optuna.create_study(storage=storage, study_name="theirs", sampler=optuna.samplers.RandomSampler(0))
    study.optimize(objective, n_trials=4, catch=TypeError)
    storage.remove_session()
    storage.engine.dispose()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Return a database file with a healthy study, two others of ours, and one of another program."""
    file = tmp_path_factory.mktemp("pristine") / "study.db"
    url = f"sqlite:///{file}"
    work(HEALTHY, url, complete=2)
    work(GRID, url, complete=1, fail=1, running=1)
    work(SAMPLED, url, complete=2, fail=1)
    theirs(url)
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # all of it in one file, to be copied
    connection.close()
    return file


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """Return a folder for copies."""
    return tmp_path_factory.mktemp("scratch")


def healthy_answers(url):
    """Return what the healthy study says."""
    with load_study(url, "healthy") as study:
        records = trial_records(study.engine, study.study_id)
        best = best_under_budget(study.engine, study.study_id, 1e6)
        return records, best, study.verify(), study.counts(), study.is_finished()


def ask_everything(url, out):
    """Ask all that reads or mends of every study of a database but the healthy one."""
    complaint(study_names, url)
    complaint(list_studies, url)
    for name in ("grid", "sampled", "theirs"):
        study = complaint(load_study, url, name)
        if isinstance(study, StudyHandle):
            ask_study(study, out)
            study.close()
    ask_over_http(url)


def ask_over_http(url):
    """Ask the same of the HTTP API: whatever is wrong, it is no fault of ours."""

    def here(function, *given):
        return function(*given)

    answers = complaint(Answers, url, build=here, think=here)
    if isinstance(answers, Answers):
        visit = Visitor(answers)
        for path in ("/answers", "/api/answers"):
            assert visit(path).status != 500
        for name in ("grid", "sampled", "theirs"):
            assert visit(f"/answers/{name}").status != 500
            for question in ("best?budget=1h", "front", "recommend?budget=1h", "show", "standing"):
                reply = visit(f"/api/answers/{name}/{question}")
                assert reply.status != 500
                assert reply.json() is not None
        answers.engine.dispose()


def ask_study(study, out):
    """Ask all of one study that we could open; then work on it as a worker does."""
    for answer in (bt.trial_records, bt.pareto_front, api.hypervolume_of):
        complaint(answer, study)
    complaint(bt.best_under_budget, study, "1h")
    for ask in (study.counts, study.verify, study.summary, study.is_finished, study.reconcile, study.retry):
        complaint(ask)
    for form in ("csv", "json"):
        complaint(export, study.engine, study.study_id, form, out)
    json.loads(out.read_text(), parse_constant=pytest.fail)
    for _ in range(3):
        claim = complaint(study.claim)
        if not isinstance(claim, Claim):
            break
        assert claim.params.keys() == study.spec.search.keys()
        complaint(study.spec.resolve, claim.params)
        complaint(study.heartbeat, claim.trial_id)
        complaint(study.complete, claim, synthetic.result(random.Random(1)))


COLUMNS = [
    ("studies", "study_name"), ("studies", "study_name"), ("study_user_attributes", "key"),
    ("study_user_attributes", "value_json"), ("study_system_attributes", "value_json"),
    ("study_directions", "direction"), ("study_directions", "objective"),
    ("trials", "number"), ("trials", "state"), ("trials", "datetime_start"), ("trials", "datetime_complete"),
    ("trial_user_attributes", "key"), ("trial_user_attributes", "value_json"),
    ("trial_params", "param_name"), ("trial_params", "param_value"), ("trial_params", "distribution_json"),
    ("trial_values", "objective"), ("trial_values", "value"), ("trial_values", "value_type"),
    ("trial_heartbeats", "heartbeat"),
]  # fmt: skip
JSON_TEXTS = [
    "", "{", "[" * 2_000 + "]" * 2_000, "null", "NaN", "-Infinity", "true", "-1", "1e999", "9" * 400, "9" * 5_000,
    '"text"', "[]", "{}", '{"kind": [1], "message": {"a": 1}}',
    '{"kind": "\\u001b[2J", "message": "a\\nb [/red]\\ud800"}',
    '{"name": "grid"}', '{"name": "grid", "warp": 9}', '{"name": "UnknownDistribution", "attributes": {}}',
    '{"name": "CategoricalDistribution", "attributes": {"choices": null}}', '{"name": [], "attributes": []}',
    '{"name": "CategoricalDistribution", "attributes": {"choices": [{"a": [1]}, NaN, "\\u001b[31m[red]"]}}',
    '{"name": "FloatDistribution", "attributes": []}', '{"name": "IntDistribution"}',
    '{"name": "grid", "search": {"scale": [1.0]}, "sampler": {"name": "tpe", "trials": 99999}}',
]  # fmt: skip
STORED = st.one_of(
    st.none(), st.integers(-(2**62), 2**62), st.floats(), st.binary(max_size=4),
    st.sampled_from(["RUNNING", "COMPLETE", "cell", "repeat", "device_name", "scale", "2026-02-30 99:00:00"]),
    st.just("2026-02-20 09:00:00+02:00"),
    st.sampled_from([b"\xff\xfe\x00", *JSON_TEXTS]),
    st.sampled_from([text.replace("\ud800", "") for text in NASTY]), st.text(max_size=10),
)  # fmt: skip
CHANGES = st.lists(st.tuples(st.sampled_from(COLUMNS), STORED, st.integers(1, 4)), min_size=1, max_size=3)


def spoil(file, changes):
    """Write values into every so-manieth row of columns, whatever their type; SQLite keeps any value."""
    connection = sqlite3.connect(file)
    for (table, column), value, every in changes:
        if table.startswith(("trial_", "trials")):
            own = "trial_id NOT IN (SELECT trial_id FROM trials WHERE study_id = 1)"
        else:
            own = "study_id <> 1"
        where = f"{own} AND rowid % {every} = 0"
        connection.execute(f"UPDATE OR IGNORE {table} SET {column} = ? WHERE {where}", (value,))
    connection.commit()
    connection.execute("PRAGMA journal_mode = WAL")  # as `study create` leaves it
    connection.close()


@given(CHANGES)
@settings(max_examples=25)
@pytest.mark.slow
def test_whatever_others_wrote_is_answered_or_complained_of_and_other_studies_stay(pristine, scratch, changes):
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        file = Path(shutil.copy(pristine, folder))
        spoil(file, changes)
        ask_everything(f"sqlite:///{file}", scratch / "out")
        assert healthy_answers(f"sqlite:///{file}") == healthy_answers(f"sqlite:///{pristine}")


# --- The command line -----------------------------------------------------------------------------------------------

QUESTIONS = [
    *(["study", "show", "--format", form] for form in ("table", "json", "csv")),
    *(["front", "--format", form] for form in ("table", "json", "csv")),
    *(["best", "--budget", "1h", "--top", "9", "--format", form] for form in ("table", "json", "csv")),
    *(["study", "export", "--format", form] for form in ("json", "csv")),
    ["study", "verify"],
    ["study", "retry"],
]


def ask_by_command(url, *names):
    """Put every question to every study by the command line, and those about all studies."""
    for form in ("table", "json", "csv"):
        assert run("study", "list", "--format", form, BUDGETTUNE_STORAGE=url)[0] == 0
    for name in names:
        for words in QUESTIONS:
            status, printed, answer = run(*words, "--", name, BUDGETTUNE_STORAGE=url)
            assert status in (0, 1), printed
            if status == 0 and "json" in words:
                json.loads(answer, parse_constant=pytest.fail)


def test_a_study_of_any_name_is_made_asked_and_deleted_or_refused(sqlite_url):
    words = ["study", "create", "digits", "--set", "search={}", "--storage", sqlite_url]
    assert run(*words, "--name", "healthy")[0] == 0
    made = []
    for name in [*NASTY, "x" * 400, "名" * 400]:
        status, printed, _ = run(*words, "--name", name)
        assert (printed.count("\n"), status) in ((1, 0), (0, 1))
        made += [name] * (status == 0)
    assert study_names(sqlite_url) == ["healthy", *made]
    assert set(NASTY) - set(made) == {"\0", "\ud800", "x" * 10_000}
    for name in made:
        assert run("study", "verify", "--storage", sqlite_url, "--", name)[0] == 1
        assert run("study", "delete", "--yes", "--storage", sqlite_url, "--", name)[0] == 0
    assert study_names(sqlite_url) == ["healthy"]


@given(ANYTHING)
@settings(max_examples=10)
def test_a_study_of_any_name_is_made_and_found_again_or_refused(scratch, name):
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        url = f"sqlite:///{folder}/study.db"
        status, *_ = run("study", "create", "digits", "--set", "search={}", "--storage", url, "--name", name)
        assert status == 0 or not Path(folder, "study.db").exists()
        assert status == 1 or study_names(url) == [name]


def set_attributes(study, keys, choose):
    """Store a JSON text of our choice as some user attributes of every trial of a study."""
    attribute = trial_user_attributes
    with writing(study.engine) as connection:
        own = sa.select(trials.c.trial_id).where(trials.c.study_id == study.study_id)
        connection.execute(sa.delete(attribute).where(attribute.c.trial_id.in_(own), attribute.c.key.in_(keys)))
        rows = [
            {"trial_id": trial_id, "key": key, "value_json": choose()}
            for trial_id in connection.execute(own).scalars().all()
            for key in keys
        ]
        connection.execute(sa.insert(attribute), rows)


def test_no_text_of_a_database_reaches_the_terminal_raw(storage_url):
    text = f"{ESCAPE}[/red]\x9b2J\r\n\u202e\ud800"
    name = f"a{ESCAPE}[/red]\x9b2J\r\n\u202e"
    spec = StudySpec.from_document({**GRID, "name": name, "search": {"data.root": [f"{text[:-1]} x", "b"]}})
    with create_study(spec, storage_url) as study:
        rng = random.Random(0)
        study.complete(study.claim(), synthetic.result(rng))
        for _ in range(3):
            study.fail(study.claim(), text, text)
        set_attributes(study, ["device_name", "status", "failure"], lambda: json.dumps(text))
        for words in (["study", "list"], ["study", "show"], ["study", "verify"], ["front"]):
            assert "owned" in run(*words, BUDGETTUNE_STORAGE=storage_url)[1]
        ask_by_command(storage_url, name)


@given(st.integers(0, 2**32))
@settings(max_examples=4)
@pytest.mark.slow
def test_attributes_of_any_json_are_answered_or_complained_of_on_a_server(shared_postgresql_url, scratch, seed):
    rng = random.Random(seed)
    keys = ["cell", "repeat", "attempt", "device_name", "status", "failure", "curve", "machine", "epochs", "extra"]
    spec = StudySpec.from_document({**GRID, "name": f"study {uuid.uuid4()}"})
    with create_study(spec, shared_postgresql_url) as study:
        for _ in range(2):
            study.complete(study.claim(), synthetic.result(rng))
        set_attributes(study, rng.sample(keys, 5), lambda: rng.choice(JSON_TEXTS))
        ask_study(study, scratch / "out")
        ask_by_command(study.url, study.name)


def test_studies_of_other_programs_are_named_as_such_by_every_command(pristine):
    url = f"sqlite:///{pristine}"
    for words in (*QUESTIONS, ["study", "delete", "--yes"], ["train", "--trial", "0"], ["worker"]):
        done = CliRunner().invoke(app, [*words, "--storage", url, "--", "theirs"])
        assert done.exit_code == 1
        assert isinstance(done.exception, StudyNotFound)
        assert "was made by another program: name one of: healthy, grid, sampled" in str(done.exception)


@pytest.fixture
def newer(sqlite_url):
    """Return the URL of a healthy study beside one that a newer budgettune made."""
    work(HEALTHY, sqlite_url, complete=1)
    work(GRID, sqlite_url, complete=1)
    with writing(open_engine(sqlite_url)) as connection:
        newer = json.dumps({**GRID, "warp": {"factor": 9, ESCAPE: 1}})
        table = study_user_attributes
        connection.execute(sa.update(table).where(table.c.study_id == 2).values(value_json=newer))
    return sqlite_url


def test_a_study_of_a_newer_version_says_so_answers_and_leaves_others_alone(newer, caplog):
    for words in (["study", "show"], ["study", "verify"], ["study", "retry"], ["worker"], ["train", "--trial", "0"]):
        done = CliRunner().invoke(app, [*words, "--storage", newer, "grid"])
        assert "warp: unknown key" in str(done.exception)
        assert "open it with the budgettune that made it" in str(done.exception)
    status, printed, _ = run("study", "list", "--storage", newer)
    assert (status, printed.count("healthy")) == (0, 1)
    assert "open it with the budgettune that made it" in printed
    for words in (["front"], ["best", "--budget", "1h"], ["study", "export"]):
        assert run(*words, "--storage", newer, "grid")[0] == 0
    assert study_names(newer) == ["healthy"]
    assert "left out: study 'grid'" in caplog.text
    assert run("study", "delete", "grid", "--yes", "--storage", newer)[0] == 0


def test_where_no_study_can_be_read_the_reason_is_given(newer):
    delete_study(newer, "healthy")
    with pytest.raises(StorageError, match="open it with the budgettune that made it"):
        study_names(newer)


def test_a_study_that_optuna_copied_goes_by_its_new_name(sqlite_url):
    work(GRID, sqlite_url, complete=1)
    optuna.copy_study(
        from_study_name="grid", from_storage=sqlite_url, to_storage=sqlite_url, to_study_name=f"copy{ESCAPE}"
    )
    with load_study(sqlite_url, f"copy{ESCAPE}") as copy:
        assert copy.name == f"copy{ESCAPE}"
        assert copy.claim().cell == 1
    assert run("study", "show", f"copy{ESCAPE}", "--storage", sqlite_url)[0] == 0


def test_a_claim_without_its_params_is_never_run(study_of_a_grid):
    study = study_of_a_grid
    with writing(study.engine) as connection:
        connection.execute(sa.update(trial_params).where(trial_params.c.trial_id == 1).values(distribution_json="{"))
    claims = list(iter(study.claim, None))
    assert sorted(claim.cell for claim in claims) == [0, 1, 2, 3]
    assert all(claim.params == study.spec.cells()[claim.cell] for claim in claims)
    assert [claim.attempt for claim in claims if claim.cell == 0] == [2]
    [record] = trial_records(study.engine, study.study_id, states={"FAIL"})
    assert record.failure == "damaged: its params are not those that are searched"


@pytest.fixture
def study_of_a_grid(storage_url):
    with create_study(StudySpec.from_document(GRID), storage_url) as study:
        yield study


def test_numbers_of_another_program_do_not_keep_us_from_adding_trials(study_of_a_grid):
    study = study_of_a_grid
    with writing(study.engine) as connection:
        connection.execute(sa.update(trials).where(trials.c.trial_id == 4).values(number=999))
    assert study.fail(study.claim(), "error", "broken") is True
    assert sorted(claim.cell for claim in iter(study.claim, None)) == [0, 1, 2, 3]


# --- Real processes and a real terminal -----------------------------------------------------------------------------

COMMAND = [sys.executable, "-W", "error", "-m", "budgettune"]


def test_a_complaint_is_one_line_on_standard_error_and_status_1(newer, tmp_path):
    (tmp_path / "damaged.db").write_bytes(Path(newer.removeprefix("sqlite:///")).read_bytes()[:5_000] + b"?" * 9_000)
    for words in (
        ["study", "show", "grid", "--storage", newer],
        ["best", "--budget", "9s", "--storage", newer, "--", ESCAPE],
        ["front", "--storage", f"sqlite:///{tmp_path}/damaged.db"],
    ):
        done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert done.stderr.startswith("error: ")
        assert not OBEYED.search(done.stderr)


def test_a_terminal_is_not_told_what_to_do_by_a_name(sqlite_url):
    work({**GRID, "name": f"[bold]a{ESCAPE}"}, sqlite_url, complete=1)
    ours, theirs = pty.openpty()
    wide = {**os.environ, "COLUMNS": "200"}
    words = ["study", "list", "--storage", sqlite_url]
    subprocess.run([*COMMAND, *words], stdout=theirs, stderr=theirs, check=True, env=wide)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    os.close(theirs)
    assert "\x1b[" in shown  # it is a terminal, and its table is styled
    assert "\x1b]" not in shown
    assert "[bold]a\\x1b]0;owned\\x07" in shown

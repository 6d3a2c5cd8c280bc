"""What earlier versions left is read unchanged: databases, study files, spool files, comparisons, exports.

The files in fixtures/before_house were made by the commands of commit d2560ba (fixtures/before_house/make_fixtures.py),
and expected.json holds what the budgettune of that commit answered about them.
"""

import copy
import json
import re
import tomllib

import pytest

import budgettune as bt

# All that is not public: what reads a file of `budgettune compare --out`, and what reads one of the spool.
from budgettune.comparison.result import read_comparison
from budgettune.worker.spool import Spooled
from tests.fixtures.before_house import answers
from tests.fixtures.before_house.answers import HERE, SPECS, SPOOLED_NUMBER, SPOOLED_STUDY, STUDIES, House

EXPECTED = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
EXACT, CLOSE = 1e-9, 1e-5  # relative; the latter where models are fitted


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """Return a copy of the fixtures that is only read."""
    return House(tmp_path_factory.mktemp("house"))


@pytest.fixture
def fresh(tmp_path):
    """Return a copy of the fixtures that may be changed."""
    return House(tmp_path)


def assert_same(found, expected, rel=EXACT, path="answer"):
    """Compare JSON values to the last key; floats may differ by what another processor rounds differently."""
    if isinstance(expected, dict) and isinstance(found, dict):
        assert [key for key in found if key in expected] == list(expected), path  # an answer may say more than it did
        for key, value in expected.items():
            assert_same(found[key], value, rel, f"{path}.{key}")
    elif isinstance(expected, list) and isinstance(found, list):
        assert len(found) == len(expected), path
        for index, value in enumerate(expected):
            assert_same(found[index], value, rel, f"{path}[{index}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=rel, abs=1e-12), path
    else:
        assert found == expected and type(found) is type(expected), path


# --- Study files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_study_files_say_what_they_said(house, name):
    assert answers.spec_answers(house, name) == EXPECTED["specs"][name]


@pytest.mark.parametrize("name", SPECS)
def test_specs_of_a_database_are_read(name):
    document = EXPECTED["specs"][name]["document"]
    spec = bt.StudySpec.from_json(json.dumps(document))
    assert spec.to_document() == document
    assert json.loads(spec.to_json()) == document


@pytest.mark.parametrize("name", answers.CREATED)
def test_a_new_study_has_the_rows_that_it_had(fresh, name):
    found, expected = answers.created_rows(fresh, name), EXPECTED["created"][name]
    assert list(found) == list(expected)
    for table, rows in expected.items():
        assert list(map(meaning, found[table])) == list(map(meaning, rows)), table


def meaning(row):
    """Return a row; of a study file, in JSON or on the study's page in the dashboard, what its text means."""
    if row[0] == "budgettune:spec":
        return [row[0], as_it_was_decided(json.loads(row[1]))]
    if not str(row[0]).startswith("dashboard:note_str"):
        return row
    before, toml, after = re.split("```(?:toml)?", json.loads(row[1]))
    return [row[0], before, as_it_was_decided(tomllib.loads(toml)), after]


def as_it_was_decided(document):
    """Return a study file without what evidence decided: since then nothing but full, where no rate was tuned."""
    pruning = document["pruning"]
    if "decided" in pruning:
        pruning |= {"strategy": "decided", "prune_rate": "decided", "decided": "decided"}
    return document


def test_evidence_of_untuned_rates_decides_full_since_then(fresh):
    [now], [before] = (
        [json.loads(row[1])["pruning"] for row in rows["study_user_attributes"] if row[0] == "budgettune:spec"]
        for rows in (answers.created_rows(fresh, "auto"), EXPECTED["created"]["auto"])
    )
    assert before["evidence"] == now["evidence"] == "comparison.json"
    assert (before["strategy"], now["strategy"]) == ("stale-quantile", "full")
    assert "the learning rate was tuned for none" in now["decided"]


# --- Databases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("study", STUDIES)
def test_records_are_read_unchanged(house, study):
    assert_same(house.records(study), EXPECTED["records"][study])


def test_the_database_holds_a_trial_of_every_kind():
    records = [record for study in STUDIES for record in EXPECTED["records"][study]]
    assert {record["state"] for record in records} == {"COMPLETE", "RUNNING", "WAITING", "FAIL", "PRUNED"}
    assert {record["status"] for record in records} == {"clean", "disturbed", "unverified", None}
    assert any(record["stopped"] for record in records)
    assert any(record["attempt"] == 2 for record in records)
    assert EXPECTED["recommendation"]["basis"]["probe_seconds"] > 0


@pytest.mark.parametrize("study", STUDIES)
def test_studies_answer_as_they_did(house, study):
    assert_same(answers.study_answers(house, study), EXPECTED["studies"][study])


def test_studies_are_listed_as_they_were(house):
    assert_same(json.loads(house.command("study", "list", "--format", "json")), EXPECTED["list"])


@pytest.mark.parametrize("study", STUDIES)
def test_commands_print_what_they_printed(house, study):
    assert_same(answers.command_answers(house, study), EXPECTED["commands"][study], CLOSE)


def test_trials_and_a_kept_probe_recommend_what_they_did(house):
    assert_same(answers.recommendation(house), EXPECTED["recommendation"], CLOSE)


@pytest.mark.parametrize("study", list(EXPECTED["report"]))
def test_reports_hold_what_they_held(house, study):
    found = answers.report_data(house, study)
    for view in found["views"].values():
        for answer in view["answers"]:  # read by the page's own script alone
            assert answer.pop("text") == f"{answer['value']:.2%}"
        view["answers"] = [
            {"accuracy" if key == "value" else key: answer[key] for key in answer} for answer in view["answers"]
        ]
    assert_same(found, EXPECTED["report"][study])


# --- Exports --------------------------------------------------------------------------------------------------------


def test_exports_are_written_as_they_were(house):
    assert answers.export(house, "search", "csv") == EXPECTED["csv"]
    exported = json.loads(answers.export(house, answers.EXPORTED, "json"))
    assert_same(exported, json.loads((HERE / "export.json").read_text(encoding="utf-8")))


def test_exported_records_are_read():
    documents = json.loads((HERE / "export.json").read_text(encoding="utf-8"))
    records = [bt.TrialRecord.from_json(document) for document in documents]
    assert_same(answers.plain([record.to_json() for record in records]), documents)
    assert documents == EXPECTED["records"][answers.EXPORTED]


# --- Work goes on ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("study", STUDIES)
def test_claims_continue_where_they_stopped(fresh, study):
    found, expected = answers.claims(fresh, study), copy.deepcopy(EXPECTED["claims"][study])
    if study == "cost":  # which draws other points since then; the first was drawn before
        for claim in [*found["first"][1:], *expected["first"][1:]]:
            assert claim.pop("params").keys() == {"scale", "train.lr"}
    assert_same(found, expected)


def test_what_was_given_up_can_be_tried_again(fresh):
    assert answers.plain(answers.retried(fresh)) == EXPECTED["retried"]


# --- The spool ------------------------------------------------------------------------------------------------------


def spool_file():
    """Return the one file of the old spool."""
    [path] = (HERE / "spool").iterdir()
    return path


def test_spool_files_are_read_and_say_no_less_when_written():
    text = spool_file().read_text(encoding="utf-8")
    spooled, document = Spooled.from_json(text), json.loads(text)
    assert_same(json.loads(spooled.to_json()), document)
    assert spooled.claim.number == SPOOLED_NUMBER
    assert spooled.study == SPOOLED_STUDY
    result = bt.TrialResult.from_json(document["result"])
    assert result == spooled.result
    assert_same(answers.plain(result.to_json()), document["result"])
    assert spool_file().name == f"{spooled.storage}-{spooled.study_id}-{spooled.claim.trial_id}.json"


@pytest.mark.parametrize(("key", "late"), [("delivered", False), ("delivered_late", True)])
@pytest.mark.slow
def test_a_worker_delivers_an_old_spool_file(fresh, key, late):
    assert_same(answers.plain(answers.delivery(fresh, late=late)), EXPECTED[key])
    assert list(fresh.spool.glob("*.json")) == []


# --- Comparisons ----------------------------------------------------------------------------------------------------


def test_comparisons_are_read_and_stand_as_they_did():
    path = HERE / "comparison.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    comparison = read_comparison(path)
    assert list(comparison.budgets) == [0.2, 0.4]
    assert any(run["failure"] for run in document["runs"] if "failure" in run)
    renewed = answers.plain(comparison.to_document())
    for key in ("spec", "machine", "shuffle_labels"):
        assert_same(renewed[key], document[key])
    for now, before in zip(renewed["runs"], document["runs"], strict=True):
        assert (now.pop("lr"), now.pop("purpose")) == (0.01, "scored")
        if "measured" in now:
            now["measured"]["test_accuracy"] = now["measured"].pop("accuracy")
        assert now == before
    for now, before in zip(renewed["standings"], document["standings"], strict=True):  # which are computed anew
        assert now["lr_is"] == "untuned"
        for key in ("budget_seconds", "strategy", "prune_rate", "runs", "failed", "overhead", "epochs"):
            assert now.get(key) == before.get(key)
        if before.get("accuracy") is not None:
            assert now["accuracy"] == pytest.approx(before["accuracy"], abs=0.02)
    assert renewed["judged_on"] == {"scored": {"images": "test"}}


@pytest.mark.slow
def test_comparisons_are_resumed(fresh):
    """Nothing but the kind of machine may keep a comparison from being resumed; on its own, its failed runs run."""
    path = fresh.folder / "comparison.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    words = ["--budget", "0.2s", "--budget", "0.4s", "--prune-rate", 0.3, "--prune-rate", 0.9, "--seeds", 3]
    words += ["--full-seeds", 3, "--lr", 0.01]
    words += ["--strategies", "stale-quantile", "--out", path, "--resume", "--device", "cpu", "--threads", 1]
    done = fresh.run("compare", "grid.toml", *words)
    if done.returncode:
        assert re.search(r"what differs: the machine \([^()]*(\([^()]*\)[^()]*)* there, .* here\): ", done.stderr)
        return
    assert "6 runs to do, 24 of 30 done before" in done.stderr
    after = json.loads(path.read_text(encoding="utf-8"))

    def outcomes(runs):  # a run that failed then fails now, be it in other words
        same = ("strategy", "prune_rate", "budget_seconds", "seed", "tries")
        return sorted(str([*(run[key] for key in same), "failure" in run]) for run in runs)

    assert outcomes(after["runs"]) == outcomes(before["runs"])

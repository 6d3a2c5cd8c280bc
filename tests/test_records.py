"""Records as JSON, and notes that other programs changed."""

import json
import math

import pytest

from budgettune.records import EpochRecord, PhaseSeconds, StoppingNote, TrialResult, trial_attributes
from budgettune.storage.trials import DOCUMENTS
from budgettune.study.handle import create_study
from tests.support.studies import grid, machine, records, result

NOTE = StoppingNote(
    stopped=True, epoch=3, train_seconds=20.0, expected_seconds=80.0, expected_accuracy=0.6, rival=7, reason="beaten"
)


def test_a_note_comes_back_as_it_was_kept():
    assert StoppingNote.read(json.loads(json.dumps(NOTE.to_json()))) == NOTE


def test_facts_of_a_note_that_are_not_as_we_write_them_are_left_out():
    strange = {"epoch": "three", "expected_accuracy": math.nan, "rival": True, "reason": ["beaten"], "wrong": 1, "x": 2}
    read = StoppingNote.read(NOTE.to_json() | strange)
    assert read == StoppingNote(stopped=True, train_seconds=20.0, expected_seconds=80.0)


@pytest.mark.parametrize(
    "note", [None, "stopped", {}, {"stopped": 1}, {"stopped": True, "train_seconds": 1.0, "expected_seconds": math.inf}]
)
def test_what_says_not_whether_a_trial_was_stopped_and_when_is_no_note(note):
    assert StoppingNote.read(note) is None


@pytest.mark.parametrize("stopping", [None, NOTE])
def test_a_result_comes_back_from_json_that_has_a_note_or_an_empty_one(stopping):
    document = json.loads(json.dumps(result().to_json() | {"stopping": stopping.to_json() if stopping else {}}))
    assert TrialResult.from_json(document).stopping == stopping


def test_a_result_comes_back_from_before_there_were_notes():
    document = result().to_json()
    del document["stopping"]
    assert TrialResult.from_json(document).stopping is None


@pytest.mark.parametrize("change", [{"colour": "red"}, {"machine": {"hostname": "box"}}, {"steps": "many"}])
def test_what_is_no_result_of_this_version_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        TrialResult.from_json(result().to_json() | change)


def own_result(**more):
    """Return what code of one's own gives that says no more than it must."""
    facts = {
        "epochs": 1,
        "seed": 0,
        "machine": machine(),
        "phases": PhaseSeconds(step=1.0),
        "curve": (EpochRecord(epoch=0, train_seconds=1.0, value=-2.5),),
    }
    return TrialResult(train_seconds=1.0, value=-2.5, **facts | more)


def test_documents_keep_their_names_for_the_value():
    document = result(test_accuracy=0.75).to_json()
    assert (document["test_accuracy"], document["curve"][0]["accuracy"]) == (0.75, 0.8)
    assert "value" not in {*document, *document["curve"][0]}
    read = TrialResult.from_json(document)
    assert (read.value, read.test_accuracy, read.curve[0].accuracy) == (0.75, 0.75, 0.8)


def test_what_is_newer_is_not_written_where_it_says_nothing():
    document = result().to_json()
    assert not {"measures", "asides"} & {*document, *document["curve"][0], *document["phases"]}
    said = own_result(measures={"memory": 3.0}, phases=PhaseSeconds(step=1.0, asides={"read": 0.5})).to_json()
    assert (said["measures"], said["phases"]["asides"]) == ({"memory": 3.0}, {"read": 0.5})


def test_what_own_code_does_not_say_is_absent_and_not_zero(sqlite_url):
    assert own_result().to_json()["curve"] == [{"epoch": 0, "train_seconds": 1.0, "accuracy": -2.5}]
    absent = {"keep_fraction", "steps", "parameters", "step_ms_median", "peak_memory_mb", "prune_seconds", "measures"}
    kept = trial_attributes(own_result())
    assert not (absent | {"weights_sha256", "precision", "samples", "final_lr"}) & {*kept, *kept["details"]}
    with create_study(grid(), sqlite_url) as study:
        claim = study.claim()
        study.complete(claim, own_result(measures={"memory": 3.0}))
        record = records(study)[claim.number]
    assert record.value == record.test_accuracy == -2.5
    assert record.measures == {"memory": 3.0}
    assert record.curve == own_result().curve
    assert all(getattr(record, name) is None for name in absent - {"measures"})


def test_an_own_result_comes_back_from_json():
    curve = (EpochRecord(epoch=0, train_seconds=1.0, steps=2, loss=3.0, value=-2.5, measures={"memory": 1.0}),)
    for each in (own_result(), own_result(curve=curve, measures={"memory": 1.0})):
        assert TrialResult.from_json(json.loads(json.dumps(each.to_json()))) == each
        assert DOCUMENTS["curve"].validate_json(json.dumps(each.to_json()["curve"])) == each.curve

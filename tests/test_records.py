"""Records as JSON, and notes that other programs changed."""

import json
import math

import pytest

from budgettune.records import StoppingNote, TrialResult
from tests.support.studies import result

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

"""`[sampler] worth`: a search that ends once no trial is expected to be worth its seconds."""

import json
import math
import subprocess
import sys
from contextlib import ExitStack

import pytest

from budgettune.errors import SpecError
from budgettune.predict.sampler.cost_sampler import WARY_TRIALS
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.connection import reading
from budgettune.storage.studies import Prospect, keep_prospect, search_prospect
from budgettune.study.handle import create_study, load_study
from budgettune.study.summary import list_studies
from tests.support.processes import command
from tests.support.studies import let_lease_run_out, records, result, sampled

SEARCH = {"scale": [0.5, 0.75, 1.0, 1.25], "train.lr": {"low": 1e-4, "high": 1e-1, "log": True}}


def outcome(params):
    """Return a made result: dearer the wider, best at one rate."""
    away = math.log10(params["train.lr"]) + 2.5
    return result(10.0 * params["scale"] ** 2, 0.9 - 0.1 / params["scale"] - 0.02 * away**2)


def prospect_of(study):
    with reading(study.engine) as connection:
        return search_prospect(connection, study.study_id, study.spec)


def work_off(study, most=40):
    """Work until nothing is left, and return what was expected of each next trial before it began."""
    prospects = []
    while (claim := study.claim(lease_seconds=60.0)) is not None:
        prospects.append(prospect_of(study))
        assert study.complete(claim, outcome(claim.params))
        assert len(prospects) <= most
    return prospects


@pytest.fixture
def new(storage_url):
    """Return what makes a study, or opens one by its name."""
    with ExitStack() as handles:

        def make(spec):
            handle = load_study(storage_url, spec) if isinstance(spec, str) else create_study(spec, storage_url)
            return handles.enter_context(handle)

        yield make


@pytest.fixture
def study(new):
    return new(sampled("cost", SEARCH, worth="5s"))


def test_a_search_ends_once_no_trial_is_worth_its_seconds(study):
    before = work_off(study)
    assert WARY_TRIALS <= len(before) < 40
    assert before[:WARY_TRIALS] == [None] * WARY_TRIALS
    assert all(each.is_worth_it(5.0) and not each.has_ended for each in before[WARY_TRIALS:])
    last = prospect_of(study)
    assert last.has_ended
    assert not last.is_worth_it(5.0)
    assert study.is_finished()
    assert study.verify().whole
    (summary,) = list_studies(study.url)
    assert (summary.seconds_left, summary.prospect) == (0.0, last)


@pytest.mark.slow
def test_a_higher_price_searches_on(new, study):
    dear = new(sampled("cost", SEARCH, name="dear", worth="500s", trials=25))
    assert len(work_off(study)) < len(work_off(dear))


def test_what_runs_is_waited_for_before_the_search_ends(new, study):
    claims = []
    while (claim := study.claim(lease_seconds=60.0)) is not None:
        claims.append(claim)
        for done in claims[:-1]:  # one runs at any time
            study.complete(done, outcome(done.params))
        del claims[:-1]
    assert prospect_of(study) is not None
    assert not prospect_of(study).has_ended
    assert not study.is_finished()
    other = new(study.name)
    assert other.claim(lease_seconds=60.0) is None
    study.complete(claims[0], outcome(claims[0].params))
    work_off(other)
    assert prospect_of(study).has_ended
    assert study.is_finished()
    assert study.claim() is None


def test_an_end_stands_whoever_looked_at_the_same_time_and_after_a_restart(new, study):
    work_off(study)
    count, last = len(records(study)), prospect_of(study)
    keep_prospect(study.engine, study.study_id, Prospect(gain=9.0, seconds=1.0, has_ended=False))
    assert prospect_of(study) == last
    again = new(study.name)
    assert again.claim(lease_seconds=60.0) is None
    assert again.is_finished()
    assert again.reconcile().queued == 0
    assert len(records(study)) == count


def test_a_lost_trial_is_not_tried_again_after_the_end(study):
    assert study.claim() is not None
    keep_prospect(study.engine, study.study_id, Prospect(gain=0.1, seconds=9.0, has_ended=True))
    let_lease_run_out(study)
    assert study.reconcile().queued == 0
    assert study.is_finished()
    assert study.verify().whole


@pytest.mark.slow
def test_real_workers_side_by_side_agree_on_the_end_and_people_see_it(new, storage_url, tmp_path):
    document = {
        "name": "walk",
        "train": {"loop": "tests.support.own_training:train"},
        "params": {"x": 1.0, "step_seconds": 0.001},
        "search": {"train.epochs": [1, 2, 3, 4, 5, 6, 7, 8], "params.step_seconds": [0.001, 0.002, 0.004]},
        "objective": {"name": "distance", "direction": "minimize"},
        "sampler": {"name": "cost", "worth": "1s"},
    }
    study = new(StudySpec.from_document(document))
    spool = {"BUDGETTUNE_SPOOL": str(tmp_path / "spool")}

    def work():
        return command(storage_url, "walk", "--allow-import", "tests", "--device", "cpu", **spool)

    def end_well(*workers):
        for worker in workers:
            errors = worker.communicate(timeout=120)[1]
            assert worker.returncode == 0, errors

    end_well(work(), work())
    trials = records(study)
    assert {record.state for record in trials} == {"COMPLETE"}
    assert WARY_TRIALS <= len(trials) < 24
    end_well(work())
    assert len(records(study)) == len(trials)

    def shown(*words):
        show = [sys.executable, "-m", "budgettune", "study", "show", "walk", "--storage", storage_url, *words]
        return subprocess.run(show, capture_output=True, text=True, check=True).stdout

    assert "the search has ended: the next trial was expected to gain" in shown()
    search = json.loads(shown("--format", "json"))["search"]
    assert (search["worth_seconds"], search["has_ended"]) == (1.0, True)
    assert search["gain"] * 1.0 <= search["seconds"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "tpe", "worth": "60s"}, "sampler: worth works with name = 'cost' only"),
        ({"sampler": "cost", "worth": "much"}, r"sampler\.worth: .*is not a duration"),
        ({"sampler": "cost", "worth": 0}, r"sampler\.worth: .*above zero"),
    ],
)
def test_prices_that_nobody_keeps_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        sampled(**options)

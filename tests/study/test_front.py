"""How sure a front is, and `repeats = "auto"`: seeds go to the cells whose place on the front is in doubt."""

import json
import math

import numpy as np
import pytest

from budgettune import api
from budgettune.cli.answers import best, front
from budgettune.cli.output import Format
from budgettune.comparison.significance import estimate
from budgettune.errors import SpecError
from budgettune.spec.study_spec import StudySpec
from budgettune.study.front import (
    CellMean,
    EstimatedDeviation,
    FrontNoise,
    accuracy_interval,
    cell_means,
    cells_to_repeat,
    certainty_of,
    estimate_front_chances,
    seed_noise,
)
from budgettune.study.handle import create_study
from budgettune.text import parse_duration
from tests.support.studies import grid, records, result, sampled, work_off

CELLS = {"batch_size": [16, 32, 64, 128]}


def mean(seconds, accuracy, count=1):
    return CellMean(count=count, log_seconds=math.log(seconds), accuracy=accuracy)


def front_chances(cells, deviation=0.01, freedom=200.0):
    spread = EstimatedDeviation(deviation=deviation, freedom=freedom)
    noise = FrontNoise(log_seconds=spread, accuracy=dict.fromkeys(cells, spread))
    return {cell: chance.chance for cell, chance in estimate_front_chances(cells, noise).items()}


# --- Chances --------------------------------------------------------------------------------------------------------


def test_noise_is_pooled_over_the_cells_that_have_repeats():
    results = {0: [(10.0, 0.70), (10.0, 0.72)], 1: [(20.0, 0.80), (20.0, 0.83), (20.0, 0.77)], 2: [(5.0, 0.1)]}
    noise = seed_noise(results)
    pooled = math.sqrt((2 * 0.01**2 + 2 * 0.03**2) / 3)
    assert noise.log_seconds.freedom == 3
    assert noise.accuracy[2].deviation == pytest.approx(pooled, rel=0.1)  # nothing is as accurate: all lend it theirs
    assert noise.accuracy[0].deviation < pooled < noise.accuracy[1].deviation
    assert all(spread.freedom <= 3 for spread in noise.accuracy.values())
    assert seed_noise({0: [(10.0, 0.7)], 1: [(20.0, 0.8)]}) is None


def test_the_interval_of_a_single_cell_is_that_of_students_t():
    accuracies = [0.70, 0.72, 0.75]
    results = {0: [(10.0, each) for each in accuracies]}
    expected = estimate(accuracies)
    assert accuracy_interval(cell_means(results)[0], seed_noise(results).accuracy[0]) == pytest.approx(
        (expected.low, expected.high)
    )


def test_a_slower_cell_of_equal_accuracy_is_on_the_front_half_of_the_time():
    chances = front_chances({0: mean(10.0, 0.8), 1: mean(20.0, 0.8)})
    assert chances[0] == 1.0
    assert chances[1] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("lead", "count"), [(0.005, 1), (0.01, 1), (0.01, 4), (-0.01, 2)])
def test_chances_are_those_of_a_normal_difference(lead, count):
    chances = front_chances({0: mean(10.0, 0.8, count), 1: mean(20.0, 0.8 + lead, count)})
    deviation = 0.01 * math.sqrt(2 / count)
    assert chances[1] == pytest.approx(0.5 * (1 + math.erf(lead / deviation / math.sqrt(2))), abs=0.04)


def test_noise_known_from_few_repeats_leaves_more_doubt():
    cells = {0: mean(10.0, 0.8), 1: mean(20.0, 0.84)}
    assert front_chances(cells, freedom=1.0)[1] < front_chances(cells)[1] - 0.03


def test_equal_studies_get_equal_chances_and_members_agree_with_brute_force():
    rng = np.random.default_rng(0)
    cells = {cell: mean(*values) for cell, values in enumerate(rng.uniform((5, 0.5), (50, 0.9), (30, 2)))}
    expected = {
        cell: float(not any(o.log_seconds < own.log_seconds and o.accuracy > own.accuracy for o in cells.values()))
        for cell, own in cells.items()
    }
    assert front_chances(cells, 1e-9, 1_000.0) == expected
    assert front_chances(cells) == front_chances(cells)
    assert front_chances({}) == {}


def test_what_is_at_stake_is_the_mean_of_a_normal_beyond_zero():
    spread = EstimatedDeviation(deviation=0.01, freedom=1e6)
    cells = {0: mean(10.0, 0.8), 1: mean(20.0, 0.81)}
    chance = estimate_front_chances(cells, FrontNoise(log_seconds=spread, accuracy=dict.fromkeys(cells, spread)))[1]
    deviation, z = 0.01 * math.sqrt(2), math.sqrt(0.5)
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    below = 0.5 * (1 + math.erf(-z / math.sqrt(2)))
    assert chance.loss == pytest.approx(deviation * (density - z * below), rel=0.1)
    assert chance.gain - chance.loss == pytest.approx(0.01, rel=0.1)


def test_noise_is_larger_where_networks_have_learnt_less():
    rng = np.random.default_rng(1)
    levels = np.linspace(0.5, 0.9, 40)
    results = {
        cell: [(10.0, float(level + rng.normal(0, 0.1 * (0.95 - level)))) for _ in range(3)]
        for cell, level in enumerate(levels)
    }
    noise = seed_noise(results)
    assert noise.accuracy[0].deviation > 2 * noise.accuracy[39].deviation
    many = {cell: results[cell % 40] for cell in range(5_000)}  # and the cost does not grow with their square
    assert seed_noise(many).accuracy[0].deviation == pytest.approx(noise.accuracy[0].deviation, rel=0.1)


def test_cells_that_are_equal_for_good_are_left_alone():
    equal = {cell: [(10.0 * 1.2**cell, 0.8 + 0.0005 * (-1) ** repeat) for repeat in range(4)] for cell in range(5)}
    assert cells_to_repeat(equal, 100) == []


def test_without_any_repeat_the_observed_front_is_repeated_first():
    results = {7: [(10.0, 0.8)], 3: [(20.0, 0.9)], 5: [(30.0, 0.85)]}
    assert certainty_of(results) is None
    assert sorted(cells_to_repeat(results, 5)) == [3, 7]


def test_only_doubtful_cells_are_repeated_the_most_doubtful_first_and_not_for_ever():
    results = {
        0: [(10.0, 0.80), (10.0, 0.81), (10.0, 0.79)],
        1: [(20.0, 0.801), (20.0, 0.799)],  # as good as 0, and slower
        2: [(30.0, 0.95), (30.0, 0.96), (30.0, 0.955)],  # surely the best
        3: [(40.0, 0.60)],  # surely not
        4: [(50.0, 0.961)],
    }
    assert cells_to_repeat(results, 5) == [1, 4] or cells_to_repeat(results, 5) == [4, 1]
    assert cells_to_repeat(results, 2) == [4]
    assert cells_to_repeat({cell: values for cell, values in results.items() if cell in (2, 3)}, 5) == []


# --- repeats = "auto" -----------------------------------------------------------------------------------------------


def auto(storage_url, **sampler):
    return create_study(grid(search=CELLS, repeats="auto", **sampler), storage_url)


OUTCOMES = {0: (10.0, 0.80), 1: (20.0, 0.82), 2: (30.0, 0.95), 3: (40.0, 0.60)}


def work(study, noise=0.01):
    """Complete every open trial, cell by cell as in OUTCOMES, its accuracy noisy by its seed."""
    while not study.is_finished():
        while (claim := study.claim()) is not None:
            seconds, accuracy = OUTCOMES[claim.cell]
            error = noise * math.sin(claim.seed)
            study.complete(claim, result(seconds, accuracy + error))
        study.reconcile()


def repeats_of(study):
    found = [(record.cell, record.repeat) for record in records(study) if record.state == "COMPLETE"]
    assert len(found) == len(set(found))
    return {cell: sum(each == cell for each, _ in found) for cell in range(4)}


def test_seeds_go_to_the_cells_whose_membership_is_uncertain(storage_url):
    with auto(storage_url) as study:
        assert study.counts()["WAITING"] == 4
        work(study)
        counts = repeats_of(study)
        assert counts[3] == 1
        assert counts[1] > 1
        assert max(counts.values()) <= 5
        assert study.verify().whole
        assert study.summary().cells == sum(counts.values())
        assert study.reconcile().queued == 0
        seeds = [record.seed for record in records(study)]
        assert len(seeds) == len(set(seeds))


def test_a_study_is_not_finished_while_its_front_is_in_doubt(sqlite_url):
    with auto(sqlite_url) as study:
        for _ in range(4):
            claim = study.claim()
            study.complete(claim, result(*OUTCOMES[claim.cell]))
        assert study.claim() is None
        assert not study.is_finished()
        assert len(study.verify().missing) == 3  # a second repeat of the observed front
        assert study.reconcile().queued == 3
        assert study.reconcile().queued == 0
        assert {claim.cell for claim in iter(study.claim, None)} == {0, 1, 2}


def test_a_settled_front_gets_no_more_than_it_takes_to_know_the_noise(sqlite_url):
    with auto(sqlite_url) as study:
        work(study, noise=1e-6)
        assert repeats_of(study)[2] == 2


def test_cells_that_were_given_up_get_no_further_seeds(sqlite_url):
    with auto(sqlite_url, max_attempts=1) as study:
        claims = {claim.cell: claim for claim in iter(study.claim, None)}
        study.fail(claims.pop(2), "error", "broken")
        for cell, claim in claims.items():
            study.complete(claim, result(*OUTCOMES[cell]))
        work(study)
        assert repeats_of(study)[2] == 0
        assert [given.cell for given in study.verify().given_up] == [2]


def test_points_of_a_sampler_get_their_seeds_once_all_have_run(sqlite_url):
    spec = sampled("random", trials=4, repeats="auto")
    with create_study(spec, sqlite_url) as study:
        work(study)
        counts = repeats_of(study)
        assert counts[3] == 1
        assert counts[1] > 1
        assert study.verify().whole
        params = {(record.cell, tuple(sorted(record.params.items()))) for record in records(study)}
        assert len(params) == 4


def test_a_total_ends_the_repeats_too(sqlite_url):
    spec = sampled("random", trials=4, repeats="auto", total="105s")
    with create_study(spec, sqlite_url) as study:
        work(study)
        assert sum(record.train_seconds or 0.0 for record in records(study)) < 105 + parse_duration("40s")
        assert study.verify().whole


@pytest.mark.parametrize("repeats", [0, -1, True, 1.5, "often"])
def test_numbers_of_repeats_that_cannot_be_are_refused(repeats):
    with pytest.raises(SpecError, match=r"sampler\.repeats: .* must be a whole number from 1, or \"auto\""):
        grid(repeats=repeats)


def test_an_endless_search_is_told_that_its_repeats_would_never_begin():
    with pytest.raises(SpecError, match="say how many with trials"):
        sampled("random", repeats="auto")


def test_a_spec_with_automatic_repeats_survives_the_database():
    spec = grid(repeats="auto")
    assert StudySpec.from_json(spec.to_json()) == spec


# --- Answers --------------------------------------------------------------------------------------------------------


def test_answers_tell_how_sure_they_are(sqlite_url, capsys):
    with create_study(grid(search=CELLS, repeats=3), sqlite_url) as study:
        work(study)
        sure = api.certainty(study)
        assert sure.front_chances[2] > 0.99
        assert sure.front_chances[3] < 0.01
        front(study.name, storage=sqlite_url)
        assert "on front" in capsys.readouterr().out
        front(study.name, storage=sqlite_url, form=Format.json)
        assert json.loads(capsys.readouterr().out)["front"][-1]["front_chance"] == sure.front_chances[2]
        best(study.name, budget=60.0, storage=sqlite_url, form=Format.json)
        (answer,) = json.loads(capsys.readouterr().out)
        assert answer["accuracy_low"] < 0.95 < answer["accuracy_high"]
        best(study.name, budget=60.0, storage=sqlite_url)
        assert "over seeds (95%)" in capsys.readouterr().out


def test_without_repeats_answers_claim_nothing(sqlite_url, capsys):
    with create_study(grid(search=CELLS), sqlite_url) as study:
        work_off(study)
        assert api.certainty(study) is None
        front(study.name, storage=sqlite_url)
        assert "on front" not in capsys.readouterr().out
        best(study.name, budget=60.0, storage=sqlite_url, form=Format.json)
        assert json.loads(capsys.readouterr().out)[0]["accuracy_low"] is None

"""What a prune rate means: visits over the run, whatever the strategy; and what is refused because it cannot be had."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budgettune.errors import SpecError
from budgettune.spec.pruning import (
    STRATEGIES,
    PruningSpec,
    batch_count,
    batch_sizes,
    drop_share,
    epoch_sizes,
    largest_drop,
    rate_limit,
)
from budgettune.spec.study_spec import StudySpec, load_spec
from tests.support.simulation import expected_visits

OWN_MEANING = ("full", "paper-as-coded")
PARTS = (1, 0.8, 0.6, 0.4, 0.25)  # of the largest drop that epochs of any strategy make
names = pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in OWN_MEANING])


@names
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("epochs", [8, 30, 200])
def test_visits_add_up_to_what_is_kept(name, rate, epochs):
    spec = PruningSpec(strategy=name, prune_rate=rate)
    if rate >= rate_limit(spec, epochs):
        assert name == "infobatch"
        return
    visits = expected_visits(spec, 10_000, epochs)
    assert sum(visits) / (10_000 * epochs) == pytest.approx(1 - rate, abs=1e-4)
    assert set(visits) <= set(epoch_sizes(spec, 10_000, epochs))


@names
@settings(max_examples=20)
@given(rate=st.floats(0.01, 0.99), epochs=st.integers(1, 40), refresh=st.integers(1, 7), delta=st.floats(0.1, 1))
def test_a_rate_is_reached_or_refused_with_what_can_be(name, rate, epochs, refresh, delta):
    spec = PruningSpec(strategy=name, prune_rate=rate, refresh_every=refresh, delta=delta)
    limit = rate_limit(spec, epochs)
    if rate < limit:
        assert 0 < largest_drop(spec, epochs) < 1
        assert sum(expected_visits(spec, 10**6, epochs)) / (10**6 * epochs) == pytest.approx(1 - rate, abs=1e-4)
    else:
        with pytest.raises(SpecError, match=r"stay below 0\.|because it trains on all images there"):
            largest_drop(spec, epochs)


@names
def test_many_epochs_tend_to_what_a_budget_is_planned_with(name):
    spec = PruningSpec(strategy=name, prune_rate=0.3)
    in_time = largest_drop(spec, None)
    # Under a budget the stages of a drop share are stretches of time, and the thin ones hold more epochs.
    assert in_time <= largest_drop(spec, 1_000) + 1e-3
    assert in_time == pytest.approx(largest_drop(spec, 1_000), rel=0.1)


@names
@pytest.mark.parametrize("rate", [0.2, 0.45])
def test_a_run_of_a_given_time_drops_the_rate_where_time_goes_by_visits(name, rate):
    spec, size, seconds = PruningSpec(strategy=name, prune_rate=rate), 1_000, 2_000.0
    drop, elapsed, visits, epochs = largest_drop(spec, None), 0.0, 0, 0
    while elapsed < seconds:  # a full epoch takes a second
        now = size - round(drop * drop_share(spec, epochs, elapsed / seconds) * size)
        visits, epochs, elapsed = visits + now, epochs + 1, elapsed + now / size
    assert 1 - visits / size / epochs == pytest.approx(rate, abs=0.003)


def test_a_refresh_costs_the_other_epochs_more():
    spec = PruningSpec(strategy="stale-quantile", prune_rate=0.3, refresh_every=5)
    assert largest_drop(spec, 30) == largest_drop(spec, None) == pytest.approx(0.375)
    assert expected_visits(spec, 1_000, 6) == [1_000, 550, 550, 550, 550, 1_000]


def test_selective_backprop_prunes_after_its_first_epoch():
    spec = PruningSpec(strategy="selective-backprop", prune_rate=0.3)
    assert expected_visits(spec, 1_000, 4) == [1_000, 600, 600, 600]


def test_infobatch_ends_in_full_epochs_also_where_delta_is_no_whole_number_of_them():
    spec = PruningSpec(strategy="infobatch", prune_rate=0.1)
    assert [visits == 800 for visits in expected_visits(spec, 800, 10)] == [True] + [False] * 8 + [True]
    assert rate_limit(spec.model_copy(update={"criterion": "random"}), 10) > rate_limit(spec, 10)


def test_two_keep_a_meaning_of_their_own():
    full, coded = (PruningSpec(strategy=name, prune_rate=0.3) for name in OWN_MEANING)
    assert expected_visits(full, 100, 6) == [100] * 6
    assert expected_visits(coded, 100, 6) == [100, 70, 70, 70, 70, 100]
    assert largest_drop(coded, 1) == 0.3


def test_code_of_ones_own_is_taken_to_prune_every_epoch():
    spec = PruningSpec(strategy="mine.rules:Rule", prune_rate=0.3)
    assert expected_visits(spec, 100, 3) == [70] * 3
    assert drop_share(spec, 0, 0.0) == 1


def test_an_epoch_is_never_expected_to_be_empty():
    assert expected_visits(PruningSpec(strategy="random", prune_rate=0.99), 3, 2) == [1, 1]


def test_sizes_under_a_budget_are_those_of_all_stages():
    assert epoch_sizes(PruningSpec(strategy="random", prune_rate=0.3), 100, None) == (100, 70)
    stages = epoch_sizes(PruningSpec(strategy="kakurenbo", prune_rate=0.3), 1_000, None)
    drop = largest_drop(PruningSpec(strategy="kakurenbo", prune_rate=0.3), None)
    assert stages == (1_000, *(1_000 - round(1_000 * part * drop) for part in (1, 0.8, 0.6, 0.4)))


@names
@pytest.mark.parametrize("epochs", [1, 8, None])
def test_a_rate_per_epoch_is_what_each_epoch_drops_that_prunes_most(name, epochs):
    spec = PruningSpec(strategy=name, prune_rate=0.3, rate_per="epoch")
    assert largest_drop(spec, epochs) == 0.3
    assert set(epoch_sizes(spec, 1_000, epochs)) <= {1_000, *(1_000 - round(300 * part) for part in PARTS)}


def test_a_rate_per_epoch_has_the_limit_of_its_method():
    spec = PruningSpec(strategy="infobatch", prune_rate=0.7, rate_per="epoch")
    with pytest.raises(SpecError, match=r"because it drops no image above the mean loss: stay below 0\.6005, or take"):
        largest_drop(spec, 10)
    assert largest_drop(PruningSpec(strategy="stale-quantile", prune_rate=0.97, rate_per="epoch"), 10) == 0.97


def test_keys_that_older_versions_do_not_know_are_written_only_where_they_are_used():
    assert "rate_per" not in StudySpec(name="a").to_document()["pruning"]
    used = PruningSpec(rate_per="epoch", threshold_sample=50).model_dump(exclude_none=True)
    assert (used["rate_per"], used["threshold_sample"]) == ("epoch", 50)


@pytest.mark.parametrize("name", ["full", "random", "paper-as-coded", "mine.rules:Rule"])
def test_a_threshold_is_refused_where_there_is_none(name):
    pruning = {"strategy": name, "threshold_sample": 5_000}
    with pytest.raises(SpecError, match=f"pruning: threshold_sample is a key of stale-quantile, and {name} has no"):
        StudySpec.from_document({"name": "a", "pruning": pruning})


class TestAtCreation:
    def test_every_rate_is_checked_against_every_strategy_that_is_searched(self):
        search = {"pruning.strategy": ["full", "random", "stale-quantile"], "prune_rate": [0.0, 0.3, 0.85]}
        with pytest.raises(SpecError, match=r"0\.85 is more than stale-quantile can drop .* stay below 0\.8"):
            StudySpec.from_document({"name": "a", "search": search})
        search["prune_rate"] = [0.0, 0.3, 0.75]
        assert len(StudySpec.from_document({"name": "a", "search": search}).cells()) == 9

    def test_rates_are_checked_against_the_epochs_that_are_searched(self):
        document = {"name": "a", "search": {"prune_rate": [0.3], "train.epochs": [10, 1]}}
        with pytest.raises(SpecError, match=r"in 1 epoch, .* train for 2 epochs"):
            StudySpec.from_document(document)

    def test_the_ends_of_a_range_are_checked(self):
        document = {
            "name": "a",
            "sampler": {"name": "tpe"},
            "search": {"pruning.prune_rate": {"low": 0.0, "high": 0.9}},
        }
        with pytest.raises(SpecError, match=r"stay below 0\.8"):
            StudySpec.from_document(document)

    def test_a_budget_takes_the_place_of_epochs(self):
        spec = load_spec("digits").with_overrides(["train.budget=10s"])
        assert spec.train.epochs is None
        with pytest.raises(SpecError, match="under a time budget"):
            spec.with_overrides(["search.prune_rate=[0.85]"])

    def test_one_trial_is_checked_as_well(self):
        with pytest.raises(SpecError, match="params: prune_rate"):
            load_spec("digits").resolve({"prune_rate": 0.9})


@given(samples=st.integers(1, 500), size=st.integers(2, 80))
def test_a_rest_of_one_joins_the_batch_before_it_and_all_other_batches_are_cut_as_ever(samples, size):
    sizes = batch_sizes(samples, size)
    assert (sum(sizes), len(sizes)) == (samples, batch_count(samples, size))
    assert 1 not in sizes or samples == 1
    if samples % size != 1:
        assert sizes == [min(size, samples - begin) for begin in range(0, samples, size)]


def test_batches_of_one_that_were_asked_for_stay_and_nothing_makes_no_batch():
    assert batch_sizes(3, 1) == [1, 1, 1]
    assert batch_sizes(0, 4) == []
    assert batch_sizes(65, 64) == [65]

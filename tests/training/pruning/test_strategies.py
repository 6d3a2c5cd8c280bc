"""What holds for every strategy, and the strategies that need nothing but losses of past epochs."""

import inspect
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from budgettune.errors import SpecError
from budgettune.spec.pruning import STRATEGIES, PruningSpec
from budgettune.spec.trust import Trust
from budgettune.training.pruning import EpochPlan, Strategy, make_strategy, strategy_class
from budgettune.training.pruning.scores import drop_lowest
from tests.support.simulation import World, expected_visits, make, play, spec_of

EPOCHS = 12
ALL = torch.arange

names = pytest.mark.parametrize("name", STRATEGIES)


def kept(plan: EpochPlan, size: int) -> list[int]:
    return list(range(size)) if plan.indices is None else sorted(plan.indices.tolist())


def run(strategy: Strategy, epochs: int = EPOCHS, **world) -> list[list[int]]:
    return play(strategy, World(strategy.size, **world), range(epochs), epochs)


def test_every_name_stands_for_a_class_of_its_own():
    assert len({strategy_class(name) for name in STRATEGIES}) == len(STRATEGIES)


@names
def test_every_strategy_says_where_it_comes_from(name):
    kind = strategy_class(name)
    assert len(inspect.getdoc(kind)) > 60
    if name not in ("full", "random"):
        assert any(f"({year})" in kind.__doc__ or f" {year})" in kind.__doc__ for year in range(2010, 2027))


@names
@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.99])
def test_epochs_are_never_empty_and_visit_each_sample_at_most_once(name, size, rate):
    for indices in run(make(name, size, rate, epochs=EPOCHS)):
        assert 1 <= len(indices) <= size
        assert len(set(indices)) == len(indices)
        assert set(indices) <= set(range(size))


@names
def test_a_rate_of_zero_visits_everything_and_looks_at_nothing(name):
    world, strategy = World(20), make(name, rate=0.0)
    assert play(strategy, world, range(EPOCHS), EPOCHS) == [list(range(20))] * EPOCHS
    assert world.asked == []


@names
@pytest.mark.parametrize("rate", [0.3, 0.5])
@pytest.mark.parametrize("epochs", [8, 30])
def test_the_rate_that_was_asked_for_is_what_a_run_drops(name, rate, epochs):
    size = 400
    strategy = make(name, size, rate, epochs=epochs, history=64)  # as small beside the set as it is meant to be
    visits = [len(indices) for indices in play(strategy, World(size, pace=4), range(epochs), epochs, batch=32)]
    expected = expected_visits(strategy.spec, size, epochs)
    asked = 1 - sum(expected) / size / epochs
    if name not in ("full", "paper-as-coded"):
        assert asked == pytest.approx(strategy.spec.prune_rate, abs=1 / size)
    assert 1 - sum(visits) / size / epochs == pytest.approx(asked, abs=0.015)
    if name not in ("infobatch", "kakurenbo"):  # these two correct themselves over the epochs
        assert visits == pytest.approx(expected, abs=0.1 * size)
    assert [count == size for count in visits] == [count == size for count in expected]


@names
def test_the_same_seed_gives_the_same_visits(name):
    assert run(make(name, 40)) == run(make(name, 40))


@pytest.mark.parametrize("name", ["random", "infobatch", "epsilon-greedy", "seta", "selective-backprop"])
def test_another_seed_gives_other_visits(name):
    assert run(make(name, 40)) != run(make(name, 40, seed=1))


@names
def test_the_global_random_state_is_untouched(name):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    run(make(name))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@names
@pytest.mark.parametrize("stop", [1, 3, 6, 9])
def test_a_run_resumed_from_its_saved_state_continues_identically(name, stop):
    world = World(40)
    whole = play(make(name, 40), world, range(EPOCHS), EPOCHS)
    first = make(name, 40)
    play(first, world, range(stop), EPOCHS)
    saved = first.state_dict()
    play(first, world, range(stop, EPOCHS), EPOCHS)  # what goes on after saving must not leak into the saved state
    resumed = make(name, 40, seed=99)
    resumed.load_state_dict(saved)
    assert play(resumed, world, range(stop, EPOCHS), EPOCHS) == whole[stop:]


class Broken(World):
    """A model whose losses and logits are not finite for some samples."""

    def look(self, indices, epoch, number=0):
        seen = super().look(indices, epoch, number)
        for place, value in enumerate((torch.nan, torch.inf, -torch.inf)):
            seen.losses[indices % 10 == place] = value
            seen.logits[indices % 10 == place] = torch.nan
        return seen


@names
def test_losses_that_are_not_finite_neither_empty_an_epoch_nor_end_the_run(name):
    for indices in play(make(name, 40, 0.5), Broken(40), range(EPOCHS), EPOCHS):
        assert 10 <= len(indices) <= 40


@pytest.mark.parametrize(
    "name", ["stale-quantile", "paper-as-coded", "infobatch", "epsilon-greedy", "ucb", "kakurenbo"]
)
def test_samples_without_a_finite_loss_are_kept(name):
    for indices in play(make(name, 40, 0.3, criterion="loss"), Broken(40), range(EPOCHS), EPOCHS):
        assert {index for index in range(40) if index % 10 < 3} <= set(indices)


class Equal(World):
    """A model to which all samples are alike."""

    def look(self, indices, epoch, number=0):
        seen = super().look(indices, epoch, number)
        seen.logits.fill_(0.5)
        seen.losses.fill_(1.1)
        seen.embedding.fill_(1.0)
        return seen


@names
def test_ties_neither_empty_an_epoch_nor_change_the_count(name):
    strategy = make(name, 100, 0.3)
    visits = [len(indices) for indices in play(strategy, Equal(100), range(EPOCHS), EPOCHS)]
    if name in ("infobatch", "kakurenbo", "paper-as-coded"):  # nobody is below the mean, sure, or below the quantile
        assert visits == [100] * EPOCHS
    else:
        assert visits == pytest.approx(expected_visits(strategy.spec, 100, EPOCHS), abs=20)


@names
def test_a_batch_larger_than_what_is_kept_is_one_batch(name):
    for indices in play(make(name, 10, 0.5), World(10), range(EPOCHS), EPOCHS, batch=10):
        assert 1 <= len(indices) <= 10


def test_full_keeps_everything_whatever_the_rate():
    assert make("full", rate=0.9).plan(3, 0.5).indices is None


class TestRandom:
    def test_a_walk_visits_every_sample_once_before_any_twice(self):
        plans = run(make("random", size=20, rate=0.75), 4)
        assert sorted(index for plan in plans for index in plan) == list(range(20))

    @given(size=st.integers(2, 40), rate=st.floats(0, 0.95), seed=st.integers(0, 99))
    def test_a_walk_never_lets_visits_differ_by_more_than_two(self, size, rate, seed):
        visits = [0] * size
        for plan in run(make("random", size=size, rate=rate, seed=seed), 9):
            for index in plan:
                visits[index] += 1
        assert max(visits) - min(visits) <= 2

    def test_with_replacement_epochs_are_drawn_independently(self):
        strategy = make("random", size=200, rate=0.5, replacement=True)
        plans = [set(plan) for plan in run(strategy, 20)]
        assert all(len(plan) == 100 for plan in plans)
        shared = [len(one & other) for one, other in itertools.pairwise(plans)]
        assert 40 < np.mean(shared) < 60  # the walk would share none


def stale(size: int, drop: int, **fields) -> Strategy:
    """Return a stale-quantile that drops so many in every epoch but the first of a hundred."""
    return make("stale-quantile", size, drop / size * 0.99, refresh_every=100, epochs=100, **fields)


class TestStaleQuantile:
    def test_refresh_epochs_keep_all_and_the_others_what_makes_up_for_them(self):
        counts = [len(plan) for plan in run(make("stale-quantile", 50, 0.3, refresh_every=4, epochs=9), 9)]
        assert counts == [50, 28, 28, 28, 50, 28, 28, 28, 50]
        assert sum(counts) / 450 == pytest.approx(0.7, abs=0.01)

    def test_plans_follow_the_most_recent_loss_of_every_sample(self):
        strategy = stale(10, 5)
        strategy.observe(ALL(10), torch.arange(10.0))
        assert kept(strategy.plan(1, 0.1), 10) == [5, 6, 7, 8, 9]
        strategy.observe(torch.tensor([5, 6, 7, 8, 9]), torch.full((5,), -1.0))
        assert kept(strategy.plan(2, 0.2), 10) == [0, 1, 2, 3, 4]

    def test_unseen_samples_are_kept(self):
        strategy = stale(10, 5)
        strategy.observe(ALL(4), torch.tensor([3.0, 1.0, 2.0, 4.0]))
        assert kept(strategy.plan(1, 0.1), 10) == [4, 5, 6, 7, 8, 9]
        strategy.observe(ALL(2), torch.tensor([9.0, 9.0]))
        assert len(kept(strategy.plan(2, 0.1), 10)) == 6  # four are known, so no more than four can go

    def test_losses_that_are_not_finite_do_not_decide_for_the_others(self):
        strategy = stale(10, 4)
        losses = torch.arange(10.0)
        losses[3], losses[5], losses[7] = torch.nan, torch.inf, -torch.inf
        strategy.observe(ALL(10), losses)
        assert kept(strategy.plan(1, 0.1), 10) == [3, 5, 6, 7, 8, 9]

    def test_ties_are_broken_at_random_to_an_exact_count(self):
        strategy = stale(100, 30)
        strategy.observe(ALL(100), torch.ones(100))
        one, other = (set(kept(strategy.plan(1, 0.1), 100)) for _ in range(2))
        assert len(one) == len(other) == 70
        assert one != other

    @given(
        st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, float("nan"), float("inf")]), min_size=1, max_size=12), st.data()
    )
    def test_dropping_agrees_with_sorting(self, values, data):
        drop = data.draw(st.integers(0, len(values) + 2))
        keep = drop_lowest(torch.tensor(values), drop, torch.Generator().manual_seed(0))
        finite = sorted(value for value in values if np.isfinite(value))
        expected = min(drop, len(finite), len(values) - 1)
        gone = sorted(value for value, stays in zip(values, keep.tolist(), strict=True) if not stays)
        assert gone == finite[:expected]


class TestPaperAsCoded:
    def test_the_kept_set_is_frozen_between_refreshes_and_follows_the_refresh_epochs_losses(self):
        strategy = make("paper-as-coded", size=10, rate=0.3, refresh_every=5)
        assert strategy.plan(0, 0.0).indices is None
        strategy.observe(ALL(10), torch.arange(10.0))
        first = kept(strategy.plan(1, 0.1), 10)
        assert first == [3, 4, 5, 6, 7, 8, 9]
        strategy.observe(torch.tensor(first), torch.full((7,), -1.0))  # reaches no table before epoch 5 has ended
        assert [kept(strategy.plan(epoch, 0.2), 10) for epoch in (2, 3, 4)] == [first] * 3
        assert strategy.plan(5, 0.5).indices is None
        strategy.observe(ALL(10), torch.arange(10.0).flip(0))
        assert kept(strategy.plan(6, 0.6), 10) == [0, 1, 2, 3, 4, 5, 6]

    def test_the_threshold_is_the_linear_quantile_and_equal_losses_prune_nothing(self):
        strategy = make("paper-as-coded", size=8, rate=0.3)
        strategy.observe(ALL(8), torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
        assert kept(strategy.plan(1, 0.1), 8) == [3, 4, 5, 6, 7]  # the quantile is 1.1
        equal = make("paper-as-coded", size=8, rate=0.3)
        equal.observe(ALL(8), torch.ones(8))
        assert len(kept(equal.plan(1, 0.1), 8)) == 8

    def test_large_sets_take_the_quantile_of_5000_random_losses(self):
        strategy = make("paper-as-coded", size=20_000, rate=0.3)
        strategy.observe(ALL(20_000), torch.rand(20_000, generator=torch.Generator().manual_seed(1)))
        count = len(kept(strategy.plan(1, 0.1), 20_000))
        assert count != 14_000
        assert abs(count - 14_000) < 1_000

    def test_thirty_epochs_realise_four_fifths_of_the_rate_as_the_script_does(self):
        visits = sum(len(plan) for plan in run(make("paper-as-coded", 100, 0.3, epochs=30), 30))
        assert visits / 3000 == pytest.approx(1 - 0.8 * 0.3, abs=0.01)


class Opposite(Strategy):
    def plan(self, epoch, progress):
        return EpochPlan(torch.arange(self.keep_count).flip(0))


def test_a_strategy_of_ones_own_is_found_where_its_package_is_allowed():
    spec = PruningSpec(strategy=f"{__name__}:Opposite", prune_rate=0.5)
    strategy = make_strategy(spec, 4, trust=Trust(["tests"]))
    assert strategy.plan(0, 0.0).indices.tolist() == [1, 0]
    with pytest.raises(SpecError, match="subclass"):
        make_strategy(PruningSpec(strategy=f"{__name__}:make"), 4, trust=Trust(["tests"]))


def test_a_strategy_refuses_a_rate_that_it_cannot_reach():
    with pytest.raises(SpecError, match=r"stay below 0\.5"):
        make_strategy(PruningSpec(strategy="ucb", prune_rate=0.5), 10, epochs=2)
    assert spec_of("ucb", 0.5, 2).prune_rate < 0.5

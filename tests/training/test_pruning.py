import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from budgettune.errors import SpecError
from budgettune.spec import STRATEGIES, PruningSpec
from budgettune.training.pruning import REGISTRY, EpochPlan, Strategy, make_strategy
from budgettune.training.pruning.stale import drop_lowest

names = pytest.mark.parametrize("name", STRATEGIES)


def make(name: str, size: int = 20, rate: float = 0.3, seed: int = 0, **fields) -> Strategy:
    return make_strategy(PruningSpec(strategy=name, prune_rate=rate, **fields), size, seed=seed)


def kept(plan: EpochPlan, size: int) -> list[int]:
    return list(range(size)) if plan.indices is None else plan.indices.tolist()


def run(strategy: Strategy, epochs: range, seed: int = 7) -> list[list[int]]:
    """Play epochs with random losses; return what was kept in each."""
    plans = []
    for epoch in epochs:
        plans.append(kept(strategy.plan(epoch, epoch / 20), strategy.size))
        indices = torch.tensor(plans[-1])
        chance = torch.Generator().manual_seed(seed + epoch)
        for batch in indices[torch.randperm(len(indices), generator=chance)].split(6):
            strategy.observe(
                batch, torch.rand(len(batch), generator=chance), torch.randn(len(batch), 3, generator=chance)
            )
    return plans


def test_the_spec_and_the_registry_know_the_same_strategies():
    assert tuple(REGISTRY) == STRATEGIES


@names
@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.99])
def test_plans_are_never_empty_and_name_each_sample_at_most_once(name, size, rate):
    for indices in run(make(name, size, rate), range(12)):
        assert 1 <= len(indices) <= size
        assert len(set(indices)) == len(indices)
        assert set(indices) <= set(range(size))


@names
def test_the_same_seed_gives_the_same_plans_and_another_seed_others(name):
    assert run(make(name), range(8)) == run(make(name), range(8))
    if name == "random":
        assert run(make(name), range(8)) != run(make(name, seed=1), range(8))


@names
def test_the_global_random_state_is_untouched(name):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    run(make(name), range(8))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@names
@pytest.mark.parametrize("stop", [1, 3, 5, 6])
def test_a_run_resumed_from_its_saved_state_continues_identically(name, stop):
    whole = run(make(name, replacement=False), range(12))
    first = make(name, replacement=False)
    run(first, range(stop))
    saved = first.state_dict()
    run(first, range(stop, 12))  # what goes on after saving must not leak into the saved state
    resumed = make(name, seed=99)
    resumed.load_state_dict(saved)
    assert run(resumed, range(stop, 12)) == whole[stop:]


@names
def test_losses_that_are_not_finite_neither_empty_an_epoch_nor_decide_for_the_others(name):
    strategy = make(name, size=10, rate=0.4, refresh_every=100)
    strategy.plan(0, 0.0)
    losses = torch.arange(10.0)
    losses[3], losses[5], losses[7] = torch.nan, torch.inf, -torch.inf
    strategy.observe(torch.arange(10), losses)
    indices = kept(strategy.plan(1, 0.1), 10)
    assert len(indices) >= 6
    if name == "stale-quantile":
        assert indices == [3, 5, 6, 7, 8, 9]
    if name == "paper-as-coded":
        assert {3, 5, 7} <= set(indices)
        assert 0 not in indices


def test_full_keeps_everything_whatever_the_rate():
    assert make("full", rate=0.9).plan(3, 0.5).indices is None


class TestRandom:
    def test_a_walk_visits_every_sample_once_before_any_twice(self):
        plans = run(make("random", size=20, rate=0.75), range(4))
        assert sorted(index for plan in plans for index in plan) == list(range(20))

    @given(size=st.integers(2, 40), rate=st.floats(0, 0.95), seed=st.integers(0, 99))
    def test_a_walk_never_lets_visits_differ_by_more_than_two(self, size, rate, seed):
        visits = [0] * size
        for plan in run(make("random", size=size, rate=rate, seed=seed), range(9)):
            for index in plan:
                visits[index] += 1
        assert max(visits) - min(visits) <= 2

    def test_with_replacement_epochs_are_drawn_independently(self):
        strategy = make("random", size=200, rate=0.5, replacement=True)
        plans = [set(plan) for plan in run(strategy, range(20))]
        assert all(len(plan) == 100 for plan in plans)
        shared = [len(one & other) for one, other in itertools.pairwise(plans)]
        assert 40 < np.mean(shared) < 60  # the walk would share none


class TestStaleQuantile:
    def test_refresh_epochs_keep_all_and_the_others_an_exact_count(self):
        counts = [len(plan) for plan in run(make("stale-quantile", size=50, rate=0.3, refresh_every=4), range(9))]
        assert counts == [50, 35, 35, 35, 50, 35, 35, 35, 50]

    def test_plans_follow_the_most_recent_loss_of_every_sample(self):
        strategy = make("stale-quantile", size=10, rate=0.5, refresh_every=100)
        strategy.observe(torch.arange(10), torch.arange(10.0))
        assert kept(strategy.plan(1, 0.1), 10) == [5, 6, 7, 8, 9]
        strategy.observe(torch.tensor([5, 6, 7, 8, 9]), torch.full((5,), -1.0))
        assert kept(strategy.plan(2, 0.2), 10) == [0, 1, 2, 3, 4]

    def test_unseen_samples_are_kept(self):
        strategy = make("stale-quantile", size=10, rate=0.5, refresh_every=100)
        strategy.observe(torch.arange(4), torch.tensor([3.0, 1.0, 2.0, 4.0]))
        assert kept(strategy.plan(1, 0.1), 10) == [4, 5, 6, 7, 8, 9]
        strategy.observe(torch.arange(2), torch.tensor([9.0, 9.0]))
        assert len(kept(strategy.plan(2, 0.1), 10)) == 6  # four are known, so no more than four can go

    def test_ties_are_broken_at_random_to_an_exact_count(self):
        strategy = make("stale-quantile", size=100, rate=0.3, refresh_every=100)
        strategy.observe(torch.arange(100), torch.ones(100))
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
        strategy.observe(torch.arange(10), torch.arange(10.0))
        first = kept(strategy.plan(1, 0.1), 10)
        assert first == [3, 4, 5, 6, 7, 8, 9]
        strategy.observe(torch.tensor(first), torch.full((7,), -1.0))  # reaches no table before epoch 5 has ended
        assert [kept(strategy.plan(epoch, 0.2), 10) for epoch in (2, 3, 4)] == [first] * 3
        assert strategy.plan(5, 0.5).indices is None
        strategy.observe(torch.arange(10), torch.arange(10.0).flip(0))
        assert kept(strategy.plan(6, 0.6), 10) == [0, 1, 2, 3, 4, 5, 6]

    def test_the_threshold_is_the_linear_quantile_and_equal_losses_prune_nothing(self):
        strategy = make("paper-as-coded", size=8, rate=0.3)
        strategy.observe(torch.arange(8), torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
        assert kept(strategy.plan(1, 0.1), 8) == [3, 4, 5, 6, 7]  # the quantile is 1.1
        equal = make("paper-as-coded", size=8, rate=0.3)
        equal.observe(torch.arange(8), torch.ones(8))
        assert len(kept(equal.plan(1, 0.1), 8)) == 8

    def test_large_sets_take_the_quantile_of_5000_random_losses(self):
        strategy = make("paper-as-coded", size=20_000, rate=0.3)
        strategy.observe(torch.arange(20_000), torch.rand(20_000, generator=torch.Generator().manual_seed(1)))
        count = len(kept(strategy.plan(1, 0.1), 20_000))
        assert count != 14_000
        assert abs(count - 14_000) < 1_000


def test_thirty_epochs_with_refreshes_realise_four_fifths_of_the_rate():
    visits = sum(len(plan) for plan in run(make("stale-quantile", size=100, rate=0.3, refresh_every=5), range(30)))
    assert visits / 3000 == pytest.approx(1 - 0.8 * 0.3)


class Opposite(Strategy):
    def plan(self, epoch, progress):
        return EpochPlan(torch.arange(self.keep_count).flip(0))


def test_a_strategy_of_ones_own_is_found_where_its_package_is_allowed():
    spec = PruningSpec(strategy=f"{__name__}:Opposite", prune_rate=0.5)
    strategy = make_strategy(spec, 4, allow_import=[__name__])
    assert strategy.plan(0, 0.0).indices.tolist() == [1, 0]
    with pytest.raises(SpecError, match="subclass"):
        make_strategy(PruningSpec(strategy=f"{__name__}:make"), 4, allow_import=[__name__])

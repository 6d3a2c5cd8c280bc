"""Strategies that learn from the losses seen in training, each against a plain reading of its definition."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from budgettune.spec.pruning import LARGEST_CHANCE
from budgettune.training.pruning.bandits import EpsilonGreedy, UpperConfidenceBound
from budgettune.training.pruning.by_last_loss import InfoBatch, group_starts
from budgettune.training.pruning.selective import draw, rank_share
from tests.support.simulation import World, make, play

ALL = torch.arange
losses_of = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0]), min_size=1, max_size=12)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kept(plan, size: int) -> list[int]:
    return list(range(size)) if plan.indices is None else sorted(plan.indices.tolist())


class TestSelectiveBackprop:
    @given(values=losses_of, among=losses_of)
    def test_a_standing_lies_on_the_step_of_the_distribution_function(self, values, among):
        low, high = (rank_share(torch.tensor(values), torch.tensor(among), torch.tensor([c])) for c in (0.0, 1.0))
        assert low.tolist() == pytest.approx([sum(a < v for a in among) / len(among) for v in values])
        assert high.tolist() == pytest.approx([sum(a <= v for a in among) / len(among) for v in values])

    @pytest.mark.parametrize("beta", [0.25, 1.0, 3.0])
    @pytest.mark.parametrize("values", [torch.rand(50, generator=generator()), torch.ones(50), ALL(50.0) // 10])
    def test_the_expected_share_is_one_over_beta_plus_one_whatever_the_losses(self, beta, values):
        shares = [draw(values, values, beta, generator(seed)).float().mean() for seed in range(200)]
        assert float(torch.stack(shares).mean()) == pytest.approx(1 / (beta + 1), abs=0.02)

    def test_each_sample_is_kept_with_the_probability_of_the_definition(self):
        values, history, beta = torch.tensor([0.5, 2.0, 9.0]), torch.tensor([0.0, 1.0, 2.0, 3.0]), 2.0
        often = torch.stack([draw(values, history, beta, generator(seed)) for seed in range(2_000)]).float().mean(0)
        # The standing of 2.0 is uniform on its step, from 1/2 to 3/4.
        middle = 4 * (0.75**3 - 0.5**3) / 3
        # Where nothing is kept, the highest is: it is kept anyway.
        assert often.tolist() == pytest.approx([0.25**2, middle, 1.0], abs=0.03)

    def test_the_history_is_that_of_the_last_losses_and_reads_over_what_is_not_finite(self):
        strategy, world = make("selective-backprop", 40, 0.3, history=10), World(40)
        strategy.plan(1, 0.1)
        seen = world.look(ALL(40), 1)
        seen.losses[5], seen.losses[39] = torch.nan, torch.inf
        chosen = strategy.select(seen).positions.tolist()
        assert strategy.history.tolist() == [*seen.losses[29:39].tolist()]
        assert {5, 39} <= set(chosen)

    def test_the_first_epoch_trains_on_everything_without_a_choice(self):
        strategy = make("selective-backprop", 40, 0.3)
        assert not strategy.plan(0, 0.0).select
        assert strategy.plan(1, 0.1).select
        assert strategy.candidates == pytest.approx(1 / (1 - 0.3 * 12 / 11))

    def test_beta_follows_what_was_kept(self):
        strategy = make("selective-backprop", 40, 0.5, epochs=1_000_000)
        strategy.offered, strategy.kept = 100, 25
        strategy.plan(2, 0.1)
        # A share of 1/4 under β = 1 is that of a power whose share is 1/2 under β = 1/3.
        assert strategy.beta == pytest.approx(1 / 3, rel=1e-3)

    def test_the_stale_one_scores_everything_every_third_epoch_and_nothing_between(self):
        strategy, world = make("stale-selective-backprop", 40, 0.3, epochs=10), World(40)
        asked = []
        for epoch in range(10):
            play(strategy, world, range(epoch, epoch + 1), 10)
            asked.append(len(world.asked))
        assert asked == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]

    def test_the_stale_one_draws_from_the_first_epoch_then_from_the_scores(self):
        strategy, world = make("stale-selective-backprop", 40, 0.3, epochs=10), World(40)
        play(strategy, world, range(3), 10)
        assert torch.equal(strategy.losses, world.look(ALL(40), 0).losses)  # training losses of epochs 1 and 2 are not
        play(strategy, world, range(3, 5), 10)
        assert torch.equal(strategy.losses, world.look(ALL(40), 3).losses)


def infobatch(losses, rate=0.3, kind=InfoBatch, **fields):
    """Return an InfoBatch that has seen these losses, in a run so long that the rate is that of each epoch."""
    size = len(losses)
    strategy = make("infobatch", size, rate, epochs=1_000_000, **{"delta": 1.0, **fields})
    strategy = kind(size, strategy.spec, epochs=strategy.epochs)
    strategy.observe(ALL(size), torch.as_tensor(losses))
    return strategy


class WrongWeight(InfoBatch):
    """As in the published package: the count is rounded, the weight knows nothing of it."""

    def plan(self, epoch, progress):
        plan = super().plan(epoch, progress)
        if plan.weights is None:
            return plan
        asked = self.largest_drop * self.size / int(self._droppable().sum())
        return type(plan)(plan.indices, plan.weights.where(plan.weights == 1, 1 / (1 - asked)))


def mean_gradient(strategy, gradients: torch.Tensor) -> torch.Tensor:
    """Return the exact expectation of an epoch's weighted gradient, over all orders that chance can give."""
    droppable = int(strategy._droppable().sum())
    total = torch.zeros_like(gradients[0])
    orders = list(itertools.permutations(range(droppable)))
    for order in orders:
        strategy.permutation = lambda size, order=order: torch.tensor(order)
        strategy.owed = 0
        plan = strategy.plan(1, 0.5)
        total += (plan.weights[:, None] * gradients[plan.indices]).sum(dim=0)
    return total / len(orders)


class TestInfoBatch:
    LOSSES = (
        [0.1, 0.2, 0.3, 4.0],
        [0.5, 0.1, 0.2, 0.3, 9.0, 7.0],
        [0.1, 0.2, 0.3, 0.4, 0.5, 5.1, 5.2, 6.0, 7.0, 8.0, 9.0, 9.5],
    )

    @pytest.mark.parametrize("losses", LOSSES)
    @pytest.mark.parametrize("rate", [0.2, 0.3])
    @pytest.mark.parametrize("criterion", ["loss", "random"])
    def test_the_weighted_gradient_is_unbiased(self, losses, rate, criterion):
        losses = losses[:6] if criterion == "random" else losses
        gradients = torch.randn(len(losses), 3, generator=generator(), dtype=torch.float64)
        expected = mean_gradient(infobatch(losses, rate, criterion=criterion), gradients)
        assert torch.allclose(expected, gradients.sum(dim=0), atol=1e-5)

    @pytest.mark.parametrize("losses", LOSSES)
    def test_a_weight_that_knows_nothing_of_the_count_is_caught(self, losses):
        gradients = torch.randn(len(losses), 3, generator=generator(), dtype=torch.float64)
        expected = mean_gradient(infobatch(losses, 0.29, kind=WrongWeight), gradients)
        assert not torch.allclose(expected, gradients.sum(dim=0), atol=1e-3)

    def test_saved_states_have_the_losses_as_scores(self):
        saved, loaded = make("infobatch"), make("infobatch", seed=1)
        saved.observe(torch.arange(20), torch.arange(20.0))
        assert saved.state_dict()["scores"].tolist() == list(range(20))
        loaded.load_state_dict(saved.state_dict())
        assert loaded.losses.tolist() == list(range(20))

    def test_only_samples_below_the_mean_are_thinned_and_all_alike(self):
        strategy = infobatch([0.0, 1.0, 2.0, 3.0, 4.0, 20.0, 21.0, 22.0])
        often = torch.zeros(8)
        for _ in range(600):
            plan = strategy.plan(1, 0.1)
            weights = dict(zip(plan.indices.tolist(), plan.weights.tolist(), strict=True))
            assert {5, 6, 7} <= weights.keys()
            assert [weights[index] for index in (5, 6, 7)] == [1.0] * 3
            assert [weight for index, weight in weights.items() if index < 5] == pytest.approx([5 / 3] * 3)
            often[plan.indices] += 1
        assert often[:5].tolist() == pytest.approx([600 * 3 / 5] * 5, abs=60)

    @pytest.mark.parametrize(("epochs", "delta"), [(8, 0.875), (10, 0.875), (30, 0.875), (7, 0.5), (9, 0.3), (4, 1.0)])
    def test_the_last_epochs_keep_everything_also_where_delta_is_no_whole_number_of_them(self, epochs, delta):
        strategy = make("infobatch", 60, 0.1, epochs=epochs, delta=delta)
        visits = play(strategy, World(60), range(epochs), epochs)
        whole = [epoch for epoch, indices in enumerate(visits) if len(indices) == 60]
        assert whole == [0, *range(math.ceil(delta * epochs), epochs)]
        assert strategy.plan(epochs - 1, delta).weights is None

    def test_what_an_epoch_cannot_drop_the_next_ones_do(self):
        strategy = infobatch([0.0, 0.0] + [1.0] * 8, rate=0.3)
        assert len(kept(strategy.plan(1, 0.1), 10)) == 9  # one of two below the mean, where three were wanted
        strategy.observe(ALL(10), torch.tensor([0.0] * 8 + [1.0] * 2))
        assert len(kept(strategy.plan(2, 0.2), 10)) == 5  # its own three, and the two

    def test_no_weight_grows_beyond_bounds(self):
        strategy = infobatch([0.0] * 90 + [9.0] * 10, rate=0.55)
        strategy.owed = 1_000
        plan = strategy.plan(1, 0.1)
        assert float(plan.weights.max()) == pytest.approx(90 / (90 - int(LARGEST_CHANCE * 90)))

    def test_equal_scores_have_nothing_below_their_mean(self):
        assert infobatch([0.1] * 1_000).plan(1, 0.1).indices is None

    def test_unseen_samples_count_as_hard(self):
        strategy = make("infobatch", 10, 0.3, epochs=1_000_000, delta=1.0)
        assert strategy.plan(1, 0.1).indices is None
        strategy.observe(ALL(5), torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0]))
        assert {4, 5, 6, 7, 8, 9} <= set(kept(strategy.plan(2, 0.1), 10))


class TestBandits:
    @given(st.lists(st.floats(0, 10, width=32), min_size=1, max_size=6), st.sampled_from([0.25, 0.5, 1.0]))
    def test_averages_and_deviations_are_those_of_the_definition(self, history, weight):
        greedy, ucb = (
            kind(1, make(name, 1, smoothing=weight).spec)
            for kind, name in ((EpsilonGreedy, "epsilon-greedy"), (UpperConfidenceBound, "ucb"))
        )
        mean, variance = history[0], 0.0
        for value in history:
            greedy.observe(ALL(1), torch.tensor([value]))
            ucb.observe(ALL(1), torch.tensor([value]))
        for value in history[1:]:
            variance = (1 - weight) * (variance + weight * (value - mean) ** 2)
            mean = (1 - weight) * mean + weight * value
        assert greedy.mean.item() == ucb.mean.item() == pytest.approx(mean, rel=1e-4, abs=1e-5)
        assert ucb.variance.item() == pytest.approx(variance, rel=1e-3, abs=1e-4)

    @pytest.mark.parametrize("epsilon", [0.0, 0.2, 0.5, 1.0])
    def test_greedy_keeps_the_best_and_explores_the_rest(self, epsilon):
        strategy = make("epsilon-greedy", 40, 0.5, epsilon=epsilon, epochs=1_000_000)
        strategy.observe(ALL(40), ALL(40.0))
        drawn = set()
        for seed in range(60):
            strategy.generator.manual_seed(seed)
            strategy.kept = None
            indices = kept(strategy.plan(1, 0.1), 40)
            assert len(indices) == 20
            best = max(1, 20 - round(epsilon * 20))
            assert set(range(40 - best, 40)) <= set(indices)
            drawn |= set(indices)
        assert len(drawn) == (20 if epsilon == 0 else 40)

    @pytest.mark.parametrize("name", ["epsilon-greedy", "ucb"])
    def test_a_choice_holds_until_the_next_is_due(self, name):
        visits = play(make(name, 40, reselect_every=3), World(40, pace=3), range(12), 12)
        assert len(visits[0]) == 40
        changes = [epoch for epoch in range(2, 12) if visits[epoch] != visits[epoch - 1]]
        assert changes == [4, 7, 10]

    def test_a_wide_deviation_stands_in_for_a_high_mean(self):
        strategy = make("ucb", 2, 0.5, epochs=1_000_000, exploration=3.0)
        for losses in ([1.0, 1.6], [3.0, 1.6], [1.0, 1.6]):
            strategy.observe(ALL(2), torch.tensor(losses))
        assert strategy.mean[0] < strategy.mean[1]
        assert kept(strategy.plan(1, 0.1), 2) == [0]

    def test_an_average_begins_anew_after_a_loss_that_is_not_finite(self):
        strategy = make("ucb", 1, 0.3)
        for value in (1.0, torch.nan, 2.0):
            strategy.observe(ALL(1), torch.tensor([value]))
        assert (strategy.mean.item(), strategy.variance.item()) == (2.0, 0.0)


def k_means(ordered: list[float], groups: int) -> list[int]:
    """Return where the best split of sorted values into intervals begins, by trying all."""
    best = None
    for inner in itertools.combinations(range(1, len(ordered)), groups - 1):
        edges = [0, *inner, len(ordered)]
        parts = [ordered[a:b] for a, b in itertools.pairwise(edges)]
        error = sum(sum((v - sum(part) / len(part)) ** 2 for v in part) for part in parts)
        if best is None or error < best[0]:
            best = error, edges[:-1]
    return best[1]


class TestSeTa:
    @pytest.mark.parametrize(
        ("values", "groups"),
        [
            ([0.0, 0.1, 0.2, 5.0, 5.1, 9.0, 9.1, 9.2], 3),
            ([0.0, 0.0, 0.0, 0.0, 0.1, 0.1, 3.0, 4.0], 2),
            ([1.0, 2.0, 3.0, 10.0, 11.0, 12.0], 2),
        ],
    )
    def test_groups_are_those_of_k_means(self, values, groups):
        assert group_starts(torch.tensor(values), groups).tolist() == k_means(values, groups)

    @given(st.lists(st.floats(0, 10, width=32), min_size=1, max_size=30), st.integers(1, 12))
    def test_groups_are_intervals_from_the_first_value_on(self, values, groups):
        starts = group_starts(torch.tensor(sorted(values)), groups).tolist()
        assert starts[0] == 0
        assert starts == sorted(starts)
        assert len(starts) == groups
        assert starts[-1] <= len(values)

    def test_the_window_slides_from_easy_to_hard_and_begins_again(self):
        strategy = make("seta", 30, 0.5, groups=5, random_share=0.0, delta=1.0, epochs=1_000_000)
        strategy.observe(ALL(30), (ALL(30) // 6).float())  # five groups of six, easiest first
        windows = [kept(strategy.plan(epoch, 0.1), 30) for epoch in range(1, 6)]
        assert all(len(window) == 15 for window in windows)
        groups = [sorted({index // 6 for index in window}) for window in windows]
        assert groups == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [2, 3, 4], [0, 1, 2]]  # the last begins at 15, not at 12

    def test_of_what_is_dropped_a_part_is_dropped_at_random(self):
        strategy = make("seta", 100, 0.4, random_share=0.5, groups=1, delta=1.0, epochs=1_000_000)
        strategy.observe(ALL(100), ALL(100.0))
        window = kept(strategy.plan(1, 0.1), 100)  # the easiest 60 of 80
        assert len(window) == 60
        missing = set(range(window[-1])) - set(window)
        assert 5 <= len(missing) <= 25
        assert missing != set(range(window[-1])) - set(kept(strategy.plan(3, 0.1), 100))

    def test_the_tail_is_random_and_drops_the_random_part_only(self):
        strategy = make("seta", 100, 0.4, random_share=0.5, epochs=20, delta=0.75)
        visits = play(strategy, World(100), range(20), 20)
        drop = strategy.largest_drop * 100
        assert [len(indices) for indices in visits[1:15]] == [100 - round(drop)] * 14
        assert [len(indices) for indices in visits[15:]] == [100 - round(drop / 2)] * 5
        assert visits[15] != visits[16]


class TestKakurenbo:
    def hiding(self, size: int, sure: int, rate: float, **fields):
        """Return a strategy that saw losses 0, 1, 2, … of which the first are predicted with confidence."""
        strategy = make("kakurenbo", size, rate, epochs=1_000, **fields)
        world = World(size)
        strategy.prepare(world)
        right = torch.nn.functional.one_hot(world.labels, 3).float()
        strategy.observe(ALL(size), ALL(float(size)), right * (ALL(size) < sure)[:, None] * 9)
        return strategy, world

    def test_it_hides_the_lowest_losses_that_are_predicted_with_confidence(self):
        strategy, _ = self.hiding(40, sure=30, rate=0.3)
        drop = strategy.drop_count(1, 0.001)
        plan = strategy.plan(1, 0.001)
        assert kept(plan, 40) == list(range(drop, 40))
        assert plan.lr_factor == pytest.approx(40 / (40 - drop))

    def test_it_moves_back_what_is_not_and_makes_up_for_it_later(self):
        strategy, _ = self.hiding(40, sure=8, rate=0.3)
        assert kept(strategy.plan(1, 0.001), 40) == list(range(8, 40))
        assert strategy.owed == strategy.drop_count(1, 0.001) - 8
        strategy.hidden = strategy.hidden[:0]
        strategy.is_sure[:] = True
        late = strategy.drop_count(900, 0.9)
        assert 40 - len(kept(strategy.plan(900, 0.9), 40)) == min(40 - strategy.keep_count, late + 16 - 8)

    @pytest.mark.parametrize(("confidence", "hidden"), [(0.5, 4), (0.7, 0)])
    def test_confidence_is_the_probability_of_the_prediction(self, confidence, hidden):
        strategy, world = self.hiding(40, sure=0, rate=0.3, confidence=confidence)
        logits = torch.zeros(40, 3)
        logits[ALL(40), world.labels] = math.log(0.6 / 0.2)  # 0.6 for the right class
        logits[4:] = 0
        strategy.observe(ALL(40), ALL(40.0), logits)
        assert 40 - len(kept(strategy.plan(1, 0.001), 40)) == hidden

    def test_a_confident_but_wrong_prediction_is_not_hidden(self):
        strategy, world = self.hiding(40, sure=0, rate=0.3)
        wrong = torch.nn.functional.one_hot((world.labels + 1) % 3, 3).float() * 9
        strategy.observe(ALL(40), ALL(40.0), wrong)
        plan = strategy.plan(1, 0.001)
        assert (plan.indices, plan.lr_factor) == (None, 1.0)

    def test_hidden_samples_and_no_others_are_looked_at_before_the_next_plan(self):
        strategy, world = self.hiding(40, sure=30, rate=0.3)
        hidden = sorted(set(range(40)) - set(kept(strategy.plan(1, 0.001), 40)))
        world.epoch = 5
        strategy.plan(2, 0.002)
        assert world.asked == ["score"]
        assert torch.equal(strategy.losses[hidden], world.look(torch.tensor(hidden), 5).losses)
        assert strategy.losses[hidden[-1] + 1 :].tolist() == list(range(hidden[-1] + 1, 40))

    def test_the_fraction_falls_in_stages(self):
        strategy = make("kakurenbo", 1_000, 0.3, epochs=100)
        largest = strategy.largest_drop * 1_000
        counts = [strategy.drop_count(epoch, epoch / 100) for epoch in (0, 1, 29, 30, 59, 60, 79, 80, 99)]
        assert counts == [0, *(round(largest * part) for part in (1, 1, 0.8, 0.8, 0.6, 0.6, 0.4, 0.4))]

"""Strategies that choose by scores or medoids, against a brute-force reading of their definitions; no trainer here."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from budgettune.errors import Interrupted, SpecError
from budgettune.spec.pruning import PruningSpec
from budgettune.training.pruning import Scores, make_strategy
from budgettune.training.pruning.coresets import weighted_coreset
from budgettune.training.pruning.scores import el2n, keep_by_strata, last_layer_grad_norm, softmax_error

AHEAD = ("el2n", "grand", "reference-model")
IN_PASSING = ("forgetting", "ccs", "prototypes")
CLASSES = 3


class FakePasses:
    """A model whose logits and features are drawn from the number of times that it was asked, or of the helper."""

    num_classes = CLASSES

    def __init__(self, size: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(CLASSES, (size,), generator=generator)
        self.logits = torch.randn(40, size, CLASSES, generator=generator)
        self.features = torch.randn(40, size, 4, generator=generator)
        self.asked = self.checked = 0
        self.helpers: list[dict] = []

    def seen(self, indices, version: int) -> Scores:
        indices = torch.arange(len(self.labels)) if indices is None else indices
        logits, labels = self.logits[version, indices], self.labels[indices]
        losses = functional.cross_entropy(logits, labels, reduction="none")
        return Scores(indices, labels, losses, logits, self.features[version, indices])

    def check(self) -> None:
        self.checked += 1

    def score(self, indices=None) -> Scores:
        self.asked += 1
        return self.seen(indices, self.asked - 1)

    def train_helper(self, indices=None, *, number=0, **how):
        self.helpers.append({"indices": indices, "number": number, **how})
        return lambda wanted=None: self.seen(wanted, 30 + number)


def make(name, size=60, rate=0.4, epochs=10, seed=0, passes=None, **fields):
    strategy = make_strategy(PruningSpec(strategy=name, prune_rate=rate, **fields), size, seed=seed, epochs=epochs)
    strategy.prepare(passes or FakePasses(size))
    return strategy


def everything(size):
    return list(range(size))


def visits(strategy, epoch, epochs=10) -> list[int]:
    """Play one epoch as the trainer does, with the fake model's logits of that epoch; return what was trained on."""
    plan, passes = strategy.plan(epoch, epoch / epochs), strategy.passes
    indices = torch.arange(strategy.size) if plan.indices is None else plan.indices
    for part in indices.split(6):
        seen = passes.seen(part, epoch)
        strategy.observe(seen.indices, seen.losses, seen.logits)
    return indices.tolist()


class TestScoredByShortRuns:
    @pytest.mark.parametrize("name", ["el2n", "grand"])
    def test_the_highest_mean_scores_over_the_helpers_stay(self, name):
        passes = FakePasses(60)
        strategy = make(name, passes=passes, helper_runs=3, helper_epochs=2)
        total = torch.zeros(60)
        for number in range(3):
            seen = passes.seen(None, 30 + number)
            total += (
                el2n(seen.logits, seen.labels)
                if name == "el2n"
                else last_layer_grad_norm(seen.logits, seen.labels, seen.features)
            )
        expected = sorted(sorted(everything(60), key=total.tolist().__getitem__)[24:])
        assert strategy.plan(0, 0.0).indices.tolist() == strategy.plan(9, 0.9).indices.tolist() == expected
        assert [helper["number"] for helper in passes.helpers] == [0, 1, 2]
        assert all(helper["indices"] is None and helper["epochs"] == 2 for helper in passes.helpers)

    def test_under_a_time_budget_all_helpers_together_may_take_a_quarter_of_it(self):
        passes = FakePasses(60)
        make("el2n", passes=passes, helper_runs=5)
        assert sum(helper["budget_share"] for helper in passes.helpers) == pytest.approx(0.25)


class TestForgetting:
    def test_flips_from_correct_to_wrong_are_counted_and_the_never_learnt_rank_hardest(self):
        passes = FakePasses(60)
        strategy = make("forgetting", passes=passes, rate=0.2, score_until=0.7)
        for epoch in range(7):
            assert visits(strategy, epoch) == everything(60)
        history = [(passes.logits[epoch].argmax(dim=1) == passes.labels).tolist() for epoch in range(7)]
        counts = []
        for sample in range(60):
            correct = [moment[sample] for moment in history]
            flips = sum(before and not after for before, after in itertools.pairwise(correct))
            counts.append(flips if any(correct) else math.inf)
        assert math.inf in counts, "the example should have a sample that was never learnt"
        kept = visits(strategy, 7)
        dropped = set(everything(60)) - set(kept)
        assert len(dropped) > 20
        assert max(counts[sample] for sample in dropped) <= min(counts[sample] for sample in kept)

    def test_an_untrained_sample_is_not_forgotten_by_being_wrong_at_first(self):
        strategy = make("forgetting", size=4, passes=FakePasses(4))
        strategy.passes.labels = torch.zeros(4, dtype=torch.int64)
        right, wrong = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0, 1.0, 0]])
        for outcome in ([wrong, wrong, right, right], [wrong, right, wrong, right], [wrong, wrong, right, right]):
            strategy.observe(torch.arange(4), torch.ones(4), torch.cat(outcome))
        assert strategy.forgotten.tolist() == [0, 1, 1, 0]
        assert strategy.scores().tolist() == [2, 1, 1, 0]


class TestCoverageCentric:
    def test_strata_are_of_the_mean_margin_over_the_first_epochs(self):
        passes = FakePasses(60)
        strategy = make("ccs", passes=passes, score_until=0.5, rate=0.3, cutoff=0.2, strata=4)
        for epoch in range(5):
            assert visits(strategy, epoch) == everything(60)
        margins = []
        for sample in range(60):
            total = 0.0
            for epoch in range(5):
                *others, best = sorted((p, k) for k, p in enumerate(passes.logits[epoch, sample].softmax(0).tolist()))
                label = int(passes.labels[sample])
                wrong = best[0] if best[1] != label else others[-1][0]
                total += wrong - float(passes.logits[epoch, sample].softmax(0)[label])
            margins.append(total / 5)
        torch.testing.assert_close(strategy.scores(), torch.tensor(margins), rtol=0, atol=1e-5)
        generator = torch.Generator()
        generator.set_state(strategy.generator.get_state())
        expected = keep_by_strata(strategy.scores(), 36, cut=0.2, strata=4, generator=generator)
        kept = visits(strategy, 5)
        assert kept == expected.tolist()
        hardest = sorted(everything(60), key=margins.__getitem__)[-12:]
        assert not set(hardest) & set(kept)

    def test_samples_that_were_not_seen_stay(self):
        strategy = make("ccs", size=20, rate=0.3, score_until=0.1)
        seen = strategy.passes.seen(torch.arange(12), 0)
        strategy.observe(seen.indices, seen.losses, seen.logits)
        assert set(range(12, 20)) <= set(strategy.plan(1, 0.1).indices.tolist())


class TestPrototypes:
    def test_the_far_side_or_the_near_side_of_the_prototypes_stays(self):
        passes = FakePasses(61)
        generator = torch.Generator().manual_seed(5)
        centres = torch.eye(4)[:CLASSES].repeat_interleave(20, dim=0)
        close = torch.cat([centres[:60] + 0.01 * torch.randn(60, 4, generator=generator), torch.eye(4)[3:] + 0.2])
        close[::20] += torch.tensor([0.0, 0.0, 0.0, 0.9])  # four that are far from their centre
        passes.features[0] = close
        for side, expected in [("hard", True), ("easy", False)]:
            passes.asked = 0
            strategy = make("prototypes", size=61, passes=passes, side=side, rate=0.3, score_until=0.3)
            assert [len(visits(strategy, epoch)) for epoch in range(3)] == [61] * 3
            kept = set(visits(strategy, 3))
            assert passes.asked == 1
            assert ({0, 20, 40, 60} <= kept) == expected

    def test_clusters_are_one_for_each_class_unless_the_user_says(self, monkeypatch):
        asked = []

        def spy(points, clusters, *, generator):
            asked.append(clusters)
            return torch.zeros(len(points))

        monkeypatch.setattr("budgettune.training.pruning.static.spherical_kmeans", spy)
        for fields in ({}, {"clusters": 7}):
            make("prototypes", **fields).plan(5, 0.5)
        assert asked == [CLASSES, 7]


class TestReferenceModel:
    @pytest.mark.parametrize("side", ["hard", "middle", "easy"])
    def test_every_sample_is_scored_by_the_helper_that_did_not_see_it(self, side):
        passes = FakePasses(60)
        strategy = make("reference-model", passes=passes, side=side, helper_scale=0.25, helper_epochs=4)
        first, second = (helper["indices"].tolist() for helper in passes.helpers)
        assert sorted(first + second) == everything(60)
        assert [(h["number"], h["scale"], h["epochs"]) for h in passes.helpers] == [(0, 0.25, 4), (1, 0.25, 4)]
        losses = [float(passes.seen(torch.tensor([k]), 31 if k in first else 30).losses) for k in everything(60)]
        ranked = sorted(everything(60), key=losses.__getitem__)
        begin = {"easy": 0, "middle": 12, "hard": 24}[side]
        assert strategy.plan(0, 0.0).indices.tolist() == sorted(ranked[begin : begin + 36])
        assert strategy.helper_scales == (0.25,)


class TestRhoLoss:
    def test_of_each_batch_those_with_the_highest_reducible_loss_are_trained_on(self):
        passes = FakePasses(60)
        strategy = make("rho-loss", passes=passes, rate=0.5)
        first = set(passes.helpers[0]["indices"].tolist())
        strategy.plan(0, 0.0)
        candidates = passes.seen(torch.arange(5, 25), 3)
        reducible = [
            float(loss - passes.seen(torch.tensor([index]), 31 if index in first else 30).losses)
            for index, loss in zip(candidates.indices.tolist(), candidates.losses, strict=True)
        ]
        positions = strategy.select(candidates).positions.tolist()
        assert sorted(positions) == sorted(sorted(range(20), key=reducible.__getitem__)[10:])

    def test_candidates_whose_loss_is_not_finite_stay(self):
        strategy = make("rho-loss", rate=0.5)
        strategy.plan(0, 0.0)
        seen = strategy.passes.seen(torch.arange(8), 0)
        seen.losses[2] = torch.nan
        assert 2 in strategy.select(seen).positions.tolist()

    def test_irreducible_losses_of_the_user_save_the_helpers(self, tmp_path):
        np.save(tmp_path / "il.npy", np.arange(60.0))
        passes = FakePasses(60)
        strategy = make("rho-loss", passes=passes, scores=str(tmp_path / "il.npy"))
        assert not passes.helpers
        strategy.plan(0, 0.0)
        kept = strategy.select(passes.seen(torch.tensor([50, 3, 7, 59, 20, 33, 1, 14, 58, 42]), 0)).positions
        assert sorted(kept.tolist()) == [1, 2, 4, 5, 6, 7]  # losses differ by less than the given ones


class TestBatchCoreset:
    def test_medoids_of_every_class_stand_for_the_batch_by_their_weights(self):
        strategy = make("batch-coreset", rate=0.5)
        strategy.plan(0, 0.0)
        seen = strategy.passes.seen(torch.arange(30), 2)
        generator = torch.Generator()
        generator.set_state(strategy.generator.get_state())
        positions, weights = weighted_coreset(
            softmax_error(seen.logits, seen.labels), seen.labels, 15, generator=generator
        )
        selection = strategy.select(seen)
        assert torch.equal(selection.positions, positions)
        assert torch.equal(selection.weights, weights)
        assert set(seen.labels[positions].tolist()) == set(seen.labels.tolist())

    def test_a_batch_of_one_class_and_a_batch_of_one_sample_are_no_trouble(self):
        strategy = make("batch-coreset", rate=0.5)
        strategy.plan(0, 0.0)
        of_one_class = strategy.passes.seen((strategy.passes.labels == 1).nonzero().squeeze(1), 0)
        assert len(strategy.select(of_one_class).positions) == round(len(of_one_class) / 2)
        strategy.plan(1, 0.1)
        assert strategy.select(strategy.passes.seen(torch.tensor([4]), 0)).positions.tolist() == [0]


class TestCraig:
    def test_it_keeps_weighted_medoids_of_every_class_and_chooses_anew_when_due(self):
        passes = FakePasses(60)
        strategy = make("craig", passes=passes, reselect_every=3)
        generator, expected = torch.Generator().manual_seed(0), []
        for version in range(3):
            seen = passes.seen(None, version)
            expected.append(
                weighted_coreset(softmax_error(seen.logits, seen.labels), seen.labels, 24, generator=generator)
            )
        for epoch in range(9):
            plan = strategy.plan(epoch, epoch / 9)
            assert torch.equal(plan.indices, expected[epoch // 3][0])
            assert torch.equal(plan.weights, expected[epoch // 3][1])
            assert float(plan.weights.mean()) == pytest.approx(1)
        assert passes.asked == 3

    def test_a_choice_that_takes_long_can_be_stopped_at_every_step_and_leaves_the_last_one(self):
        passes = FakePasses(60)
        strategy = make("craig", passes=passes, reselect_every=3)
        before = strategy.plan(0, 0.0)
        per_choice = passes.checked
        assert per_choice >= 36 / CLASSES

        def interrupt():
            passes.checked += 1
            if passes.checked == per_choice + 5:
                raise Interrupted("now")

        passes.check = interrupt
        with pytest.raises(Interrupted):
            strategy.plan(3, 0.3)
        assert torch.equal(strategy.kept, before.indices)

    def test_a_class_that_is_missing_and_one_of_a_single_sample_are_no_trouble(self):
        passes = FakePasses(20)
        passes.labels = torch.tensor([0] * 19 + [2])
        plan = make("craig", size=20, passes=passes, rate=0.9).plan(0, 0.0)
        assert len(plan.indices) == 2
        assert 19 in plan.indices.tolist()

    def test_a_model_that_has_diverged_drops_nothing_that_it_cannot_compare(self):
        passes = FakePasses(20)
        passes.logits[0, 5:] = torch.nan
        plan = make("craig", size=20, passes=passes, rate=0.9).plan(0, 0.0)
        assert plan.indices.tolist() == list(range(5, 20))
        assert plan.weights.tolist() == [1] * 15


@pytest.mark.parametrize("name", (*AHEAD, *IN_PASSING))
class TestScoresOfTheUser:
    def test_nothing_is_computed_and_every_epoch_drops_the_same(self, name, tmp_path):
        scores = np.random.default_rng(0).permutation(60).astype(np.float32)
        np.save(tmp_path / "mine.npy", scores)
        passes = FakePasses(60)
        strategy = make(name, passes=passes, scores=str(tmp_path / "mine.npy"), cutoff=0.0, strata=60)
        plans = [visits(strategy, epoch) for epoch in range(3)]
        assert not passes.helpers
        assert not passes.asked
        assert [len(plan) for plan in plans] == [36] * 3
        assert plans[0] == plans[1] == plans[2]
        if name != "ccs":
            assert plans[0] == sorted(scores.argsort()[24:].tolist())

    def test_a_sample_without_a_finite_score_stays(self, name, tmp_path):
        scores = np.arange(60.0)
        scores[[0, 1, 2]] = np.nan, np.inf, -np.inf
        np.save(tmp_path / "mine.npy", scores)
        kept = visits(make(name, scores=str(tmp_path / "mine.npy")), 0)
        assert len(kept) == 36
        assert {0, 1, 2} <= set(kept)


def test_strategies_that_score_in_passing_refuse_a_rate_that_the_rest_of_the_run_cannot_drop():
    with pytest.raises(SpecError, match=r"prune_rate: 0\.85 .*forgetting can drop in 10 epochs, .*: stay below 0\.8"):
        make_strategy(PruningSpec(strategy="forgetting", prune_rate=0.85), 60, epochs=10)
    with pytest.raises(SpecError, match="in 1 epoch, because it trains on all images there: train for 2 epochs"):
        make_strategy(PruningSpec(strategy="ccs", prune_rate=0.1), 60, epochs=1)


def test_strategies_that_score_in_passing_reach_the_rate_under_a_time_budget_too():
    strategy = make("ccs", 1_000, 0.5, epochs=None)
    strategy.observe(torch.arange(1_000), torch.ones(1_000), strategy.passes.logits[0])
    now, seen, whole = 0.0, 0, 0
    while now < 1:  # an epoch takes time by its visits
        plan = strategy.plan(whole // 1_000, now)
        count = strategy.size if plan.indices is None else len(plan.indices)
        now, seen, whole = now + count / 100_000, seen + count, whole + 1_000
    assert seen / whole == pytest.approx(0.5, abs=0.01)

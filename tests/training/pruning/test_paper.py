"""The bundled study `paper` against the rule of Chang and Chen (2024), section 4.1; their script is another study's."""

import math
from collections import Counter

import pytest
import torch

from budgettune.comparison.plan import arms_of, shared_spec, with_key
from budgettune.comparison.result import RunKey
from budgettune.predict.workload import Workloads
from budgettune.spec.pruning import visits_of_epochs
from budgettune.spec.study_spec import load_spec
from budgettune.training.data.load import load_data
from budgettune.training.pruning import make_strategy
from budgettune.training.trainer import train

SIZE, RATE, EPOCHS = 20_000, 0.3, 10
PRUNED = [epoch for epoch in range(EPOCHS) if epoch % 5]


def of_paper(study="paper", rate=RATE, **fields):
    """Return the `[pruning]` table of one cell."""
    config = load_spec(study).resolve({"prune_rate": rate})
    return config.pruning.model_copy(update=fields)


def play(spec, size=SIZE, epochs=EPOCHS, seed=0):
    """Run a strategy on losses that sink at each visit; return what each epoch visits, and the table before it."""
    strategy = make_strategy(spec, size, seed=seed, epochs=epochs)
    chance = torch.Generator().manual_seed(seed)
    hardness, told = torch.rand(size, generator=chance), []
    for epoch in range(epochs):
        before = strategy.losses.clone() if hasattr(strategy, "losses") else None
        indices = strategy.plan(epoch, epoch / epochs).indices
        visited = torch.arange(size) if indices is None else indices
        noise = torch.rand(len(visited), generator=chance)
        strategy.observe(visited, (hardness[visited] + 0.3 * noise) / (1 + epoch))
        told.append((visited, before))
    return told


def test_ten_epochs_visit_what_the_text_says():
    """Np points go in each epoch that prunes; every fifth, from the first on, trains on the entire dataset."""
    visits = [len(visited) for visited, _ in play(of_paper())]
    assert visits[0] == visits[5] == SIZE
    # The quantile of 5,000 losses strays by sqrt(p (1 - p) / 5,000) of the set, less what the draw has of all of it.
    stray = SIZE * math.sqrt(RATE * (1 - RATE) / 5_000)
    assert all(abs(visits[epoch] - (1 - RATE) * SIZE) < 4 * stray for epoch in PRUNED)
    assert len({visits[epoch] for epoch in PRUNED}) > 1  # the subset is drawn anew
    assert sum(visits) == pytest.approx((2 + 8 * (1 - RATE)) * SIZE, abs=4 * stray * math.sqrt(len(PRUNED)))
    assert visits_of_epochs(of_paper(), SIZE, EPOCHS) == {SIZE: 2, round((1 - RATE) * SIZE): 8}


def test_those_below_one_threshold_of_the_last_losses_go():
    for epoch, (visited, before) in enumerate(play(of_paper())):
        if epoch in PRUNED:
            dropped = torch.ones(SIZE, dtype=torch.bool)
            dropped[visited] = False
            assert before[dropped].max() < before[visited].min()


def test_in_expectation_np_points_go():
    spec = of_paper(threshold_sample=50)
    dropped = [1_000 - len(play(spec, 1_000, 2, seed)[1][0]) for seed in range(300)]
    assert sum(dropped) / len(dropped) == pytest.approx(RATE * 1_000, abs=4 * 1_000 * math.sqrt(0.21 / 50 / 300) + 10)


def test_a_threshold_from_all_samples_is_the_quantile_itself():
    [_, (visited, before), *_] = play(of_paper(threshold_sample=SIZE))
    assert len(visited) == int((before >= before.quantile(RATE)).sum()) == pytest.approx(0.7 * SIZE, abs=1)


def test_equal_and_unknown_losses_are_never_below_the_threshold():
    strategy = make_strategy(of_paper(), 100, epochs=EPOCHS)
    assert len(strategy.plan(1, 0.1).indices) == 100
    strategy.observe(torch.arange(90), torch.full((90,), 0.5))
    assert len(strategy.plan(1, 0.1).indices) == 100
    strategy.observe(torch.arange(10), torch.arange(10) / 100)
    strategy.losses[0] = torch.nan
    assert set(range(100)) - set(strategy.plan(1, 0.1).indices.tolist()) == set(range(1, 10))


def test_the_default_rule_drops_the_share_of_the_whole_run_and_an_exact_count():
    usual = of_paper("digits")
    assert [len(visited) for visited, _ in play(usual)] == [SIZE, *[int(0.625 * SIZE)] * 4] * 2
    assert (usual.rate_per, usual.threshold_sample) == ("run", None)


def test_the_script_drops_as_much_but_its_kept_set_is_frozen_between_refreshes():
    told = [visited for visited, _ in play(of_paper("paper-as-coded"))]
    visits = [len(visited) for visited in told]
    assert visits[0] == visits[5] == SIZE
    assert visits[1] == visits[2] == visits[3] == visits[4] == pytest.approx(0.7 * SIZE, rel=0.05)
    assert all(torch.equal(told[1], each) for each in told[1:5])
    assert not torch.equal(told[1], told[6])


def test_prediction_knows_the_visits_of_the_paper():
    spec = load_spec("paper").with_overrides(["train.epochs=10"])
    workload = Workloads(spec, []).of({"scale": 1.0, "prune_rate": 0.3, "batch_size": 1400})
    assert workload.epoch_sizes(10) == {50_000: 2, 35_000: 8}
    assert workload.visits(30) == 6 * 50_000 + 24 * 35_000
    assert workload.fewest_epochs() == 1


def test_ten_trained_epochs_visit_what_the_text_says():
    small = ["data.name=digits", "data.train_size=200", "model.widths=[8, 8, 8]", "model.blocks=1", "train.epochs=10"]
    spec = load_spec("paper").with_overrides([*small, "batch_size=50", "scale=1.0", "prune_rate=0.3"])
    result = train(spec, {}, seed=0, data=load_data(spec.data), device=torch.device("cpu")).result
    visits = [epoch.samples for epoch in result.curve]
    assert Counter(visits) == {200: 2, 140: 8}  # fewer than 5,000 samples: the quantile is that of all
    assert result.keep_fraction == pytest.approx(0.76)


@pytest.mark.parametrize("strategy", ["full", "random", "kakurenbo", "forgetting"])
def test_other_strategies_can_take_the_place_of_the_papers(strategy):
    spec = load_spec("paper").with_overrides([f"pruning.strategy={strategy}"])
    assert spec.pruning.threshold_sample is None
    searched = load_spec("paper").with_overrides([f'search.pruning.strategy=["stale-quantile", "{strategy}"]'])
    assert [searched.resolve(cell).pruning.threshold_sample for cell in searched.cells()[:2]] == [5_000, None]


def test_strategies_are_compared_with_the_papers_as_it_has_it():
    spec = load_spec("paper")
    shared = shared_spec(spec)
    for arm in arms_of(spec):
        found = with_key(shared, RunKey(arm, 5.0, 0, 3e-3, "scored")).pruning
        assert (found.strategy, found.rate_per) == (arm.strategy, "epoch")
        assert found.threshold_sample == (5_000 if arm.strategy == "stale-quantile" else None)

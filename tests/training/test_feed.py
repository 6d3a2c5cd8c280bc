"""How an epoch is cut into batches: a rest of one joins the batch before it, wherever a model looks at samples."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from budgettune.errors import SpecError
from budgettune.spec.pruning import STRATEGIES
from budgettune.spec.study_spec import load_spec
from budgettune.spec.trust import Trust
from budgettune.training import learner
from budgettune.training.data.load import load_data
from budgettune.training.pruning import EpochPlan, Selection, Strategy
from budgettune.training.trainer import train

SIZE, BATCH = 33, 4  # eight batches and one left over
OVERRIDES = ["train.epochs=4", f"train.batch_size={BATCH}", "search={}", "prune_rate=0.3", "clock.warmup_steps=1"]
OVERRIDES += ["data.evaluate_on=test"]


class Small(nn.Module):
    """Cannot learn from one sample, as batch norm behind a linear layer cannot; counts what it is shown."""

    shown: list[tuple[bool, int]]
    built: int

    def __init__(self, num_classes, channels, image_size, scale):
        super().__init__()
        pixels = channels * image_size**2
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes))
        Small.built += 1

    def forward(self, x):
        Small.shown.append((self.training, len(x)))
        return self.layers(x)


@pytest.fixture(scope="module")
def spec():
    return load_spec("digits").with_overrides([f"model.name={__name__}:Small", *OVERRIDES])


@pytest.fixture(scope="module")
def data(spec):
    whole = load_data(spec.data)
    return replace(whole, train=whole.train.take(slice(SIZE)), held_out=whole.held_out.take(slice(SIZE)))


@pytest.fixture
def run(spec, data, monkeypatch):
    monkeypatch.setattr(learner, "EVALUATION_BATCH", 8)
    monkeypatch.setattr(Small, "shown", [], raising=False)
    monkeypatch.setattr(Small, "built", 0, raising=False)

    def run(strategy, *overrides, **how):
        spec_of = spec.with_overrides([f"pruning.strategy={strategy}", *overrides])
        return train(spec_of, seed=1, data=data, trust=Trust(["tests"]), **how).result

    return run


@pytest.mark.parametrize("budget", [False, True])
@pytest.mark.parametrize("name", STRATEGIES)
def test_no_strategy_leaves_a_batch_of_one_in_training_helpers_scores_warm_up_or_evaluation(run, name, budget):
    ticks = itertools.count()
    result = run(name, *["train.budget=3"] * budget, clock=lambda: next(ticks) * 5e-3)
    assert (True, 1) not in Small.shown
    assert 1 not in result.batch_shapes
    if name != "kakurenbo":  # it looks at what it hid, be it one
        assert Small.shown.count((False, 1)) == Small.built  # a network is shown an image, to count its arithmetic
    assert sum(epoch.steps for epoch in result.curve) == result.steps
    if name == "full" and not budget:
        assert (result.steps, result.batch_shapes) == (4 * 8, (5, 4))


class Few(Strategy):
    """Takes so many of each three batches of candidates, in all but the last of them a full batch."""

    needs_model = True
    candidates = 3.0
    last = 1

    def plan(self, epoch, progress):
        return EpochPlan()

    def select(self, candidates):
        return Selection(torch.arange(BATCH if len(candidates) == 3 * BATCH else self.last))


class FewMore(Few):
    last = 2


@pytest.mark.parametrize(("strategy", "sizes"), [("Few", [4, 5]), ("FewMore", [4, 4, 2])])
def test_the_only_one_chosen_of_the_last_candidates_joins_the_full_batch_before_it(run, monkeypatch, strategy, sizes):
    trained, step = [], learner.Learner.step
    monkeypatch.setattr(
        learner.Learner, "step", lambda self, batch, lr: (trained.append(len(batch)), step(self, batch, lr))[1]
    )
    result = run(f"{__name__}:{strategy}", "train.epochs=2")
    assert trained == sizes * 2
    assert result.samples == sum(trained)


def test_a_network_whose_last_stage_has_one_pixel_trains_where_one_image_is_left_over(data):
    spec = load_spec("digits").with_overrides(
        [*OVERRIDES, "train.epochs=1", "pruning.strategy=full", "data.image_size=4"]
    )
    small = replace(data, train=data.train.resized(4), held_out=data.held_out.resized(4))
    assert train(spec, seed=1, data=small).result.batch_shapes == (5, 4)


@pytest.mark.parametrize("strategy", ["full", "el2n", "rho-loss", "selective-backprop"])
def test_batches_of_one_that_were_asked_for_fail_with_a_reason_where_the_network_cannot_take_them(run, strategy):
    with pytest.raises(SpecError, match=r"train\.batch_size: this network normalises over its batch") as caught:
        run(strategy, "train.batch_size=1", "prune_rate=0")
    assert "take at least 2" in str(caught.value)
    assert run(strategy, "train.batch_size=2", "prune_rate=0").batch_shapes


def test_batches_of_one_that_were_asked_for_train_a_network_that_can_take_them(data):
    spec = load_spec("digits").with_overrides(
        [*OVERRIDES, "train.epochs=1", "pruning.strategy=full", "prune_rate=0", "train.batch_size=1"]
    )
    assert train(spec, seed=1, data=data).result.batch_shapes == (1,)


@pytest.mark.parametrize(
    ("is_cuda", "image_size", "images"),
    [(False, 32, 1_000), (False, 28, 1_000), (False, 64, 250), (True, 32, 4_000), (True, 28, 4_000), (True, 64, 1_000)],
)
def test_a_gpu_is_given_more_images_to_evaluate_at_a_time(is_cuda, image_size, images):
    asked = SimpleNamespace(device=SimpleNamespace(is_cuda=is_cuda), data=SimpleNamespace(image_size=image_size))
    assert learner.Learner.scoring_batch.fget(asked) == images

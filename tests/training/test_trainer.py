"""Real training on small images: the clock, the phases, the schedule, reproduction, and how trials end badly."""

import gc
import itertools
import time
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from budgettune.errors import Interrupted, NonFiniteLoss, OutOfMemory, SpecError
from budgettune.machine.witness import NoWitness
from budgettune.records import TrialResult
from budgettune.spec.study_spec import StudySpec, load_spec
from budgettune.spec.trust import Trust
from budgettune.training.data.load import load_data
from budgettune.training.device import Device
from budgettune.training.pruning import EpochPlan, Strategy
from budgettune.training.pruning.baselines import StaleQuantile
from budgettune.training.resnet import ScalableResNet
from budgettune.training.trainer import TrainingRun, train

SLEEP_SECONDS = 0.08


@pytest.fixture(scope="module")
def spec() -> StudySpec:
    small = ["train.epochs=4", "train.batch_size=200", "pruning.refresh_every=2", "data.evaluate_on=test"]
    return load_spec("digits").with_overrides(small)


@pytest.fixture(scope="module")
def data(spec):
    return load_data(spec.data)


def run(spec, data, *overrides, seed=1, **kwargs):
    kwargs.setdefault("trust", Trust(["tests"]))
    return train(spec.with_overrides([*overrides, "search={}"]), seed=seed, data=data, **kwargs).result


def test_a_trial_learns_and_says_what_it_did(spec, data):
    result = run(spec, data, "prune_rate=0.3", "train.epochs=10")
    assert result.test_accuracy > 0.8
    assert result.curve[-1].accuracy == result.test_accuracy
    assert [epoch.samples for epoch in result.curve[:4]] == [1437, 575, 1437, 575]
    assert result.samples == sum(epoch.samples for epoch in result.curve)
    assert result.keep_fraction == pytest.approx(0.7, abs=1e-3)
    assert result.steps == sum(epoch.steps for epoch in result.curve) == 5 * (8 + 3)
    assert result.batch_shapes == (200, 175, 37)
    assert result.final_lr == 0
    assert result.architecture == {"widths": [8, 16, 32], "blocks": 1, "stem": 8}
    assert result.peak_memory_mb > 0
    assert TrialResult.from_json(result.to_json()) == result


def test_phases_add_up_to_the_training_time(spec, data):
    results = [run(spec, data, "prune_rate=0.3") for _ in range(3)]
    assert all(result.phases.on_clock <= result.train_seconds for result in results)
    # The best of three: what another process takes between two phases is nobody's.
    assert max(result.phases.on_clock / result.train_seconds for result in results) >= 0.98
    result = results[-1]
    times = [epoch.train_seconds for epoch in result.curve]
    assert times == sorted(times)
    assert times[-1] == result.train_seconds


def test_the_same_seed_gives_identical_weights_and_another_seed_others(spec, data):
    hashes = [run(spec, data, "prune_rate=0.3", seed=seed).weights_sha256 for seed in (1, 1, 2)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_warming_up_changes_nothing_but_the_clock(spec, data):
    warm, cold = (run(spec, data, f"clock.warmup_steps={steps}") for steps in (3, 0))
    assert warm.weights_sha256 == cold.weights_sha256
    assert cold.phases.warmup < warm.phases.warmup


def test_the_global_random_state_is_left_as_it_was(spec, data):
    before = torch.get_rng_state()
    run(spec, data)
    assert torch.equal(torch.get_rng_state(), before)


class Slow(StaleQuantile):
    def plan(self, epoch, progress):
        time.sleep(SLEEP_SECONDS)
        return super().plan(epoch, progress)


class SlowToObserve(StaleQuantile):
    def observe(self, indices, losses, logits=None):
        time.sleep(SLEEP_SECONDS / 8)
        super().observe(indices, losses, logits)


@pytest.mark.parametrize("kind", [Slow, SlowToObserve])
def test_a_slow_strategy_is_charged_for_its_time_and_no_more(spec, data, kind):
    result = run(spec, data, f"pruning.strategy={__name__}:{kind.__name__}")
    slept = 4 * SLEEP_SECONDS if kind is Slow else result.steps * SLEEP_SECONDS / 8
    assert slept <= result.phases.pruning < 1.5 * slept + 0.2  # sleep returns late on a busy box
    assert result.train_seconds >= slept + result.phases.step


class SlowToEvaluate(nn.Module):
    def __init__(self, num_classes, channels, image_size, scale, width=4):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * image_size**2, width), nn.Linear(width, num_classes)
        )

    def forward(self, x):
        if not self.training:
            time.sleep(SLEEP_SECONDS)
        return self.layers(x)


def test_slow_evaluation_is_off_the_clock(spec, data):
    result = run(spec, data, f"model.name={__name__}:SlowToEvaluate", "model.options.width=7")
    assert result.parameters == 65 * 7 + 8 * 10
    assert result.phases.evaluate >= 4 * SLEEP_SECONDS
    assert result.train_seconds < result.phases.on_clock + 2 * SLEEP_SECONDS


def test_accuracy_is_evaluated_as_often_as_asked_and_always_at_the_end(spec, data):
    curve = run(spec, data, "train.evaluate_every=3").curve
    assert [epoch.accuracy is not None for epoch in curve] == [False, False, True, True]


@pytest.mark.parametrize("budget_seconds", [0.3, 1.0])
def test_a_time_budget_ends_within_a_step_with_the_learning_rate_at_zero(spec, data, budget_seconds):
    result = run(spec, data, f"train.budget={budget_seconds}", "prune_rate=0.3")
    step_seconds = result.train_seconds / result.steps
    assert abs(result.train_seconds - budget_seconds) < max(0.1 * budget_seconds, 10 * step_seconds)
    assert result.final_lr == 0
    assert result.curve[-1].accuracy is not None
    assert 0.7 <= result.keep_fraction <= 1


def test_a_budget_is_kept_exactly_by_the_clock_it_is_measured_with(spec, data):
    ticks = itertools.count()
    result = run(spec, data, "train.budget=50", clock=lambda: next(ticks) * 0.01)
    assert abs(result.train_seconds - 50) < 0.2  # a step reads this clock some dozen times


def test_weights_reach_the_loss(spec, data):
    plain, weighted = (run(spec, data, f"pruning.strategy={__name__}:{name}") for name in ("Unweighted", "Weighted"))
    assert plain.weights_sha256 != weighted.weights_sha256
    assert plain.steps == weighted.steps


class Unweighted(Strategy):
    weight = 1.0

    def plan(self, epoch, progress):
        indices = torch.arange(self.size // 2)
        return EpochPlan(indices, torch.full((len(indices),), self.weight).where(indices % 2 == 0, 1.0))


class Weighted(Unweighted):
    weight = 0.0


def test_a_diverging_trial_ends_with_a_reason(spec, data):
    with pytest.raises(NonFiniteLoss, match=r"lower train\.lr"):
        run(spec, data, "train.optimizer=sgd", "train.lr=1e30")


class Hungry(nn.Module):
    def __init__(self, **_):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2**52))


def test_running_out_of_memory_ends_the_trial_with_a_reason(spec, data):
    with pytest.raises(OutOfMemory, match="smaller batch_size"):
        run(spec, data, f"model.name={__name__}:Hungry")


def test_a_trial_told_to_stop_stops_at_the_next_step(spec, data):
    asked = itertools.count()
    with pytest.raises(Interrupted):
        run(spec, data, should_stop=lambda: next(asked) == 3)
    assert next(asked) == 4


def test_a_batch_larger_than_the_images_is_refused(spec, data):
    with pytest.raises(SpecError, match="larger than the 10 training images"):
        small = load_data(spec.with_overrides(["data.train_size=10"]).data)
        run(spec, small, "train.batch_size=200")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_every_precision_trains_and_is_recorded(spec, data, precision):
    result = run(spec, data, f"train.precision={precision}")
    assert result.precision in ({"fp32", "bf16"} if precision == "auto" else {precision})
    assert result.test_accuracy > 0.3


@pytest.mark.parametrize("strategy", ["full", "selective-backprop"])
def test_images_and_weights_lie_in_the_memory_order_that_is_asked_for(spec, data, strategy, monkeypatch):
    rgb = replace(data, **{name: in_colour(getattr(data, name)) for name in ("train", "held_out")})
    rgb = replace(rgb, mean=rgb.mean * 3, std=rgb.std * 3)
    seen, results = set(), []
    forward = ScalableResNet.forward

    def watched(model, images):
        weight = next(weight for weight in model.parameters() if weight.ndim == 4 and weight.shape[2] > 1)
        if len(images) > 1:  # a network is shown an image, to count its arithmetic
            seen.add((images.is_contiguous(), weight.is_contiguous()))
        return forward(model, images)

    monkeypatch.setattr(ScalableResNet, "forward", watched)
    for order, is_contiguous in (("contiguous", True), ("channels_last", False)):
        seen.clear()
        how = ["train.epochs=2", f"train.memory_format={order}", f"pruning.strategy={strategy}"]
        results.append(run(spec, rgb, *how, *["prune_rate=0.3"] * (strategy != "full")))
        assert seen == {(is_contiguous, is_contiguous)}
    assert results[0].curve[0].loss == pytest.approx(results[1].curve[0].loss, rel=0.05)


def in_colour(images):
    return replace(images, images=images.images.repeat(1, 3, 1, 1))


def test_held_out_images_are_augmented_only_where_asked(spec, data):
    plain, augmented = (run(spec, data, f"data.augment_test={value}").test_accuracy for value in ("false", "true"))
    assert augmented < plain


def test_how_often_held_out_images_are_augmented_does_not_change_what_is_learnt(spec, data):
    often, once = (run(spec, data, "data.augment_test=true", f"train.evaluate_every={every}") for every in (1, 4))
    assert often.weights_sha256 == once.weights_sha256


def test_the_witness_watches_training_and_nothing_else(spec, data):
    class Bystander:
        def __init__(self):
            self.calls = []

        def start(self):
            self.calls.append("start")

        def stop(self):
            self.calls.append("stop")
            return "disturbed", {"why": "noise"}

    bystander = Bystander()
    result = run(spec, data, witness=bystander)
    assert bystander.calls == ["start", "stop"]
    assert (result.status, result.evidence) == ("disturbed", {"why": "noise"})


def test_what_the_witness_takes_is_not_in_the_memory_of_the_trial(spec, data, monkeypatch):
    class Greedy(NoWitness):
        mb = 10.0

        def stop(self):
            self.mb = 999.0
            return super().stop()

    witness = Greedy()
    monkeypatch.setattr(Device, "peak_memory_mb", lambda self: witness.mb)
    assert run(spec, data, "train.epochs=1", witness=witness).peak_memory_mb == 10.0


@pytest.mark.parametrize("strategy", ["full", "el2n"])
def test_the_last_trial_s_model_goes_with_its_last_reference(spec, data, strategy):
    gc.collect()
    gc.disable()  # memory must not depend on when the collector comes by
    try:
        changes = ["search={}", "train.epochs=1", f"pruning.strategy={strategy}", "pruning.helper_epochs=1"]
        trained = train(spec.with_overrides(changes), seed=1, data=data)
        model = weakref.ref(trained.model)
        del trained
        assert model() is None
    finally:
        gc.enable()


class Knotted(nn.Module):
    """A model in a cycle of its own, as one with a closure over itself is."""

    before: weakref.ref | None = None
    lived_on = False

    def __init__(self, *, num_classes, channels, image_size, **_):
        super().__init__()
        Knotted.lived_on = Knotted.before is not None and Knotted.before() is not None
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, num_classes))
        self.knot = [self]
        Knotted.before = weakref.ref(self)

    def forward(self, images):
        return self.layers(images)


def test_a_model_that_holds_itself_is_gone_when_the_next_trial_begins(spec, data):
    gc.disable()
    try:
        for _ in range(2):
            run(spec, data, f"model.name={__name__}:Knotted", "train.epochs=1")
        assert not Knotted.lived_on
    finally:
        gc.enable()


@pytest.mark.slow
def test_every_network_of_a_process_is_compiled_for_its_own_batch_shapes(spec, data, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    graphs = []
    for scale in (1.0, 2.0, 3.0):
        torch._dynamo.utils.counters.clear()
        run(spec, data, "train.compile=true", f"scale={scale}", "train.epochs=1", "clock.warmup_steps=1")
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs == [2, 2, 2]  # the full batch and the last one, each by itself


def test_only_batch_shapes_that_warm_up_met_are_compiled(spec, data, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.utils.counters.clear()
    changes = ["pruning.strategy=selective-backprop", "prune_rate=0.3", "train.compile=true", "clock.warmup_steps=1"]
    result = run(spec, data, *changes)
    assert result.compiled
    assert result.phases.compile > 0
    warmed = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert len(result.batch_shapes) > warmed  # the others cost no compilation on the clock


@pytest.mark.parametrize(
    ("changes", "compiles"),
    [
        (["train.epochs=4"], False),  # a second
        (["train.epochs=2000000"], True),
        (["train.budget=1m"], False),
        (["train.budget=1h"], True),
    ],
)
def test_auto_compiles_where_training_is_long_enough_to_pay_for_it(spec, data, monkeypatch, changes, compiles):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    phases = []

    class Ended(Exception):
        pass

    def prepare(run, *args):
        phases.append((run.is_compiled, "compile" in run.watch.seconds))
        raise Ended

    monkeypatch.setattr(TrainingRun, "train", prepare)
    with pytest.raises(Ended):
        run(spec, data, "train.compile=auto", "clock.warmup_steps=1", *changes)
    assert phases == [(compiles, compiles)]


def test_what_cannot_be_compiled_is_refused_with_the_reason(spec, data, monkeypatch):
    def broken(*_):
        raise ValueError("no compiler on this box\nand more")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    with pytest.raises(SpecError, match=r"train.compile: torch cannot compile it here \(.*no compiler"):
        run(spec, data, "train.compile=true", "clock.warmup_steps=1")


@pytest.mark.parametrize("key", ["train.compile=true", "train.compile='auto'", "train.cuda_graphs=true"])
def test_what_warm_up_pays_for_is_refused_without_one(spec, key):
    with pytest.raises(SpecError, match=r"set clock.warmup_steps to at least 1, or leave train\.\w+ at false"):
        spec.with_overrides([key, "clock.warmup_steps=0"])
    with pytest.raises(SpecError, match=r"clock\.warmup_steps"):
        spec.with_overrides([f"search.{key.split('=')[0]}=[false, true]", "clock.warmup_steps=0"])

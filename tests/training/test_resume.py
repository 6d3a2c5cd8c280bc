"""A run that was cut off and goes on in another process ends where an uninterrupted one does, bit by bit."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from budgettune.errors import Interrupted
from budgettune.machine.witness import NoWitness
from budgettune.records import EpochRecord, TrialResult
from budgettune.spec.pruning import STRATEGIES
from budgettune.spec.study_spec import load_spec
from budgettune.spec.trust import Trust
from budgettune.training import trainer
from budgettune.training.data.load import load_data
from budgettune.training.resume import read
from budgettune.training.trainer import train
from budgettune.trial.checkpoint import Checkpoint
from budgettune.trial.stopwatch import undisturbed

IMAGES = 160
ALWAYS = {"every_seconds": 0.0}


@pytest.fixture(scope="module")
def spec():
    return load_spec("digits").with_overrides(
        ["train.epochs=5", "train.batch_size=32", "clock.warmup_steps=1", "prune_rate=0.3", "search={}"]
    )


@pytest.fixture(scope="module")
def data(spec):
    whole = load_data(spec.data)
    return replace(whole, train=whole.train.take(slice(IMAGES)))


@pytest.fixture
def place(tmp_path):
    (tmp_path / "kept").mkdir(mode=0o700)
    return lambda **how: Checkpoint(tmp_path / "kept" / "trial", "mine", **ALWAYS | how)


def run(spec, data, *overrides, **how) -> TrialResult:
    config = spec.with_overrides(overrides)
    return train(config, seed=1, data=data, trust=Trust(["tests"]), **how).result


def cut_off(spec, data, *overrides, after, **how):
    """Train, and be told to stop in the middle of the epoch after so many."""
    asked, told = [0], [False]

    def should_stop():
        asked[0] += told[0]
        return asked[0] > 1

    def on_epoch(record: EpochRecord):
        told[0] = record.epoch + 1 == after

    with pytest.raises(Interrupted):
        run(spec, data, *overrides, should_stop=should_stop, on_epoch=on_epoch, **how)


def without_times(result: TrialResult):
    times = {"train_seconds": 0.0, "step_ms_median": 0.0, "step_ms_mad": 0.0, "peak_memory_mb": 0.0, "phases": None}
    curve = tuple(replace(record, train_seconds=0.0) for record in result.curve)
    return replace(result, **times, curve=curve, resumed=(), evidence={})


def assert_goes_on(spec, data, place, *overrides, after=(2,)):
    whole = run(spec, data, *overrides)
    for epoch in after:
        cut_off(spec, data, *overrides, after=epoch, checkpoint=place())
    resumed = run(spec, data, *overrides, checkpoint=place())
    assert resumed.resumed == after
    assert without_times(resumed) == without_times(whole)
    assert whole.on_test is not None
    return resumed


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_goes_on_to_the_same_end(spec, data, place, strategy):
    more = ["pruning.helper_epochs=1", f"pruning.strategy={strategy}", "train.epochs=4"]
    assert_goes_on(spec, data, place, *more)


def test_a_run_goes_on_as_often_as_it_is_cut_off(spec, data, place):
    assert_goes_on(spec, data, place, "pruning.strategy=infobatch", after=(1, 2, 4))


class Dropping(nn.Sequential):
    """A network with chance of its own."""

    def __init__(self, num_classes, channels, image_size, **_):
        super().__init__(
            nn.Flatten(), nn.Linear(channels * image_size**2, 32), nn.Dropout(0.5), nn.Linear(32, num_classes)
        )


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "sgd without momentum"])
def test_optimisers_augmentation_and_the_chance_of_a_network_go_on(spec, data, place, optimizer):
    more = ["model.name=tests.training.test_resume:Dropping", f"train.optimizer={optimizer.split()[0]}"]
    more += ["data.augment=true", "data.augment_test=true", "train.evaluate_every=2", "train.lr_schedule=constant"]
    if "without" in optimizer:
        more.append("train.momentum=0")
    assert_goes_on(spec, data, place, *more)


def test_the_clock_and_the_phases_go_on(spec, data, place):
    cut_off(spec, data, after=2, checkpoint=place())
    half = place().load()
    assert half.elapsed_seconds == half.curve[-1].train_seconds
    result = run(spec, data, checkpoint=place(), load_seconds=2.0)
    assert result.curve[:2] == half.curve
    assert result.train_seconds > result.curve[-2].train_seconds > half.elapsed_seconds
    assert result.phases.checkpoint > 0
    assert result.phases.on_clock == pytest.approx(result.train_seconds, rel=0.1)
    assert all(getattr(result.phases, name) >= seconds for name, seconds in half.seconds.items())
    assert result.phases.load == 2.0


def test_a_time_budget_ends_where_it_would_have(spec, data, place):
    config = spec.resolve({"train.epochs": None, "train.budget": 1.0})
    seen = []
    with pytest.raises(Interrupted):
        train(
            config,
            seed=1,
            data=data,
            checkpoint=place(),
            on_epoch=seen.append,
            should_stop=lambda: bool(seen) and seen[-1].train_seconds > 0.5,
        )
    half = place().load()
    assert half.elapsed_seconds > 0.4
    result = train(config, seed=1, data=data, checkpoint=place(), on_epoch=seen.append).result
    assert result.train_seconds == pytest.approx(1.0, abs=0.3)
    assert result.resumed == (len(half.curve),)
    assert result.final_lr < 0.1 * spec.train.lr


def test_a_trial_that_ends_before_it_is_cut_off_is_as_it_is_without_a_place(spec, data, place):
    kept, plain = run(spec, data, checkpoint=place()), run(spec, data)
    assert without_times(kept) == without_times(plain)
    assert kept.resumed == ()
    assert plain.phases.checkpoint == 0.0


def test_what_does_not_fit_is_said_and_the_trial_begins_anew(spec, data, place, caplog):
    cut_off(spec, data, after=2, checkpoint=place())
    result = run(spec, data, "scale=1.3", checkpoint=place())  # as where a network's code has changed
    assert "does not fit" in caplog.text
    assert result.resumed == ()
    assert without_times(result) == without_times(run(spec, data, "scale=1.3"))


def test_another_torch_begins_anew(spec, data, place, caplog, monkeypatch):
    cut_off(spec, data, after=2, checkpoint=place())
    with monkeypatch.context() as context:
        context.setattr(torch, "__version__", torch.torch_version.TorchVersion("1.2.3"))
        with pytest.raises(ValueError, match="kept by torch"):
            read(place().load().state)
    assert run(spec, data, checkpoint=place()).resumed == (2,)


def test_a_run_that_was_compiled_goes_on_compiled_and_another_one_not(spec, data, place, monkeypatch):
    asked = []
    compiling = trainer.TrainingRun._pays_for_compilation
    monkeypatch.setattr(
        trainer.TrainingRun,
        "_pays_for_compilation",
        lambda self, shapes: (asked.append(self.config.train.compile), compiling(self, shapes))[1],
    )
    cut_off(spec, data, "train.compile=auto", after=2, checkpoint=place())
    run(spec, data, "train.compile=auto", checkpoint=place())
    assert asked == ["auto", False]


class Says(NoWitness):
    def __init__(self, status, *reasons):
        super().__init__()
        self.told = status, {"reasons": list(reasons)}

    def look(self):
        return self.told

    def stop(self):
        return self.told


@pytest.mark.parametrize(("before", "after"), [("disturbed", "clean"), ("clean", "disturbed"), ("clean", "clean")])
def test_a_time_of_two_processes_is_as_good_as_the_worse_of_them(spec, data, place, before, after):
    cut_off(spec, data, after=2, checkpoint=place(), witness=Says(before, "heat"))
    result = run(spec, data, checkpoint=place(), witness=Says(after, "noise"))
    assert result.status == max(before, after)
    assert result.evidence["reasons"] == ["before epoch 2: heat", "noise"]


def test_the_stopping_rule_hears_of_the_epochs_before(spec, data, place):
    cut_off(spec, data, after=3, checkpoint=place())
    heard = []
    result = run(spec, data, checkpoint=place(), ends_early=lambda r: (heard.append(r.epoch), r.epoch == 4)[1])
    assert heard == [0, 1, 2, 3, 4]
    assert len(result.curve) == 5


def test_the_stopping_rule_may_end_a_trial_before_it_goes_on(spec, data, place):
    cut_off(spec, data, after=3, checkpoint=place())
    result = run(spec, data, checkpoint=place(), ends_early=lambda record: record.epoch >= 1)
    assert len(result.curve) == 3
    assert result.value == result.curve[-1].value


def test_a_trial_that_is_repeated_begins_at_zero(spec, data, place):
    cut_off(spec, data, after=3, checkpoint=place())
    results = []

    def once():
        witness = Says("clean" if results else "disturbed")
        results.append(run(spec, data, checkpoint=place(), witness=witness))
        return results[-1]

    config = spec.with_overrides(["clock.on_disturbed=repeat"])
    tries, result = undisturbed(config, once, place())
    assert (tries, result.status) == (2, "clean")
    assert [each.resumed for each in results] == [(3,), ()]

"""What a configuration asks of the machine, counted without running it: against what the trainer does."""

import math
from dataclasses import replace

import pytest
import torch

from budgettune.predict.run_time import effective_steps
from budgettune.predict.workload import Workloads, resnet_arithmetic
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import DataSpec, ModelSpec
from budgettune.training.data.load import load_data
from budgettune.training.resnet import ScalableResNet, count_multiply_adds
from budgettune.training.trainer import train
from tests.support.own_world import OwnWorld, own_spec
from tests.support.simulated import simulated_spec


@pytest.mark.parametrize("model", [{"scale": 1.4}, {"width_scale": 1.1, "width_multiple": 1}, {"depth_scale": 2.0}])
@pytest.mark.parametrize(("data", "channels", "size"), [({"name": "cifar10"}, 3, 32), ({"image_size": 11}, 1, 11)])
def test_arithmetic_by_formula_is_what_torch_counts(model, data, channels, size):
    spec = ModelSpec(**model)
    counted = count_multiply_adds(
        ScalableResNet.from_spec(spec, channels=channels, num_classes=10), (channels, size, size)
    )
    found = resnet_arithmetic(spec, DataSpec(**data))
    assert found.multiply_adds == counted
    assert found.padded >= counted


@pytest.mark.parametrize(
    "pruning",
    [
        {"strategy": "full", "prune_rate": 0.3},
        {"strategy": "random", "prune_rate": 0.3},
        {"strategy": "stale-quantile", "prune_rate": 0.37, "refresh_every": 2},
        {"strategy": "kakurenbo", "prune_rate": 0.2},
    ],
)
def test_epochs_and_steps_are_those_that_the_trainer_makes(pruning):
    spec = StudySpec.from_document(
        {
            "name": "count",
            "data": {"train_size": 150},
            "model": {"blocks": 1, "widths": [8, 8, 8]},
            "train": {"epochs": 5, "batch_size": 32, "precision": "fp32"},
            "pruning": pruning,
        }
    )
    data = load_data(spec.data)
    result = train(spec, {}, seed=0, data=data, device=torch.device("cpu")).result
    sizes = Workloads(spec, []).of({}).epoch_sizes(5)
    visited = [epoch.samples for epoch in result.curve]
    if pruning["strategy"] == "kakurenbo":  # hides only what is learnt: it may visit more than its schedule says
        assert sum(size * count for size, count in sizes.items()) <= sum(visited)
    else:
        assert sorted(visited) == sorted(size for size, count in sizes.items() for _ in range(count))
        assert result.steps == sum(count * math.ceil(size / 32) for size, count in sizes.items())


def test_a_last_batch_costs_its_share_and_what_every_step_costs():
    assert effective_steps({100: 3}, batch=50, fixed_share=0.4) == 6
    assert effective_steps({110: 1}, batch=50, fixed_share=0.4) == pytest.approx(2 + 0.4 + 0.6 * 0.2)


@pytest.mark.parametrize("name", ["mine:net", "timm:resnet10t"])
def test_no_formula_tells_the_arithmetic_of_other_models(name):
    spec = simulated_spec(batch_size=[32, 64]).with_overrides([f"model.name={name}"])
    small, large = (Workloads(spec, []).of({"batch_size": size}) for size in (32, 64))
    assert small.arithmetic is None
    assert small.step != large.step
    assert name in small.step


def test_an_epoch_of_own_code_counts_as_one_step():
    workloads = Workloads(own_spec(), [])
    workload = workloads.of({"params.width": 32, "params.lr": 0.01, "train.epochs": 7})
    assert (workload.images, workload.batch, workload.visits(7), workload.arithmetic) == (1, 1, 7, None)
    assert workload is workloads.of({"params.width": 32, "params.lr": 0.01, "train.epochs": 9})
    trial = OwnWorld(own_spec()).trial(0, {"params.width": 32, "train.epochs": 3})
    assert workload.visited(trial) == [1, 1, 1]
    cut = replace(trial, curve=(*trial.curve[:2], replace(trial.curve[2], steps=5)))
    assert workload.visited(cut) == [1, 1, 0.2]

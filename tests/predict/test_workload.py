"""What a configuration asks of the machine, counted without running it: against what the trainer does."""

import math

import pytest
import torch

from budgettune.errors import UsageError
from budgettune.predict.run_time import effective_steps
from budgettune.predict.workload import Workloads, resnet_arithmetic
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import DataSpec, ModelSpec
from budgettune.training.data.load import load_data
from budgettune.training.resnet import ScalableResNet, count_multiply_adds
from budgettune.training.trainer import train
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


def test_a_model_of_ones_own_is_refused_in_words():
    spec = simulated_spec().with_overrides(["model.name=mine:net"])
    with pytest.raises(UsageError, match=r"only the built-in network is predicted, not mine:net: `budgettune best"):
        Workloads(spec, []).of({})

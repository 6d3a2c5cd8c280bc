"""Static and coreset strategies in real training: what they drop, what they look at, and what that costs."""

import itertools

import numpy as np
import pytest

from budgettune.errors import DataError
from budgettune.spec.study_spec import StudySpec
from budgettune.training.data.load import load_data
from budgettune.training.trainer import train

SIZE, EPOCHS = 240, 5
ALL_HELPERS = 3 * SIZE  # three epochs over everything, or over both halves

SEEN = {  # (visits of helpers, samples scored)
    "el2n": (ALL_HELPERS, SIZE),
    "grand": (ALL_HELPERS, SIZE),
    "reference-model": (ALL_HELPERS, SIZE),
    "forgetting": (0, 0),
    "ccs": (0, 0),
    "prototypes": (0, SIZE),
    "rho-loss": (ALL_HELPERS, SIZE + EPOCHS * SIZE),
    "craig": (0, 3 * SIZE),
    "batch-coreset": (0, EPOCHS * SIZE),
}


@pytest.fixture(scope="module")
def spec():
    return StudySpec.from_document(
        {
            "name": "runs",
            "data": {"name": "digits", "train_size": SIZE},
            "model": {"widths": [8, 8, 16], "blocks": 1},
            "train": {"epochs": EPOCHS, "batch_size": 40, "lr": 3e-3},
            "pruning": {"prune_rate": 0.4, "reselect_every": 2},
        }
    )


@pytest.fixture(scope="module")
def data(spec):
    return load_data(spec.data)


def run(spec, data, *overrides, **how):
    return train(spec.with_overrides(overrides), seed=1, data=data, **how).result


@pytest.mark.parametrize("name", SEEN)
def test_a_run_drops_what_was_asked_looks_at_what_it_says_and_can_be_repeated(spec, data, name):
    result = run(spec, data, f"pruning.strategy={name}")
    assert result.keep_fraction == pytest.approx(0.6, abs=0.005)
    assert (result.helper_samples, result.scored_samples) == SEEN[name]
    assert (result.phases.prepare > 0.01 * result.train_seconds) == (result.helper_samples > 0)
    again = run(spec, data, f"pruning.strategy={name}")
    assert again.weights_sha256 == result.weights_sha256


@pytest.mark.parametrize("name", ["forgetting", "ccs", "prototypes"])
def test_the_first_fifth_of_a_run_keeps_everything(spec, data, name):
    result = run(spec, data, f"pruning.strategy={name}")
    assert [epoch.samples for epoch in result.curve] == [240, 120, 120, 120, 120]


@pytest.mark.parametrize("name", ["el2n", "rho-loss"])
def test_scores_of_the_user_cost_nothing(spec, data, name, tmp_path):
    np.save(tmp_path / "mine.npy", np.arange(SIZE) / SIZE)
    result = run(spec, data, f"pruning.strategy={name}", f"pruning.scores={tmp_path / 'mine.npy'}")
    assert result.helper_samples == 0
    assert result.keep_fraction == pytest.approx(0.6, abs=0.005)


def test_scores_for_another_set_of_images_are_refused_before_anything_is_trained(spec, data, tmp_path):
    np.save(tmp_path / "mine.npy", np.arange(SIZE + 1.0))
    with pytest.raises(DataError, match="one number for each of the 240 training images"):
        run(spec, data, "pruning.strategy=el2n", f"pruning.scores={tmp_path / 'mine.npy'}")


@pytest.mark.parametrize(("name", "fields"), [("el2n", ["pruning.helper_runs=2"]), ("reference-model", [])])
def test_helpers_leave_three_quarters_of_a_time_budget(spec, data, name, fields):
    ticks = itertools.count()  # a clock that knows no other processes
    result = run(
        spec,
        data,
        f"pruning.strategy={name}",
        "pruning.helper_epochs=1000",
        "train.budget=5s",
        *fields,
        clock=lambda: next(ticks) * 5e-3,
    )
    assert 0.15 * 5 < result.phases.prepare < 0.3 * 5
    assert result.train_seconds == pytest.approx(5, abs=0.1)
    assert result.keep_fraction == pytest.approx(0.6, abs=0.005)

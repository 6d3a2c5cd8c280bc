"""Optuna's own contract for samplers, on studies of time and accuracy.

Its tests make studies of one objective. Here each value that they report becomes a pair, and the models work from the
first finished trial on, because some tests have no more.

Left out, with the reason:

- `SingleOnlySamplerTestCase`: it asks a sampler to refuse two objectives; this one knows nothing else.
- `test_nan_objective_value`: it reads `best_value`, which a study of two objectives has not; what a NaN does is in
  test_cost_sampler.py.
"""

import optuna
import pytest
from optuna.testing.pytest_samplers import BasicSamplerTestCase, MultiObjectiveSamplerTestCase, RelativeSamplerTestCase

from budgettune.predict.sampler.cost_sampler import CostSampler


def pair(value):
    return 1.0 + value**2, 1.0 / (1.0 + abs(value))


class PairedStudy(optuna.Study):
    """A study of time and accuracy that takes single values."""

    def tell(self, trial, values=None, **options):
        return super().tell(trial, pair(values), **options)

    def add_trial(self, trial):
        trial.values = pair(trial.values[0])
        super().add_trial(trial)

    def optimize(self, func, **options):
        super().optimize(lambda trial: pair(func(trial)), **options)


@pytest.fixture(autouse=True)
def paired_studies(monkeypatch):
    create = optuna.create_study

    def create_pair(sampler, directions=("minimize", "maximize")):
        study = create(directions=directions, sampler=sampler)
        study.__class__ = PairedStudy
        return study

    monkeypatch.setattr("budgettune.predict.sampler.cost_sampler.FIRST_TRIALS", 1)
    monkeypatch.setattr(optuna, "create_study", create_pair)
    monkeypatch.setattr(optuna.study, "create_study", create_pair)


class TestCostSampler(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    test_nan_objective_value = None

    @pytest.fixture
    def sampler(self):
        return lambda: CostSampler(0)

"""Search spaces as Optuna's distributions, and points of samplers whose every draw has a seed of its own.

A sampler's state is not stored by Optuna: two workers, or one that comes back, that seed it alike draw the same points
again. Here each draw gets a fresh sampler, seeded by the study's seed and the trial's number.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from budgettune.errors import NotSearched, SpecError, UsageError
from budgettune.predict.workload import Workloads
from budgettune.spec.axes import AxisSpec, RangeSpec, value_at
from budgettune.spec.conditions import count_points, every_point, holds, in_order
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import Scalar, are_numbers
from budgettune.storage.slots import Point
from budgettune.storage.studies import Prospect
from budgettune.storage.writes import StoredParam

if TYPE_CHECKING:
    from budgettune.predict.sampler.cost_sampler import CostSampler

LARGEST_ENUMERATION = 100_000
MOST_CHOICES = 200  # of a grid's axis that are kept with every trial
RANDOM_VALUES = 32
SAMPLERS: dict[str, type[BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "nsga2": optuna.samplers.NSGAIISampler,
    "gp": optuna.samplers.GPSampler,
    "random": optuna.samplers.RandomSampler,
}
WHOLE_POINTS = ("nsga2", "gp")  # samplers that learn only of params that every finished trial has


def draw_seed(study_seed: int, number: int) -> int:
    digest = hashlib.sha256(f"draw/{study_seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def search_space(spec: StudySpec) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution of each search axis."""
    return {name: _distribution(axis) for name, axis in spec.search.items()}


def _distribution(axis: AxisSpec) -> BaseDistribution:
    if not isinstance(axis, RangeSpec):
        return CategoricalDistribution(tuple(axis))
    if axis.is_int:
        return IntDistribution(int(axis.low), int(axis.last), log=axis.log, step=int(axis.step or 1))
    return FloatDistribution(float(axis.low), float(axis.last), log=axis.log, step=axis.step)


def storing(space: Mapping[str, BaseDistribution]) -> Callable[[Mapping[str, Any]], tuple[StoredParam, ...]]:
    """Return what puts points as Optuna stores them, for many: Optuna's own goes through all choices for each."""
    texts = {name: distribution_to_json(distribution) for name, distribution in space.items()}
    places = {
        name: {value: float(place) for place, value in enumerate(distribution.choices)}
        for name, distribution in space.items()
        if isinstance(distribution, CategoricalDistribution)
    }

    def number(name: str, value: Any) -> float:
        return places[name][value] if name in places else float(space[name].to_internal_repr(value))

    return lambda params: tuple(StoredParam(name, number(name, value), texts[name]) for name, value in params.items())


def grid_params(spec: StudySpec) -> list[tuple[StoredParam, ...]]:
    """Return the params of every grid cell as Optuna stores them."""
    stored = {
        name: {value: _stored_value(name, value, whole) for value in axis}
        for name, axis in spec.search.items()
        if not isinstance(axis, RangeSpec)
        for whole in [_whole_axis(axis)]
    }
    return [tuple(stored[name][value] for name, value in point.items()) for point in spec.cells()]


def _whole_axis(axis: tuple[Scalar, ...]) -> BaseDistribution | None:
    """Return what a grid's trials keep of an axis: its choices; the range of many numbers; None of many texts.

    Optuna keeps the distribution with every trial, so that a long list would grow as its square.
    """
    if len(axis) <= MOST_CHOICES:
        return CategoricalDistribution(axis)
    if are_numbers(axis):
        return _distribution(RangeSpec.model_validate({"low": min(axis), "high": max(axis)}))
    return None


def _stored_value(name: str, value: Scalar, whole: BaseDistribution | None) -> StoredParam:
    """Return a value of a grid's axis as Optuna stores it; one of many texts as the only choice that its trial had."""
    distribution = whole or CategoricalDistribution((value,))
    return StoredParam(name, float(distribution.to_internal_repr(value)), distribution_to_json(distribution))


def propose(
    storage: BaseStorage, spec: StudySpec, trial_id: int, asked: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Return the point that the study's sampler draws, around what is asked for, for a trial that has no params yet."""
    trial, space = storage.get_trial(trial_id), search_space(spec)
    sampler = _sampler(spec, space, trial.number)
    if spec.conditions and spec.sampler.name in WHOLE_POINTS:
        storage = cast(BaseStorage, WithNeutralParams(storage, spec))
    # A new study object each time: it keeps the trials that it first saw.
    study = optuna.load_study(study_name=spec.name, storage=storage, sampler=sampler)
    sampler.before_trial(study, trial)
    together = sampler.infer_relative_search_space(study, trial)
    params = sampler.sample_relative(study, trial, {name: space[name] for name in together if name in space})
    # As Optuna does: a sampler is not asked where there is no choice, and complains where it is.
    params |= {name: _first_value(distribution) for name, distribution in space.items() if distribution.single()}
    params |= asked
    point: dict[str, Any] = {}
    for name in in_order(space, spec.conditions):  # as code asks a trial of Optuna's for one param after the other
        if holds(spec.conditions.get(name, {}), point):
            is_drawn = name in params
            point[name] = params[name] if is_drawn else sampler.sample_independent(study, trial, name, space[name])
    return point


def prospect(storage: BaseStorage, spec: StudySpec) -> Prospect | None:
    """Return what the next point of a study with a price is expected to bring; None before there is enough to tell.

    Nothing that runs or waits may change an end any more, so that all workers agree.
    """
    sampler = cast("CostSampler", _sampler(spec, search_space(spec), number=0))
    prospect = sampler.prospect(optuna.load_study(study_name=spec.name, storage=storage, sampler=sampler))
    if prospect is None or spec.sampler.worth is None:
        return None
    points, seconds = prospect.gain * _points_in_one(spec), prospect.seconds * spec.sampler.first_repeats
    found = Prospect(gain=points, seconds=seconds, has_ended=False)
    return replace(found, has_ended=prospect.is_settled and not found.is_worth_it(spec.sampler.worth))


def _points_in_one(spec: StudySpec) -> int:
    """Return how many points, as people count them, a difference of 1 in the objective is."""
    return 100 if spec.objective.is_accuracy else 1


def known_cost(spec: StudySpec) -> Callable[[Mapping[str, Any]], float] | None:
    """Return what tells beforehand how much a point costs: its multiply-adds times its visits, or the budget it has.

    None where no formula tells; infinity of points that cannot work, or of which the number of images is not known.
    """
    workloads = Workloads(spec, ())
    if not workloads.have_arithmetic:
        return None

    def cost(params: Mapping[str, Any]) -> float:
        try:
            workload, train = workloads.of(params), spec.resolve(params).train
            if workload.arithmetic is None or train.epochs is None:
                return train.budget or math.inf
            return float(workload.arithmetic.multiply_adds * workload.visits(train.epochs))
        except (SpecError, UsageError):
            return math.inf

    return cost


class WithNeutralParams:
    """A storage whose finished trials have a value also for params that are inactive there.

    NSGA-II and the Gaussian process draw what some trials lack at random, whatever has run. With values that have no
    effect they learn all of it: NSGA-II hands random ones on (neutral genes), the process gets the middle of each axis.
    """

    def __init__(self, storage: BaseStorage, spec: StudySpec) -> None:
        self._storage, self._spec, self._space = storage, spec, search_space(spec)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(self, *args: Any, **options: Any) -> list[FrozenTrial]:
        return [self._whole(trial) for trial in self._storage.get_all_trials(*args, **options)]

    def _whole(self, trial: FrozenTrial) -> FrozenTrial:
        if trial.state is not TrialState.COMPLETE or self._space.keys() <= trial.params.keys():
            return trial
        sampler = self._spec.sampler
        rng = random.Random(draw_seed(sampler.seed, trial.number))
        neutral = {
            name: value_at(axis, 0.5 if sampler.name == "gp" else rng.random())
            for name, axis in self._spec.search.items()
        }
        whole = copy(trial)
        whole.params, whole.distributions = neutral | trial.params, self._space | trial.distributions
        return whole


def _first_value(distribution: BaseDistribution) -> Any:
    return distribution.choices[0] if isinstance(distribution, CategoricalDistribution) else vars(distribution)["low"]


def asked_params(trial: FrozenTrial, spec: StudySpec) -> dict[str, Any]:
    """Return what a trial asks for itself (`study.enqueue_trial`); empty where it leaves all to the sampler.

    Raises:
        NotSearched: where that is not searched.
    """
    asked, space = dict(trial.system_attrs.get("fixed_params", {})), search_space(spec)  # the name that Optuna gives it
    for name, value in asked.items():
        if name not in space:
            raise NotSearched(f"it asks for {name}, and only {', '.join(space)} are searched")
        try:  # as Optuna checks a trial that somebody made
            create_trial(state=TrialState.WAITING, params={name: value}, distributions={name: space[name]})
        except (TypeError, ValueError):
            raise NotSearched(f"it asks for {name} = {value!r}, and the search has {space[name]}") from None
        for other, values in spec.conditions.get(name, {}).items():
            if other not in asked:
                raise NotSearched(f"it asks for {name}, and not for {other}, which that depends on: enqueue both")
            if asked[other] not in values:
                raise NotSearched(f"it asks for {name}, which is not searched where {other} is {asked[other]!r}")
    return asked


def _sampler(study: StudySpec, space: Mapping[str, BaseDistribution], number: int) -> BaseSampler:
    spec = study.sampler
    if spec.name != "cost":
        return SAMPLERS[spec.name](seed=draw_seed(spec.seed, number))  # type: ignore[call-arg]
    from budgettune.predict.sampler.cost_sampler import CostSampler

    trials = None if spec.trials is None else spec.trials * spec.first_repeats
    price_seconds = None if spec.worth is None else spec.worth * _points_in_one(study) / spec.first_repeats
    return CostSampler(
        spec.seed,
        space=space,
        conditions=study.conditions,
        max_seconds=spec.max_seconds,
        total_seconds=spec.total,
        trials=trials,
        is_share=study.objective.is_accuracy,
        known_cost=known_cost(study),
        price_seconds=price_seconds,
    )


def fresh_point(spec: StudySpec, proposal: Mapping[str, Any], known: set[Point], seed: int) -> tuple[StoredParam, ...]:
    """Return the proposal, or (where the study has run that very point) a random one that it has not.

    Samplers repeat points of small spaces, and the corners of large ones. Once all of a small space has run, the
    proposal stands.
    """
    stores = storing(search_space(spec))
    stored = stores(proposal)
    if point_of(stored) not in known:
        return stored
    rng = random.Random(seed)
    candidates = map(stores, _points(spec, rng))
    fresh = [point for point in candidates if point_of(point) not in known]
    return rng.choice(fresh) if fresh else stored


def point_of(params: Sequence[StoredParam]) -> Point:
    """Return a point as the storage tells points apart."""
    return tuple(sorted((param.param_name, param.param_value) for param in params))


def _points(spec: StudySpec, rng: random.Random) -> list[dict[str, Any]]:
    """Return every point of a small space, else some random ones."""
    axes = {name: _values(axis, rng) for name, axis in spec.search.items()}
    if count_points(axes, spec.conditions, LARGEST_ENUMERATION) <= LARGEST_ENUMERATION:
        return every_point(axes, spec.conditions)
    random_points = ({name: rng.choice(values) for name, values in axes.items()} for _ in range(RANDOM_VALUES))
    return [spec.active(point) for point in random_points]


def _values(axis: AxisSpec, rng: random.Random) -> Sequence[Scalar]:
    """Return every value of an axis; some random ones of a continuous one."""
    if not isinstance(axis, RangeSpec):
        return axis
    if (values := axis.values()) is not None:
        return values
    if axis.log:
        return [math.exp(rng.uniform(math.log(axis.low), math.log(axis.high))) for _ in range(RANDOM_VALUES)]
    return [rng.uniform(axis.low, axis.high) for _ in range(RANDOM_VALUES)]

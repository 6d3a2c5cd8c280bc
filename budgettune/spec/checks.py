"""The tables of a study file together, and what can be wrong with them before a trial runs."""

from __future__ import annotations

import itertools
import math
from typing import Any

from pydantic import Field, ValidationError

from budgettune.errors import SpecError
from budgettune.spec.documents import SHORT_KEYS, full_key, set_value
from budgettune.spec.faults import explain, nearest
from budgettune.spec.prune_rates import largest_drop
from budgettune.spec.pruning import PruningSpec
from budgettune.spec.tables import (
    TRAINING_IMAGES,
    Axis,
    ClockSpec,
    DataSpec,
    MachineSpec,
    ModelSpec,
    PredictSpec,
    RangeSpec,
    SamplerSpec,
    Scalar,
    StoppingSpec,
    Table,
    TrainSpec,
)

SEARCHABLE_TABLES = ("data", "model", "train", "pruning")
LARGEST_STUDY = 100_000  # cells × repeats


class StudyTables(Table):
    """All that a study file holds."""

    name: str = Field(min_length=1, max_length=400)
    data: DataSpec = DataSpec()
    model: ModelSpec = ModelSpec()
    train: TrainSpec = TrainSpec()
    pruning: PruningSpec = PruningSpec()
    search: dict[str, Axis] = Field(default_factory=dict)
    sampler: SamplerSpec = SamplerSpec()
    stopping: StoppingSpec = StoppingSpec()
    clock: ClockSpec = ClockSpec()
    machine: MachineSpec = MachineSpec()
    predict: PredictSpec = PredictSpec()

    def to_document(self) -> dict[str, Any]:
        """Return plain JSON values that `from_document` takes back without loss."""
        return self.model_dump(mode="json", exclude_none=True)


def check_search(spec: StudyTables, source: str) -> None:
    """Refuse axes that cannot work: unknown, empty, repeated, of the wrong type, or out of bounds."""
    seen: dict[str, str] = {}
    for key, axis in spec.search.items():
        target = full_key(key)
        if target in seen:
            raise SpecError(f"{source}: search.{key}: the same setting as search.{seen[target]}: keep one")
        seen[target] = key
        if target.split(".")[0] not in SEARCHABLE_TABLES or "." not in target:
            known = ", ".join(SHORT_KEYS)
            raise SpecError(
                f"{source}: search.{key}: unknown key{nearest(key, SHORT_KEYS)}; "
                f'allowed: {known}, or a setting such as "train.lr"'
            )
        if target.startswith("pruning.") and (spec.pruning.when == "auto" or target == "pruning.when"):
            raise SpecError(
                f"{source}: search.{key}: `pruning.when = 'auto'` decides on pruning for the whole study: "
                f"take search.{key} out (or --set {key}=VALUE), or leave pruning.when at 'always'"
            )
        _check_axis(spec, key, axis, source)
    if {"train.epochs", "train.budget"} <= seen.keys():
        raise SpecError(f"{source}: search: train.epochs and train.budget exclude each other: keep one")
    if spec.sampler.name != "grid" and not spec.search:
        raise SpecError(f"{source}: search: a sampler needs something to search: name an axis, or use --grid")
    _check_size(spec, source)
    _check_batch(spec, source)
    _check_rates(spec, source)


def _check_size(spec: StudyTables, source: str) -> None:
    """Refuse more trials than the service is made for."""
    repeats = spec.sampler.most_repeats
    if spec.sampler.name == "grid":
        points = math.prod(len(axis) for axis in spec.search.values() if not isinstance(axis, RangeSpec))
        what, advice = f"search: a grid of {points} cells", "shorten an axis, or sample with --sampler tpe"
    else:
        points = spec.sampler.trials or 1
        what, advice = f"sampler: {points} points", "ask for fewer, or make several studies"
    if points * repeats > LARGEST_STUDY:
        raise SpecError(f"{source}: {what} × {repeats} repeats is over {LARGEST_STUDY}: {advice}")


def _check_axis(spec: StudyTables, key: str, axis: tuple[Scalar, ...] | RangeSpec, source: str) -> None:
    if isinstance(axis, RangeSpec):
        if spec.sampler.name == "grid":
            raise SpecError(
                f"{source}: search.{key}: a grid needs a list of values, not a range: "
                f"list them, or choose a sampler with --sampler tpe"
            )
        values: tuple[Scalar, ...] = (axis.low, axis.high)
    else:
        values = axis
        if not values:
            raise SpecError(f"{source}: search.{key}: empty; give at least one value, or leave the key out")
        if len(set(values)) < len(values):
            raise SpecError(f"{source}: search.{key}: the same value twice in {list(values)}")
    for value in values:
        document = spec.to_document() | {"search": {}, "sampler": {}}
        set_value(document, full_key(key), value, source)
        try:
            StudyTables.model_validate(document)
        except ValidationError as error:
            raise SpecError(f"{source}: search.{key}: {explain(error, StudyTables)}") from None


def _check_rates(spec: StudyTables, source: str) -> None:
    """Refuse prune rates that a strategy cannot reach, for every combination of what is searched."""
    axes = {
        full_key(key): (axis.low, axis.high) if isinstance(axis, RangeSpec) else axis
        for key, axis in spec.search.items()
        if full_key(key).startswith("pruning.") or full_key(key) in ("train.epochs", "train.budget")
    }
    for values in itertools.product(*axes.values()):
        params = dict(zip(axes, values, strict=True))
        fields = {key.removeprefix("pruning."): value for key, value in params.items() if key.startswith("pruning.")}
        epochs = None if "train.budget" in params else params.get("train.epochs", spec.train.epochs)
        try:
            largest_drop(spec.pruning.model_copy(update=fields), None if epochs is None else int(epochs))
        except SpecError as error:
            raise SpecError(f"{source}: {error}") from None


def _check_batch(spec: StudyTables, source: str) -> None:
    """Refuse a batch that is larger than the image set, where the spec alone tells its size."""
    if "data.train_size" in spec.search or "data.name" in spec.search:
        return
    available = TRAINING_IMAGES.get(spec.data.name)
    if available is not None and spec.data.evaluate_on == "validation":
        available -= round(available * spec.data.validation_fraction)
    if available is not None and spec.data.train_size is not None and spec.data.train_size > available:
        raise SpecError(
            f"{source}: data.train_size: {spec.data.train_size} is more than the {available} training images "
            f"of {spec.data.name}"
        )
    images = spec.data.train_size or available
    largest = _largest(spec.search.get("batch_size", spec.search.get("train.batch_size")), spec.train.batch_size)
    if images is not None and largest > images:
        raise SpecError(f"{source}: batch_size: {largest} is larger than the {images} training images")


def _largest(axis: tuple[Scalar, ...] | RangeSpec | None, otherwise: int) -> int:
    if axis is None:
        return otherwise
    return int(axis.high if isinstance(axis, RangeSpec) else max(int(value) for value in axis))

"""Which configurations of a search space take steps of their own, and what each is called."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from budgettune.spec.documents import full_key
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import ALIGNMENT, RangeSpec, Scalar, is_code

POINTS_OF_A_RANGE = 5
_SHAPING_KEYS = ("train.batch_size", "train.precision", "data.image_size")


def configurations(spec: StudySpec) -> list[dict[str, Scalar]]:
    """Return the params of every distinct network, batch and precision of a search space, in the order of the grid.

    What does not shape a step (pruning, the learning rate) stays at the spec's own value. Of scales that round to
    the same network the first is kept.
    """
    axes = {key: _points(axis) for key, axis in spec.search.items() if _shapes_a_step(full_key(key))}
    distinct: dict[str, dict[str, Scalar]] = {}
    for values in itertools.product(*axes.values()):
        params = dict(zip(axes, values, strict=True))
        distinct.setdefault(label_of(spec.resolve(params)), params)
    return list(distinct.values())


def label_of(config: StudySpec) -> str:
    """Return a short text that two resolved specs share exactly where they run the same steps."""
    model = config.model
    if is_code(model.name):
        network = f"{model.name} at scale {model.scale:g}" + "".join(f" {k}={v}" for k, v in model.options.items())
    else:
        network = f"{spelled(model.realised_widths)} × {model.realised_blocks}"
    size = "" if config.data.image_size is None else f", {config.data.image_size} pixels"
    return f"{network}, batch {config.train.batch_size}{size}, {config.train.precision}"


def aligned_twin(config: StudySpec) -> StudySpec | None:
    """Return the resolved spec with widths rounded to a multiple of 8; None where they are, or are not known."""
    if is_code(config.model.name):
        return None
    twin = config.resolve({"model.width_multiple": ALIGNMENT})
    return None if twin.model.realised_widths == config.model.realised_widths else twin


def _shapes_a_step(key: str) -> bool:
    return key.startswith("model.") or key in _SHAPING_KEYS


def _points(axis: tuple[Scalar, ...] | RangeSpec) -> tuple[Scalar, ...]:
    """Return the values of an axis; of a range its ends and what lies evenly between them."""
    if not isinstance(axis, RangeSpec):
        return axis
    into: Callable[[float], float] = math.log if axis.log else float
    back: Callable[[float], float] = math.exp if axis.log else float
    low, high = into(axis.low), into(axis.high)
    points = (back(low + (high - low) * index / (POINTS_OF_A_RANGE - 1)) for index in range(POINTS_OF_A_RANGE))
    return tuple(dict.fromkeys(round(point) if axis.is_int else round(point, 6) for point in points))


def spelled(widths: Sequence[int]) -> str:
    """Return channel counts as 16/32/64."""
    return "/".join(map(str, widths))

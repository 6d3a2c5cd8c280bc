"""The configurations of a search space that take steps of their own, and their aligned twins."""

from __future__ import annotations

from budgettune.spec.axes import RangeSpec
from budgettune.spec.conditions import every_point, with_what_decides
from budgettune.spec.documents import full_key
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import ALIGNMENT, Scalar, is_code

POINTS_OF_A_RANGE = 5
_SHAPING_KEYS = ("train.batch_size", "train.precision", "train.memory_format", "data.image_size")


def configurations(spec: StudySpec) -> list[dict[str, Scalar]]:
    """Return the params of every distinct network, batch and precision of a search space, in the order of the grid.

    What does not shape a step (pruning, the learning rate) stays at the spec's own value. Of scales that round to
    the same network the first is kept.
    """
    shaping = [key for key in spec.search if (full := full_key(key)).startswith("model.") or full in _SHAPING_KEYS]
    wanted = with_what_decides(shaping, spec.conditions)
    axes = {
        key: axis.spread(POINTS_OF_A_RANGE) if isinstance(axis, RangeSpec) else axis
        for key, axis in spec.search.items()
        if key in wanted
    }
    distinct: dict[str, dict[str, Scalar]] = {}
    for point in every_point(axes, spec.conditions):
        params = {key: point[key] for key in shaping if key in point}
        distinct.setdefault(spec.resolve(params).step_label(), params)
    return list(distinct.values())


def aligned_twin(config: StudySpec) -> StudySpec | None:
    """Return the resolved spec with widths rounded to a multiple of 8; None where they are, or are not known."""
    if is_code(config.model.name):
        return None
    twin = config.resolve({"model.width_multiple": ALIGNMENT})
    return None if twin.model.realised_widths == config.model.realised_widths else twin

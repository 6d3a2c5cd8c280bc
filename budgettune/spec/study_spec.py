"""The study file: TOML in, JSON in the database and back, and everything that can be refused before a trial runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from budgettune.errors import SpecError
from budgettune.spec.checks import StudyTables, check_search
from budgettune.spec.documents import apply_override, flatten, full_key, parse_toml, set_value
from budgettune.spec.faults import explain
from budgettune.spec.pruning import STRATEGIES, PruningSpec
from budgettune.spec.tables import (
    IMAGE_SHAPES,
    TRAINING_IMAGES,
    ClockSpec,
    DataSpec,
    MachineSpec,
    ModelSpec,
    PredictSpec,
    RangeSpec,
    SamplerSpec,
    Scalar,
    StoppingSpec,
    TrainSpec,
    is_code,
)

__all__ = [
    "IMAGE_SHAPES",
    "STRATEGIES",
    "TRAINING_IMAGES",
    "ClockSpec",
    "DataSpec",
    "MachineSpec",
    "ModelSpec",
    "PredictSpec",
    "PruningSpec",
    "RangeSpec",
    "SamplerSpec",
    "Scalar",
    "StoppingSpec",
    "StudySpec",
    "TrainSpec",
    "bundled_studies",
    "full_key",
    "is_code",
    "load_spec",
]

SCALE_KEYS = ("model.scale", "model.width_scale", "model.depth_scale")


class StudySpec(StudyTables):
    """A whole study file."""

    @classmethod
    def from_toml(cls, text: str, source: str = "study file") -> StudySpec:
        """Return the spec that a TOML text describes, or raise SpecError naming what is wrong."""
        return cls.from_document(parse_toml(text, source), source)

    @classmethod
    def from_json(cls, text: str) -> StudySpec:
        """Return the spec that `to_json` wrote."""
        source = "the spec in the database"
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise SpecError(f"{source}: not JSON") from None
        return cls.from_document(document, source)

    @classmethod
    def from_document(cls, document: Any, source: str = "study file") -> StudySpec:
        """Return the checked spec of a nested dict."""
        if not isinstance(document, Mapping):
            raise SpecError(f"{source}: must be a table of settings, not {type(document).__name__}")
        document = dict(document)
        try:
            if isinstance(document.get("search"), Mapping):
                document["search"] = dict(flatten(document["search"]))
            spec = cls.model_validate(document)
        except ValidationError as error:
            raise SpecError(f"{source}: {explain(error, StudySpec)}") from None
        except RecursionError:
            raise SpecError(f"{source}: nested too deeply") from None
        check_search(spec, source)
        return spec

    def to_json(self) -> str:
        """Return the spec as JSON text."""
        return json.dumps(self.to_document())

    def with_overrides(self, overrides: Iterable[str]) -> StudySpec:
        """Return the spec with `key=value` texts applied; values are read as TOML, else as plain text."""
        document = self.to_document()
        for override in overrides:
            apply_override(document, override)
        return StudySpec.from_document(document, "--set")

    def resolve(self, params: Mapping[str, Any]) -> StudySpec:
        """Return the spec of one trial: searched values put in their places, nothing left to search.

        Raises:
            SpecError: where a key is unknown or a value cannot work.
        """
        document = self.to_document() | {"search": {}, "sampler": {}}
        for key, value in params.items():
            set_value(document, full_key(key), value, source="params")
        return StudySpec.from_document(document, "params")

    def cells(self) -> list[dict[str, Scalar]]:
        """Return the points of the grid, the last axis running fastest; one empty point where nothing is searched.

        Of points that build the same network (scales whose widths and blocks round to the same) and agree in
        everything else, only the first is returned; `twin_note` names the others.
        """
        axes = {key: axis for key, axis in self.search.items() if not isinstance(axis, RangeSpec)}
        points = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
        twins = [scales for scales, _ in self._twins()]
        return [point for point in points if not any(scales.items() <= point.items() for scales in twins)]

    def cell_count(self) -> int:
        """Return how many points the grid has, without listing them."""
        sizes = {key: len(axis) for key, axis in self.search.items() if not isinstance(axis, RangeSpec)}
        points, twins = math.prod(sizes.values()), self._twins()
        if not twins:
            return points
        scales = math.prod(sizes[key] for key in twins[0][0])
        return points // scales * (scales - len(twins))

    def twin_note(self) -> str | None:
        """Return a sentence on the scales that are left out because an earlier one builds their network, if any."""
        twins = [f"{_spelled(scales)} as {_spelled(first)}" for scales, first in self._twins()]
        if not twins:
            return None
        listed = "; ".join(twins[:3]) + (f"; and {len(twins) - 3} more" if len(twins) > 3 else "")
        return f"left out, because they build the same network: {listed}"

    def _twins(self) -> list[tuple[dict[str, Scalar], dict[str, Scalar]]]:
        """Return each combination of scales that repeats a network, with the first one that builds it."""
        axes = {
            key: axis
            for key, axis in self.search.items()
            if full_key(key) in SCALE_KEYS and not isinstance(axis, RangeSpec)
        }
        if is_code(self.model.name) or not axes:
            return []
        first: dict[tuple[Any, ...], dict[str, Scalar]] = {}
        twins = []
        for values in itertools.product(*axes.values()):
            scales = dict(zip(axes, values, strict=True))
            fields = {full_key(key).removeprefix("model."): value for key, value in scales.items()}
            model = self.model.model_copy(update=fields)
            original = first.setdefault((model.realised_widths, model.realised_blocks), scales)
            if original is not scales:
                twins.append((scales, original))
        return twins

    def trial_seed(self, cell: int, repeat: int) -> int:
        """Return the seed of one cell and repeat: the same on every box, unlike its neighbours'."""
        digest = hashlib.sha256(f"{self.sampler.seed}/{cell}/{repeat}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    def code_names(self) -> list[str]:
        """Return every package.module:name that training this study would import."""
        values: list[Scalar] = [self.data.name, self.model.name, self.pruning.strategy]
        values += [value for axis in self.search.values() if not isinstance(axis, RangeSpec) for value in axis]
        return [value for value in values if isinstance(value, str) and is_code(value)]


def _spelled(params: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{key} {value}" for key, value in params.items())


def load_spec(source: str | Path) -> StudySpec:
    """Return the study file at a path, or the bundled one of that name (`paper`, `digits`, …).

    Raises:
        SpecError: where there is no such file, or it cannot work.
    """
    path = Path(source)
    if path.suffix != ".toml" and not path.is_file():
        path = bundled_studies().get(str(source), path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        names = ", ".join(sorted(bundled_studies()))
        raise SpecError(f"study file {source}: {reason}; give a TOML file's path or one of: {names}") from None
    return _with_evidence_beside(path, StudySpec.from_toml(text, str(path)))


def _with_evidence_beside(path: Path, spec: StudySpec) -> StudySpec:
    """Return the spec with its evidence found beside its file, where it lies there; else as it is."""
    evidence = path.parent / (spec.pruning.evidence or "")
    if not evidence.is_file():
        return spec
    pruning = spec.pruning.model_copy(update={"evidence": str(evidence)})
    return spec.model_copy(update={"pruning": pruning})


def bundled_studies() -> dict[str, Path]:
    """Return the study files that come with the package, by name."""
    package = Path(__file__).parents[1]
    folders = (package / "studies", package.parent / "studies")  # in the wheel; in a checkout
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}

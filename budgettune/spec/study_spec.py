"""The study file: TOML in, JSON in the database and back, and everything that can be refused before a trial runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from budgettune.errors import SpecError
from budgettune.files import read_text
from budgettune.spec.axes import AxisSpec, RangeSpec
from budgettune.spec.conditions import active, checked, count_points, every_point, holds, some_values, taken_apart
from budgettune.spec.documents import SHORT_KEYS, apply_override, flatten, full_key, parse_toml, set_value
from budgettune.spec.faults import all_keys, explain, faults, kind_at, nearest
from budgettune.spec.objective import Aim, ConstraintSpec, JudgingImages, ObjectiveSpec
from budgettune.spec.own_code import check_own_code, check_param
from budgettune.spec.pruning import DECIDE_REACH, PruningSpec, check_rate, no_drop_note
from budgettune.spec.tables import (
    SCALE_KEYS,
    SIZE_KEYS,
    ClockSpec,
    DataSpec,
    MachineSpec,
    ModelSpec,
    PredictSpec,
    SamplerSpec,
    Scalar,
    SpecModel,
    StoppingSpec,
    TrainSpec,
    are_numbers,
    is_code,
    library_of,
    plain_value,
)
from budgettune.text import as_written

LENGTH_KEYS = ("train.epochs", "train.budget")  # say how long training goes on, and nothing else
SEARCHABLE_SECTIONS = ("data", "model", "train", "pruning", "params")
LARGEST_STUDY = 100_000  # cells × repeats
LARGEST_CYCLE = 1_000  # epochs between refreshes that a range of epochs is checked for


class StudySpec(SpecModel):
    """A whole study file."""

    newer = ("params", "objective", "constraints", "conditions")

    name: str = Field(min_length=1, max_length=400)
    data: DataSpec = DataSpec()
    model: ModelSpec = ModelSpec()
    train: TrainSpec = TrainSpec()
    pruning: PruningSpec = PruningSpec()
    search: dict[str, AxisSpec] = Field(default_factory=dict)
    sampler: SamplerSpec = SamplerSpec()
    stopping: StoppingSpec = StoppingSpec()
    clock: ClockSpec = ClockSpec()
    machine: MachineSpec = MachineSpec()
    predict: PredictSpec = PredictSpec()
    # What code of your own is called with where [search] does not say otherwise.
    params: dict[str, Annotated[Scalar, BeforeValidator(plain_value)]] = Field({})
    objective: ObjectiveSpec = ObjectiveSpec()
    constraints: dict[str, ConstraintSpec] = Field({})
    # What [search] says by `when`: of an axis, which others it depends on, and for which of their values it is active.
    conditions: dict[str, dict[str, Annotated[tuple[Scalar, ...], BeforeValidator(some_values)]]] = Field({})

    @classmethod
    def from_toml(cls, text: str, source: str = "study file") -> StudySpec:
        """Return the spec that a TOML text describes, or raise SpecError naming what is wrong."""
        try:
            document = parse_toml(text)
        except SpecError as error:
            raise SpecError(f"{source}: {error}") from None
        return cls.from_document(document, source)

    @classmethod
    def from_json(cls, text: str) -> StudySpec:
        """Return the spec that `to_json` wrote."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise SpecError("the spec in the database: not JSON") from None
        return cls.from_document(document, "the spec in the database")

    @classmethod
    def from_document(cls, document: Any, source: str = "study file") -> StudySpec:
        """Return the checked spec of a nested dict."""
        if not isinstance(document, Mapping):
            raise SpecError(f"{source}: must be a table of settings, not {type(document).__name__}")
        document = dict(document)
        try:
            if isinstance(document.get("search"), Mapping):
                document["search"], told = taken_apart(dict(flatten(document["search"], cls)))
                if told and isinstance(said := document.get("conditions", {}), Mapping):
                    document["conditions"] = {**said, **told}
            spec = cls.model_validate(document)
            if spec.conditions:
                spec = spec.model_copy(update={"conditions": checked(spec.search, spec.conditions)})
            check_own_code(spec)
            _check_search(spec)
        except ValidationError as error:
            raise SpecError(f"{source}: {explain(error, StudySpec)}") from None
        except SpecError as error:
            raise SpecError(f"{source}: {error}") from None
        except RecursionError:
            raise SpecError(f"{source}: nested too deeply") from None
        return spec

    def to_document(self) -> dict[str, Any]:
        """Return plain JSON values that `from_document` takes back without loss."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_json(self) -> str:
        return json.dumps(self.to_document())

    def with_overrides(self, overrides: Iterable[str]) -> StudySpec:
        """Return the spec with `key=value` texts applied; values are read as TOML, else as plain text."""
        document = self.to_document()
        for override in overrides:
            apply_override(document, override, StudySpec)
        return StudySpec.from_document(document, "--set")

    def resolve(self, params: Mapping[str, Any]) -> StudySpec:
        """Return the spec of one trial: searched values put in their places, nothing left to search.

        Raises:
            SpecError: where a key is unknown or a value cannot work.
        """
        document = self.model_dump(mode="json", exclude_none=True, exclude={"search", "sampler", "conditions"})
        # The strategy last: it takes out what another needs.
        for key, value in sorted(params.items(), key=lambda item: full_key(item[0]) == "pruning.strategy"):
            whole = isinstance(self._default(key), float) and type(value) is int  # a list may say 1 for 1.0
            set_value(document, full_key(key), float(value) if whole else value, prefix="params: ")
        return StudySpec.from_document(document, "params")

    @property
    def aim(self) -> Aim:
        """What its trials are judged by beside their seconds."""
        limits = {name: float(each.limit) for name, each in self.constraints.items()}
        return Aim(objective=self.objective, limits=limits, images=JudgingImages.of(self))

    def cells(self) -> list[dict[str, Scalar]]:
        """Return the points of the grid, the last axis running fastest; one empty point where nothing is searched.

        A point lacks the axes that are inactive there. Of points that build the same network (scales whose widths and
        blocks round to the same) and agree in everything else, only the first is returned; `twin_note` names the
        others.
        """
        lists = self._lists
        points = every_point(lists, self.conditions)
        twins = {tuple(scales.items()) for scales, _ in self._twins()}
        if not twins:
            return points
        scales = [key for key in lists if full_key(key) in SCALE_KEYS]
        return [point for point in points if tuple((key, point[key]) for key in scales) not in twins]

    def cell_count(self) -> int:
        """Return how many points the grid has, without listing them."""
        sizes = {key: len(axis) for key, axis in self._lists.items()}
        points, twins = count_points(self._lists, self.conditions, LARGEST_STUDY), self._twins()
        if not twins:
            return points
        scales = math.prod(sizes[key] for key in twins[0][0])
        return points // scales * (scales - len(twins))

    def active(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return a point without the axes that are inactive there, by the conditions of `[search]`."""
        return active(self.conditions, point)

    def is_complete(self, params: Mapping[str, Any]) -> bool:
        """Whether params hold every axis that is active there, and nothing else."""
        wanted = {key for key in self.search if holds(self.conditions.get(key, {}), params)}
        return params.keys() == wanted

    def _default(self, key: str) -> Scalar | None:
        """Return what `[params]` has for a searched key, None where it has nothing."""
        return self.params.get(key.removeprefix("params.")) if key.startswith("params.") else None

    @property
    def model_names(self) -> tuple[str, ...]:
        """Every model that a trial may have."""
        searched = self.search.get("model.name", (self.model.name,))
        return tuple(map(str, _extremes(searched)))

    @property
    def code_names(self) -> list[str]:
        """Every function or class that a trial may import, as package.module:name; no models of a library."""
        usual = {
            "train.loop": self.train.loop or "",
            "data.name": self.data.name,
            "model.name": self.model.name,
            "pruning.strategy": self.pruning.strategy,
        }
        named = [name for key, own in usual.items() for name in _extremes(self.search.get(key, (own,)))]
        return [name for name in map(str, dict.fromkeys(named)) if is_code(name) and library_of(name) is None]

    @property
    def _lists(self) -> dict[str, tuple[Scalar, ...]]:
        """What is searched over a list of values: all that a grid has."""
        return {key: axis for key, axis in self.search.items() if not isinstance(axis, RangeSpec)}

    def notes(self) -> list[str]:
        """Return sentences on what a study does not do, though it may have been meant to."""
        whole = [
            f"search.{key}: only whole numbers are drawn, because low and high are: "
            f"write {float(axis.low)} for all between"
            for key, axis in self.search.items()
            if isinstance(axis, RangeSpec) and axis.is_int and axis.step is None
            if kind_at(StudySpec, full_key(key)) is float or isinstance(self._default(key), float)
        ]
        if self.sampler.name == "grid" and self.sampler.trials is not None:
            whole.append(f"trials = {self.sampler.trials} is for samplers: a grid runs all its cells")
        undropped = dict.fromkeys(no_drop_note(pruning, epochs) for pruning, epochs in _prunings(self))
        return [*filter(None, [self.twin_note(), *undropped]), *whole]

    def twin_note(self) -> str | None:
        """Return a sentence on the scales that are left out because an earlier one builds their network, if any."""

        def spelled(scales: Mapping[str, Scalar]) -> str:
            return ", ".join(f"{key} {value}" for key, value in scales.items())

        twins = [f"{spelled(scales)} as {spelled(first)}" for scales, first in self._twins()]
        if not twins:
            return None
        listed = "; ".join(twins[:3]) + (f"; and {len(twins) - 3} more" if len(twins) > 3 else "")
        return f"left out, because they build the same network: {listed}"

    def _twins(self) -> list[tuple[dict[str, Scalar], dict[str, Scalar]]]:
        """Return each combination of scales that repeats a network, with the first one that builds it."""
        axes = {key: axis for key, axis in self._lists.items() if full_key(key) in SCALE_KEYS}
        named = {*self.conditions, *(other for condition in self.conditions.values() for other in condition)}
        if is_code(self.model.name) or "model.name" in self.search or not axes or not named.isdisjoint(axes):
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

    def step_label(self) -> str:
        """Return a short text that two resolved specs share exactly where they run the same steps."""
        if self.train.is_own_code:
            return ", ".join(f"{key} {value}" for key, value in self.params.items()) or "as the code has it"
        model, size = self.model, self.data.image_size
        if is_code(model.name):
            scale = "" if library_of(model.name) else f" at scale {model.scale:g}"
            network = f"{model.name}{scale}" + "".join(f" {k}={v}" for k, v in model.options.items())
        else:
            network = model.network
        pixels = "" if size is None else f", {size} pixels"
        order = "" if self.train.memory_format == "channels_last" else f" {self.train.memory_format}"
        return f"{network}, batch {self.train.batch_size}{pixels}, {self.train.precision}{order}"

    def trial_seed(self, cell: int, repeat: int) -> int:
        """Return the seed of one cell and repeat: the same on every box, unlike its neighbours'."""
        digest = hashlib.sha256(f"{self.sampler.seed}/{cell}/{repeat}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1


def load_spec(source: str | Path) -> StudySpec:
    """Return the study file at a path, or the bundled one of that name (`paper`, `digits`, …).

    Raises:
        SpecError: where there is no such file, or it cannot work.
    """
    path = Path(source)
    if path.suffix != ".toml" and not path.is_file():
        path = bundled_studies().get(str(source), path)
    try:
        text = read_text(path)
    except OSError as error:
        names = ", ".join(sorted(bundled_studies()))
        raise SpecError(f"study file {source}: {error.strerror}; give a TOML file's path or one of: {names}") from None
    spec = StudySpec.from_toml(text, str(path))
    evidence = path.parent / (spec.pruning.evidence or "")
    if not evidence.is_file():
        return spec
    # A study file names its evidence as it lies beside it, wherever the command runs.
    return spec.model_copy(update={"pruning": spec.pruning.model_copy(update={"evidence": str(evidence)})})


def bundled_studies() -> dict[str, Path]:
    """Return the study files that come with the package, by name."""
    package = Path(__file__).parents[1]
    folders = (package / "studies", package.parent / "studies")  # in the wheel; in a checkout
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _check_search(spec: StudySpec) -> None:
    """Refuse axes that cannot work: unknown, empty, repeated, of the wrong type, or out of bounds."""
    seen: dict[str, str] = {}
    for key, axis in spec.search.items():
        target = full_key(key)
        if target in seen:
            raise SpecError(f"search.{key}: the same setting as search.{seen[target]}: keep one")
        seen[target] = key
        if target == "train.processes":
            raise SpecError(
                f"search.{key}: times of one process and of several are of different kinds of machine: "
                f"set train.processes for the whole study, and make a study for each number"
            )
        if spec.train.is_own_code and target not in LENGTH_KEYS and not target.startswith("params."):
            raise SpecError(
                f"search.{key}: is for the built-in trainer: code of your own has params.NAME, "
                f"{' and '.join(LENGTH_KEYS)} to search"
            )
        if target.split(".")[0] not in SEARCHABLE_SECTIONS or "." not in target:
            known = {
                name.rpartition(".")[2]: name for name in all_keys(StudySpec) if name.startswith(SEARCHABLE_SECTIONS)
            }
            meant = f" (did you mean {known[key]}?)" if key in known else nearest(key, SHORT_KEYS)
            allowed = f'{", ".join(SHORT_KEYS)}, or a setting such as "train.lr"'
            raise SpecError(f"search.{key}: unknown key{meant}; allowed: {allowed}")
        if target.startswith("pruning.") and (spec.pruning.when == "auto" or target == "pruning.when"):
            raise SpecError(
                f"search.{key}: `pruning.when = 'auto'` decides on pruning for the whole study: "
                f"take search.{key} out (or --set {key}=VALUE), or leave pruning.when at 'always'"
            )
        _check_axis(spec, key, axis)
        if target in SIZE_KEYS:
            names = spec.conditions.get(key, {}).get("model.name", spec.model_names)
            if named := next((name for name in names if library_of(str(name))), None):
                other = 'give it when = { "model.name" = "resnet" }' if "resnet" in names else "search its options"
                raise SpecError(f"search.{key}: sizes the built-in network, and does nothing to {named}: {other}")
    if set(LENGTH_KEYS) <= seen.keys():
        raise SpecError("search: train.epochs and train.budget exclude each other: keep one")
    if spec.sampler.name != "grid" and not spec.search:
        raise SpecError("search: a sampler needs something to search: add a list or a range there, or use --grid")
    _check_size(spec)
    _check_batch(spec)
    _check_rates(spec)
    _check_warm_up(spec)


def _check_warm_up(spec: StudySpec) -> None:
    """Refuse what is done in warm-up, off the clock, where there is none."""
    for key in ("compile", "cuda_graphs") if spec.clock.warmup_steps == 0 else ():
        axis = next((axis for name, axis in spec.search.items() if full_key(name) == f"train.{key}"), ())
        if getattr(spec.train, key) or (not isinstance(axis, RangeSpec) and any(axis)):
            raise SpecError(
                f"train.{key}: warm-up is where it is paid for, off the clock: "
                f"set clock.warmup_steps to at least 1, or leave train.{key} at false"
            )


def _check_size(spec: StudySpec) -> None:
    """Refuse more trials than the service is made for."""
    repeats = spec.sampler.most_repeats
    if spec.sampler.name == "grid":
        points = count_points(spec._lists, spec.conditions, LARGEST_STUDY)
        what, advice = (
            f"search: {'at least ' * bool(spec.conditions)}{points:,} cells",
            "shorten an axis, or sample with --sampler tpe",
        )
    else:
        points = spec.sampler.trials or 1
        what, advice = f"sampler: {points:,} points", "ask for fewer, or make several studies"
    if points * repeats > LARGEST_STUDY:
        raise SpecError(f"{what} × {repeats:,} repeats are more than {LARGEST_STUDY:,} trials: {advice}")


def _check_axis(spec: StudySpec, key: str, axis: AxisSpec) -> None:
    if isinstance(axis, RangeSpec):
        if spec.sampler.name == "grid":
            raise SpecError(
                f"search.{key}: a grid needs a list of values, not a range: list them, or choose a sampler with "
                f"--sampler tpe"
            )
    elif not axis:
        raise SpecError(f"search.{key}: empty; give at least one value, or leave the key out")
    elif len(first := {value: value for value in reversed(axis)}) < len(axis):
        seen = set[Scalar]()
        again = next(value for value in axis if value in seen or seen.add(value))  # type: ignore[func-returns-value]
        raise SpecError(
            f"search.{key}: the same value twice, {as_written(first[again])} and {as_written(again)}: keep one"
        )
    target = full_key(key)
    if target.startswith("params."):
        check_param(spec, full_key(key), _extremes(axis))
        return
    if isinstance(axis, RangeSpec) and not axis.is_int and kind_at(StudySpec, target) is int:
        raise SpecError(f"search.{key}: low, high and step must be whole numbers, without a decimal point")
    # Only the table that the axis is in: a long list is checked in no time.
    section = target.split(".")[0]
    document = {section: getattr(spec, section).model_dump(mode="json", exclude_none=True)}
    table = type(getattr(spec, section))
    for value in _extremes(axis):
        set_value(document, target, value)
        try:
            table.model_validate(document[section])
        except ValidationError as error:
            found = "; ".join(dict.fromkeys(text for _, text in faults(error, table)))
            raise SpecError(f"search.{key}: {found}") from None


def _check_rates(spec: StudySpec) -> None:
    """Refuse prune rates that a strategy cannot reach, for every combination of what is searched."""
    for pruning, epochs in _prunings(spec):
        check_rate(pruning, epochs)


def _prunings(spec: StudySpec) -> Iterator[tuple[PruningSpec, Any]]:
    """Yield the largest rate with each combination of what else decides how much is dropped, and its epochs."""
    searched = {full_key(key): axis for key, axis in spec.search.items()}
    conditions = {full_key(key): condition for key, condition in spec.conditions.items()}
    rates = _extremes(searched.get("pruning.prune_rate", (spec.pruning.prune_rate,)))
    axes = {key: _ends(searched[f"pruning.{key}"]) for key in DECIDE_REACH if f"pruning.{key}" in searched}
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        # What conditions ask of other axes may hold, and so may what they ask of an axis whose ends alone are here.
        told = {f"pruning.{key}": value for key, value in chosen.items() if not are_numbers(axes[key])}
        asked = {full_key(key): allowed for key, allowed in conditions.get("pruning.prune_rate", {}).items()}
        is_active = holds({key: allowed for key, allowed in asked.items() if key in told}, told)
        rate = max(rates) if is_active else spec.pruning.prune_rate
        pruning = spec.pruning.model_copy(update={**chosen, "prune_rate": rate})
        for epochs in [None] if "train.budget" in searched else _lengths(spec, searched, pruning.refresh_every):
            yield pruning, epochs


def _lengths(spec: StudySpec, searched: Mapping[str, AxisSpec], refresh_every: int) -> Iterable[Any]:
    """Return the numbers of epochs to check: those of a list; of a range those among which a refresh costs the most."""
    axis = searched.get("train.epochs", (spec.train.epochs,))
    if not isinstance(axis, RangeSpec):
        return axis
    # The fewer epochs the more a refresh costs, and most where a run ends in one: once in so many epochs.
    return [*(axis.values() or ())[: min(refresh_every, LARGEST_CYCLE)], axis.last]


def _check_batch(spec: StudySpec) -> None:
    """Refuse a batch that is larger than the image set, where the spec alone tells its size."""
    if spec.train.is_own_code:
        return
    if "data.train_size" in spec.search or "data.name" in spec.search:
        return
    sizes = spec.data.part_sizes
    available = None if sizes is None else sizes[0]
    if available is not None and spec.data.train_size is not None and spec.data.train_size > available:
        size, data = spec.data.train_size, spec.data
        left = f" that validation_fraction {data.validation_fraction:g} leaves" * (data.evaluate_on == "validation")
        raise SpecError(f"data.train_size: {size} is more than the {available} training images of {data.name}{left}")
    images = spec.data.train_size or available
    key = next((key for key in spec.search if full_key(key) == "train.batch_size"), None)
    largest = max(map(int, _extremes((spec.train.batch_size,) if key is None else spec.search[key])))
    if images is not None and largest > images:
        place = "train.batch_size" if key is None else f"search.{key}"
        raise SpecError(f"{place}: {largest} is larger than the {images} training images: take at most {images}")


def _extremes(axis: AxisSpec) -> tuple[Scalar, ...]:
    """Return the values of a list, or the ends of a range: where these are allowed, all between is."""
    return (axis.low, axis.last) if isinstance(axis, RangeSpec) else axis


def _ends(axis: AxisSpec) -> tuple[Scalar, ...]:
    """Return the smallest and the largest number of an axis; all values where they are no numbers."""
    values = _extremes(axis)
    return (min(values), max(values)) if are_numbers(values) else values

"""The study file: TOML in, JSON in the database and back, and everything that can be refused before a trial runs."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from budgettune.errors import SpecError
from budgettune.units import parse_duration

SHORT_KEYS = {
    "scale": "model.scale",
    "width_scale": "model.width_scale",
    "depth_scale": "model.depth_scale",
    "prune_rate": "pruning.prune_rate",
    "batch_size": "train.batch_size",
}
"""Search keys that stand for a longer one."""

SCALE_KEYS = ("model.scale", "model.width_scale", "model.depth_scale")
SEARCHABLE_TABLES = ("data", "model", "train", "pruning")
TRAINING_IMAGES = {"digits": 1_437, "fashion-mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000}
STRATEGIES = ("full", "random", "stale-quantile", "paper-as-coded")
LARGEST_GRID = 100_000

Scalar = bool | int | float | str


def _listed(value: Any) -> Any:
    """TOML and JSON know lists only; frozen specs hold tuples."""
    return tuple(value) if isinstance(value, list) else value


Duration = Annotated[float, BeforeValidator(parse_duration)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _code_or(*names: str) -> Any:
    """Return a validator that takes one of the names, or code as package.module:name."""

    def check(value: Any) -> Any:
        if not isinstance(value, str) or not (value in names or is_code(value)):
            raise ValueError(f"must be one of {', '.join(names)}, or code as package.module:name")
        return value

    return BeforeValidator(check)


def is_code(name: str) -> bool:
    """Whether a name stands for code to import, as package.module:attribute."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), attribute])


class DataSpec(_Table):
    """`[data]`: which images, and what part of them.

    Attributes:
        root: folder of the files; unused by digits.
        cache: folder for a memory-mapped copy of `folder` images, for sets larger than memory; None keeps them in it.
        train_size: a fixed random subset of the training images, None for all.
        evaluate_on: `test`, or `validation`: a fixed part of the training images that training never sees.
        image_size: pixels on a side, resized once at load; None keeps the files' own.
        augment: random crop after padding, and horizontal flip.
        flip: whether a mirrored image keeps its label; None asks the image set (yes for Fashion-MNIST and CIFAR).
        augment_test: the same on the held-out images, as the paper's script does by mistake.
        seed: of the splits and the subset; not of training.
    """

    name: Annotated[str, _code_or("digits", "fashion-mnist", "cifar10", "cifar100", "folder")] = "digits"
    root: str | None = None
    cache: str | None = None
    train_size: int | None = Field(None, ge=1)
    evaluate_on: Literal["test", "validation"] = "test"
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    image_size: int | None = Field(None, ge=4, le=1024)
    augment: bool = True
    flip: bool | None = None
    augment_test: bool = False
    seed: int = Field(0, ge=0)


def round_width(width: float, multiple: int) -> int:
    """Return a channel count near width.

    With multiple 1 it is the paper's `max(8, int(width))`. Otherwise the nearest multiple, or the next one up where
    that would lose more than a tenth (the rule of MobileNet's reference code; Sandler et al. 2018).
    """
    if multiple == 1:
        return max(8, int(width))
    nearest = max(multiple, math.floor(width / multiple + 0.5) * multiple)
    return nearest if nearest >= 0.9 * width else nearest + multiple


class ModelSpec(_Table):
    """`[model]`: a scalable family.

    Attributes:
        widths: channels of the three stages at scale 1.
        blocks: basic blocks per stage at scale 1.
        width_multiple: widths are rounded to it; 1 keeps the paper's unrounded ones.
        depth_rounding: `nearest`, or `down` as the paper's script does.
        scale: width and depth in tandem; width_scale and depth_scale override it for one of them.
        options: passed by name to a model of your own.
    """

    name: Annotated[str, _code_or("resnet")] = "resnet"
    widths: Annotated[tuple[int, int, int], BeforeValidator(_listed)] = (16, 32, 64)
    blocks: int = Field(3, ge=1)
    width_multiple: int = Field(8, ge=1)
    depth_rounding: Literal["nearest", "down"] = "nearest"
    scale: float = Field(1.0, gt=0, le=64)
    width_scale: float | None = Field(None, gt=0, le=64)
    depth_scale: float | None = Field(None, gt=0, le=64)
    options: dict[str, Scalar] = {}

    @model_validator(mode="after")
    def _positive_widths(self) -> Self:
        if min(self.widths) < 1:
            raise ValueError("widths must be at least 1")
        return self

    @property
    def realised_widths(self) -> tuple[int, int, int]:
        """Channels of the three stages after scaling and rounding."""
        scale = self.scale if self.width_scale is None else self.width_scale
        first, second, third = (round_width(width * scale, self.width_multiple) for width in self.widths)
        return first, second, third

    @property
    def realised_blocks(self) -> int:
        """Basic blocks per stage after scaling and rounding, at least one."""
        blocks = self.blocks * (self.scale if self.depth_scale is None else self.depth_scale)
        return max(1, int(blocks) if self.depth_rounding == "down" else math.floor(blocks + 0.5))


class TrainSpec(_Table):
    """`[train]`: how one trial is trained.

    Attributes:
        epochs: passes over what pruning keeps. Exactly one of epochs and budget; 30 where neither is given.
        budget: seconds on the clock ("60s"); epochs follow from it and the schedule runs on elapsed time.
        lr_schedule: from lr to zero at the end of training (`linear`, `cosine`), or `constant` as in the paper.
        precision: `auto` takes bf16 where the processor has it and the widths are aligned.
        compile: torch.compile, off the clock.
        evaluate_every: epochs between points of the accuracy curve; the last epoch always has one.
    """

    epochs: int | None = Field(None, ge=1)
    budget: Duration | None = None
    batch_size: int = Field(128, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    compile: bool = False
    evaluate_every: int = Field(1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _epochs_or_budget(cls, values: Any) -> Any:
        if isinstance(values, Mapping):  # anything else is refused by pydantic itself
            epochs, budget = values.get("epochs"), values.get("budget")
            if epochs is not None and budget is not None:
                raise ValueError("epochs and budget exclude each other: keep one")
            if epochs is None and budget is None:
                return {**values, "epochs": 30}
        return values


class PruningSpec(_Table):
    """`[pruning]`: which samples an epoch keeps.

    Attributes:
        prune_rate: fraction of the samples that a pruned epoch drops.
        refresh_every: stale-quantile and paper-as-coded keep everything every that many epochs.
        replacement: `random` draws each epoch afresh (true) or walks a permutation (false).
    """

    strategy: Annotated[str, _code_or(*STRATEGIES)] = "stale-quantile"
    prune_rate: float = Field(0.0, ge=0, lt=1)
    refresh_every: int = Field(5, ge=1)
    replacement: bool = False


class RangeSpec(_Table):
    """A searched interval, whole numbers where both ends are; for samplers, not for grids."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @property
    def is_int(self) -> bool:
        """Whether only whole numbers are drawn."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 0))

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if any(isinstance(value, bool) for value in (self.low, self.high, self.step)):
            raise ValueError("low, high and step must be numbers")
        if not self.low < self.high:
            raise ValueError(f"low must be below high, not {self.low} and {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low above zero and no step")
        if self.step is not None and self.step <= 0:
            raise ValueError("step must be above zero")
        return self


def _axis(value: Any) -> Any:
    """Return a list as a tuple of plain values, and a table as a range."""
    if isinstance(value, Mapping):
        return RangeSpec.model_validate(dict(value))
    if isinstance(value, RangeSpec):
        return value
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, Scalar) for item in value):
        raise ValueError("must be a list of plain values, or a range such as { low = 1e-4, high = 1e-2, log = true }")
    return tuple(value)


Axis = Annotated[tuple[Scalar, ...] | RangeSpec, BeforeValidator(_axis)]


class SamplerSpec(_Table):
    """`[sampler]`: how points are chosen, and how often each is run.

    Attributes:
        name: `grid` runs every point of the search lists; the others are Optuna's.
        seed: of the study: every trial's own seed follows from it.
        repeats: trials per point, each with its own seed.
        trials: points that a sampled study ends at, over all workers; None for no end.
        max_attempts: tries of one cell and repeat before it is given up.
    """

    name: Literal["grid", "tpe", "nsga2", "gp", "random"] = "grid"
    seed: int = Field(0, ge=0)
    repeats: int = Field(1, ge=1)
    trials: int | None = Field(None, ge=1)
    max_attempts: int = Field(3, ge=1)


class ClockSpec(_Table):
    """`[clock]`: what is done so that a time can be believed.

    Attributes:
        warmup_steps: throwaway steps per batch shape before the clock starts.
        on_disturbed: `keep` a disturbed trial, marked; or `repeat` it at once, up to repeat_limit times.
    """

    warmup_steps: int = Field(2, ge=0)
    on_disturbed: Literal["keep", "repeat"] = "keep"
    repeat_limit: int = Field(2, ge=1)


class StudySpec(_Table):
    """A whole study file."""

    name: str = Field(min_length=1, max_length=400)
    data: DataSpec = DataSpec()
    model: ModelSpec = ModelSpec()
    train: TrainSpec = TrainSpec()
    pruning: PruningSpec = PruningSpec()
    search: dict[str, Axis] = {}
    sampler: SamplerSpec = SamplerSpec()
    clock: ClockSpec = ClockSpec()

    @classmethod
    def from_toml(cls, text: str, source: str = "study file") -> StudySpec:
        """Return the spec that a TOML text describes, or raise SpecError naming what is wrong."""
        return cls.from_document(_parse_toml(text, source), source)

    @classmethod
    def from_json(cls, text: str) -> StudySpec:
        """Return the spec that `to_json` wrote."""
        return cls.from_document(json.loads(text), "the spec in the database")

    @classmethod
    def from_document(cls, document: Any, source: str = "study file") -> StudySpec:
        """Return the checked spec of a nested dict."""
        if not isinstance(document, Mapping):
            raise SpecError(f"{source}: must be a table of settings, not {type(document).__name__}")
        document = dict(document)
        if isinstance(document.get("search"), Mapping):
            document["search"] = dict(_flatten(document["search"]))
        try:
            spec = cls.model_validate(document)
        except ValidationError as error:
            raise SpecError(f"{source}: {_explain(error)}") from None
        _check_search(spec, source)
        return spec

    def to_document(self) -> dict[str, Any]:
        """Return plain JSON values that `from_document` takes back without loss."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_json(self) -> str:
        """Return the spec as JSON text."""
        return json.dumps(self.to_document())

    def with_overrides(self, overrides: Iterable[str]) -> StudySpec:
        """Return the spec with `key=value` texts applied; values are read as TOML, else as plain text."""
        document = self.to_document()
        for override in overrides:
            _apply_override(document, override)
        return StudySpec.from_document(document, "--set")

    def resolve(self, params: Mapping[str, Any]) -> StudySpec:
        """Return the spec of one trial: searched values put in their places, nothing left to search.

        Raises:
            SpecError: where a key is unknown or a value cannot work.
        """
        document = self.to_document() | {"search": {}, "sampler": {}}
        for key, value in params.items():
            _set(document, full_key(key), value, source="params")
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


def full_key(key: str) -> str:
    """Return the dotted key that a search key stands for."""
    return SHORT_KEYS.get(key, key)


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
    return StudySpec.from_toml(text, str(path))


def bundled_studies() -> dict[str, Path]:
    """Return the study files that come with the package, by name."""
    package = Path(__file__).parent
    folders = (package / "studies", package.parent / "studies")  # in the wheel; in a checkout
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _parse_toml(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{source}: not valid TOML: {error}") from None


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield search axes by dotted key, so that an unquoted `train.lr = …` works as well as a quoted one."""
    for key, axis in table.items():
        if isinstance(axis, Mapping) and not RangeSpec.model_fields.keys() & axis.keys():
            yield from _flatten(axis, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", axis


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise SpecError(f"--set {override!r}: write it as key=value, for example --set train.epochs=1")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    if key.startswith("search."):
        document["search"] = {**document.get("search", {}), key.removeprefix("search."): value}
        return
    key = full_key(key)
    # The last word wins: who sets a budget does not want to unset the epochs first.
    exclusive = {"train.epochs": "budget", "train.budget": "epochs"}.get(key)
    if exclusive:
        document.get("train", {}).pop(exclusive, None)
    document["search"] = {axis: v for axis, v in document.get("search", {}).items() if full_key(axis) != key}
    _set(document, key, value, source="--set")


def _set(document: dict[str, Any], key: str, value: Any, source: str) -> None:
    *tables, name = key.split(".")
    target = document
    for table in tables:
        target = target.setdefault(table, {})
        if not isinstance(target, dict):
            raise SpecError(f"{source}: {key}: unknown key")
    if value is None:
        target.pop(name, None)
    else:
        target[name] = value


def _check_search(spec: StudySpec, source: str) -> None:
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
                f"{source}: search.{key}: unknown key{_nearest(key, SHORT_KEYS)}; "
                f'allowed: {known}, or a setting such as "train.lr"'
            )
        _check_axis(spec, key, axis, source)
    if spec.sampler.name == "grid":
        size = math.prod(len(axis) for axis in spec.search.values() if not isinstance(axis, RangeSpec))
        if size * spec.sampler.repeats > LARGEST_GRID:
            raise SpecError(
                f"{source}: search: a grid of {size} cells × {spec.sampler.repeats} repeats is over "
                f"{LARGEST_GRID}: shorten an axis, or sample with --sampler tpe"
            )
    elif not spec.search:
        raise SpecError(f"{source}: search: a sampler needs something to search: name an axis, or use --grid")
    _check_batch(spec, source)


def _check_axis(spec: StudySpec, key: str, axis: tuple[Scalar, ...] | RangeSpec, source: str) -> None:
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
        if full_key(key) == "train.budget":
            document["train"].pop("epochs", None)
        _set(document, full_key(key), value, source)
        try:
            StudySpec.model_validate(document)
        except ValidationError as error:
            raise SpecError(f"{source}: search.{key}: {_explain(error)}") from None


def _check_batch(spec: StudySpec, source: str) -> None:
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


def _explain(error: ValidationError) -> str:
    """Return the first few faults, each with its key, its value and what is allowed."""
    faults = [_fault(dict(fault)) for fault in error.errors(include_url=False)]
    return "; ".join(dict.fromkeys(faults))


def _fault(fault: dict[str, Any]) -> str:
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location) or "study"
    if fault["type"] == "extra_forbidden":
        allowed = _keys_of(location[:-1])
        return f"{key}: unknown key{_nearest(location[-1], allowed)}; allowed: {', '.join(allowed)}"
    if fault["type"] == "missing":
        return f"{key}: missing"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    shown = repr(fault["input"])
    return f"{key}: {shown if len(shown) <= 60 else shown[:57] + '…'} {message}"


def _keys_of(tables: list[str]) -> list[str]:
    model: Any = StudySpec
    for table in tables:
        field = model.model_fields.get(table)
        annotation = field.annotation if field is not None else None
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else RangeSpec
    return list(model.model_fields)


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""

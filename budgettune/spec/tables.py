"""The tables of a study file, one frozen model each: its keys, what they may be, and what they are otherwise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from budgettune.text import parse_duration

WIDEST = 65_536
LARGEST_NUMBER = 2.0**53  # beyond it a database's numbers have gaps
ALIGNMENT = 8  # channels that kernels like: `precision = "auto"` takes bf16 only where all widths are multiples of it
MOST_REPEATS = 5  # that `auto` gives a cell: two configurations that are equal stay in doubt for ever
AUTO = "auto"
SCALE_KEYS = ("model.scale", "model.width_scale", "model.depth_scale")  # what sizes the network
SIZE_KEYS = (*SCALE_KEYS, "model.blocks", "model.width_multiple", "model.depth_rounding")

MOST = 1_000_000_000  # epochs, steps and whatever else is counted
LARGEST_SEED = 2**63 - 1  # that TOML and torch have room for

Scalar = bool | int | float | str
Duration = Annotated[float, BeforeValidator(parse_duration)]  # seconds, in a study file also as "60s" or "1h30m"


def are_numbers(values: Iterable[Any]) -> bool:
    """Whether searched values are all numbers, and so have an order (true and false have none)."""
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


class SpecModel(BaseModel):
    """What all tables share: no unknown keys, no silent conversions, no change after reading.

    Attributes:
        newer: keys that a document holds only where they are not at their defaults: older versions do not know them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    newer: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _as_before(self, serialized: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = serialized(self)
        unsaid = {key for key in self.newer if getattr(self, key) == type(self).model_fields[key].default}
        return {key: value for key, value in document.items() if key not in unsaid}


class Clash(ValueError):
    """Keys of one table that do not go together; the message names them."""


def plain_value(value: Any) -> Any:
    """Return a value as a search list, or an option of a model, may hold it; refuse any other in one sentence."""
    if not isinstance(value, Scalar) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("must be a finite number, text, or true or false")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise ValueError("must be a number")
    if abs(value) > LARGEST_NUMBER:
        raise ValueError(f"must lie within ±{LARGEST_NUMBER:.1g}")
    return value


Number = Annotated[int | float, BeforeValidator(_number)]


def code_or(*names: str) -> Any:
    """Return a validator that takes one of the names, or code as package.module:name."""

    def check(value: Any) -> Any:
        if not isinstance(value, str) or not (value in names or is_code(value)):
            known = f"one of {', '.join(names)}, or " if names else ""
            raise ValueError(f"must be {known}code as package.module:name")
        return value

    return BeforeValidator(check)


def is_code(name: str) -> bool:
    """Whether a name stands for code to import, as package.module:attribute."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), attribute])


class ImageSetFacts(NamedTuple):
    """What is known of an image set before it is read."""

    training_images: int  # before a validation part is cut off
    test_images: int
    channels: int
    size: int  # pixels on a side
    classes: int
    flip: bool  # whether a mirrored image keeps its label


BUILT_IN_SETS = {
    "digits": ImageSetFacts(1_437, 360, channels=1, size=8, classes=10, flip=False),
    "fashion-mnist": ImageSetFacts(60_000, 10_000, channels=1, size=28, classes=10, flip=True),
    "cifar10": ImageSetFacts(50_000, 10_000, channels=3, size=32, classes=10, flip=True),
    "cifar100": ImageSetFacts(50_000, 10_000, channels=3, size=32, classes=100, flip=True),
}


class DataSpec(SpecModel):
    """`[data]`: which images, and what part of them."""

    name: Annotated[str, code_or(*BUILT_IN_SETS, "folder")] = "digits"
    root: str | None = None  # folder of the files; unused by digits
    cache: str | None = None  # folder for a memory-mapped copy of `folder` images, for sets larger than memory
    train_size: int | None = Field(None, ge=1)  # a fixed random subset of the training images, None for all
    # `validation` is a fixed part of the training images that training never sees.
    evaluate_on: Literal["test", "validation"] = "test"
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    image_size: int | None = Field(None, ge=4, le=1024)  # pixels on a side, resized once at load; None: as in the files
    augment: bool = True  # random crop after padding, and horizontal flip
    # Whether a mirrored image keeps its label; None asks the image set (yes for Fashion-MNIST and CIFAR).
    flip: bool | None = None
    augment_test: bool = False  # the same on the held-out images, as the paper's script does by mistake
    seed: int = Field(0, ge=0, le=LARGEST_SEED)  # of the splits and the subset; not of training

    @model_validator(mode="after")
    def _only_folders_are_cached(self) -> Self:
        if self.cache is not None and self.name != "folder":
            raise Clash("cache works with name = 'folder' only: the other sets fit in memory")
        return self

    @property
    def facts(self) -> ImageSetFacts | None:
        """What is known of a built-in set; None of any other."""
        return BUILT_IN_SETS.get(self.name)

    @property
    def part_sizes(self) -> tuple[int, int] | None:
        """Images of a built-in set that training may see (train_size is part of them), and that it is judged by."""
        if (facts := self.facts) is None:
            return None
        if self.evaluate_on == "test":
            return facts.training_images, facts.test_images
        held_out = max(1, round(facts.training_images * self.validation_fraction))
        return facts.training_images - held_out, held_out


def round_width(width: float, multiple: int) -> int:
    """Return a channel count near width.

    With multiple 1 it is the paper's `max(8, int(width))`. Otherwise the nearest multiple, or the next one up where
    that would lose more than a tenth (the rule of MobileNet's reference code; Sandler et al. 2018).
    """
    if multiple == 1:
        return max(8, int(width))
    nearest = max(multiple, math.floor(width / multiple + 0.5) * multiple)
    return nearest if nearest >= 0.9 * width else nearest + multiple


def _widths(value: Any) -> Any:
    is_list = isinstance(value, (list, tuple)) and len(value) == 3
    if not is_list or not all(type(width) is int and 1 <= width <= WIDEST for width in value):
        raise ValueError(f"must be three whole numbers from 1 to {WIDEST}, such as [16, 32, 64]")
    return tuple(value)  # TOML and JSON know lists only; frozen specs hold tuples


LIBRARIES = ("torchvision", "timm")  # whose image classifiers have names
NOT_DOWNLOADED = "weights are never downloaded: name a file of them in model.weights"
_OURS = {
    **dict.fromkeys(("pretrained", "weights", "checkpoint_path", "cache_dir"), NOT_DOWNLOADED),
    **dict.fromkeys(("num_classes", "in_chans", "img_size", "image_size", "input_size"), "follows from the images"),
    **dict.fromkeys(("features_only", "aux_logits", "progress"), "does not go with training a classifier"),
}


def library_of(name: str) -> str | None:
    """Return the library whose model a name stands for, as timm:resnet10t; None where it is no such name."""
    library, colon, _ = name.partition(":")
    return library if colon and library in LIBRARIES else None


def why_ours(option: str) -> str | None:
    """Return why a study cannot set an option of a library's model, None where it can."""
    return NOT_DOWNLOADED if option.startswith("pretrained") else _OURS.get(option)


def _model_name(value: Any) -> Any:
    if not isinstance(value, str) or not (value == "resnet" or is_code(value)):
        if isinstance(value, str) and "." in value and library_of(value):  # as in timm:resnet18.a1_in1k
            raise ValueError(f"must be a model without weights, as {value.partition('.')[0]}; {NOT_DOWNLOADED}")
        raise ValueError("must be one of resnet, torchvision:NAME, timm:NAME, or code as package.module:name")
    return value


class ModelSpec(SpecModel):
    """`[model]`: a scalable family, a model of a library, or one of your own."""

    newer = ("weights",)

    name: Annotated[str, BeforeValidator(_model_name)] = "resnet"
    # Channels of the three stages at scale 1.
    widths: Annotated[tuple[int, int, int], BeforeValidator(_widths)] = (16, 32, 64)
    blocks: int = Field(3, ge=1, le=1_000)  # basic blocks per stage at scale 1
    width_multiple: int = Field(8, ge=1, le=1_024)  # widths are rounded to it; 1 keeps the paper's unrounded ones
    depth_rounding: Literal["nearest", "down"] = "nearest"  # `down` as the paper's script does
    scale: float = Field(1.0, gt=0, le=64)  # width and depth in tandem; the next two override it for one of them
    width_scale: float | None = Field(None, gt=0, le=64)
    depth_scale: float | None = Field(None, gt=0, le=64)
    weights: str | None = Field(None, min_length=1)  # file of weights to begin with
    # Passed by name to a model of a library or of your own.
    options: dict[str, Annotated[Scalar, BeforeValidator(plain_value)]] = {}

    @model_validator(mode="after")
    def _leaves_to_us_what_is_ours(self) -> Self:
        for key in self.options if library_of(self.name) else ():
            if reason := why_ours(key):
                raise Clash(f"options.{key}: {reason}")
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

    @property
    def network(self) -> str:
        """Realised widths and blocks as 16/32/64 × 3."""
        return f"{'/'.join(map(str, self.realised_widths))} × {self.realised_blocks}"


def _compile(value: Any) -> Any:
    if not isinstance(value, bool) and value != AUTO:
        raise ValueError('must be true, false or "auto"')
    return value


def _command(value: Any) -> Any:
    is_list = isinstance(value, (list, tuple)) and all(isinstance(part, str) and "\0" not in part for part in value)
    if not is_list or not any(value):
        raise ValueError('must be a list of a program and its arguments, such as ["python", "train.py", "{lr}"]')
    return tuple(value)


class TrainSpec(SpecModel):
    """`[train]`: how one trial is trained, for exactly one of epochs and budget; 30 epochs where neither is given."""

    newer = ("cuda_graphs", "deterministic", "memory_format")

    epochs: int | None = Field(None, ge=1, le=MOST)  # passes over what pruning keeps
    budget: Duration | None = None  # time on the clock; epochs follow from it, the schedule runs on elapsed time
    batch_size: int = Field(128, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(1e-3, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    # From lr to zero at the end of training, or `constant` as in the paper.
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    # `auto` takes bf16 where the processor has it and the widths are aligned, else tf32 on a GPU that has it.
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    # torch.compile, off the clock; `auto` where the trial is long enough to pay for it.
    compile: Annotated[bool | Literal["auto"], BeforeValidator(_compile)] = False
    cuda_graphs: bool = False  # whole steps as CUDA graphs, captured off the clock; nothing changes on a CPU
    deterministic: bool = False  # the same kernels in every process, so that a GPU repeats a trial to the bit
    processes: int | None = Field(None, ge=1, le=1024)  # that train a trial together, a device each; None: the worker's
    # Order of images and weights: `profile` says where the other one is faster.
    memory_format: Literal["channels_last", "contiguous"] = "channels_last"
    # Code of your own in place of the built-in training: a function that takes a `Trial`, or a program and its
    # arguments, in which {name} stands for a param.
    loop: Annotated[str, code_or()] | None = None
    command: Annotated[tuple[str, ...], BeforeValidator(_command)] | None = None
    evaluate_every: int = Field(1, ge=1)  # epochs between points of the accuracy curve; the last always has one

    @property
    def is_own_code(self) -> bool:
        """Whether code of your own trains in place of the built-in trainer."""
        return self.loop is not None or self.command is not None

    @model_validator(mode="before")
    @classmethod
    def _epochs_or_budget(cls, values: Any) -> Any:
        if isinstance(values, Mapping):  # anything else is refused by pydantic itself
            epochs, budget = values.get("epochs"), values.get("budget")
            if epochs is not None and budget is not None:
                raise Clash("epochs and budget exclude each other: keep one")
            if epochs is None and budget is None:
                return {**values, "epochs": 30}
        return values


def _repeats(value: Any) -> Any:
    if value == AUTO or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError('must be a whole number from 1, or "auto"')


class SamplerSpec(SpecModel):
    """`[sampler]`: how points are chosen, and how often each is run."""

    newer = ("worth",)

    # `grid` runs every point of the search lists; `cost` is ours, the others are Optuna's.
    name: Literal["grid", "cost", "tpe", "nsga2", "gp", "random"] = "grid"
    seed: int = Field(0, ge=0, le=LARGEST_SEED)  # of the study: every trial's own seed follows from it
    # Trials per point, each with its own seed. `auto` begins with one, and then adds to those points whose membership
    # of the front is uncertain.
    repeats: Annotated[int | Literal["auto"], BeforeValidator(_repeats)] = 1
    trials: int | None = Field(None, ge=1)  # points that a sampled study ends at, over all workers; None for no end
    # Time of training, summed over workers, after which a sampled study begins no trial; None for no end.
    total: Duration | None = None
    max_seconds: Duration | None = None  # longest training that `cost` shall try; None for any
    # Training that one point of accuracy (of another objective: 1) is worth. `cost` begins only trials that are
    # expected to be worth their seconds, and ends once none is; None for any price.
    worth: Duration | None = None
    max_attempts: int = Field(3, ge=1)  # tries of one cell and repeat before it is given up

    @model_validator(mode="after")
    def _limits_have_someone_to_keep_them(self) -> Self:
        if self.total is not None and self.name == "grid":
            raise Clash("total ends a sampler, and a grid runs every cell: leave it out, or take name = 'cost'")
        if self.max_seconds is not None and self.name != "cost":
            raise Clash("max_seconds works with name = 'cost' only: the other samplers know no time")
        if self.worth is not None and self.name != "cost":
            raise Clash("worth works with name = 'cost' only: no other sampler says what a trial is expected to gain")
        if self.repeats == AUTO and self.name != "grid" and self.trials is None:
            raise Clash("repeats = 'auto' adds some once all points have run: say how many with trials, or use a grid")
        return self

    @property
    def can_be_spent(self) -> bool:
        """Whether the study may end before all its points have run: by its seconds, or because no more are worth it."""
        return self.total is not None or self.worth is not None

    @property
    def is_auto(self) -> bool:
        """Whether points get further repeats as the front asks for them."""
        return self.repeats == AUTO

    @property
    def grows_by_results(self) -> bool:
        """Whether results decide on further trials, and not only failures."""
        return self.is_auto or self.worth is not None

    @property
    def first_repeats(self) -> int:
        """Trials that each point gets in any case."""
        return self.repeats if isinstance(self.repeats, int) else 1

    @property
    def most_repeats(self) -> int:
        """Trials that a point gets at most."""
        return self.repeats if isinstance(self.repeats, int) else MOST_REPEATS


class StoppingSpec(SpecModel):
    """`[stopping]`: which trials end before their last epoch."""

    # `dominance`: those that will almost surely not improve on the front of the finished ones where it matters.
    rule: Literal["none", "dominance"] = "none"
    confidence: float = Field(0.95, ge=0.5, lt=1)  # share of all trials that is not stopped wrongly, at least
    # Share of trials that run to their end all the same, and show how often the rule is wrong.
    control: float = Field(0.1, ge=0, le=1)


class MachineSpec(SpecModel):
    """`[machine]`: whose times a study holds."""

    # Kind of machine, as `study show` and `--device-name` spell it; None takes that of the first finished trial.
    device_name: str | None = Field(None, min_length=1)


class ClockSpec(SpecModel):
    """`[clock]`: what is done so that a time can be believed."""

    warmup_steps: int = Field(2, ge=0)  # throwaway steps per batch shape before the clock starts
    # `keep` a disturbed trial, marked; or `repeat` it at once, up to repeat_limit times.
    on_disturbed: Literal["keep", "repeat"] = "keep"
    repeat_limit: int = Field(2, ge=1)


class PredictSpec(SpecModel):
    """`[predict]`: what is done so that a study can answer for configurations that never ran."""

    # Time that a worker spends, before its first trial, on steps that nobody has timed on its kind of machine.
    probe: Duration | None = None

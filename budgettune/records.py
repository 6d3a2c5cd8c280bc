"""What a trial leaves behind, as frozen values. No torch, no Optuna, no SQL.

A `TrialResult` is what training returns; a `TrialRecord` is one row of a study as everything else reads it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from budgettune.errors import Interrupted
from budgettune.json_values import AsBefore, JsonValue


def finite_number(value: Any) -> float | None:
    """Return a value where it is a finite number, else None. JSON as Python reads it has NaN and infinities too."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and abs(value) <= sys.float_info.max else None


@dataclass(frozen=True, kw_only=True)
class EpochRecord(AsBefore):
    """One epoch of a trial's curve. What code of your own does not say is None.

    Attributes:
        epoch: 0-based.
        train_seconds: on the clock since training began, at the end of this epoch.
        samples: sample visits of this epoch (those that were kept).
        loss: mean training loss over the samples kept.
        value: of the study's objective after this epoch, usually the test accuracy in [0, 1]; None where it was not
            evaluated. Documents call it `accuracy`.
        measures: further numbers that were reported with it.
    """

    _newer: ClassVar[Mapping[str, Any]] = {"steps": None, "samples": None, "loss": None, "measures": {}}

    epoch: int
    train_seconds: float
    steps: int | None = None
    samples: int | None = None
    loss: float | None = None
    value: Annotated[float | None, Field(alias="accuracy")] = None
    measures: Mapping[str, float] = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """The value, under the name of the usual objective."""
        return self.value


@dataclass(frozen=True, kw_only=True)
class PhaseSeconds(AsBefore):
    """Where a trial's seconds went.

    `prepare`, `plan`, `data`, `select`, `step` and `observe` are on the clock and add up to `train_seconds` but for
    the loop between them; the others are off the clock.

    Attributes:
        prepare: what a pruning strategy does once, before the first epoch: helper models, scores.
        plan: choosing which samples an epoch keeps, scoring between epochs included.
        data: gathering and augmenting batches, candidates included.
        select: looking at candidates, and choosing among them.
        step: forward, backward, optimiser.
        observe: handing losses back to the strategy.
        load: reading the image set (0 where the process had it already).
        build: making the model and the optimiser.
        warmup: throwaway steps.
        compile: throwaway steps of a model that is compiled, where asked for.
        capture: of CUDA graphs, where asked for.
        evaluate: accuracy on held-out images.
        checkpoint: keeping the half-trained trial for another process, and reading what another one kept.
        asides: parts of code of your own, by the names that it gives them.
    """

    _newer: ClassVar[Mapping[str, Any]] = {"checkpoint": 0.0, "asides": {}}

    prepare: float = 0.0
    plan: float = 0.0
    data: float = 0.0
    select: float = 0.0
    step: float = 0.0
    observe: float = 0.0
    load: float = 0.0
    build: float = 0.0
    warmup: float = 0.0
    compile: float = 0.0
    capture: float = 0.0
    evaluate: float = 0.0
    checkpoint: float = 0.0
    asides: Mapping[str, float] = field(default_factory=dict)

    @property
    def on_clock(self) -> float:
        """Seconds of the phases that count."""
        return float(sum(getattr(self, phase) for phase in ON_CLOCK))

    @property
    def pruning(self) -> float:
        """Seconds that choosing samples costs: what pruning must earn back."""
        return self.prepare + self.plan + self.select + self.observe


ON_CLOCK = ("prepare", "plan", "data", "select", "step", "observe")
"""Phases that count, in the order in which an epoch passes them; all others are off the clock."""

OFF_CLOCK = tuple(phase.name for phase in fields(PhaseSeconds) if phase.name not in (*ON_CLOCK, "asides"))


@dataclass(frozen=True, kw_only=True)
class MachineInfo(AsBefore):
    """The box that a time was taken on. `key` says which times may be compared."""

    _newer: ClassVar[Mapping[str, Any]] = {"processes": 1, "power_limit_w": None, "sm_clock_limit_mhz": None}

    hostname: str
    device: str
    device_name: str
    device_uuid: str | None = None
    cpu: str = ""
    cores: int = 0
    threads: int = 0
    memory_mb: int = 0
    platform: str = ""
    python: str = ""
    torch: str = ""
    driver: str | None = None
    cuda: str | None = None
    cudnn: str | None = None
    processes: int = 1  # that train a trial together, each with a device and so many threads of its own
    power_limit_w: int | None = None
    sm_clock_limit_mhz: int | None = None

    @property
    def key(self) -> str:
        """Device name, on a CPU the threads, and processes above one: times of equal keys may share a front."""
        name = self.device_name if self.device != "cpu" else f"{self.device_name} x{self.threads}"
        return name if self.processes == 1 else f"{name} ×{self.processes}"


@dataclass(frozen=True, kw_only=True)
class StepProbe(JsonValue):
    """A few steps of one configuration, timed outside any trial.

    Configurations of equal steps share the text `step` (`budgettune.predict.workload.Workload.step`).
    """

    params: Mapping[str, Any]
    step: str
    ms_mean: PositiveFloat  # per full step
    ms_error: NonNegativeFloat  # standard error of the same
    steps: PositiveInt
    seconds: NonNegativeFloat  # that the probe took, building and warming up included


@dataclass(frozen=True, kw_only=True)
class StoppingNote(JsonValue):
    """What a trial's row keeps where the study's rule stopped it early, or spared it as a control.

    Forecasts are of the trial's end; `least_seconds` and `most_accuracy` are one-sided bounds. Of another
    objective than accuracy, `expected_accuracy` and `most_accuracy` are its values.
    """

    stopped: bool  # not where it is a control
    # Whether a control improved on the front of those that had finished when it was judged by half a point of accuracy
    # (of other scores, see `Law`) or 5% of time; in rows of versions before, whether by anything at all.
    wrong: bool | None = None
    epoch: int | None = None  # after which it was judged
    train_seconds: float  # on the clock until then
    expected_seconds: float
    least_seconds: float | None = None
    expected_accuracy: float | None = None
    most_accuracy: float | None = None
    rival: int | None = None  # number of the trial that beats it
    reason: str | None = None

    @classmethod
    def read(cls, value: Any) -> Self | None:
        """Return a note as a row keeps it, None where it is none; what else is not as we write it is left out."""
        if not isinstance(value, Mapping) or not isinstance(value.get("stopped"), bool):
            return None
        facts = {name: value.get(name) for name in _NOTE_FACTS}
        numbers = {f.name: finite_number(value.get(f.name)) for f in fields(cls) if f.name not in _NOTE_FACTS}
        if numbers["train_seconds"] is None or numbers["expected_seconds"] is None:
            return None
        known = {name: fact if type(fact) is _NOTE_FACTS[name] else None for name, fact in facts.items()}
        return cls(**known, **numbers)  # type: ignore[arg-type]


_NOTE_FACTS: dict[str, type] = {"stopped": bool, "wrong": bool, "epoch": int, "rival": int, "reason": str}
"""What a note keeps beside numbers."""


class Judged(AsBefore, JsonValue):
    """What images judged.

    Where those are validation images, its document says so in `judged_on`, names the value `validation_accuracy`, and
    has as `test_accuracy` what was reached on the test images, which chose nothing.
    """

    _newer: ClassVar[Mapping[str, Any]] = {"measures": {}, "judged_on": None, "on_test": None}

    value: Any
    judged_on: Literal["validation"] | None
    on_test: float | None

    @property
    def test_accuracy(self) -> Any:
        """The value, under the name of the usual objective; of what validation images judged, `on_test`."""
        return self.value if self.judged_on is None else self.on_test

    @property
    def validation_accuracy(self) -> Any:
        """The value of what validation images judged."""
        return None if self.judged_on is None else self.value

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        document = super().to_json()
        if self.judged_on is None:
            return document
        return {_JUDGED.get(name, name): value for name, value in (document | {"on_test": self.on_test}).items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return what `to_json` wrote."""
        names = {to: name for name, to in _JUDGED.items()} if document.get("judged_on") else {}
        return super().from_json({names.get(name, name): value for name, value in document.items()})


_JUDGED = {"test_accuracy": "validation_accuracy", "on_test": "test_accuracy"}  # names in the document, and there


@dataclass(frozen=True, kw_only=True)
class TrialResult(Judged):
    """What training one configuration gave; JSON in and out without loss. What code of your own does not say is None.

    Attributes:
        train_seconds: training wall-clock with the cost of pruning in and evaluation out.
        value: of the study's objective after the last epoch, usually the share of held-out images that are classified
            correctly. Documents call it `test_accuracy`.
        keep_fraction: sample visits made over visits that no pruning would have made.
        scored_samples: forward passes of single samples that pruning asked for beyond training steps.
        helper_samples: sample visits of helper models that pruning trained.
        step_ms_median, step_ms_mad: host milliseconds from step to step, and their median absolute deviation.
        peak_memory_mb: of the device's allocator on CUDA, of the process elsewhere.
        precision: fp32, tf32 (products of 10-bit mantissas on a GPU) or bf16, as realised.
        architecture: realised widths, blocks and what else the model tells of itself.
        compiled, cuda_graphs: whether steps ran so: the same arithmetic, but compiled kernels round otherwise.
        stopping: why it was stopped early, or would have been had it not been a control; None for all others.
        measures: further numbers that the trial reported beside its objective, by name, such as memory or energy.
        resumed: numbers of the epochs with which another process went on from where the one before was cut off.
        judged_on: `validation` where the value is of validation images; None for test images, or what code tells.
        on_test: accuracy on the test images after the last epoch, where validation images judge; None where stopped.
    """

    _newer: ClassVar[Mapping[str, Any]] = {**Judged._newer, "resumed": ()}

    train_seconds: float
    value: Annotated[float, Field(alias="test_accuracy")]
    keep_fraction: float | None = None
    epochs: int
    steps: int | None = None
    samples: int | None = None
    parameters: int | None = None
    multiply_adds: int | None = None
    step_ms_median: float | None = None
    step_ms_mad: float | None = None
    peak_memory_mb: float | None = None
    final_lr: float | None = None  # what the schedule gives where training ended
    seed: int
    precision: str | None = None
    weights_sha256: str | None = None
    curve: tuple[EpochRecord, ...]
    phases: PhaseSeconds
    machine: MachineInfo
    scored_samples: int = 0
    helper_samples: int = 0
    batch_shapes: tuple[int, ...] = ()
    architecture: Mapping[str, Any] = field(default_factory=dict)
    status: str = "unverified"
    evidence: Mapping[str, Any] = field(default_factory=dict)
    stopping: StoppingNote | None = None
    compiled: bool = False
    cuda_graphs: bool = False
    measures: Mapping[str, float] = field(default_factory=dict)
    resumed: tuple[int, ...] = ()
    judged_on: Literal["validation"] | None = None
    on_test: float | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether training ended before its last epoch because the study's rule said so."""
        return self.stopping is not None and self.stopping.stopped

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return super().to_json() | {"stopping": self.stopping.to_json() if self.stopping else {}}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return the result that `to_json` wrote."""
        return super().from_json({**document, "stopping": document.get("stopping") or None})

    def is_finite(self) -> bool:
        """Whether both objectives are finite numbers, so that a database takes them."""
        return math.isfinite(self.train_seconds) and math.isfinite(self.value)


@dataclass(frozen=True, kw_only=True)
class TrialRecord(Judged):
    """One trial of a study, finished or not.

    Attributes:
        number: Optuna's trial number.
        state: COMPLETE, RUNNING, WAITING, FAIL or PRUNED (stopped early).
        train_seconds: objective to minimise, None until the trial is complete.
        value: of the study's objective, usually the test accuracy; None until the trial is complete. Documents call it
            `test_accuracy`.
        cell: index of the point in the grid (or in the order of sampling); repeats of a point share it.
        attempt: 1 for the first try of a cell and repeat.
        status: clean, disturbed or unverified: whether the time can be believed.
        device_name: kind of machine, as `MachineInfo.key`.
        extra: a late result beside the one that counts for its cell and repeat.
        failure: why it failed, with the kind in front; None otherwise.
        stopped: why it was stopped early; None otherwise.
        started_at, completed_at: ISO 8601, UTC.
        measures: further numbers that it reported beside its objective, by name.
        judged_on, on_test: as in `TrialResult`.
    """

    number: int
    state: str
    params: Mapping[str, Any]
    train_seconds: float | None = None
    value: Annotated[float | None, Field(alias="test_accuracy")] = None
    cell: int | None = None
    repeat: int | None = None
    attempt: int | None = None
    seed: int | None = None
    status: str | None = None
    keep_fraction: float | None = None
    epochs: int | None = None
    steps: int | None = None
    parameters: int | None = None
    multiply_adds: int | None = None
    prune_seconds: float | None = None
    step_ms_median: float | None = None
    peak_memory_mb: float | None = None
    device_name: str | None = None
    extra: bool = False
    failure: str | None = None
    stopped: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
    curve: tuple[EpochRecord, ...] = ()
    phases: PhaseSeconds | None = None
    machine: MachineInfo | None = None
    measures: Mapping[str, float] = field(default_factory=dict)
    judged_on: Literal["validation"] | None = None
    on_test: float | None = None


COUNT_ATTRIBUTES = ("epochs", "steps", "parameters", "multiply_adds")
NUMERIC_ATTRIBUTES = ("keep_fraction", *COUNT_ATTRIBUTES, "prune_seconds", "step_ms_median", "peak_memory_mb")
"""User attributes of a trial that people sort by: one finite number each."""

RECORD_COLUMNS = tuple(
    "test_accuracy" if f.name == "value" else f.name
    for f in fields(TrialRecord)
    if f.name not in ("params", "curve", "phases", "machine", *Judged._newer)
)
"""The flat columns of a TrialRecord, in order, for tables and CSV (params come as columns of their own)."""


def record_columns(judged_on: str | None) -> tuple[str, ...]:
    """Return RECORD_COLUMNS with what tells of validation images where those judge, before `test_accuracy`."""
    at = RECORD_COLUMNS.index("test_accuracy")
    own = () if judged_on is None else ("judged_on", "validation_accuracy")
    return (*RECORD_COLUMNS[:at], *own, *RECORD_COLUMNS[at:])


def trial_attributes(result: TrialResult) -> dict[str, Any]:
    """Return the user attributes that a finished trial stores: numbers people sort by, and JSON documents.

    What is not there is left out, and so are numbers that are not finite, because JSON and databases have no word for
    them.
    """
    document = result.to_json()
    numbers = {name: document.get(name) for name in NUMERIC_ATTRIBUTES}
    if result.keep_fraction is not None:  # not of code of your own, which knows no pruning
        numbers["prune_seconds"] = result.phases.pruning
    details = ("precision", "final_lr", "step_ms_mad", "samples", "scored_samples", "helper_samples", "batch_shapes")
    known = {name: value for name, value in document.items() if value is not None}
    return {
        **{name: value for name, value in numbers.items() if value is not None and math.isfinite(value)},
        "status": result.status,
        "device_name": result.machine.key,
        **{name: known[name] for name in ("weights_sha256", "measures") if name in known},
        **{name: document[name] for name in ("curve", "phases", "machine")},
        **({"stopping": document["stopping"]} if result.stopping else {}),
        **({} if result.on_test is None else {ON_TEST: result.on_test}),
        "details": {name: known[name] for name in (*details, "architecture", "evidence", "resumed") if name in known},
    }


ON_TEST = "test_accuracy"  # user attribute of a trial that validation images judge
LOST = "lost"  # kind of failure of a trial whose worker gave no sign of life
HANDED_BACK = Interrupted.failure_kind  # kind of failure that uses up no attempt
KEPT_EPOCHS = "kept_epochs"  # user attribute of a trial: after how many epochs another process can go on with it
OPEN = frozenset({"WAITING", "RUNNING"})  # states that a trial may leave
TAKEN = frozenset({"WAITING", "RUNNING", "COMPLETE"})  # states in which a trial holds its slot


class Slot(NamedTuple):
    """One cell and repeat: what must end with exactly one complete trial."""

    cell: int
    repeat: int

    def __str__(self) -> str:
        return f"cell {self.cell} repeat {self.repeat}"


@dataclass(frozen=True)
class SlotRow:
    """What a decision needs to know of one trial.

    Its seconds are on the clock where it is complete or was stopped; else from its start to its last sign of life.
    """

    trial_id: int
    number: int
    state: str
    slot: Slot
    attempt: int = 1
    has_params: bool = True  # not for a sampled point whose worker died while it was drawn
    failure: tuple[str, str] | None = None  # kind and message
    extra: bool = False  # a late result beside the one that counts
    late_of: int | None = None  # number of the trial whose late result this row keeps
    seconds: float = 0.0
    is_stopped: bool = False  # the study's rule ended it early, so that its slot is done
    kept_epochs: int = 0  # after which another process could go on with it
    score: float | None = None  # of its objective, the more the better; None beyond the limits of the study

    @property
    def is_done(self) -> bool:
        """Whether it ended as it should."""
        return self.state == "COMPLETE" or self.is_stopped

    @property
    def is_taken(self) -> bool:
        """Whether this row keeps others from its slot."""
        return (self.state in TAKEN or self.is_stopped) and not self.extra

    @property
    def uses_attempt(self) -> bool:
        """Whether this try counts towards the limit."""
        return self.failure is None or self.failure[0] != HANDED_BACK

    @property
    def next_attempt(self) -> int:
        """Number of the try that follows this failed one."""
        return self.attempt + 1 if self.uses_attempt else self.attempt


@dataclass(frozen=True)
class Claim:
    """A running trial that is ours; it has no params while a sampler has yet to draw them."""

    trial_id: int
    number: int
    params: dict[str, Any]
    cell: int
    repeat: int
    attempt: int
    seed: int

    @property
    def slot(self) -> Slot:
        """The cell and repeat that it stands for."""
        return Slot(self.cell, self.repeat)

    @property
    def keys(self) -> dict[str, int]:
        """User attributes that say which cell, repeat and attempt it is."""
        return {"cell": self.cell, "repeat": self.repeat, "attempt": self.attempt, "seed": self.seed}

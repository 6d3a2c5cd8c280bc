"""Pruning strategies against each other at equal wall-clock: `budgettune compare`.

Every run trains for the same seconds with the learning rate at zero when they are over. `full` (everything, for fewer
epochs) and `random` are always among them: without these two a pruned result means little. Each strategy runs at a
learning rate of its own, chosen on validation images with seeds that are not reported: else the comparison is of how
well one rate suits each.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from budgettune.comparison.plan import Plan, arms_of, budgets_of, rates_of, shared_spec, tuning_images, with_key
from budgettune.comparison.result import (
    Arm,
    ComparedRun,
    Comparison,
    JudgedOn,
    Measured,
    Purpose,
    RunKey,
    read_comparison,
    write_comparison,
)
from budgettune.errors import (
    BudgetTuneError,
    DataError,
    DeviceLost,
    Interrupted,
    StopRequested,
    TrialFailed,
    UsageError,
)
from budgettune.machine.witness import Witness
from budgettune.records import TrialResult
from budgettune.spec.study_spec import StudySpec, load_spec
from budgettune.spec.tables import DataSpec, is_code
from budgettune.spec.trust import Trust
from budgettune.text import format_duration, parse_duration
from budgettune.training.data.load import ImageData, load_data
from budgettune.training.device import Device, pick_device
from budgettune.training.session import prepare_process
from budgettune.training.team import Team
from budgettune.trial.stopwatch import undisturbed

logger = logging.getLogger(__name__)


def compare(
    spec: StudySpec | str | Path,
    budgets: Sequence[str | float] = (),
    *,
    seeds: int = 10,
    full_seeds: int | None = None,
    lrs: Sequence[float] = (),
    tune_seeds: int = 2,
    strategies: Sequence[str] = (),
    prune_rates: Sequence[float] = (),
    shuffle_labels: float = 0.0,
    device: str = "auto",
    threads: int | None = None,
    allow_import: Collection[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Train each strategy at each prune rate, budget and seed, and return what came of it.

    First every strategy is tried at each learning rate and judged by validation images, on seeds of their own; then
    its best one runs on the scored seeds, judged by test images. Runs take turns, seed by seed in a rotating order, so
    that a slow minute of the machine hits all alike. One that something disturbed is run again as `[clock]` says, and
    marked where that does not help; one that fails is kept with its reason.

    Args:
        spec: a spec, a TOML file's path, or the name of a bundled study file; trained at its own values of what it
            searches. A constant learning rate becomes a linear one.
        budgets: training time of each run, in seconds or as "30s"; the spec's `train.budget` where empty.
        seeds: scored runs of each strategy, prune rate and budget, at least 2: the same seeds for all.
        full_seeds: those of `full`, which all others are held against; None for as many times more as the root of
            their number, at least twice (Dunnett 1955).
        lrs: learning rates to try; where empty those that the spec searches, else four around its own. One alone is
            the rate of all, tuned for none.
        tune_seeds: runs of each strategy at each learning rate; of `full` as many times more as of those scored.
        strategies: names or code; where empty those that the spec searches, else all. `full` and `random` are added.
        prune_rates: for all but `full`; where empty those of the spec, else 0.3.
        shuffle_labels: share of the training labels that is made wrong, the same labels for all runs.
        device: auto, cpu, cuda or cuda:N.
        threads: of the CPU; None for `default_threads`.
        allow_import: packages that code named in the spec may come from.
        out: file that gets everything so far after each run; it must not be there unless `resume`.
        resume: go on with the runs of that file, where it is there; those that failed are run again.
        should_stop: asked before every step; what is finished then is returned, as where StopRequested is raised.
        say: told what happens, a line at a time.

    Raises:
        UsageError: where the arguments cannot work, the file holds something else, or another comparison writes it.
        SpecError: where the spec cannot work.
        DataError: where the images cannot be read.
        DeviceLost: where the GPU answers this process no more; what has run is in `out`.
    """
    out = None if out is None else Path(out)
    _check(seeds, full_seeds, tune_seeds, shuffle_labels, out, resume)
    spec = spec if isinstance(spec, StudySpec) else load_spec(spec)
    arms, rates = arms_of(spec, strategies, prune_rates), rates_of(spec, lrs)
    plan = Plan(
        arms=arms,
        budgets_seconds=budgets_of(spec, [*map(parse_duration, budgets)]),
        rates=rates,
        seeds=seeds,
        full_seeds=full_seeds or round(seeds * max(2.0, math.sqrt(len(arms) - 1))),
        tune_seeds=tune_seeds,
        seed_of=spec.trial_seed,
    )
    shared, chosen = shared_spec(spec, rates), pick_device(device)
    _, witness = prepare_process(chosen, threads)
    trust = Trust(allow_import)
    team = Team(chosen, trust)
    for arm in arms:
        if is_code(arm.strategy):
            trust.import_code(arm.strategy)  # better now than after an hour
    data_specs: dict[Purpose, DataSpec] = {"scored": shared.data}
    if plan.tuning_runs:
        data_specs["tuning"] = shared.resolve(tuning_images(shared)).data
    data = {}
    for purpose, each in data_specs.items():
        images = replace(load_data(each, trust=trust), test=None)  # a run is judged by the images of its purpose alone
        data[purpose] = with_wrong_labels(images, shuffle_labels, each.seed).to(chosen)
    comparison = Comparison(
        spec=shared.to_document(),
        shuffle_labels=shuffle_labels,
        judged_on={
            purpose: JudgedOn(images=each.evaluate_on, count=len(data[purpose].held_out))
            for purpose, each in data_specs.items()
        },
        machine=team.machine(shared),
    )
    runner = _ArmRunner(shared, data, team, witness, should_stop)
    say(f"{shared.data.name}, {shared.step_label()}")
    say(plan.cost())
    if spec.train.lr_schedule == "constant":
        say("the learning rate falls linearly to zero at the deadline, in place of the spec's constant one")
    with _sole_writer(out), closing(team):
        if resume and out is not None and out.exists():
            comparison = _resumed(comparison, out)
        return _run_all(plan, comparison, runner, out, say)


def with_wrong_labels(data: ImageData, share: float, seed: int) -> ImageData:
    """Return the images with a fixed share of the training labels wrong: each replaced by a random other class.

    Those that it is judged by stay right.

    Args:
        data: with at least two classes, where share is above 0.
        share: in [0, 1).
        seed: of the choice; the same images and seed give the same labels.
    """
    labels = data.train.labels.clone()
    random = np.random.default_rng([seed, 3])  # 0 to 2 are those of the data's own splits
    count = round(share * len(labels))
    shifts = torch.from_numpy(random.integers(1, max(2, data.num_classes), count))
    wrong = torch.from_numpy(random.permutation(len(labels))[:count])
    labels[wrong] = (labels[wrong] + shifts) % data.num_classes
    return replace(data, train=replace(data.train, labels=labels))


def _check(
    seeds: int, full_seeds: int | None, tune_seeds: int, shuffle_labels: float, out: Path | None, resume: bool
) -> None:
    if seeds < 2:
        raise UsageError(f"seeds {seeds}: give at least 2, or nothing tells a difference from chance")
    if full_seeds is not None and full_seeds < seeds:
        raise UsageError(f"full_seeds {full_seeds}: give at least the {seeds} seeds of the others, which full shares")
    if tune_seeds < 1:
        raise UsageError(f"tune_seeds {tune_seeds}: give at least 1; one learning rate alone needs no tuning")
    if not 0 <= shuffle_labels < 1:
        raise UsageError(f"shuffle_labels {shuffle_labels:g}: give a share from 0 to below 1")
    if resume and out is None:
        raise UsageError("nothing to resume: name the file of the interrupted comparison with --out")
    if not resume and out is not None and out.exists():
        raise UsageError(f"{out} is there already: add --resume to go on with it, or name another file")


@contextmanager
def _sole_writer(out: Path | None) -> Iterator[None]:
    """See that no other comparison writes a file meanwhile; the lock beside it is freed when its holder dies."""
    if out is None:
        yield
        return
    if not out.parent.is_dir():  # else the lock would make it
        raise UsageError(f"{out} cannot be written: there is no folder {out.parent}")
    beside = Path(f"{out}.lock")
    lock = FileLock(beside, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"another comparison is writing {out}: wait for its end, or name another file") from None
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        with suppress(OSError):
            beside.unlink()  # while it is held: nobody else's goes
        lock.release()


def _resumed(fresh: Comparison, path: Path) -> Comparison:
    """Return the comparison of a file, which must share everything with the one asked for."""
    found = read_comparison(path)
    differing = [key for key in fresh.spec.keys() | found.spec.keys() if fresh.spec.get(key) != found.spec.get(key)]
    for purpose, judges in found.judged_on.items():
        here = fresh.judged_on.get(purpose, judges)
        if None not in (here.count, judges.count) and here != judges:
            differing.append(f"the images ({judges} there, {here} here)")
    if fresh.shuffle_labels != found.shuffle_labels:
        differing.append("--shuffle-labels")
    if fresh.machine.key != found.machine.key:
        differing.append(f"the machine ({found.machine.key} there, {fresh.machine.key} here)")
    if differing:
        raise UsageError(
            f"{path} holds another comparison; what differs: {', '.join(sorted(differing))}: "
            f"repeat its settings to resume it, or name another file"
        )
    return fresh.model_copy(update={"runs": found.runs, "judged_on": {**found.judged_on, **fresh.judged_on}})


def _run_all(
    plan: Plan, comparison: Comparison, runner: _ArmRunner, out: Path | None, say: Callable[[str], None]
) -> Comparison:
    """Run what a comparison lacks of its plan, until told to stop; the file always holds all that is finished."""

    def todo() -> list[RunKey]:
        """Return what is left, the scored runs at the rates that are the best by now."""
        done = {run.key for run in comparison.runs if run.measured is not None} | ended
        return [key for key in (*plan.tuning(), *plan.scored(rate_of)) if key not in done]

    def rate_of(arm: Arm, budget_seconds: float) -> float:
        tuned = comparison.tuned(arm, budget_seconds)
        return plan.rates[0] if tuned is None else tuned.lr

    ended: set[RunKey] = set()  # here, failed ones too: they are not run again before the next start
    began, trained_seconds, number = time.monotonic(), 0.0, 0
    left = todo()
    whole = (plan.tuning_runs + plan.scored_runs) * len(plan.budgets_seconds)
    say(f"{len(left)} runs to do, {whole - len(left)} of {whole} done before")
    _keep(comparison, out)  # a file that cannot be written is found before the first run
    try:
        while left:
            key = left.pop(0)
            run = runner.run(key)
            comparison = comparison.with_run(run)
            ended.add(key)
            _keep(comparison, out)
            number, trained_seconds = number + 1, trained_seconds + key.budget_seconds
            outcome = f"failed: {run.failure}"
            if run.measured is not None:
                outcome = f"accuracy {run.measured.accuracy:.2%}, {run.measured.status}"
            if key.purpose == "tuning" and (not left or left[0].purpose == "scored"):
                left = todo()  # the rates are chosen
            rest = _left(left, (time.monotonic() - began) / trained_seconds)
            say(f"{number} of {number + len(left)}: {key}: {outcome}{rest}")
    except (Interrupted, StopRequested):
        _keep(comparison, out)  # the request may have come while this was written
    return comparison


def _keep(comparison: Comparison, out: Path | None) -> None:
    if out is not None:
        write_comparison(out, comparison)


def _left(keys: Sequence[RunKey], pace: float) -> str:
    """Return how long the rest will take, at seconds per second of training; nothing at the end."""
    rest_seconds = pace * sum(key.budget_seconds for key in keys)
    return f"; about {format_duration(rest_seconds)} left" if rest_seconds else ""


@dataclass(frozen=True)
class _ArmRunner:
    """Trains single runs of one comparison in this process."""

    shared: StudySpec
    data: Mapping[Purpose, ImageData]
    team: Team
    witness: Witness
    should_stop: Callable[[], bool]

    def run(self, key: RunKey) -> ComparedRun:
        """Return one run, also where it failed by a fault of its own; a fault of this box is raised."""
        values = key._asdict() | key.arm._asdict()
        del values["arm"]
        run = ComparedRun(**values)
        try:
            config = with_key(self.shared, key)
            tries, result = undisturbed(config, lambda: self._train(config, key))
        except (DataError, DeviceLost, UsageError, Interrupted):
            raise
        except Exception as error:
            if self.team.is_broken or Device(self.team.device).is_lost():
                said = f"{self.team.device} fails whatever it is asked since {type(error).__name__}: {error}"
                raise DeviceLost(f"{said.splitlines()[0]}: go on in a new process with --resume") from error
            if not isinstance(error, BudgetTuneError):
                logger.exception("%s failed", key)
            kind = error.failure_kind if isinstance(error, TrialFailed) else type(error).__name__
            return run.model_copy(update={"failure": f"{kind}: {error}".splitlines()[0]})
        same = ("status", "train_seconds", "keep_fraction", "epochs", "steps")
        measured = Measured(
            **{name: getattr(result, name) for name in same},
            accuracy=result.value,
            prune_seconds=result.phases.pruning,
        )
        return run.model_copy(update={"tries": tries, "measured": measured})

    def _train(self, config: StudySpec, key: RunKey) -> TrialResult:
        data = self.data[key.purpose]
        return self.team.train(
            config, seed=key.seed, data=data, witness=self.witness, should_stop=self.should_stop
        ).result

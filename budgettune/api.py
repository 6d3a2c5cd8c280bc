"""What the commands do, a call each: `import budgettune as bt`.

Every function that takes a study takes a handle from `create_study` or `load_study`, a study's name, or None for the
only study of the storage; `storage` is the database's URL where it is not a handle. A budget is seconds, or a text such
as "60s". Answers hold times of one kind of machine, `device_name` (None for the study's own kind, `any` for all), with
`clean_only` those that nothing is known to have disturbed. Reading answers imports neither torch nor Optuna; only
training imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgettune.errors import UsageError
from budgettune.records import TrialRecord
from budgettune.spec.study_spec import StudySpec, load_spec
from budgettune.spec.tables import library_of
from budgettune.storage import answers
from budgettune.storage import trials as stored_trials
from budgettune.storage.connection import open_engine, reading
from budgettune.storage.patience import READING_PATIENCE_SECONDS, asking_again
from budgettune.storage.studies import (
    ANY_MACHINE,
    comparable_machine_key,
    find_study,
    machine_keys,
    read_aim,
    read_probes,
)
from budgettune.storage.url import storage_url
from budgettune.study import pareto
from budgettune.text import parse_duration

if TYPE_CHECKING:
    from budgettune.predict.predictor import Predictor
    from budgettune.predict.recommend import Recommendation
    from budgettune.spec.objective import Aim
    from budgettune.study.front import Certainty
    from budgettune.study.handle import StudyHandle
    from budgettune.trial.terms import Trained
    from budgettune.trial.trial import Trial
    from budgettune.worker.options import WorkerOptions, WorkerSummary

    AnyStudy = StudyHandle | str | None


def create_study(
    spec: StudySpec | str | Path = "paper",
    *,
    storage: str | None = None,
    overrides: Iterable[str] = (),
    skip_if_exists: bool = False,
) -> StudyHandle:
    """Create a study, its database where there is none, and its open trials.

    With `[pruning] when = "auto"` the study gets the strategy and the prune rate that its evidence supports.

    Args:
        spec: a spec, a TOML file's path, or the name of a bundled study file.
        storage: database URL; else BUDGETTUNE_STORAGE, OPTUNA_STORAGE, or sqlite:///budgettune.db.
        overrides: `key=value` texts, as after `--set`.
        skip_if_exists: return the study of that name where it is there already.

    Raises:
        SpecError: where the spec cannot work, or its evidence is about something else.
        UsageError: where its evidence cannot be read.
        StudyExists: where the name is taken.
        StorageError: where the database cannot be reached.
    """
    from budgettune.study import handle

    spec = (spec if isinstance(spec, StudySpec) else load_spec(spec)).with_overrides(overrides)
    if spec.pruning.when == "auto":
        from budgettune.comparison.decision import decided

        spec = decided(spec)
    _check_models(spec)
    return handle.create_study(spec, storage_url(storage), skip_if_exists=skip_if_exists)


def _check_models(spec: StudySpec) -> None:
    """Refuse names of models that their libraries do not have, where this machine has the libraries."""
    if named := list(filter(library_of, spec.model_names)):
        from budgettune.training.named_models import check_name

        with suppress(UsageError):  # workers elsewhere may have them
            for name in named:
                check_name(name)


def load_study(name: str | None = None, *, storage: str | None = None) -> StudyHandle:
    """Return a study by name, or the only one of the storage.

    Raises:
        StudyNotFound: where there is none of that name, or not exactly one.
    """
    from budgettune.study import handle

    return asking_again(lambda: handle.load_study(storage_url(storage), name), READING_PATIENCE_SECONDS)


def run_worker(
    study: AnyStudy = None, options: WorkerOptions | None = None, *, storage: str | None = None
) -> WorkerSummary:
    """Train a study's open trials in this process until none is left (every open study's, where none is named)."""
    from budgettune.worker import loop

    if study is None or isinstance(study, str):
        return loop.run_worker(storage_url(storage), study, options)
    return loop.run_worker(study.url, study.name, options)


def trials(
    study: AnyStudy = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    allow_mixed: bool = False,
    storage: str | None = None,
) -> Iterator[Trial]:
    """Yield the open trials of a study of own training code, for a loop in a program or a notebook.

        for trial in bt.trials("mine"):
            train(trial)

    Each is claimed for this process, and recorded when the loop goes on. One whose code raises is recorded as failed,
    with the reason, and its cell is queued again; so is that of one that is left by Ctrl-C or `break`, without using up
    an attempt.

    Args:
        device: that `trial.device` names: auto, cpu, cuda or cuda:N.
        threads: of the CPU, which say what kind of machine this is; None for every usable core, or what
            OMP_NUM_THREADS says. Libraries that are loaded already keep theirs.
        allow_mixed: take a study whose times come from another kind of machine.

    Raises:
        UsageError: where the study trains otherwise, or on another kind of machine.
        TrialMisused: where the loop goes on from a trial that was not trained and reported to its end.
    """
    from budgettune.worker import by_hand
    from budgettune.worker.options import WorkerOptions

    handle = load_study(study, storage=storage) if study is None or isinstance(study, str) else study
    return by_hand.trials(handle, WorkerOptions(device=device, threads=threads, allow_mixed=allow_mixed))


def trial_records(study: AnyStudy = None, *, storage: str | None = None) -> list[TrialRecord]:
    """Return every trial of a study with its curve, phases and machine, in order of number."""
    engine, study_id = locate(study, storage)
    return stored_trials.trial_records(engine, study_id)


def best_under_budget(
    study: AnyStudy,
    budget: str | float,
    *,
    top: int = 1,
    device_name: str | None = None,
    clean_only: bool = False,
    storage: str | None = None,
) -> list[TrialRecord]:
    """Return the best finished trials whose training fits a budget, best first: by default the most accurate.

    Raises:
        NothingWithinBudget: where even the fastest finished trial takes longer.
        UsageError: where the budget is no duration.
    """
    budget_seconds = _budget_seconds(budget)
    engine, study_id = locate(study, storage)
    kind = comparable_machine_key(engine, study_id, device_name)
    return answers.best_under_budget(engine, study_id, budget_seconds, top=top, device_name=kind, clean_only=clean_only)


def _budget_seconds(budget: str | float) -> float:
    try:
        return parse_duration(budget)
    except ValueError as error:
        raise UsageError(f"budget {budget!r} {error}") from None


def pareto_front(
    study: AnyStudy = None, *, device_name: str | None = None, clean_only: bool = False, storage: str | None = None
) -> list[TrialRecord]:
    """Return the finished trials that no other one beats in both time and the study's objective, fastest first."""
    engine, study_id = locate(study, storage)
    kind = comparable_machine_key(engine, study_id, device_name)
    return pareto.pareto_front(engine, study_id, device_name=kind, clean_only=clean_only)


def recommend(
    study: AnyStudy,
    budget: str | float,
    *,
    confidence: float = 0.9,
    device_name: str | None = None,
    probe: str | float | None = None,
    device: str = "auto",
    threads: int | None = None,
    allow_import: Collection[str] = (),
    allow_command: Collection[str] = (),
    say: Callable[[str], None] = lambda line: None,
    storage: str | None = None,
) -> Recommendation:
    """Return what to train within a budget, run or not: what is expected to be best and is likely to end in time.

    Args:
        confidence: least probability of ending in time, from 0.5 up to 1.
        device_name: kind of machine that will train; None for the study's own, or this one where it probes.
        probe: seconds to spend first, on this machine, on timing steps (of own training code epochs) that nobody has
            timed on its kind; None for none, and then torch is not imported.
        device: to probe on: auto, cpu, cuda or cuda:N.
        threads: of the CPU, to probe with; None for every usable core, or what OMP_NUM_THREADS says.
        allow_import: packages that own training code may come from, where it is probed.
        allow_command: what a program of the study's own may begin with, where it is probed.
        say: told what a probe does, a line at a time.
        storage: database URL, where study is not a handle.

    Raises:
        NothingFits: where not even one epoch of anything is likely to end in time.
        UsageError: where too little has finished to predict what never ran, or nothing was timed on that kind of
            machine.
    """
    from budgettune.predict.recommend import Ask, answer

    ask = Ask(_budget_seconds(budget), confidence)
    handle = load_study(study, storage=storage) if study is None or isinstance(study, str) else study
    engine, study_id, spec = handle.engine, handle.study_id, handle.spec
    if probe is not None:
        limit = _budget_seconds(probe)
        if spec.train.is_own_code:
            from budgettune.spec.trust import Trust
            from budgettune.worker.options import WorkerOptions
            from budgettune.worker.own_code import OwnCode

            trust = Trust.of_database(handle.url, allow_import, commands=allow_command)
            trainer = OwnCode(WorkerOptions(device=device, threads=threads), trust)
            trainer.probe(handle, limit, say=say)
            here = trainer.machine(spec).key
        else:
            from budgettune.worker.probing import probe_here

            here = probe_here(engine, study_id, spec, limit_seconds=limit, device=device, threads=threads, say=say)
        device_name = device_name or here
    return answer(predictor(handle, device_name), ask)


def predictor(study: StudyHandle, device_name: str | None = None) -> Predictor:
    """Return what answers for a study as it is now: what `recommend` asks, which may be asked of budget after budget.

    Raises:
        UsageError: where too little has finished to predict what never ran, or nothing was timed on that kind of
            machine.
    """
    from budgettune.predict.predictor import Predictor

    engine, study_id = study.engine, study.study_id
    device_name = device_name or comparable_machine_key(engine, study_id)
    records = stored_trials.trial_records(engine, study_id)
    return Predictor(study.spec, records, device_name=device_name, probes=read_probes(engine, study_id))


def recommended(study: StudyHandle, budget: str | float) -> tuple[Recommendation, dict[str, Any]]:
    """Return what to train for the whole of a budget, and its params for `train`, the deadline included.

    Training stops by itself when the time is up, so a run need not be likely to end earlier: the most probable time
    counts.
    """
    answer = recommend(study, budget, confidence=0.5)
    return answer, {**answer.choice.params, "train.budget": answer.budget_seconds}


def train(
    study: StudyHandle | StudySpec,
    params: Mapping[str, Any] | None = None,
    *,
    spec: StudySpec | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    allow_import: Collection[str] = (),
    allow_command: Collection[str] = (),
    allow_root: Collection[str] | None = None,
) -> Trained:
    """Train one configuration without recording it, and return `.result` and `.model`.

    `spec` is the study's with changes, as `configuration` returns it; None for the study's own.

    The model of own training code is what it gave to `Trial.save` last, None where it saved nothing.
    """
    from budgettune.spec.trust import Trust

    if isinstance(study, StudySpec):
        spec, trust = spec or study, Trust(allow_import, None, allow_command)
    else:
        spec, trust = spec or study.spec, Trust.of_database(study.url, allow_import, allow_root, allow_command)
    if spec.train.is_own_code:
        from budgettune.worker.options import WorkerOptions
        from budgettune.worker.own_code import OwnCode

        return OwnCode(WorkerOptions(device=device, threads=threads), trust).trained(spec, params or {}, seed)
    from budgettune.training.session import train_one

    return train_one(spec, params or {}, seed=seed, device=device, threads=threads, trust=trust)


def hypervolume_of(
    study: AnyStudy = None, *, device_name: str | None = None, clean_only: bool = False, storage: str | None = None
) -> tuple[float, tuple[float, float]]:
    """Return the hypervolume of a study's front, and the reference point that it is measured against.

    The reference is 1.1 times the slowest finished trial, at accuracy 0: a study's hypervolume then counts seconds
    times accuracy, and is comparable with another's only at an equal reference. Of another objective the reference is
    a tenth of the range of values beyond the worst one.
    """
    engine, study_id = locate(study, storage)
    kind = comparable_machine_key(engine, study_id, device_name)
    points = answers.score_points(engine, study_id, device_name=kind, clean_only=clean_only)
    objective = read_aim(engine, study_id).objective
    worst_seconds, worst_score = pareto.hypervolume_reference(points, is_share=objective.is_accuracy)
    return pareto.hypervolume(points, (worst_seconds, worst_score)), (worst_seconds, objective.score(worst_score))


def certainty(
    study: AnyStudy = None, *, device_name: str | None = None, clean_only: bool = False, storage: str | None = None
) -> Certainty | None:
    """Return how sure a study's front and values are, by its repeats; None where none of its cells has two."""
    engine, study_id = locate(study, storage)
    kind = comparable_machine_key(engine, study_id, device_name)
    results = answers.repeated_results(engine, study_id, device_name=kind, clean_only=clean_only)
    if all(len(repeats) < 2 for repeats in results.values()):
        return None
    from budgettune.study.front import certainty_of

    objective = read_aim(engine, study_id).objective
    sure = certainty_of(results, is_share=objective.is_accuracy)
    if sure is None or objective.direction == "maximize":
        return sure
    intervals = {cell: (-high, -low) for cell, (low, high) in sure.intervals.items()}
    return replace(sure, intervals=intervals)


def aim_of(study: AnyStudy = None, *, storage: str | None = None) -> Aim:
    """Return what a study wants of its trials beside few seconds: its objective, and the limits of its constraints."""
    return read_aim(*locate(study, storage))


def limits_note(
    study: AnyStudy = None, *, device_name: str | None = None, clean_only: bool = False, storage: str | None = None
) -> str | None:
    """Return in a sentence how many finished trials no answer names because of the study's limits, None where none."""
    engine, study_id = locate(study, storage)
    kind = comparable_machine_key(engine, study_id, device_name)
    count = answers.left_out_count(engine, study_id, device_name=kind, clean_only=clean_only)
    if not count:
        return None
    limits = read_aim(engine, study_id).limits_text
    trials_are = "1 finished trial is" if count == 1 else f"{count} finished trials are"
    return f"{trials_are} left out: beyond the limits of the study ({limits}), or silent about what is limited"


def machines(
    study: AnyStudy = None, *, device_name: str | None = None, storage: str | None = None
) -> tuple[str, str | None]:
    """Return whose times an answer holds, as the other calls take `device_name`, and a sentence where that is news.

    The sentence is None where the study's times come from one kind of machine, or one was asked for.
    """
    engine, study_id = locate(study, storage)
    with reading(engine) as connection:
        names = sorted(machine_keys(connection, study_id))
    if len(names) < 2 or device_name not in (None, ANY_MACHINE):
        return device_name or ANY_MACHINE, None
    if device_name == ANY_MACHINE:
        return device_name, f"these times come from different kinds of machine: {'; '.join(names)}"
    own = comparable_machine_key(engine, study_id) or ANY_MACHINE
    others = "; ".join(name for name in names if name != own)
    return own, f"times of {own} only; the study also holds {others}: --device-name chooses, any takes all"


def write_report(
    study: AnyStudy,
    out: str | Path = "report.html",
    *,
    format: str = "html",  # noqa: A002
    figure: str | None = None,
    budget: str | float | None = None,
    device_name: str | None = None,
    clean_only: bool = False,
    storage: str | None = None,
) -> None:
    """Write a study's figures and answers as one page that opens without a network, or one figure as a picture.

    Args:
        out: file to write; `-` for standard output.
        format: html for the page; png or svg for one figure (with kaleido and a browser).
        figure: which figure, for png and svg: one of `budgettune.report.figures`, by its name.
        budget: where the page's slider stands at first.

    Raises:
        UsageError: where the options cannot work together, or the file cannot be written.
        NothingToDraw: where the study does not hold what the figure shows.
    """
    from budgettune import report

    engine, study_id = locate(study, storage)
    report.write_report(
        engine,
        study_id,
        out,
        format=format,
        figure=figure,
        budget_seconds=None if budget is None else _budget_seconds(budget),
        device_name=device_name,
        clean_only=clean_only,
    )


def configuration(
    study: StudyHandle, trial: int | None, overrides: Iterable[str]
) -> tuple[StudySpec, dict[str, Any], int]:
    """Return spec, params and seed of one configuration: a trial's, or the study's spec with overrides.

    Raises:
        UsageError: where the study has no such trial.
    """
    if trial is None:
        return study.spec.with_overrides([*overrides, "sampler.name=grid"]).resolve({}), {}, study.spec.sampler.seed
    records = stored_trials.trial_records(study.engine, study.study_id, numbers=[trial], documents=False)
    if not records:
        raise UsageError(f"study {study.name!r} has no trial {trial}: `budgettune study export` lists them")
    spec = study.spec.with_overrides(overrides)
    return spec, dict(records[0].params), records[0].seed or 0


def locate(study: AnyStudy, storage: str | None) -> tuple[Any, int]:
    """Return the engine and the id of a study."""
    if study is not None and not isinstance(study, str):
        return study.engine, study.study_id

    def found() -> tuple[Any, int]:
        engine = open_engine(storage_url(storage))
        return engine, find_study(engine, study).study_id

    return asking_again(found, READING_PATIENCE_SECONDS)

"""Are answers for own training code, and for models by name, right? `recommend` at six budgets, each answer trained.

    python -m benchmarks.own_answers                     # about ten minutes on two quiet cores
    python -m benchmarks.own_answers --quick --studies trees

Three studies of 16 trials: a small GPT on characters and gradient boosting with trees for epochs, as in examples/, and
`timm:resnet10t` on a folder of images. At each budget `recommend` answers, and beside it the best that was observed, a
random forest and a Gaussian process (scikit-learn) on encoded params and the log of epochs. What each answers is
trained, with new seeds and off the record: that is the truth. Regret is against the best that is known at the budget:
of all trials and of all that any method answered.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import NormalDist, fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from benchmarks.support import common
from budgettune import api
from budgettune.errors import NothingFits
from budgettune.machine.fingerprint import fingerprint, usable_cores
from budgettune.predict.predictor import candidate_workloads
from budgettune.predict.search_axes import search_axes
from budgettune.predict.workload import Workloads
from budgettune.records import TrialRecord
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import DataSpec
from budgettune.study.handle import StudyHandle
from budgettune.worker.options import WorkerOptions

EXAMPLES = Path(__file__).parents[1] / "examples"
BUDGETS = 6
CONFIDENCE, TAIL = 0.9, 0.05
LONGEST_FACTOR = 4.0  # times the longest training that ran, as for `recommend`
LENGTHS = 16  # epochs that the baselines try
FIRST_SEED = 1_000

Floats = NDArray[np.float64]
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Answer:
    """What a method would train, and what it promises; intervals of 90%, None where it has none."""

    params: dict[str, Any]
    epochs: int
    seconds: float
    value: float
    in_seconds: tuple[float, float] | None = None
    in_value: tuple[float, float] | None = None


@dataclass(frozen=True)
class Truth:
    """What training an answer gave, by seed."""

    seconds: tuple[float, ...]
    values: tuple[float, ...]


Method = Callable[[StudyHandle, Sequence[TrialRecord], float], Answer | None]


# --- What is compared -----------------------------------------------------------------------------------------------


def ours(study: StudyHandle, records: Sequence[TrialRecord], budget: float) -> Answer | None:
    try:
        choice = api.recommend(study, budget, confidence=CONFIDENCE).choice
    except NothingFits:
        return None
    return Answer(
        dict(choice.params),
        choice.epochs,
        choice.seconds,
        choice.value,
        (choice.seconds_low, choice.seconds_high),
        (choice.value_low, choice.value_high),
    )


def best_observed(study: StudyHandle, records: Sequence[TrialRecord], budget: float) -> Answer | None:
    within = [one for one in records if one.train_seconds is not None and one.train_seconds <= budget]
    if not within:
        return None
    best = max(within, key=lambda one: study.spec.objective.score(one.value or 0.0))
    return Answer(_without_length(best.params), len(best.curve), best.train_seconds or 0.0, best.value or 0.0)


def _without_length(params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name != "train.epochs"}


def gaussian_process(known: Floats, values: Floats, wanted: Floats) -> tuple[Floats, Floats]:
    kernel = ConstantKernel(1.0) * Matern([1.0] * known.shape[1], nu=2.5) + WhiteKernel(0.1)
    model = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a bound that is reached is no fault of the data
        model.fit(known, values)
    mean, deviation = model.predict(wanted, return_std=True)
    return mean, np.maximum(deviation, 1e-6)


def random_forest(known: Floats, values: Floats, wanted: Floats) -> tuple[Floats, Floats]:
    model = RandomForestRegressor(100, oob_score=True, random_state=0, n_jobs=1).fit(known, values)
    deviation = float(np.sqrt(np.mean((model.oob_prediction_ - values) ** 2)))
    return model.predict(wanted), np.full(len(wanted), max(deviation, 1e-6))


def by_regression(regress: Callable[[Floats, Floats, Floats], tuple[Floats, Floats]]) -> Method:
    """Return a method that regresses log seconds and the objective on encoded params and log epochs."""

    def method(study: StudyHandle, records: Sequence[TrialRecord], budget: float) -> Answer | None:
        spec, objective = study.spec, study.spec.objective
        axes, longest = search_axes(spec), max(len(one.curve) for one in records)
        lengths = sorted({round(each) for each in np.geomspace(1, LONGEST_FACTOR * longest, LENGTHS)})
        points = [one.params for one in candidate_workloads(Workloads(spec, records), records)]

        def row(params: Any, epochs: int) -> list[float]:
            return [*(place for axis in axes for place in axis.places(params.get(axis.name))), math.log(epochs)]

        known = np.array([row(one.params, len(one.curve)) for one in records])
        runs = [(params, epochs) for params in points for epochs in lengths]
        wanted = np.array([row(*run) for run in runs])
        log_seconds, time_deviation = regress(known, np.log([one.train_seconds or 0.0 for one in records]), wanted)
        scores = np.array([objective.score(one.value or 0.0) for one in records])
        score, deviation = regress(known, scores, wanted)
        fits = log_seconds + _NORMAL.inv_cdf(CONFIDENCE) * time_deviation <= math.log(budget)
        if not fits.any():
            return None
        best = int(np.argmax(np.where(fits, score, -np.inf)))
        away = _NORMAL.inv_cdf(1 - TAIL)
        low, high = sorted(objective.score(float(score[best] + sign * away * deviation[best])) for sign in (-1, 1))
        times = [math.exp(float(log_seconds[best] + sign * away * time_deviation[best])) for sign in (-1, 0, 1)]
        value = objective.score(float(score[best]))
        return Answer(dict(runs[best][0]), runs[best][1], times[1], value, (times[0], times[2]), (low, high))

    return method


METHODS: dict[str, Method] = {
    "BudgetTune": ours,
    "best observed": best_observed,
    "random forest": by_regression(random_forest),
    "Gaussian process": by_regression(gaussian_process),
}


# --- The studies ----------------------------------------------------------------------------------------------------


def spec_of(name: str, folder: Path, root: str | None, quick: bool) -> StudySpec:
    """Return the spec of one of the studies, its pictures written below a folder."""
    if name == "resnet10t":
        train, test = (300, 200) if quick else (800, 1_000)
        write_pictures(folder / "pictures", root, train, test)
        spec = StudySpec.from_document(
            {
                "name": name,
                "data": {"name": "folder", "root": str(folder / "pictures"), "image_size": 16},
                "model": {"name": "timm:resnet10t"},
                "train": {"epochs": 5},
                "pruning": {"strategy": "random"},
                "search": {
                    "train.lr": {"low": 2e-4, "high": 4e-3, "log": True},
                    "train.batch_size": [32, 64, 128],
                    "prune_rate": [0.0, 0.3],
                    "train.epochs": [3, 5, 8],
                },
                "sampler": {"name": "random", "trials": 16},
            }
        )
    else:
        spec = StudySpec.from_toml((EXAMPLES / f"{name}.toml").read_text(encoding="utf-8"))
    return spec.with_overrides(["sampler.trials=8", "sampler.name=random"]) if quick else spec


def write_pictures(folder: Path, root: str | None, train: int, test: int) -> None:
    """Write some of Fashion-MNIST as PNG files, a folder for each class."""
    from PIL import Image

    from budgettune.training.data.fashion_mnist import read_fashion_mnist

    source = read_fashion_mnist(DataSpec(name="fashion-mnist", root=root))
    for part, images, count in (("train", source.train, train), ("test", source.test, test)):
        for place in range(count):
            path = folder / part / str(int(images.labels[place])) / f"{place:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(images.images[place]).squeeze()).save(path)


def train(study: StudyHandle, params: dict[str, Any], seed: int, options: argparse.Namespace) -> Any:
    """Train a configuration off the record; return its result."""
    package = {study.spec.train.loop.partition(":")[0]} if study.spec.train.loop else set[str]()
    return api.train(
        study, params, seed=seed, device="cpu", threads=options.threads, allow_import=frozenset(package)
    ).result


# --- The comparison -------------------------------------------------------------------------------------------------


def judged(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run a study, ask every method at every budget, train what they answer; print and return what that was worth."""
    spec = spec_of(name, folder, options.root, options.quick)
    study = api.create_study(spec, storage=f"sqlite:///{folder / name}.db")
    package = {spec.train.loop.partition(":")[0]} if spec.train.loop else set[str]()
    worker = WorkerOptions(device="cpu", threads=options.threads, allow_import=frozenset(package))
    api.run_worker(study, worker)
    records = [one for one in api.trial_records(study) if one.state == "COMPLETE" and one.train_seconds]
    seconds = sorted(one.train_seconds or 0.0 for one in records)
    budgets = np.geomspace(1.2 * seconds[0], 1.2 * seconds[-1], 3 if options.quick else BUDGETS).tolist()
    answers = {method: [ask(study, records, budget) for budget in budgets] for method, ask in METHODS.items()}
    truths: dict[tuple[Any, ...], Truth] = {}
    seeds = range(FIRST_SEED, FIRST_SEED + (1 if options.quick else options.seeds))
    # Seed by seed, so that a machine that grows slower meanwhile favours none.
    for seed in seeds:
        for answer in {_key(one): one for each in answers.values() for one in each if one}.values():
            result = train(study, {**answer.params, "train.epochs": answer.epochs}, seed, options)
            before = truths.get(_key(answer), Truth((), ()))
            truths[_key(answer)] = replace(
                before, seconds=(*before.seconds, result.train_seconds), values=(*before.values, result.value)
            )
    known = [(one.train_seconds or 0.0, spec.objective.score(one.value or 0.0)) for one in records]
    known += [(fmean(one.seconds), spec.objective.score(fmean(one.values))) for one in truths.values()]
    rows = [_row(method, each, budgets, truths, known, spec) for method, each in answers.items()]
    common.print_table(f"{name}: {len(records)} trials, {len(budgets)} budgets from {budgets[0]:.2g} s", rows)
    over = [_overrun(study, budget, options) for budget in budgets[1::2]]
    print(f"\n`train --budget` ended after its budget by at most {max(over):.2f} steps")
    print(f"{sum(one.status == 'clean' for one in records)} of {len(records)} times are clean", flush=True)
    return {
        "rows": rows,
        "budgets": budgets,
        "answers": {
            method: [one and {**asdict(one), **asdict(truths[_key(one)])} for one in each]
            for method, each in answers.items()
        },
        "steps_over_budget": over,
    }


def _key(answer: Answer) -> tuple[Any, ...]:
    return (*sorted(answer.params.items()), answer.epochs)


def _row(
    method: str,
    answers: Sequence[Answer | None],
    budgets: Sequence[float],
    truths: dict[tuple[Any, ...], Truth],
    known: Sequence[tuple[float, float]],
    spec: StudySpec,
) -> dict[str, Any]:
    """Return what a method's answers were worth; regret counts an answer that took too long as it is."""
    errors, in_time, in_value, regrets, broken = [], [], [], [], []
    for answer, budget in zip(answers, budgets, strict=True):
        if answer is None:
            continue
        truth = truths[_key(answer)]
        errors += [abs(answer.seconds / each - 1) for each in truth.seconds]
        broken += [each > budget for each in truth.seconds]
        best = max(score for seconds, score in known if seconds <= budget)
        regrets.append(best - spec.objective.score(fmean(truth.values)))
        if answer.in_seconds and answer.in_value:
            in_time += [answer.in_seconds[0] <= each <= answer.in_seconds[1] for each in truth.seconds]
            in_value += [answer.in_value[0] <= each <= answer.in_value[1] for each in truth.values]
    label = "regret, points" if spec.objective.is_accuracy else f"regret, {spec.objective.name}"
    unit = 100 if spec.objective.is_accuracy else 1
    return {
        "": method,
        "time error: median": f"{100 * median(errors):.1f}%" if errors else None,
        "time in 90%": f"{fmean(in_time):.0%}" if in_time else None,
        f"{spec.objective.label} in 90%": f"{fmean(in_value):.0%}" if in_value else None,
        f"{label}: mean": unit * fmean(regrets) if regrets else None,
        "worst": unit * max(regrets) if regrets else None,
        "over budget": f"{fmean(broken):.0%}" if broken else None,
        "no answer": sum(one is None for one in answers),
    }


def _overrun(study: StudyHandle, budget: float, options: argparse.Namespace) -> float:
    """Return by how many median steps training the answer until its deadline took longer."""
    _, params = api.recommended(study, budget)
    result = train(study, params, FIRST_SEED, options)
    return (result.train_seconds - budget) / (1e-3 * (result.step_ms_median or math.inf))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--threads", type=int, default=usable_cores())
    options.add_argument("--root", default=os.environ.get("BUDGETTUNE_FASHION_MNIST"), help="folder of Fashion-MNIST")
    options.add_argument("--json", type=Path, help="file to write all numbers to")
    options.add_argument("--studies", nargs="+", default=["char_gpt", "trees", "resnet10t"], help="which of the three")
    options.add_argument("--seeds", type=int, default=2, help="that each answer is trained with")
    options.add_argument("--quick", action="store_true", help="8 trials, 3 budgets, one seed: to try the script out")
    chosen = options.parse_args(arguments)
    sys.path.insert(0, str(EXAMPLES))
    with tempfile.TemporaryDirectory() as folder:
        tables = {name: judged(name, Path(folder), chosen) for name in chosen.studies}
    if chosen.json:
        info = fingerprint(device="cpu", threads=chosen.threads)
        facts = {name: value for name, value in asdict(info).items() if name != "hostname"}
        document = {"machine": facts, "seeds": chosen.seeds, "studies": tables}
        chosen.json.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    common.start(main)

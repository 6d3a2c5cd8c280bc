"""What is left of a study whose workers are killed, stopped and starved at random? Ours, and plain Optuna beside it.

    python -m benchmarks.storm                                   # 5 rounds on an SQLite file
    python -m benchmarks.storm --storage postgresql://…/empty    # and on a server, in databases that it makes and drops

Six real processes work on 80 cells. About once a second one of them gets SIGKILL, SIGTERM or SIGSTOP (with SIGCONT some
seconds later, on either side of its lease); of the trials, 5% run out of memory. Workers that died are replaced until
the study is finished. Both sides train the same small network on digits and take about two seconds a trial. Plain
Optuna runs as its documentation advises: `GridSampler`, heartbeats, `RetryHeartbeatStaleTrialCallback`, and failures
caught.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import optuna
import psycopg
import torch
from torch import Tensor, nn

from benchmarks.support import common
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.trust import Trust
from budgettune.storage.trials import trial_records
from budgettune.study.handle import create_study, load_study
from budgettune.training.data.load import load_data
from budgettune.training.trainer import train
from budgettune.worker.loop import run_worker
from budgettune.worker.options import WorkerOptions
from budgettune.worker.signals import StopFlag

WORKERS, CELLS = 6, 80
SECONDS_BETWEEN_SIGNALS = 1.0
OUT_OF_MEMORY_SHARE = 0.05
STEPS = 24
SECONDS_OF_A_STEP = 0.08
LEASE_SECONDS, HEARTBEAT_SECONDS = 5.0, 1.0
LONGEST_RUN_SECONDS = 300.0
SPEC: dict[str, Any] = {
    "name": "storm",
    "data": {"augment": False},
    "model": {"name": "storm:build"},
    "train": {"epochs": 4, "batch_size": 256},
    "clock": {"warmup_steps": 0},
    "search": {
        "scale": [1.0, 1.1, 1.2, 1.3, 1.4],
        "prune_rate": [0.0, 0.1, 0.2, 0.3],
        "batch_size": [240, 248, 256, 264],
    },
    "sampler": {"max_attempts": 20},
}


class Fragile(nn.Module):
    """A linear classifier that takes its time, and sometimes finds no memory."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, classes]."""
        if self.training:
            time.sleep(SECONDS_OF_A_STEP)
            # Not from torch's generator: a cell that ran out of memory once would do so for ever.
            if random.SystemRandom().random() < OUT_OF_MEMORY_SHARE / STEPS:
                raise torch.OutOfMemoryError("simulated")
        logits: Tensor = self.linear(images.flatten(1))
        return logits


def build(*, num_classes: int, channels: int, image_size: int, scale: float, **_: Any) -> nn.Module:
    """Return the model that the spec names."""
    return Fragile(channels * image_size**2, num_classes)


@dataclass(frozen=True)
class Outcome:
    """What a storm left.

    Attributes:
        signals: that workers got.
        deaths: workers that ended before the study did, by a signal or an error of their own.
        errors: of these, by an error of their own.
        extra: late results that were kept beside the one that counts.
        open_rows: trials left waiting or running.
    """

    system: str
    exactly_once: int
    lost: int
    doubled: int
    extra: int
    open_rows: int
    signals: int
    deaths: int
    errors: int
    seconds: float


# --- Ours -----------------------------------------------------------------------------------------------------------


def our_study(url: str) -> None:
    create_study(StudySpec.from_document(SPEC), url).close()


def our_worker(url: str) -> None:
    options = WorkerOptions(
        device="cpu",
        threads=1,
        allow_import=frozenset(["storm"]),
        poll_seconds=0.5,
        heartbeat_seconds=HEARTBEAT_SECONDS,
        lease_seconds=LEASE_SECONDS,
    )
    with StopFlag() as stop:
        summary = run_worker(url, "storm", options, stop=stop)
    raise SystemExit(0 if summary.signal_number is None else 128 + summary.signal_number)


def our_rows(url: str) -> tuple[collections.Counter[Any], int, int]:
    with load_study(url, "storm") as study:
        records = trial_records(study.engine, study.study_id, documents=False)
    counting = [record for record in records if not record.extra]
    done = collections.Counter(record.cell for record in counting if record.state == "COMPLETE")
    return done, sum(record.extra for record in records), sum(r.state in ("WAITING", "RUNNING") for r in records)


# --- Plain Optuna ---------------------------------------------------------------------------------------------------


def optunas_study(url: str) -> None:
    optuna.create_study(study_name="storm", storage=_optunas_storage(url), directions=["minimize", "maximize"])


def _optunas_storage(url: str) -> Any:
    return optuna.storages.RDBStorage(
        url.replace("postgresql://", "postgresql+psycopg://"),
        heartbeat_interval=int(HEARTBEAT_SECONDS),
        grace_period=int(LEASE_SECONDS),
        failed_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=20),
    )


def optunas_worker(url: str) -> None:
    spec, data = StudySpec.from_document(SPEC), load_data(StudySpec.from_document(SPEC).data)
    torch.set_num_threads(1)
    space = {key: list(axis) for key, axis in SPEC["search"].items()}

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        params = {key: trial.suggest_categorical(key, values) for key, values in space.items()}
        result = train(spec, params, seed=0, data=data, trust=Trust(["storm"])).result
        return result.train_seconds, result.test_accuracy

    study = optuna.load_study(
        study_name="storm", storage=_optunas_storage(url), sampler=optuna.samplers.GridSampler(space, seed=0)
    )
    study.optimize(objective, catch=(Exception,))


def optunas_rows(url: str) -> tuple[collections.Counter[Any], int, int]:
    trials = optuna.load_study(study_name="storm", storage=_optunas_storage(url)).trials
    done = collections.Counter(
        tuple(sorted(trial.params.items())) for trial in trials if trial.state.name == "COMPLETE"
    )
    return done, 0, sum(trial.state.name in ("WAITING", "RUNNING") for trial in trials)


# --- The storm ------------------------------------------------------------------------------------------------------

SYSTEMS: dict[str, tuple[Callable[[str], None], Callable[[str], None], Callable[..., Any]]] = {
    "BudgetTune": (our_study, our_worker, our_rows),
    "plain Optuna": (optunas_study, optunas_worker, optunas_rows),
}


class Crowd:
    """The workers: forked from this process, which has loaded torch already, and replaced when they die."""

    def __init__(self, work: Callable[[str], None], url: str) -> None:
        self.work, self.url = work, url
        self.alive: set[int] = set()
        self.stopped: dict[int, float] = {}
        self.deaths = self.errors = self.finished = self.signals = 0

    def fill(self) -> None:
        """Start workers until there are enough; none in place of those that found nothing left to do."""
        while len(self.alive) < WORKERS - self.finished:
            self.alive.add(self._fork())

    def _fork(self) -> int:
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            # Rows are read afterwards; what a tortured worker complains of is no news.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            self.work(self.url)
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            status = 1
        finally:
            os._exit(status)

    def reap(self) -> None:
        """Take note of workers that ended."""
        for child in list(self.alive):
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended:
                continue
            self.alive.discard(child)
            self.stopped.pop(child, None)
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                self.finished += 1
            else:
                self.deaths += 1
                self.errors += os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1

    def strike(self, chance: random.Random) -> None:
        """Send one worker a signal; wake those that slept long enough."""
        now = time.monotonic()
        for child, wake_at in list(self.stopped.items()):
            if wake_at < now:
                del self.stopped[child]
                _send(child, signal.SIGCONT)
        if not self.alive:
            return
        child = chance.choice(sorted(self.alive))
        number = chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
        self.signals += 1
        _send(child, number)
        if number == signal.SIGSTOP:
            self.stopped[child] = now + chance.uniform(0.5, 2 * LEASE_SECONDS)

    def end(self) -> None:
        """Kill what is left."""
        for child in self.alive:
            _send(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _send(child: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, number)


def in_a_child(function: Callable[[str], Any], url: str) -> Any:
    """Return function(url), computed in a child process that ends afterwards."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, url).result()


def storm(system: str, url: str, seed: int) -> Outcome:
    """Run one study through a storm, and count what is left of it."""
    prepare, work, rows = SYSTEMS[system]
    in_a_child(prepare, url)  # workers are forked from here: no connection may be open
    crowd, chance, began = Crowd(work, url), random.Random(seed), time.monotonic()
    next_strike = began + 2.0
    try:
        while crowd.finished < WORKERS and time.monotonic() - began < LONGEST_RUN_SECONDS:
            crowd.fill()
            time.sleep(0.05)
            crowd.reap()
            if time.monotonic() > next_strike:
                crowd.strike(chance)
                next_strike += chance.expovariate(1 / SECONDS_BETWEEN_SIGNALS)
    finally:
        crowd.end()
    done, extra, open_rows = in_a_child(rows, url)
    once = sum(count == 1 for count in done.values())
    return Outcome(
        system=system,
        exactly_once=once,
        lost=CELLS - len(done),
        doubled=len(done) - once,
        extra=extra,
        open_rows=open_rows,
        signals=crowd.signals,
        deaths=crowd.deaths,
        errors=crowd.errors,
        seconds=time.monotonic() - began,
    )


def load_all() -> None:
    """Train once in this process: what that imports, in a second or two, its forks need not import again."""
    torch.set_num_threads(1)
    spec = StudySpec.from_document(SPEC)
    train(spec, {"scale": 1.0, "prune_rate": 0.0}, seed=0, data=load_data(spec.data), trust=Trust(["storm"]))


@contextmanager
def new_database(server: str | None) -> Iterator[str]:
    """Yield the URL of an empty database: on a server, or a file."""
    if server is None:
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/storm.db"
        return
    name = f"storm_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    parts = urlsplit(server)
    yield urlunsplit(parts._replace(path=f"/{name}"))
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="storms of each system")
    parser.add_argument("--storage", help="PostgreSQL URL; an SQLite file where left out")
    parser.add_argument("--json", type=Path, help="file to write all numbers to")
    options = parser.parse_args()
    load_all()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    warnings.simplefilter("ignore")
    outcomes = []
    with tempfile.TemporaryDirectory() as spool:
        os.environ["BUDGETTUNE_SPOOL"] = spool
        for number, system in common.alternate(list(SYSTEMS), options.rounds):
            with new_database(options.storage) as url:
                outcomes.append(storm(system, url, seed=number))
            print(outcomes[-1], file=sys.stderr, flush=True)
        unsent = len(list(Path(spool).iterdir()))
    ordered = sorted(outcomes, key=lambda outcome: outcome.system)
    database = "SQLite" if options.storage is None else "PostgreSQL"
    common.print_table(f"{CELLS} cells, {WORKERS} workers, {database}", [asdict(outcome) for outcome in ordered])
    print(f"\n{unsent} results left in the spool")
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")


if __name__ == "__main__":
    common.start(main)

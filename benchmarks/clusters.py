"""What is left of a grid after a cluster has lost a node? A fleet of ours, and plain Optuna, on the same Ray.

    python -m benchmarks.clusters                 # three runs of each kind and size, in turn: about half an hour

A Ray of two nodes with a CPU each, on this box, and a PostgreSQL server. Every trial sleeps some seconds. When a few
cells are done and a trial runs on the second node, that node is lost as in a power cut. It is not replaced: what ran
there has to be done again on the other one. Plain Optuna runs as its documentation advises: Ray tasks that call
`study.optimize` and are repeated where a node is lost, a `GridSampler`, heartbeats with the same period as ours, and
`RetryHeartbeatStaleTrialCallback`; and once more without heartbeats, which are off unless asked for. What is
left of 12 cells takes less than the minute after which a trial without a sign of life counts as lost, of 24 more.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import optuna

from benchmarks.support import common, local_postgresql, ray_cluster
from budgettune.spec.study_spec import StudySpec
from budgettune.study.handle import create_study

SIZES, NAP_SECONDS, WORKERS = (12, 24), 4.0, 2
DONE_BEFORE = 3  # cells that are complete when the node is lost
INTO_A_TRIAL_SECONDS = 2.0
HEARTBEAT_SECONDS, LEASE_SECONDS = 10, 60  # of a worker, unless told otherwise
LONGEST_SECONDS = 240.0
FLEET, OPTUNA, WITHOUT = "budgettune fleet", "Optuna", "Optuna without heartbeats"
NOTES = "BUDGETTUNE_BENCHMARK_NOTES"


def nap(x: int) -> None:
    """Sleep, and leave a file that says on which node."""
    Path(os.environ[NOTES], f"{os.environ['NODE']} {x} {time.time()}").touch()
    time.sleep(NAP_SECONDS)


def train(trial: Any) -> None:
    """Train a trial of ours."""
    for _ in trial.epochs():
        with trial.clock():
            nap(trial.params["x"])
            trial.step(1)
        trial.report(distance=1.0)


def optimize(url: str, cells: int, *, beats: bool) -> None:
    """Work on a study of Optuna's; runs in a Ray task."""
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    study = optuna.load_study(
        study_name="naps",
        storage=optuna.storages.RDBStorage(
            url,
            heartbeat_interval=HEARTBEAT_SECONDS if beats else None,
            grace_period=LEASE_SECONDS if beats else None,
            failed_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=3) if beats else None,
        ),
        sampler=optuna.samplers.GridSampler({"x": list(range(cells))}),
    )

    def objective(trial: optuna.Trial) -> float:
        nap(trial.suggest_int("x", 0, cells - 1))
        return 1.0

    study.optimize(objective)  # a GridSampler ends it


def drive_optuna(address: str, cells: int, *, beats: bool) -> None:
    """Start Ray tasks that optimize, and wait for them: the part that a user of Optuna writes."""
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="error")
    task = ray.remote(optimize).options(num_cpus=1, max_retries=-1)
    ray.get([task.remote(os.environ["BUDGETTUNE_STORAGE"], cells, beats=beats) for _ in range(WORKERS)])


def states(study: optuna.Study) -> list[tuple[int, str]]:
    """Return cell and state of every trial; -1 for the cell of one that never got so far."""
    return [
        (trial.params.get("x", trial.params.get("params.x", -1)), trial.state.name) for trial in study.get_trials(False)
    ]


def run(kind: str, cells: int, server: str) -> dict[str, Any]:
    """Run a grid on a cluster of its own, lose a node in the middle, and return what is left."""
    with (
        local_postgresql.new_database(server) as url,
        tempfile.TemporaryDirectory() as notes,
        ray_cluster.running(PYTHONPATH=str(Path(__file__).parents[1]), **{NOTES: notes}) as cluster,
    ):
        cluster.add("second")
        environment = {**os.environ, **ray_cluster.ENVIRONMENT, "BUDGETTUNE_STORAGE": url}
        if kind == FLEET:
            spec = {
                "name": "naps",
                "train": {"loop": f"{__spec__.name}:train", "epochs": 1},
                "objective": {"name": "distance", "direction": "minimize"},
                "search": {"params.x": list(range(cells))},
            }
            create_study(StudySpec.from_document(spec), url).close()
            words = ["budgettune", "fleet", "naps", "--on", "ray", "--address", cluster.address]
            words += ["--workers", str(WORKERS), "--", "--allow-import", "benchmarks"]
        else:
            optuna.create_study(study_name="naps", storage=url)
            words = [
                __spec__.name,
                "--drive",
                cluster.address,
                "--cells",
                str(cells),
                *["--no-beats"] * (kind == WITHOUT),
            ]
        study = optuna.load_study(study_name="naps", storage=url)
        began = time.monotonic()
        driver = subprocess.Popen(
            [sys.executable, "-m", *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            lost_at = _lose_in_a_trial(cluster, study, Path(notes))
            whole_at = None
            while driver.poll() is None and time.monotonic() < began + LONGEST_SECONDS:
                if whole_at is None and len({x for x, state in states(study) if state == "COMPLETE"}) == cells:
                    whole_at = time.monotonic()
                time.sleep(0.25)
            ended_at = time.monotonic() if driver.poll() is not None else None
        finally:
            driver.kill()
            driver.wait()
        found = states(study)
        done = collections.Counter(x for x, state in found if state == "COMPLETE")
        if whole_at is None and len(done) == cells:
            whole_at = ended_at
        return {
            "kind": f"{kind}, {cells} cells",
            "lost": cells - len(done),
            "doubled": sum(count > 1 for count in done.values()),
            "running": sum(state == "RUNNING" for _, state in found),
            "trials": len(found),
            "whole_seconds": None if whole_at is None else whole_at - lost_at,
            "ended_seconds": None if ended_at is None else ended_at - lost_at,
        }


def _lose_in_a_trial(cluster: ray_cluster.RayCluster, study: optuna.Study, notes: Path) -> float:
    """Wait until a trial has run on the second node for a while, end that node, and return when that was."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < deadline:
        if sum(state == "COMPLETE" for _, state in states(study)) >= DONE_BEFORE:
            ages = [time.time() - float(path.name.split()[2]) for path in notes.glob("second *")]
            if ages and INTO_A_TRIAL_SECONDS <= min(ages) < NAP_SECONDS - 1:
                cluster.lose("second")
                return time.monotonic()
        time.sleep(0.1)
    raise RuntimeError("nothing ran on the second node")


def table(rows: list[dict[str, Any]]) -> str:
    """Return the runs of each kind side by side."""
    lines = [
        "| | cells lost | doubled | left RUNNING | trials run | seconds until whole | until the last worker had ended |"
    ]
    lines.append("|---" * 7 + "|")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        counts = [" ".join(str(row[key]) for row in own) for key in ("lost", "doubled", "running", "trials")]
        seconds = []
        for key in ("whole_seconds", "ended_seconds"):
            values = [row[key] for row in own]
            each = " ".join("never" if value is None else f"{value:.0f}" for value in values)
            middle = "" if None in values else f" (median {statistics.median(values):.0f})"
            seconds.append(each + middle)
        lines.append(f"| {kind} | {' | '.join([*counts, *seconds])} |")
    return "\n".join(lines)


def main() -> None:
    """Run all kinds in turn, and print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=3, help="runs of each kind, in alternating order")
    options.add_argument("--cells", type=int, nargs="+", default=SIZES, help="sizes of grids")
    options.add_argument("--json", type=Path, help="file to write all numbers to")
    options.add_argument("--drive", metavar="ADDRESS", help=argparse.SUPPRESS)  # one of our own child processes
    options.add_argument("--no-beats", action="store_true", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.drive:
        drive_optuna(chosen.drive, chosen.cells[0], beats=not chosen.no_beats)
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows: list[dict[str, Any]] = []
    with local_postgresql.server() as server:
        for number in range(chosen.rounds):
            for cells, kind in itertools.product(chosen.cells, (FLEET, OPTUNA, WITHOUT)):
                rows.append(run(kind, cells, server))
                print(f"round {number + 1}, {json.dumps(rows[-1])}", file=sys.stderr)
    print(table(rows))
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    common.start(main)

"""Can a time be believed? How often a quiet trial is called clean, and one beside busy loops disturbed.

Quiet and loud runs alternate in one process, as trials of a worker do. Run it on a machine that does nothing else:

    python -m benchmarks.trust --runs 20
    python -m benchmarks.trust --runs 20 --load matmul
    python -m benchmarks.trust --runs 20 --threads 1 --loops 1    # a neighbour that fits on the spare core
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from budgettune.machine.fingerprint import fingerprint, usable_cores
from budgettune.machine.verdict import ClockVerdict
from budgettune.machine.witness import Witness, witness_for

Load = Callable[[Witness], float]
SETTLE_SECONDS = 0.5
# A loop that ends with its parent, even where the parent is killed.
BUSY_LOOP = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"


@dataclass(frozen=True)
class Run:
    """One timed load and what its witness said."""

    seconds: float
    verdict: ClockVerdict


def trainer_load(epochs: int) -> Load:
    """Return a load that trains on digits and gives its train_seconds."""
    from budgettune.spec.study_spec import StudySpec
    from budgettune.training.data.load import load_data
    from budgettune.training.trainer import train

    spec = StudySpec.from_document({"name": "trust", "train": {"epochs": epochs, "evaluate_every": epochs}})
    data = load_data(spec.data)
    return lambda witness: train(spec, seed=0, data=data, witness=witness).result.train_seconds


def matmul_load(seconds: float) -> Load:
    """Return a load of that many seconds, serial for a part, that does the same work each time."""
    matrix = torch.randn(600, 600)

    def chunk() -> None:
        for _ in range(8):
            torch.relu(matrix @ matrix)
        sum(range(20_000))

    chunk()
    began = time.perf_counter()
    for _ in range(20):
        chunk()
    chunks = max(1, round(20 * seconds / (time.perf_counter() - began)))

    def load(witness: Witness) -> float:
        with witness:
            began = time.perf_counter()
            for _ in range(chunks):
                chunk()
            return time.perf_counter() - began

    return load


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Keep that many cores busy inside the block."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(count)]
    time.sleep(SETTLE_SECONDS)
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
        time.sleep(SETTLE_SECONDS)


def measure(load: Load, runs: int, loops: int, threads: int) -> tuple[list[Run], list[Run]]:
    """Return the quiet runs and the loud ones."""
    quiet, loud = [], []
    load(witness_for("cpu", threads=threads))  # first touch and the first sentinel
    for number in range(runs):
        quiet.append(one(load, threads))
        with busy_loops(loops):
            loud.append(one(load, threads))
        print(f"\r{number + 1}/{runs}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return quiet, loud


def one(load: Load, threads: int) -> Run:
    witness = witness_for("cpu", threads=threads)
    return Run(load(witness), witness.verdict)


def spread(seconds: list[float]) -> str:
    """Return the median and the median absolute deviation as a share of it."""
    if not seconds:
        return f"{'-':>9} {'-':>8}"
    median = statistics.median(seconds)
    deviation = statistics.median(abs(value - median) for value in seconds)
    return f"{median:>8.2f}s {deviation / median:>8.1%}"


def report(name: str, runs: list[Run]) -> None:
    counts = collections.Counter(run.verdict.status for run in runs)
    statuses = " ".join(f"{counts[status]:>10}" for status in ("clean", "disturbed", "unverified"))
    print(f"{name:<18} {statuses} {spread([run.seconds for run in runs])}")


def worst(runs: list[Run], name: str) -> str:
    values = sorted(run.verdict.evidence.get(name, float("nan")) for run in runs)
    return f"{statistics.median(values):>9.3f} {values[-1]:>9.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="of each kind")
    parser.add_argument("--load", choices=("trainer", "matmul"), default="trainer")
    parser.add_argument("--epochs", type=int, default=10, help="of the trainer's load: at least two seconds' worth")
    parser.add_argument("--seconds", type=float, default=2.0, help="of the matmul load")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--loops", type=int, default=usable_cores(), help="busy loops beside the loud runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load = trainer_load(options.epochs) if options.load == "trainer" else matmul_load(options.seconds)
    quiet, loud = measure(load, options.runs, options.loops, options.threads)
    print(f"{fingerprint(device='cpu', threads=options.threads).key}, load: {options.load}\n")
    print(f"{'':<18} {'clean':>10} {'disturbed':>10} {'unverified':>10} {'median':>9} {'spread':>8}")
    report("quiet", quiet)
    report(f"{options.loops} busy loop(s)", loud)
    # The baseline is to believe every time; the witness keeps the clean ones.
    report("believe all", quiet + loud)
    report("believe clean", [run for run in quiet + loud if run.verdict.status == "clean"])
    print(f"\n{'evidence':<18} {'quiet':>9} {'(worst)':>9} {'loud':>9} {'(worst)':>9}")
    for name in ("taken_share", "waited_share", "steal_share", "pressure_share", "sentinel_slowdown"):
        print(f"{name:<18} {worst(quiet, name)} {worst(loud, name)}")
    reasons = collections.Counter(reason for run in quiet for reason in run.verdict.reasons)
    for reason, count in reasons.most_common():
        print(f"quiet, {count} time(s): {reason}")


if __name__ == "__main__":
    main()

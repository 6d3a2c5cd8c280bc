"""What does a `Trial` cost a step, and is a sleep charged where it belongs, in a function and in a program?

    python -m benchmarks.own_code

Steps that do nothing, in rounds that alternate: a bare loop, a `Trial` in the worker's own process, and one in a
program that the worker starts. Then the same with sleeps in set-up, steps and evaluation: what the clock shows against
what was slept on it, a sleep's own lateness counted.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from budgettune.records import MachineInfo
from budgettune.trial.program import run_program
from budgettune.trial.terms import Outside, Terms
from budgettune.trial.told import ToldTrial
from budgettune.trial.trial import Trial

MACHINE = MachineInfo(hostname="box", device="cpu", device_name="cpu", threads=1)
KINDS = ("bare loop", "loop", "command")
SLEEPS = {"set-up": 0.3, "step": 0.05, "evaluation": 0.2}

CODE = """
import json, sys, time

def train(trial, steps, sleeps):
    \"\"\"Return the seconds that the steps took, and those that were slept inside of the clock.\"\"\"
    time.sleep(sleeps.get("set-up", 0.0))
    took = slept = 0.0
    pause = sleeps.get("step", 0.0)
    for _ in trial.epochs():
        with trial.clock():
            began = time.perf_counter()
            for _ in range(steps):
                if pause:
                    at = time.perf_counter()
                    time.sleep(pause)
                    slept += time.perf_counter() - at
                trial.step(1, 0.5)
            took += time.perf_counter() - began
        time.sleep(sleeps.get("evaluation", 0.0))
        trial.report(accuracy=0.5)
    return took, slept

if __name__ == "__main__":
    from budgettune import Trial
    with open(sys.argv[1], "w") as file:
        json.dump(train(Trial.current(), int(sys.argv[2]), json.loads(sys.argv[3])), file)
"""


def bare(steps: int) -> float:
    """Return the microseconds of a step of a loop without a trial."""
    began = time.perf_counter()
    for _ in range(steps):
        pass
    return 1e6 * (time.perf_counter() - began) / steps


def run(kind: str, steps: int, epochs: int, sleeps: dict[str, float], train: Callable[..., Any]) -> tuple[float, ...]:
    """Return the clock's seconds, those that the steps took, and those that were slept inside of it."""
    terms = Terms(params={}, seed=0, epochs=epochs)
    if kind == "loop":
        trial = Trial(terms)
        took, slept = train(trial, steps, sleeps)
    else:
        trial = ToldTrial(terms, Outside())
        with tempfile.TemporaryDirectory() as folder:
            script, told = Path(folder) / "program.py", Path(folder) / "told.json"
            script.write_text(CODE, encoding="utf-8")
            words = ["python", str(script), str(told), str(steps), json.dumps(sleeps)]
            run_program(trial, words, terms, environment={**os.environ, "PYTHONPATH": str(Path.cwd())})
            took, slept = json.loads(told.read_text())
    return trial.result(MACHINE).train_seconds, took, slept


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    scope: dict[str, Any] = {"__name__": "program"}
    exec(CODE, scope)
    micros: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        micros["bare loop"].append(bare(options.steps))
        for kind in KINDS[1:]:
            _, took, _ = run(kind, options.steps, 2, {}, scope["train"])
            micros[kind].append(1e6 * took / (2 * options.steps))
    print("| steps that do nothing | µs a step |\n|---|---|")
    for kind, values in micros.items():
        print(f"| {kind} | {median(values):.2f} |")
    print("\n| with sleeps | slept on the clock | the clock | error |\n|---|---|---|---|")
    for kind in KINDS[1:]:
        seconds, _, slept = run(kind, 10, 2, SLEEPS, scope["train"])
        print(f"| {kind} | {slept:.4f} s | {seconds:.4f} s | {seconds / slept - 1:+.2%} |")


if __name__ == "__main__":
    main()

"""Training code of one's own, as tests name it in `[train] loop`. No torch."""

import os
import signal
import sys
import time
import warnings
from pathlib import Path

STEPS = 5


def train(trial):
    """Walk towards x, a step at a time; what `misbehave` says happens in the second epoch."""
    p = trial.params
    place = trial.restored or {"at": 0.0, "moves": []}
    for epoch in trial.epochs():
        with trial.clock():
            for _ in range(STEPS):
                time.sleep(p.get("step_seconds", 0.0))
                place["at"] += 0.1 * (p["x"] - place["at"])
                place["moves"].append((epoch, trial.seed))
                if not trial.step(8, abs(p["x"] - place["at"])):
                    break
        if epoch == 1:
            misbehave(trial, p.get("misbehave", ""))
        trial.report(distance=abs(p["x"] - place["at"]), moves=len(place["moves"]))
        trial.save(place)
    trial.describe(weights_sha256=repr(place["moves"]) + repr(place["at"]))


def unsaved(trial):
    """Train as `train` does, and keep nothing of what is cut off."""
    trial.save = lambda state: None
    train(trial)


def tell_gpus(trial):
    """Say which GPU this process may use, as an engine has placed it."""
    print(f"training sees GPU {os.environ.get('CUDA_VISIBLE_DEVICES')}", flush=True)
    train(trial)


def misbehave(trial, how):
    if how == "raise":
        raise ValueError("no such optimizer")
    if how == "memory":
        raise MemoryError
    if how == "nan":
        trial.report(distance=float("nan"))
    if how == "misuse":
        trial.step()
    if how == "exit":
        raise SystemExit(3)
    if how == "die once" and not (marker := Path(os.environ["MARKER"] + str(trial.seed))).exists():
        marker.touch()
        if trial.seed % 2:
            raise MemoryError
        os.kill(os.getpid(), signal.SIGKILL)


def nothing(trial):
    """Train nothing at all."""


def stepless(trial):
    """Train without saying steps."""
    for _ in trial.epochs():
        with trial.clock():
            time.sleep(0.001)
        trial.report(distance=1.0)


def untidy(trial):
    """Change what belongs to the process, and tell how many such changes it has found."""
    found = [Path.cwd() == Path("/"), "UNTIDY" in os.environ, sys.stdout is None, warnings.filters[0][0] == "once"]
    os.chdir("/")
    os.environ["UNTIDY"] = "1"
    sys.stdout = None
    warnings.simplefilter("once")
    for _ in trial.epochs():
        with trial.clock():
            time.sleep(0.001)
        trial.report(distance=sum(found))


not_a_function = 3


def sleepy(trial):
    """Sleep for 0.2 s or more where `where` says, and tell how long that was by a clock of its own.

    `around_seconds` is what passed from just before the trial's clock ran to just after.
    """
    slept = {"inside": 0.0, "outside": 0.0}
    around = 0.0

    def sleep(place, side):
        began = time.perf_counter()
        time.sleep(0.2 if trial.params["where"] == place else 0.02 * (side == "inside"))
        slept[side] += time.perf_counter() - began

    sleep("setup", "outside")
    sleep("setup", "outside")
    for _ in trial.epochs():
        began = time.perf_counter()
        with trial.clock():
            sleep("step", "inside")
            trial.step()
        around += time.perf_counter() - began
        sleep("evaluation", "outside")
        trial.report(
            distance=1.0,
            inside_seconds=slept["inside"],
            around_seconds=around,
            outside_seconds=slept["outside"],
        )

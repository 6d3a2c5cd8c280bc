"""A program that trains like `own_training`, or misbehaves in the second epoch as `--how` says."""

import argparse
import os
import signal
import time
from pathlib import Path

from budgettune import Trial

parser = argparse.ArgumentParser()
parser.add_argument("--how", default="")
how = parser.parse_args().how
trial = Trial.current({"x": 1.0}, epochs=3)
x, at = trial.params["x"], trial.restored or 0.0

for epoch in trial.epochs():
    with trial.clock():
        for _ in range(5):
            if how == "compute":
                until = time.process_time() + 0.05
                while time.process_time() < until:
                    pass
            at += 0.1 * (x - at)
            trial.step(8, abs(x - at))
    if epoch == 1:
        if how == "raise":
            raise ValueError("no such optimizer")
        if how == "memory":
            bytearray(10**15)
        if how == "nan":
            trial.report(distance=float("nan"))
        if how == "misuse":
            trial.step()
        if how == "exit":
            raise SystemExit(3)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang" and not (marker := Path(os.environ["MARKER"])).exists():
            marker.touch()
            time.sleep(600)
    trial.report(distance=abs(x - at))
    trial.save(at)

"""Training code that sleeps, and leaves a line about where and when it did."""

import json
import os
import time
from pathlib import Path


def train(trial):
    began = time.time()
    names = ("NODE", "CUDA_VISIBLE_DEVICES")
    facts = {"x": trial.params["x"], "pid": os.getpid(), **{name: os.environ.get(name, "") for name in names}}
    note(trial, "began", facts)
    try:
        for _ in trial.epochs():
            with trial.clock():
                while time.time() - began < trial.params["seconds"]:
                    time.sleep(0.02)
                    if not trial.step(1):
                        break
            trial.report(distance=1.0)
    finally:
        time.sleep(trial.params.get("lingers", 0))
    note(trial, "ended", {**facts, "began": began, "ended": time.time()})


def note(trial, what, facts):
    Path(trial.params["notes"], f"{what} {facts['x']} {facts['pid']}").write_text(json.dumps(facts), encoding="utf-8")


def notes(folder, what):
    """Return what all trials have noted by now."""
    texts = [path.read_text(encoding="utf-8") for path in Path(folder).glob(f"{what} *")]
    return [json.loads(text) for text in texts if text]

"""What a trial shares: the GPU with others, its memory with the next trial, the command line with its user."""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.cuda_check.box import Box, beside
from budgettune.errors import OutOfMemory
from budgettune.training.data.cache import open_cache, write_cache
from budgettune.training.data.images import ImageSet
from budgettune.training.trainer import train

ROOT = Path(__file__).parents[2]


def company(box: Box, found: dict[str, Any]) -> None:
    """Alone is clean; two workers on one GPU are both disturbed; what is a neighbour that only holds memory?"""
    pair = [beside(box, "neighbour", "trains") for _ in range(2)]
    found["both"] = [answer() for answer in pair]
    found["alone"] = found["both"][0] if box.quick else beside(box, "neighbour", "trains")()
    idle = beside(box, "neighbour", "idle")
    found["beside_idle"] = beside(box, "neighbour", "trains")()
    idle()
    both = [one["status"] for one in found["both"]]
    found["ok"] = box.quick or (found["alone"]["status"] == "clean" and both == ["disturbed"] * 2)


def neighbour(box: Box, found: dict[str, Any]) -> None:
    if box.kind == "idle":  # as a notebook that was left open
        held = torch.zeros(2**20, device=box.device)
        time.sleep(2 if box.quick else 25)
        found |= {"ok": True, "held": len(held)}
        return
    budget = 0.5 if box.quick else 5.0
    result = box.train(box.spec(epochs=None, budget=budget), box.data(None if box.quick else 20_000))
    evidence = dict(result.evidence)
    found |= {"ok": True, "status": result.status, "steps": result.steps, "pid": os.getpid(), "evidence": evidence}


def memory(box: Box, found: dict[str, Any]) -> None:
    """Too large a batch is refused with the right error, leaves nothing behind, and the next trial trains."""
    found["ok"] = True
    small = box.data(None if box.quick else 4_000)
    trained = train(box.spec(epochs=1), seed=0, data=small, device=box.device)
    model = weakref.ref(trained.model)
    del trained
    found["model_lives_on"] = model() is not None
    gc.collect()
    found["model_lives_on_after_collect"] = model() is not None
    if box.is_cuda:
        refused(box, small, found)
    found["mapped"] = mapped(box)
    found["ok"] &= found["mapped"]["equal"]


def refused(box: Box, data: Any, found: dict[str, Any]) -> None:
    """Have four GiB only, and ask for more."""
    mb = 2**20
    before = torch.cuda.memory_allocated() / mb
    torch.cuda.set_per_process_memory_fraction(4 * 2**30 / torch.cuda.get_device_properties(box.device).total_memory)
    try:
        box.train(box.spec(4.0, epochs=1, batch_size=4_000, precision="fp32"), data)
    except OutOfMemory as error:
        found["refused"] = str(error)
    except Exception as error:
        found["wrong_error"] = f"{type(error).__name__}: {error}"[:400]
    found["left_mb"] = torch.cuda.memory_allocated() / mb - before
    gc.collect()
    found["left_mb_after_collect"] = torch.cuda.memory_allocated() / mb - before
    torch.cuda.set_per_process_memory_fraction(1.0)
    result = box.train(box.spec(epochs=1, batch_size=500), data)
    found |= {"next_trial_s": result.train_seconds, "reserved_mb": torch.cuda.memory_reserved() / mb}
    found["ok"] = "refused" in found and found["left_mb"] < 64


def mapped(box: Box) -> dict[str, Any]:
    """A cache file instead of images on the device: the same weights, and what it costs."""
    data = box.data(300 if box.quick else 20_000)
    images = data.train.images.cpu().numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.images"
        write_cache(path, "key", images.shape, lambda write: write(0, images))
        opened = open_cache(path, "key")
        assert opened is not None
        there = replace(data, train=ImageSet(opened.to(box.device), data.train.labels))
        spec = box.spec(epochs=2, batch_size=box.batch // 4)
        resident, from_file = box.train(spec, data), box.train(spec, there)
    equal = resident.weights_sha256 == from_file.weights_sha256
    return {"equal": equal, "s": [resident.train_seconds, from_file.train_seconds]}


def worker(box: Box, found: dict[str, Any]) -> None:
    """The command line, end to end: study, worker on what `auto` finds, answer."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "BUDGETTUNE_STORAGE": f"sqlite:///{folder}/study.db", "BUDGETTUNE_SPOOL": folder}

        def cli(*words: str) -> str:
            command = [sys.executable, "-m", "budgettune", *words]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
            if missing := re.search(r"No module named '(\w+)", done.stderr):
                raise ModuleNotFoundError(name=missing[1])
            if done.returncode:
                raise RuntimeError(f"budgettune {' '.join(words)} ended with {done.returncode}: {done.stderr[-400:]}")
            return done.stdout + done.stderr

        found["doctor"] = [" ".join(line.split()) for line in cli("doctor").splitlines()]
        few = ("search.batch_size=[64]", "search.scale=[1.0]", "train.epochs=5")
        cli("study", "create", "digits", *(word for one in few for word in ("--set", one)))
        found["said"] = cli("worker", "--trials", "2", *([] if box.is_cuda else ["--device", "cpu"])).splitlines()[-6:]
        file = Path(folder) / "trials.json"
        cli("study", "export", "--format", "json", "--out", str(file))
        document = json.loads(file.read_text(encoding="utf-8"))
    trials = document if isinstance(document, list) else document.get("trials", [])
    done = [trial for trial in trials if trial.get("state") == "COMPLETE"]
    wanted = ("train_seconds", "test_accuracy", "status", "device_name", "machine", "evidence", "peak_memory_mb")
    found["trials"] = [{key: trial.get(key) for key in wanted} for trial in done]
    found["ok"] = len(done) == 2 and all(trial["machine"]["device"] == box.device.type for trial in done)


def tests(box: Box, found: dict[str, Any]) -> None:
    """The tests that are marked cuda; elsewhere they are only collected. Without conftest, which wants a database."""
    importlib.import_module("pytest")
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-m", "cuda", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *["--collect-only"] * (not box.is_cuda), *map(str, files)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found |= {"ok": done.returncode == 0, "said": (done.stdout + done.stderr)[-1_500:].splitlines()}

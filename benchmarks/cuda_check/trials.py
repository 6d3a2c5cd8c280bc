"""Whole trials: do they train, does the clock tell the truth, do they end in time and repeat."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.cuda_check.box import LR, Box, beside
from budgettune.spec.pruning import STRATEGIES
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import DataSpec
from budgettune.spec.trust import Trust
from budgettune.training.data.load import load_data
from budgettune.training.device import Device
from budgettune.training.learner import Learner
from budgettune.training.profile.kernels import kernels_of
from budgettune.training.team import Team
from budgettune.trial.stopwatch import Stopwatch


def strategies(box: Box, found: dict[str, Any]) -> None:
    """Every strategy trains; which lines wait for the device in its steps; which batch shapes nobody had warmed up."""
    rows: dict[str, Any] = {}
    found |= {"ok": True, "failed": [], "wait_in_steps": [], "rows": rows}
    data = box.data(300 if box.quick else 20_000)
    warmed: set[int] = set()
    warm_up = Learner.warm_up

    def noting(learner: Learner, steps: int, trained: set[int], scored: set[int]) -> None:
        warmed.update(trained)
        warm_up(learner, steps, trained, scored)

    Learner.warm_up = noting
    for name in STRATEGIES:
        warmed.clear()
        rate = 0.0 if name == "full" else 0.3
        pruning = {"strategy": name, "prune_rate": rate, "refresh_every": 2, "helper_epochs": 1}
        began = time.perf_counter()
        try:
            with waits_noted(box) as lines:
                result = box.train(box.spec(pruning=pruning, epochs=3, batch_size=box.batch // 4), data, watched=False)
            rows[name] = {
                "s": result.train_seconds,
                "wall": time.perf_counter() - began,
                "pruning_s": result.phases.pruning,
                "accuracy": result.test_accuracy,
                "keep": result.keep_fraction,
                "steps": result.steps,
                "cold_shapes": sorted(set(result.batch_shapes) - warmed),
                "waits": {line: n / result.steps for line, n in lines.items() if n >= result.steps / 4},
            }
            if rows[name]["waits"]:
                found["wait_in_steps"].append(name)
        except TimeoutError:
            raise
        except Exception as error:
            rows[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
            found["failed"].append(name)
            found["ok"] = False
            box.wait()  # raises where the context is gone: the rest would fail too


@contextmanager
def waits_noted(box: Box) -> Iterator[Counter[str]]:
    """Count operations that make the host wait for the device, by the line that asked for them."""
    lines: Counter[str] = Counter()
    if box.is_cuda:
        torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield lines
    finally:
        if box.is_cuda:
            torch.cuda.set_sync_debug_mode("default")
    lines.update(f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchroniz" in str(one.message))


def clock(box: Box, found: dict[str, Any]) -> None:
    """Does the clock say what the device did, is the trial called clean, does the same trial give the same weights?"""
    data, events = box.data(), []
    if box.is_cuda:
        running = Stopwatch.running

        @contextmanager
        def timed(watch: Stopwatch) -> Iterator[None]:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            with running(watch):
                first.record()
                yield
                last.record()
            events.append((first, last))

        Stopwatch.running = timed
    pruning = {"strategy": "stale-quantile", "prune_rate": 0.3, "refresh_every": 2}
    spec = box.spec(as_coded=True, epochs=4 if box.quick else 6, pruning=pruning)
    results = []
    for _ in range(3):
        events.clear()
        results.append(box.train(spec, data))
        box.wait()
    last = results[-1]
    by_events = sum(a.elapsed_time(b) for a, b in events) / 1e3 if events else None
    hashes, share = {one.weights_sha256 for one in results}, last.phases.on_clock / last.train_seconds
    is_true = by_events is None or abs(by_events / last.train_seconds - 1) < 0.02
    found |= {
        "ok": len(hashes) == 1 and (box.quick or (0.98 < share <= 1.001 and is_true)),
        "train_s": [one.train_seconds for one in results],
        "warmup_s": [one.phases.warmup for one in results],
        "by_cuda_events_s": by_events,
        "phases": asdict(last.phases),
        "phases_over_seconds": share,
        "status": [one.status for one in results],
        "evidence": dict(last.evidence),
        "hashes_equal": len(hashes) == 1,
        "peak_mb": [one.peak_memory_mb for one in results],
    }
    for precision in ("fp32", "bf16"):
        learner = box.learner(box.spec(epochs=1, precision=precision), data)
        step = box.step_of(learner, box.batch)
        step_ms = box.ms(step, 20)
        began = time.perf_counter()
        for _ in range(5):
            step()
        host_ms = 1e3 * (time.perf_counter() - began) / 5  # what launching alone takes, while the queue has room
        box.wait()
        kernels = kernels_of(step, Device(box.device))
        found[f"step_{precision}"] = {
            "step_ms": step_ms,
            "host_ms": host_ms,
            "kernels_ms": sum(kernel.ms for kernel in kernels),
            "launches": sum(kernel.launches for kernel in kernels),
            "dearest": [(kernel.name[:60], kernel.launches, kernel.ms) for kernel in kernels[:10]],
        }


def deadline(box: Box, found: dict[str, Any]) -> None:
    """Does a budget end within half a step, with the last step's rate at zero?"""
    data, rows, step = box.data(), [], Learner.step
    found["rows"] = rows
    for batch in (box.batch // 4, box.batch) if box.quick else (500, 2_000, 20_000):
        for budget in (1.0,) if box.quick else (2.0, 4.0):
            rates: list[float] = []
            Learner.step = lambda learner, one, lr, r=rates: (r.append(lr), step(learner, one, lr))[1]  # type: ignore[method-assign]
            result = box.train(box.spec(epochs=None, budget=budget, batch_size=batch, lr_schedule="linear"), data)
            step_seconds = result.train_seconds / result.steps
            rows.append(
                {
                    "batch": batch,
                    "budget": budget,
                    "error_ms": 1e3 * (result.train_seconds - budget),
                    "error_steps": (result.train_seconds - budget) / step_seconds,
                    "last_rate": rates[-1] / LR,
                    "step_ms": 1e3 * step_seconds,
                    "status": result.status,
                }
            )
    found["ok"] = box.quick or all(abs(row["error_steps"]) <= 0.75 and row["last_rate"] < 0.01 for row in rows)


def distributed(box: Box, found: dict[str, Any]) -> None:
    """One trial on two GPUs: does it train, end in time with equal weights, and what is a step's time to that on one?

    On a CPU two processes of a thread each rehearse it.
    """
    gpus = torch.cuda.device_count() if box.is_cuda else 2
    if gpus < 2:
        found |= {"ok": None, "skipped": "needs two GPUs"}
        return
    images, size = (600, 8) if box.quick else (60_000, 32)
    data = {"name": "benchmarks.cuda_check.box:own_pictures", "root": str(images), "image_size": size}
    trust, rows, ok = Trust(["benchmarks"]), [], True
    found["rows"] = rows
    loaded = load_data(DataSpec.model_validate(data), trust=trust).to(box.device)
    torch.set_num_threads(2 * torch.get_num_threads())
    alone, several = Team(box.device, trust), Team(box.device, trust)
    with closing(several):
        for batch in (box.batch,) if box.quick else (500, 2_000, 8_000):
            for processes in (1, 2):
                table = {
                    "epochs": None,
                    "budget": 1.0 if box.quick else 4.0,
                    "batch_size": batch,
                    "processes": processes,
                }
                pruning = {"strategy": "stale-quantile", "prune_rate": 0.3}
                document = box.spec(pruning=pruning, lr_schedule="linear", **table).to_document()
                spec = StudySpec.from_document({**document, "data": data})
                team = alone if processes == 1 else several  # one that changes its number starts processes
                result = team.train(spec, seed=0, data=loaded).result  # raises where weights are not equal
                error = (result.train_seconds - spec.train.budget) / (result.train_seconds / result.steps)  # type: ignore[operator]
                ok = ok and (box.quick or abs(error) <= 0.75)
                rows.append(
                    {
                        "batch": batch,
                        "processes": processes,
                        "key": result.machine.key,
                        "step_ms": result.step_ms_median,
                        "error_steps": error,
                        "accuracy": result.test_accuracy,
                        "peak_mb": result.peak_memory_mb,
                    }
                )
    found["ok"] = ok


def repeats(box: Box, found: dict[str, Any]) -> None:
    """Are weights equal from process to process, by default and with deterministic kernels; what do those cost?"""
    for kind in ("deterministic",) if box.quick else ("default", "heuristic", "deterministic"):
        pair = both(box, kind)
        found[kind] = {"equal": pair[0]["hash"] == pair[1]["hash"], "s": [one["s"] for one in pair]}
    found["ok"] = found["deterministic"]["equal"]


def both(box: Box, kind: str) -> list[dict[str, Any]]:
    """Return what two processes found: one after the other, where they are timed."""
    if box.quick:
        waiting = [beside(box, "one_hash", kind) for _ in range(2)]
        return [answer() for answer in waiting]
    return [beside(box, "one_hash", kind)() for _ in range(2)]


def one_hash(box: Box, found: dict[str, Any]) -> None:
    if box.kind == "heuristic":
        Device.measuring_kernels = lambda device: nullcontext()
    pruning = {"strategy": "stale-quantile", "prune_rate": 0.2, "refresh_every": 2}
    table = {"batch_size": box.batch // 2, "deterministic": box.kind == "deterministic"}
    result = box.train(box.spec(epochs=3, pruning=pruning, **table), box.data(), seed=1)
    found |= {"ok": True, "hash": result.weights_sha256, "s": result.train_seconds}

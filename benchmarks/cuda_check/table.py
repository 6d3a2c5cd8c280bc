"""The table of a GPU for benchmarks/README.md, from what the parts found; a part that found nothing gives no row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

Found = Mapping[str, Any]
Row = tuple[str, str]  # what was measured, and the figure


def table(document: Mapping[str, Found], device: str, *, is_rehearsal: bool, today: date | None = None) -> str:
    """Return the table as Markdown, below a line that says what it was measured on."""
    rows = [row for name, found in document.items() if name in _ROWS for row in _of_part(name, found)]
    rows += [
        (
            f"*{name}*",
            f"skipped: {found['skipped']}"
            if "skipped" in found
            else f"FAILED: {found.get('error', 'see its numbers')}",
        )
        for name, found in document.items()
        if not found.get("ok")
    ]
    head = [_about(document, device, is_rehearsal, today or date.today()), "", "| what | measured |", "|---|---|"]
    return "\n".join([*head, *(f"| {what} | {figure} |" for what, figure in rows), ""])


def _about(document: Mapping[str, Found], device: str, is_rehearsal: bool, today: date) -> str:
    box = document.get("ceilings", {})
    facts = [box.get("gpu") or f"device {device}"]
    if driver := box.get(_SMI, ""):
        facts.append(f"driver, power limit, highest clock, MIG: {driver}")
    facts += [f"{name} {box[key]}" for key, name in _VERSIONS.items() if box.get(key)]
    note = " **A rehearsal in tiny sizes: these figures say nothing.**" if is_rehearsal else ""
    return f"`python benchmarks/cuda_check`, {today.isoformat()}, {', '.join(facts)}.{note}"


def _of_part(name: str, found: Found) -> Iterator[Row]:
    try:
        yield from _ROWS[name](found)
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError):  # cut short: what it had found counts
        return


def _ceilings(found: Found) -> Iterator[Row]:
    rates = ", ".join(f"{name.upper()} {found[f'{name}_tflops']:,.1f}" for name in ("bf16", "tf32", "fp32"))
    yield "products of square matrices, TFLOP/s", rates
    yield "a copy on the device", f"{found['copy_gb_per_s']:,.0f} GB/s"
    yield "a launch", f"{found['us_per_launch']:.1f} µs"


def _strategies(found: Found) -> Iterator[Row]:
    rows = found["rows"]
    yield "pruning strategies that train", f"{len(rows) - len(found['failed'])} of {len(rows)}"
    yield "strategies whose steps wait for the device", ", ".join(found["wait_in_steps"]) or "none"
    cold = [name for name, row in rows.items() if row.get("cold_shapes")]
    yield "strategies with batch sizes that no warm-up met", ", ".join(cold) or "none"


def _clock(found: Found) -> Iterator[Row]:
    if (by_events := found["by_cuda_events_s"]) is not None:
        yield "training time by our clock over that by CUDA's events", f"{found['train_s'][-1] / by_events:.4f}"
    yield "sum of the phases over training time", f"{found['phases_over_seconds']:.3f}"
    yield "the same trial three times: weights", _equal(found["hashes_equal"])
    yield "its seconds", _seconds(found["train_s"])
    yield "its peaks of memory", ", ".join(f"{peak:,.0f}" for peak in found["peak_mb"]) + " MiB"
    yield "its verdicts", ", ".join(found["status"])
    for precision in ("fp32", "bf16"):
        step = found[f"step_{precision}"]
        times = "; ".join(f"{step[key]:.2f}" for key in ("step_ms", "host_ms", "kernels_ms"))
        what = f"a step in {precision}: as a whole; launching it; its kernels"
        yield what, f"{times} ms ({step['launches']:,} launches)"


def _deadline(found: Found) -> Iterator[Row]:
    worst = max(found["rows"], key=lambda row: abs(row["error_steps"]))
    yield "time budgets: worst error", f"{worst['error_steps']:+.2f} steps ({worst['error_ms']:+.0f} ms)"
    yield "time budgets: highest last learning rate", f"{max(row['last_rate'] for row in found['rows']):.2%}"


def _distributed(found: Found) -> Iterator[Row]:
    for one, two in zip(found["rows"][::2], found["rows"][1::2], strict=True):
        what = f"a step on two devices at batch {one['batch']:,}: times that on one; error of the deadline"
        yield what, f"{one['step_ms'] / two['step_ms']:.2f}; {two['error_steps']:+.2f} steps"


def _cliff(found: Found) -> Iterator[Row]:
    for name, row in found["rows"].items():
        yield f"a step of scale {name}", f"{row['us_per_image']:.2f} µs per image"


def _memory(found: Found) -> Iterator[Row]:
    if "left_mb" in found:
        yield "a batch that does not fit", f"{found.get('refused') or found['wrong_error']}"
        yield "left behind by it", f"{found['left_mb']:.0f} MiB"
    resident, mapped = found["mapped"]["s"]
    yield (
        "images in a cache file: weights; time over that from memory",
        (f"{_equal(found['mapped']['equal'])}; {mapped / resident:.2f}"),
    )


def _company(found: Found) -> Iterator[Row]:
    both = ", ".join(one["status"] for one in found["both"])
    yield (
        "verdict alone; of two trials on one GPU; beside a process that holds memory",
        (f"{found['alone']['status']}; {both}; {found['beside_idle']['status']}"),
    )


def _cells(found: Found) -> Iterator[Row]:
    for name, row in found["rows"].items():
        seconds = ", ".join(
            f"{value:,.0f} s at rate {key.rpartition('_')[2]}" for key, value in row.items() if "cell" in key
        )
        yield f"the paper's cell of scale and batch {name}", f"{row['step_ms']:.1f} ms a step; {seconds}"


def _speed(found: Found) -> Iterator[Row]:
    for name, row in found["rows"].items():
        moved = f", {row['gb_per_s']:,.0f} GB/s" if "gb_per_s" in row else ""
        rates = f"{row['ms']:.2f} ms, {row['images_per_s']:,.0f} images/s, {row['tflops']:.1f} TFLOP/s{moved}"
        yield f"a step of scale, batch and precision {name}", rates
    for name, row in found["graphs"].items():
        yield f"a trial without and with CUDA graphs, {name}: weights", f"{_equal(row['equal'])}, {_seconds(row['s'])}"


def _recipe(found: Found) -> Iterator[Row]:
    for name, row in found["rows"].items():
        faster = f", {row['times_faster']:.1f} times the recipe" if "times_faster" in row else ""
        yield f"training at scale {name}", f"{row['images_per_s']:,.0f} images/s{faster}"


def _repeats(found: Found) -> Iterator[Row]:
    for kind, pair in found.items():
        if isinstance(pair, Mapping):
            yield f"weights of two processes, kernels: {kind}", f"{_equal(pair['equal'])}, {_seconds(pair['s'])}"


def _equal(is_equal: bool) -> str:
    return "equal" if is_equal else "NOT equal"


def _seconds(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values) + " s"


_ROWS = {
    "ceilings": _ceilings,
    "strategies": _strategies,
    "clock": _clock,
    "deadline": _deadline,
    "distributed": _distributed,
    "cliff": _cliff,
    "memory": _memory,
    "company": _company,
    "cells": _cells,
    "speed": _speed,
    "recipe": _recipe,
    "repeats": _repeats,
}
_SMI = "driver_version,power.limit,clocks.max.sm,mig.mode.current"  # as `ceilings` asks nvidia-smi
_VERSIONS = {"torch": "torch", "cuda": "CUDA", "cudnn": "cuDNN", "python": "Python"}

"""Every claim about CUDA, checked and timed in one command of under eight minutes.

    python benchmarks/cuda_check                          # on a box with a GPU
    python benchmarks/cuda_check --only speed,deadline    # some parts
    python benchmarks/cuda_check --device cpu --quick     # shows that the script runs, and no more

It needs torch, numpy and pydantic; a part that needs more is skipped where that is missing, with its name. No image
files are needed. Each part is a process of its own with a time limit: an error of CUDA is sticky, cuDNN keeps its
choices for a process, and peaks of memory add up. In the folder --out, cuda.json has what all parts so far found (one
that runs out of time keeps what it had), table.md the table that is printed at the end, stderr.txt what the parts said.
This parent has no torch.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
if not __package__:  # run as a folder, which is then where Python looks for modules
    sys.path[0] = str(HERE.parents[1])

PARENT_GRACE_SECONDS = 5  # that a part has to write what it found, once its time is up
START_SECONDS = 15  # with less left no part begins


class Part(NamedTuple):
    """A function of one of the modules here, and what its answer is used for."""

    module: str
    seconds: float  # allowed, its process's start included
    use: str


PARTS = {  # in the order of their worth
    "ceilings": Part("speed", 40, "denominators of every share: README's GFLOP/s and GB/s"),
    "strategies": Part(
        "trials", 100, "each strategy works on a GPU; no step waits for the device; what warm-up misses"
    ),
    "clock": Part(
        "trials", 70, "train_seconds can be believed; the same trial gives the same weights; where a step goes"
    ),
    "deadline": Part("trials", 60, "a budget ends within half a step, its learning rate at zero"),
    "cliff": Part("speed", 70, "cuDNN: heuristic or benchmark; the memory order; what the paper's odd widths cost"),
    "memory": Part("sharing", 50, "a batch too large fails alone; a model is freed; a cache file costs that much"),
    "worker": Part("sharing", 60, "the command line works on a GPU: study, worker, export, doctor"),
    "company": Part("sharing", 90, "NVML's verdict: clean alone, disturbed by a neighbour"),
    "cells": Part("speed", 70, "how long the paper's 80 cells take"),
    "tests": Part("sharing", 90, "the tests marked cuda"),
    "speed": Part("speed", 150, "milliseconds of a step; what graphs and compilation would be worth"),
    "recipe": Part("speed", 80, "how many times faster than the paper's recipe"),
    "distributed": Part("trials", 60, "one trial on two GPUs: equal weights, its deadline, what a step gains"),
    "repeats": Part("trials", 90, "are weights equal from process to process, and at what price"),
}
HELPERS = {"neighbour": "sharing", "one_hash": "trials"}  # modules of what a part starts beside itself


def run_part(name: str, options: argparse.Namespace) -> None:
    """In the child: run one part, and write what it found until it ended, failed, or ran out of time."""

    def too_late(*_: Any) -> None:
        raise TimeoutError(f"not done after {options.limit:.0f} s")

    signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, options.limit)
    module = HELPERS.get(name) or PARTS[name].module
    found: dict[str, Any] = {}
    try:
        from benchmarks.cuda_check.box import Box

        getattr(importlib.import_module(f"benchmarks.cuda_check.{module}"), name)(Box(options), found)
    except ModuleNotFoundError as error:
        is_ours = (error.name or "").partition(".")[0] in ("", "benchmarks", "budgettune")
        found |= {"ok": False, "error": str(error)} if is_ours else {"ok": None, "skipped": f"needs {error.name}"}
    except Exception as error:
        where = traceback.format_exc()[-1_000:]
        found |= {"ok": False, "error": f"{type(error).__name__}: {error}"[:500], "where": where}
    signal.setitimer(signal.ITIMER_REAL, 0)
    (options.out / f"{name}.json").write_text(compact(found), encoding="utf-8")


def in_process(name: str, options: argparse.Namespace, seconds: float, log: Path) -> dict[str, Any]:
    """In the parent: run one part in a process of its own and return what it found."""
    command = [sys.executable, str(HERE), "--part", name, "--device", options.device]
    command += ["--limit", str(seconds), *["--quick"] * options.quick]
    with tempfile.TemporaryDirectory() as folder, log.open("a", encoding="utf-8") as said:
        said.write(f"--- {name}\n")
        said.flush()
        child = subprocess.Popen([*command, "--out", folder], stdout=said, stderr=said, process_group=0)
        try:
            child.wait(seconds + PARENT_GRACE_SECONDS)
            found: dict[str, Any] = json.loads((Path(folder) / f"{name}.json").read_text(encoding="utf-8"))
        except subprocess.TimeoutExpired:
            return {"ok": False, "error": f"hung: no answer {PARENT_GRACE_SECONDS} s after its {seconds:.0f} s"}
        except (OSError, ValueError):
            return {"ok": False, "error": f"its process ended with status {child.returncode} and no answer"}
        finally:
            with suppress(ProcessLookupError):  # and what it started: nobody shares the GPU with the next part
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        return found


def compact(document: Any) -> str:
    """Return JSON on one line, with numbers at five digits."""
    return json.dumps(rounded(document), ensure_ascii=False, default=str, separators=(",", ":"))


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {str(key): rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("cuda-check"), help="folder for what is found; ./cuda-check")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--only", help=f"some of: {','.join(PARTS)}")
    parser.add_argument("--limit", type=float, default=470.0, help="seconds for all parts")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--kind", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    names = options.only.split(",") if options.only else list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"--only: no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part:
        return run_part(options.part, options)
    (options.out / "stderr.txt").unlink(missing_ok=True)
    began, document = time.monotonic(), {}

    def run(name: str) -> dict[str, Any]:
        left, started = options.limit - (time.monotonic() - began), time.monotonic()
        if left < START_SECONDS:
            return {"ok": None, "skipped": "no time left", "seconds": 0.0}
        allowed = PARTS[name].seconds * (5 if options.quick else 1)  # two slow cores want longer
        found = in_process(name, options, min(left, allowed), options.out / "stderr.txt")
        return {"seconds": time.monotonic() - started, **found}

    at_once = 2 if options.device == "cpu" else 1  # nobody shares a GPU; a rehearsal measures nothing
    with ThreadPoolExecutor(at_once) as pool:
        for name, found in zip(names, pool.map(run, names), strict=True):
            document[name] = {"use": PARTS[name].use, **found}
            lines = ",\n".join(f"{json.dumps(part)}:{compact(answer)}" for part, answer in document.items())
            (options.out / "cuda.json").write_text(f"{{{lines}}}\n", encoding="utf-8")
            word = {True: "ok", False: "FAIL", None: "skip"}[found.get("ok")]
            print(f"{word:4} {name} {compact(found)[:900]}", flush=True)
    from benchmarks.cuda_check.table import table  # found only now, where this is run as a folder

    text = table(document, options.device, is_rehearsal=options.quick)
    (options.out / "table.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nall numbers: {options.out / 'cuda.json'}")
    if failed := [name for name, found in document.items() if found["ok"] is False]:
        sys.exit(f"failed: {', '.join(failed)}")
    return None


if __name__ == "__main__":
    main()

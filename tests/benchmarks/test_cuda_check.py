"""The GPU checks run here on the CPU in tiny sizes: what they measure is not judged."""

import importlib
import json
import subprocess
import sys
import time
from argparse import Namespace
from datetime import date
from pathlib import Path

import pytest
import torch

from benchmarks.cuda_check import __main__ as checks
from benchmarks.cuda_check import trials
from benchmarks.cuda_check.table import table


def rehearse(folder, *words):
    """Run the checks as a folder, from another one."""
    command = [sys.executable, str(Path(checks.__file__).parent), "--device", "cpu", "--quick", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_gpu_checks_run_on_a_cpu_without_image_files(tmp_path):
    done = rehearse(tmp_path, "--only", "ceilings")
    assert done.returncode == 0, done
    found = json.loads((tmp_path / "cuda-check" / "cuda.json").read_text())
    assert found["ceilings"]["ok"], found
    assert found["ceilings"]["fp32_tflops"] > 0
    assert done.stdout.startswith("ok   ceilings")
    written = (tmp_path / "cuda-check" / "table.md").read_text()
    assert written in done.stdout
    assert "| products of square matrices, TFLOP/s | BF16" in written


@pytest.mark.slow
def test_every_part_of_the_rehearsal_passes(tmp_path):
    done = rehearse(tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "ok"),
    [("benchmarks.cuda_check.nothing", False), ("budgettune.nothing", False), ("packaged.other", None)],
)
def test_a_part_that_needs_a_package_that_is_not_here_is_skipped(tmp_path, monkeypatch, module, ok):
    def lacking(box, found):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(trials, "deadline", lacking)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    checks.run_part("deadline", Namespace(out=tmp_path, device="cpu", quick=True, limit=9.0, kind=""))
    found = json.loads((tmp_path / "deadline.json").read_text())
    assert found["ok"] is ok
    assert found.get("skipped") == ("needs packaged.other" if ok is None else None)


def test_the_table_says_what_it_was_measured_on_what_failed_and_what_a_part_had_found():
    rates = {"bf16_tflops": 700.0, "tf32_tflops": 350.0, "fp32_tflops": 60.0, "copy_gb_per_s": 2_900.0}
    document = {
        "ceilings": {"ok": True, "gpu": "Fake 9000", "torch": "2.14", "cuda": "13.0", **rates, "us_per_launch": 2.0},
        "cliff": {"ok": False, "error": "TimeoutError", "rows": {"1.1 NHWC fp32": {"us_per_image": 1.25}}},
        "deadline": {"ok": False, "error": "no images"},
        "recipe": {"ok": None, "skipped": "needs torchvision"},
    }
    lines = table(document, "cuda", is_rehearsal=False, today=date(2026, 1, 2)).splitlines()
    assert lines[0] == "`python benchmarks/cuda_check`, 2026-01-02, Fake 9000, torch 2.14, CUDA 13.0."
    assert lines[4:] == [
        "| products of square matrices, TFLOP/s | BF16 700.0, TF32 350.0, FP32 60.0 |",
        "| a copy on the device | 2,900 GB/s |",
        "| a launch | 2.0 µs |",
        "| a step of scale 1.1 NHWC fp32 | 1.25 µs per image |",
        "| *cliff* | FAILED: TimeoutError |",
        "| *deadline* | FAILED: no images |",
        "| *recipe* | skipped: needs torchvision |",
    ]


def test_a_part_that_runs_out_of_time_keeps_what_it_found(tmp_path, monkeypatch):
    def slow(box, found):
        found["rows"] = [1]
        time.sleep(20)

    monkeypatch.setattr(trials, "deadline", slow)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    checks.run_part("deadline", Namespace(out=tmp_path, device="cpu", quick=True, limit=0.3, kind=""))
    found = json.loads((tmp_path / "deadline.json").read_text())
    assert (found["ok"], found["rows"]) == (False, [1])
    assert found["error"].startswith("TimeoutError: not done after")


def test_a_part_whose_process_dies_does_not_take_the_others_with_it(tmp_path, monkeypatch, capsys):
    answers = {
        "clock": {"ok": False, "error": "its process ended with status -11 and no answer"},
        "cells": {"ok": True},
    }
    monkeypatch.setattr(checks, "in_process", lambda name, *_: answers[name])
    with pytest.raises(SystemExit, match="failed: clock"):
        checks.main(["--out", str(tmp_path), "--only", "clock,cells"])
    found = json.loads((tmp_path / "cuda.json").read_text())
    assert [found[name]["ok"] for name in ("clock", "cells")] == [False, True]
    assert "FAIL clock" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*checks.PARTS, *checks.HELPERS])
def test_each_part_is_a_function_of_its_module(name):
    module = checks.HELPERS.get(name) or checks.PARTS[name].module
    assert callable(getattr(importlib.import_module(f"benchmarks.cuda_check.{module}"), name))

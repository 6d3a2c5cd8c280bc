"""The GPU checks run here on the CPU in tiny sizes: what they measure is not judged."""

import importlib
import json
import time
from argparse import Namespace

import pytest
import torch

from benchmarks.cuda_check import __main__ as checks
from benchmarks.cuda_check import trials


def test_the_gpu_checks_run_on_a_cpu_without_image_files(tmp_path, capsys):
    checks.main(["--out", str(tmp_path), "--device", "cpu", "--quick", "--only", "ceilings"])
    found = json.loads((tmp_path / "cuda.json").read_text())
    assert found["ceilings"]["ok"], found
    assert found["ceilings"]["fp32_tflops"] > 0
    assert capsys.readouterr().out.startswith("ok   ceilings")


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
    checks.main(["--out", str(tmp_path), "--only", "clock,cells"])
    found = json.loads((tmp_path / "cuda.json").read_text())
    assert [found[name]["ok"] for name in ("clock", "cells")] == [False, True]
    assert "FAIL clock" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*checks.PARTS, *checks.HELPERS])
def test_each_part_is_a_function_of_its_module(name):
    module = checks.HELPERS.get(name) or checks.PARTS[name].module
    assert callable(getattr(importlib.import_module(f"benchmarks.cuda_check.{module}"), name))

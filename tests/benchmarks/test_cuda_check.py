"""The GPU checks run here on the CPU in tiny sizes: what they measure is not judged."""

import importlib
import json
from argparse import Namespace

import pytest
import torch

from benchmarks.cuda_check import __main__ as checks


def test_the_gpu_checks_run_on_a_cpu_without_image_files(tmp_path, capsys):
    checks.main(["--out", str(tmp_path), "--device", "cpu", "--quick", "--only", "ceilings"])
    found = json.loads((tmp_path / "cuda.json").read_text())
    assert found["ceilings"]["ok"], found
    assert found["ceilings"]["fp32_tflops"] > 0
    assert capsys.readouterr().out.startswith("ok   ceilings")


def test_a_part_that_runs_out_of_time_keeps_what_it_found(tmp_path):
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        checks.run_part("deadline", Namespace(out=tmp_path, device="cpu", quick=True, limit=2.2, kind=""))
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / "deadline.json").read_text())
    assert found["ok"] is False
    assert found["error"].startswith("TimeoutError: not done after 2 s")
    assert "rows" in found


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

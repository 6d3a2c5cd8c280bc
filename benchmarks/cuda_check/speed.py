"""Milliseconds: what the card can do, what a step takes, and what the rungs above today's engine would take."""

from __future__ import annotations

import subprocess
import sys
import time
from itertools import product
from typing import Any

import torch
from torch.nn import functional

from benchmarks.cuda_check.box import Box
from benchmarks.support.traffic import bytes_per_image
from budgettune.spec.pruning import visits_of_epochs
from budgettune.spec.study_spec import load_spec
from budgettune.training.data.load import ImageData
from budgettune.training.device import Device
from budgettune.training.learner import Learner, build_model
from budgettune.training.profile.probe import Probe, probe_images

# InfoBatch weighs its samples, and repeats itself to the bit
GRAPHS_PRUNING = {"strategy": "infobatch", "prune_rate": 0.3}


def ceilings(box: Box, found: dict[str, Any]) -> None:
    """What the card can do at all, so that shares have a denominator."""
    found |= {"ok": True, "torch": torch.__version__, "python": sys.version.split()[0]}
    if box.is_cuda:
        properties = torch.cuda.get_device_properties(box.device)
        found |= {"gpu": properties.name, "uuid": str(properties.uuid), "sms": properties.multi_processor_count}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        asked = "driver_version,power.limit,clocks.max.sm,mig.mode.current"
        smi = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
        found[asked] = subprocess.run(smi, capture_output=True, text=True, check=False).stdout.strip()
    size = 512 if box.quick else 8_192
    one, other = (torch.randn(size, size, device=box.device) for _ in range(2))
    for name, dtype, mode in (
        ("bf16", torch.bfloat16, "highest"),
        ("fp32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
    ):
        torch.set_float32_matmul_precision(mode)
        a, b = one.to(dtype), other.to(dtype)
        found[f"{name}_tflops"] = 2 * size**3 / box.ms(lambda a=a, b=b: a @ b, 10) / 1e9
    block = torch.empty((2**26 if box.quick else 2**32) // 4, device=box.device)
    target = torch.empty_like(block)
    found["copy_gb_per_s"] = 2 * block.numel() * 4 / box.ms(lambda: target.copy_(block), 5) / 1e6
    tiny = torch.zeros(1, device=box.device)
    found["us_per_launch"] = 1e3 * box.ms(lambda: tiny.add_(1), 2_000)


def cliff(box: Box, found: dict[str, Any]) -> None:
    """The paper's slow scale 1.1: memory order x choice of kernels x alignment, forward and backward.

    cuDNN's choice is kept by shape for the whole process, whatever was asked for later: heuristic and benchmark look
    at batches that differ by 8. `cold_ms` is the first step at a size that nobody had warmed up.
    """
    rows: dict[str, Any] = {}
    found |= {"ok": True, "rows": rows}
    data, base = box.data(400 if box.quick else 2_000), 32 if box.quick else 1_024
    networks = (("1.0 as coded", 1.0, True), ("1.1 as coded", 1.1, True), ("1.1 aligned", 1.1, False))
    layouts = (("NHWC", torch.channels_last), ("NCHW", torch.contiguous_format))
    for (layout, order), (network, scale, as_coded) in product(layouts, networks):
        spec = box.spec(scale, as_coded=as_coded, epochs=1)
        for precision, choice in product(
            ("fp32", "bf16") if layout == "NHWC" else ("fp32",), ("heuristic", "benchmark")
        ):
            torch.backends.cudnn.benchmark = choice == "benchmark"
            size = base - 8 * (choice == "benchmark")
            model = build_model(spec, data).to(box.device, memory_format=order)

            def step(size: int, model: Any = model, order: Any = order, is_bf16: bool = precision == "bf16") -> None:
                shape = (size, 3, data.image_size, data.image_size)
                images = torch.zeros(shape, device=box.device).contiguous(memory_format=order)
                with torch.autocast(box.device.type, torch.bfloat16, enabled=is_bf16):
                    logits = model(images)
                functional.cross_entropy(logits.float(), data.train.labels[:size]).backward()
                model.zero_grad(set_to_none=True)

            ms = box.ms(lambda size=size, step=step: step(size), 2 if box.quick else 8, 3)
            row = {"us_per_image": 1e3 * ms / size}
            if layout == "NHWC":
                row["cold_ms"] = box.ms_once(lambda size=size, step=step: step(size - 16)) - ms
            rows[f"{network} {layout} {precision} {choice}"] = row


def cells(box: Box, found: dict[str, Any]) -> None:
    """Steps of the paper's networks as coded, from which the seconds of its cells of 30 epochs follow."""
    paper, rows = load_spec("paper"), {}
    found |= {"ok": True, "rows": rows}
    scales, batches = ((1.0,), (100,)) if box.quick else (paper.search["scale"], (2_000, 1_400))
    visits = {
        rate: sum(
            size * count
            for size, count in visits_of_epochs(paper.resolve({"prune_rate": rate}).pruning, 50_000, 30).items()
        )
        for rate in (0.0, 0.3)
    }
    for batch, scale in product(batches, scales):
        config = paper.resolve({"scale": scale, "prune_rate": 0.0, "batch_size": batch})
        if box.quick:
            config = config.resolve({"model.blocks": 1})
        probe = Probe(config, probe_images(config.data, batch, box.device), Device(box.device))
        ms = probe.measure(3 if box.quick else 24).ms_mean
        rows[f"{scale} {batch}"] = {
            "step_ms": ms,
            **{f"cell_s_at_prune_{rate}": count / batch * ms / 1e3 for rate, count in visits.items()},
        }


def recipe(box: Box, found: dict[str, Any]) -> None:
    """The paper's recipe against the engine on the same visits."""
    from benchmarks.paper_recipe import train_paper_recipe  # and Pillow and torchvision, which nothing else here needs

    rows: dict[str, Any] = {}
    found |= {"ok": True, "rows": rows}
    host = box.data(device=torch.device("cpu"))
    device = host.to(box.device)
    # The recipe's rate is that of an epoch between refreshes, ours is of the run: of two epochs one is pruned.
    theirs_pruning = {"strategy": "paper-as-coded", "prune_rate": 0.3, "refresh_every": 2}
    ours_pruning = {"strategy": "stale-quantile", "prune_rate": 0.15, "refresh_every": 2}
    for scale in (1.0,) if box.quick else (1.0, 1.1):
        coded = box.spec(scale, as_coded=True, epochs=2, pruning=theirs_pruning)
        theirs = train_paper_recipe(coded, host, seed=0, device=box.device, workers=2 if box.quick else 4)
        per_s = theirs.visits / theirs.seconds
        rows[f"{scale} recipe"] = {"s": theirs.seconds, "visits": theirs.visits, "images_per_s": per_s}
        for name, as_coded in (("same network", True), ("defaults", False)):
            ours = box.train(box.spec(scale, as_coded=as_coded, epochs=2, pruning=ours_pruning), device)
            speed = ours.samples / ours.train_seconds
            rows[f"{scale} {name}"] = {
                "s": ours.train_seconds,
                "visits": ours.samples,
                "images_per_s": speed,
                "times_faster": speed / per_s,
                "status": ours.status,
            }


def speed(box: Box, found: dict[str, Any]) -> None:
    """A step of our engine, and the rungs above it: bf16, CUDA graphs, compilation."""
    rows: dict[str, Any] = {}
    found |= {"ok": True, "rows": rows}
    data = box.data()
    kinds = {
        "bf16": {"precision": "bf16"},
        "tf32": {"precision": "tf32"},
        "fp32": {"precision": "fp32"},
        "as coded tf32": {"as_coded": True, "precision": "tf32"},
        "as coded fp32": {"as_coded": True},
    }
    for scale, batch in ((1.0, box.batch),) if box.quick else ((1.0, 2_000), (1.0, 500), (1.4, 2_000), (1.0, 1_400)):
        for name, change in kinds.items():
            spec = box.spec(scale, epochs=1, batch_size=batch, **change)
            learner, moved = box.learner(spec, data), bytes_per_image(spec, Device(box.device))
            where = f"{scale} {batch} {name}"
            rows[where] = rate(learner, batch, box.ms(box.step_of(learner, batch), 20), moved)
            if scale == 1.0 and not name.startswith("as coded"):
                learner.capture([batch], gathers=True)
                rows[f"{where} graph"] = rate(learner, batch, box.ms(box.step_of(learner, batch), 20), moved)
    found["graphs"] = graphs(box, data)
    found["ok"] = all(row["equal"] for row in found["graphs"].values())
    if box.is_cuda:  # a minute of a CPU
        compiled(box, data, rows)


def compiled(box: Box, data: ImageData, rows: dict[str, Any]) -> None:
    """As `train.compile` compiles, and in a graph."""
    learner = box.learner(box.spec(epochs=1, precision="bf16", compile=True), data)
    began = time.perf_counter()
    learner.compile(1, [box.batch])
    box.wait()
    compile_s = time.perf_counter() - began
    step = box.step_of(learner, box.batch)
    rows["1.0 compiled bf16"] = rate(learner, box.batch, box.ms(step, 20)) | {"compile_s": compile_s}
    learner.capture([box.batch], gathers=True)
    rows["1.0 compiled bf16 graph"] = rate(learner, box.batch, box.ms(step, 20))


def graphs(box: Box, data: ImageData) -> dict[str, Any]:
    """Does a trial whose steps are graphs end in the very weights of one without; on a CPU both have none."""
    rows = {}
    for optimizer, precision in product(("adam", "sgd"), ("fp32", "bf16")):
        pair = []
        for cuda_graphs in (False, True):
            table = {"optimizer": optimizer, "precision": precision, "cuda_graphs": cuda_graphs}
            table["deterministic"] = True  # else cuDNN may add atomically, and unequal weights say nothing of graphs
            spec = box.spec(epochs=2, batch_size=box.batch // 4, pruning=GRAPHS_PRUNING, **table)
            pair.append(box.train(spec, data, watched=False))
        rows[f"{optimizer} {precision}"] = {
            "equal": pair[0].weights_sha256 == pair[1].weights_sha256,
            "s": [one.train_seconds for one in pair],
            "capture_s": pair[1].phases.capture,
            "peak_mb": [one.peak_memory_mb for one in pair],
        }
    return rows


def rate(learner: Learner, batch: int, ms: float, moved: float | None = None) -> dict[str, Any]:
    """Return the rates of a step of so many milliseconds; `moved` is the bytes per image."""
    row = {"ms": ms, "images_per_s": batch / ms * 1e3, "tflops": 6 * learner.multiply_adds * batch / ms / 1e9}
    row |= {} if moved is None else {"gb_per_s": moved * batch / ms / 1e6}  # compiled kernels move fewer
    return row | {"widths": learner.architecture["widths"]}

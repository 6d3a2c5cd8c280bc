"""What only a GPU can show about the clock.

    python -m benchmarks.cuda_check --device cuda     # `throughput` ends with the same checks

- No step waits for the device: a profiler's trace of a run and of one with twice the steps in as many epochs; what
  the second has more, over the steps it has more, is per step. Waits at the borders of epochs cancel out.
- Nothing to pin: the same count for copies between host and device. Images live on the device, so there are none.
- What cudnn.benchmark is worth at the paper's slow scale 1.1, whose channel counts are odd.
- The first trial of a worker against its tenth, by the training clock.

None of this has ever been run on a GPU. On the CPU the script runs too, which shows that it works and no more.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from benchmarks.support import common
from budgettune.spec.study_spec import StudySpec
from budgettune.training.data.load import ImageData, load_data
from budgettune.training.device import Device, pick_device
from budgettune.training.learner import build_model
from budgettune.training.trainer import train

SCALE = 1.1
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
COPIES = ("Memcpy HtoD", "Memcpy DtoH")
TRIALS = 10
TIMED_STEPS = 20


def check(document: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Run all checks in this process and return their tables.

    Args:
        document: of a study without a search; its model is set to scale 1.1 with the paper's widths where cuDNN is
            looked at.
        device: `cuda`, `cuda:N` or `cpu`.
    """
    spec, device = StudySpec.from_document(document), Device(pick_device(device))
    data = load_data(spec.data)
    return {
        "trials": trial_rows(spec, data, device),  # first of all, while nothing in this process is warm
        "per_step": per_step_rows(spec, data, device),
        "cudnn": cudnn_rows(spec, data, device),
    }


def trial_rows(spec: StudySpec, data: ImageData, device: Device) -> list[dict[str, Any]]:
    """Return the seconds on the clock of a worker's first and tenth trial of one configuration."""
    results = [train(spec, seed=0, data=data, device=device.torch).result for _ in range(TRIALS)]
    first, later = results[0].train_seconds, statistics.median(one.train_seconds for one in results[1:])
    return [
        {
            "first s": first,
            "tenth s": results[-1].train_seconds,
            "median of 2nd to 10th s": later,
            "first / later": first / later,
            "warm-up of the first s": results[0].phases.warmup,
            "of the tenth s": results[-1].phases.warmup,
        }
    ]


def per_step_rows(spec: StudySpec, data: ImageData, device: Device) -> list[dict[str, Any]]:
    """Return how often each kind of wait and copy comes, per run and per step."""
    size = len(data.train) // 2
    batch_size = min(spec.train.batch_size, size // 4)
    small, large = (events(spec, first_images(data, count), device, batch_size) for count in (size, 2 * size))
    steps = large["steps"] - small["steps"]
    return [
        {
            "event": name,
            f"in {small['steps']} steps": small[name],
            f"in {large['steps']} steps": large[name],
            "per step": (large[name] - small[name]) / steps,
        }
        for name in (*WAITS, *COPIES)
    ]


def first_images(data: ImageData, count: int) -> ImageData:
    """Return the same images with only the first `count` to train on."""
    return replace(data, train=data.train.take(torch.arange(count)))


def events(spec: StudySpec, data: ImageData, device: Device, batch_size: int) -> Counter[str]:
    """Return how often waits and copies occur in a training run of two whole epochs, and its steps."""
    overrides = ["train.epochs=2", "train.evaluate_every=2", "prune_rate=0.0", f"batch_size={batch_size}"]
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.is_cuda else [])]
    with profile(activities=activities) as trace:
        result = train(spec.with_overrides(overrides), seed=0, data=data, device=device.torch).result
    found = Counter({"steps": result.steps})
    for event in trace.events() or ():
        for name in (*WAITS, *COPIES):
            found[name] += str(event.name).startswith(name)
    return found


def cudnn_rows(spec: StudySpec, data: ImageData, device: Device) -> list[dict[str, Any]]:
    """Return a step's milliseconds at scale 1.1 in fp32 with cuDNN's heuristic and with its benchmark."""
    rows = []
    for multiple in (1, 8):
        config = spec.with_overrides([f"scale={SCALE}", f"model.width_multiple={multiple}"])
        before = torch.backends.cudnn.benchmark
        try:
            heuristic, measured = (step_milliseconds(config, data, device, on) for on in (False, True))
        finally:
            torch.backends.cudnn.benchmark = before
        rows.append(
            {
                "widths": "/".join(map(str, config.model.realised_widths)),
                "heuristic ms": heuristic,
                "benchmark ms": measured,
                "times faster": heuristic / measured,
            }
        )
    return rows


def step_milliseconds(config: StudySpec, data: ImageData, device: Device, benchmark: bool) -> float:
    """Return the median milliseconds of a forward and backward pass, the device waited for at each border."""
    torch.backends.cudnn.benchmark = benchmark
    size = min(config.train.batch_size, len(data.train))
    model = build_model(config, data).to(device.torch, memory_format=torch.channels_last)
    shape = (size, data.channels, data.image_size, data.image_size)
    images = torch.randn(shape, device=device.torch).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(data.num_classes, (size,), device=device.torch)
    seconds = []
    for _ in range(3 + TIMED_STEPS):
        device.synchronize()
        began = time.perf_counter()
        functional.cross_entropy(model(images), labels).backward()
        model.zero_grad(set_to_none=True)
        device.synchronize()
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds[3:])


def print_checks(tables: Mapping[str, Any]) -> None:
    """Print the tables of `check`."""
    common.print_table("waits and copies (target: 0 per step)", tables["per_step"])
    common.print_table(f"cuDNN at scale {SCALE}, fp32, forward and backward", tables["cudnn"])
    common.print_table("first trial against tenth, on the clock (target: 1)", tables["trials"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.parser(__doc__, images=4_000, batch_size=500)
    parser.set_defaults(device="cuda")
    parser.add_argument("--blocks", type=int, default=3, help="per stage at scale 1")
    parser.add_argument("--epochs", type=int, default=3, help="of the first and the tenth trial")
    options = parser.parse_args(arguments)
    info = common.machine(options)
    print(common.describe(info))
    torch.set_num_threads(options.threads)
    train_table = {"epochs": options.epochs, "batch_size": options.batch_size, "evaluate_every": options.epochs}
    document = {
        "name": "cuda-check",
        "data": common.data_table(options),
        "model": {"blocks": options.blocks},
        "train": train_table | {"precision": "auto"},
    }
    tables = check(document, options.device)
    print_checks(tables)
    common.write_json(options, info, **tables)


if __name__ == "__main__":
    common.start(main)

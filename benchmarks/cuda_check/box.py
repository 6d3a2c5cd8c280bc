"""What every part needs: the device, the sizes, the images, and a stopwatch."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from budgettune.records import TrialResult
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import DataSpec
from budgettune.spec.trust import Trust
from budgettune.training.data.images import ImageSet
from budgettune.training.data.load import ImageData
from budgettune.training.device import Device
from budgettune.training.learner import Learner
from budgettune.training.trainer import train

NEVER = 10**6  # epochs between evaluations
LR = 1e-3


class Box:
    """A device and the sizes that suit it; `quick` ones only show that a part runs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.quick: bool = options.quick
        self.kind: str = options.kind
        self.is_cuda = options.device == "cuda"
        self.device = torch.device("cuda", 0) if self.is_cuda else torch.device("cpu")
        self.images = 400 if self.quick else 50_000
        self.batch = 100 if self.quick else 2_000
        torch.set_num_threads(min(8, os.cpu_count() or 1) if self.is_cuda else 1)

    def data(self, count: int | None = None, classes: int = 100, device: torch.device | None = None) -> ImageData:
        """Return learnable images of CIFAR-100's shape: a smooth template per class, and as much noise.

        Times do not depend on what is in the pictures, and losses spread, so that strategies have work to do.
        """
        count, size = count or self.images, 8 if self.quick else 32
        images, labels = pictures(count + max(200, count // 5), classes, size)
        return ImageData(
            name="cifar100",
            train=ImageSet(images[:count], labels[:count]),
            held_out=ImageSet(images[count:], labels[count:]),
            num_classes=classes,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            flip=True,
            pad=max(1, size // 8),
        ).to(device or self.device)

    def spec(
        self, scale: float = 1.0, *, as_coded: bool = False, pruning: dict[str, Any] | None = None, **table: Any
    ) -> StudySpec:
        """Return a resolved spec; as_coded is the paper's network in fp32, the rest goes into the `[train]` table."""
        model: dict[str, Any] = {"scale": scale, "blocks": 1 if self.quick else 3}
        train_table = {"batch_size": self.batch, "evaluate_every": NEVER, "precision": "auto", "lr": LR}
        if as_coded:
            model |= {"width_multiple": 1, "depth_rounding": "down"}
            train_table["precision"] = "fp32"
        document = {"name": "check", "data": {"name": "cifar100"}, "model": model, "train": train_table | table}
        return StudySpec.from_document(document | {"pruning": pruning or {"strategy": "full"}}).resolve({})

    def train(self, spec: StudySpec, data: ImageData, *, seed: int = 0, watched: bool = True) -> TrialResult:
        witness = Device(self.device).witness() if watched else None
        return train(spec, seed=seed, data=data, device=self.device, witness=witness).result

    def learner(self, spec: StudySpec, data: ImageData, seed: int = 0) -> Learner:
        device = Device(self.device)
        device.prepare()
        torch.manual_seed(seed)
        learner = Learner(spec, data, device, seed, Trust())
        learner.warm_up(2, {spec.train.batch_size}, ())  # where kernels are searched, as in training
        return learner

    def step_of(self, learner: Learner, batch: int) -> Callable[[], None]:
        """Return what takes a whole step: gathering, augmentation, forward, backward, optimiser."""
        indices = torch.arange(batch, device=self.device)

        def step() -> None:
            learner.step(learner.gather(indices, indices), LR)

        return step

    def wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def ms(self, function: Callable[[], Any], repeats: int = 30, warm: int = 5) -> float:
        """Return milliseconds per call, calls following one another as in training: the median of three stretches."""
        for _ in range(warm):
            function()
        return sorted(self.ms_once(function, repeats) for _ in range(3))[1]

    def ms_once(self, function: Callable[[], Any], repeats: int = 1) -> float:
        self.wait()
        began = time.perf_counter()
        for _ in range(repeats):
            function()
        self.wait()
        return 1e3 * (time.perf_counter() - began) / repeats


def pictures(total: int, classes: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, classes, total))
    coarse = torch.from_numpy(rng.random((classes, 3, 4, 4), np.float32))
    templates = (functional.interpolate(coarse, size=(size, size), mode="bilinear") * 127).to(torch.uint8)
    return torch.from_numpy(rng.integers(0, 128, (total, 3, size, size), np.uint8)) + templates[labels], labels


def own_pictures(spec: DataSpec) -> tuple[torch.Tensor, ...]:
    """Return a set for processes that read theirs themselves, a sixth of it held out; `root` is how many."""
    images, labels = pictures(int(spec.root or 0), 10, spec.image_size or 32)
    held_out = len(images) // 6
    return images[held_out:], labels[held_out:], images[:held_out], labels[:held_out]


def beside(box: Box, part: str, kind: str) -> Callable[[], dict[str, Any]]:
    """Start a part in a process of its own; return what waits for it and gives what it found."""
    folder = Path(tempfile.mkdtemp())
    command = [sys.executable, str(Path(__file__).parent), "--part", part, "--kind", kind, "--limit", "100"]
    command += ["--device", box.device.type, "--out", str(folder), *["--quick"] * box.quick]
    child = subprocess.Popen(command)

    def answer() -> dict[str, Any]:
        try:
            child.wait(timeout=100)
        finally:
            child.kill()
        found: dict[str, Any] = json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))
        if "error" in found:
            raise RuntimeError(f"{part} {kind}: {found['error']}")
        return found

    return answer

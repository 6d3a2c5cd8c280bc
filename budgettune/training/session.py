"""Train one configuration in this process, with a witness of its time; keep its model."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from budgettune.errors import UsageError
from budgettune.files import replacing
from budgettune.machine.fingerprint import default_threads
from budgettune.machine.witness import Witness
from budgettune.records import MachineInfo, TrialResult
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import DataSpec
from budgettune.spec.trust import Trust
from budgettune.training.data.load import ImageData, load_data
from budgettune.training.device import Device, pick_device
from budgettune.training.trainer import Trained, train


@dataclass
class DataCache:
    """The last image set, on the device, kept between trials of one process."""

    device: torch.device
    trust: Trust = Trust()
    _spec: DataSpec | None = None
    _data: ImageData | None = None

    def get(self, spec: DataSpec) -> tuple[ImageData, float]:
        """Return the images of a `[data]` table and the seconds that reading them took (0 where they were here)."""
        if self._data is not None and self._spec == spec:
            return self._data, 0.0
        self._data = None  # never two sets in memory
        began = time.perf_counter()
        self._data, self._spec = load_data(spec, trust=self.trust).to(self.device), spec
        return self._data, time.perf_counter() - began


def undisturbed(spec: StudySpec, train_once: Callable[[], TrialResult]) -> tuple[int, TrialResult]:
    """Train until nothing disturbs the clock, as often as `[clock]` allows; return the tries, and the last result."""
    most = 1 + (spec.clock.repeat_limit if spec.clock.on_disturbed == "repeat" else 0)
    tries, result = 1, train_once()
    while result.status == "disturbed" and tries < most:
        tries, result = tries + 1, train_once()
    return tries, result


def prepare_process(device: torch.device, threads: int | None) -> tuple[MachineInfo, Witness]:
    """Fix the number of threads for the whole process; return its machine, and a witness for what is trained in it."""
    torch.set_num_threads(threads or default_threads())
    target = Device(device)
    return target.machine(), target.witness()


def train_one(
    spec: StudySpec,
    params: Mapping[str, Any],
    *,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    trust: Trust = Trust(),
) -> Trained:
    """Train one configuration with its images and a witness, without recording it, and return its result and model.

    Args are those of `trainer.train`, but for the device by its name, and the threads of the CPU (None for
    `default_threads`).
    """
    torch_device = pick_device(device)
    _, witness = prepare_process(torch_device, threads)
    config = spec.resolve(params)
    trust.check_files(config)
    data, load_seconds = DataCache(torch_device, trust).get(config.data)
    return train(
        spec,
        params,
        seed=seed,
        data=data,
        device=torch_device,
        load_seconds=load_seconds,
        trust=trust,
        witness=witness,
    )


def save_model(path: str | Path, trained: Trained, spec: StudySpec, params: Mapping[str, Any]) -> None:
    """Write weights, spec, params and result, all or nothing, to what `torch.load(path, weights_only=True)` reads.

    Raises:
        UsageError: where it cannot be written.
    """
    document = {
        "state_dict": {name: tensor.cpu() for name, tensor in trained.model.state_dict().items()},
        "spec": spec.to_document(),
        "params": dict(params),
        "result": trained.result.to_json(),
    }
    content = io.BytesIO()  # torch, writing to a full disk, tells of its own state and not of the disk
    torch.save(document, content)
    try:
        with replacing(Path(path)) as file:
            file.write(content.getbuffer())
    except OSError as error:
        raise UsageError(f"model file {path} cannot be written: {error.strerror}") from error

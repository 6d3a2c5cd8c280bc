"""Train one configuration in this process, with a witness of its time; keep its model."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed

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
from budgettune.training.group import Group
from budgettune.training.team import Team, follow
from budgettune.training.trainer import train
from budgettune.trial.terms import Trained


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


def prepare_process(device: torch.device, threads: int | None) -> tuple[MachineInfo, Witness]:
    """Fix the number of threads for the whole process; return its machine, and a witness for what is trained in it."""
    torch.set_num_threads(threads or default_threads())
    target = Device(device)
    return target.machine(), target.witness()


def follow_parent() -> None:
    """Be a follower of the process that started this one, which says on standard input where to find it."""
    terms = json.loads(_line(0))
    threading.Thread(target=_end_with, args=(0,), name="parent", daemon=True).start()
    logging.disable(logging.WARNING)  # rank 0 says it already
    trust = Trust(terms["packages"], None if terms["folders"] is None else frozenset(map(Path, terms["folders"])))
    store = distributed.TCPStore("127.0.0.1", terms["port"], None, False)
    follow_rank_0(store, terms["rank"], terms["size"], torch.device(terms["device"]), trust)


def _line(descriptor: int) -> bytes:
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(descriptor, 1)):
        line += byte
    return line


def _end_with(descriptor: int) -> None:
    """End this process when the other side of a pipe is closed, whatever it is doing."""
    while os.read(descriptor, 1):
        pass
    os._exit(0)


def follow_rank_0(store: Any, rank: int, size: int, device: torch.device, trust: Trust) -> None:
    """Train what rank 0 orders, with images of this process's own, until rank 0 ends or is gone."""
    cache = DataCache(device, trust)

    def carry_out(
        spec: StudySpec, params: Mapping[str, Any], seed: int, threads: int
    ) -> Callable[[Group], TrialResult]:
        _, witness = prepare_process(device, threads)
        config = spec.resolve(params)
        trust.check_files(config)
        data, _ = cache.get(config.data)
        return lambda group: (
            train(spec, params, seed=seed, data=data, device=device, trust=trust, witness=witness, group=group).result
        )

    follow(store, rank, size, device, carry_out)


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
    with closing(Team(torch_device, trust)) as team:
        return team.train(spec, params, seed=seed, data=data, load_seconds=load_seconds, witness=witness)


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

"""The built-in training as a worker uses it, with its images, its witness and the processes that train together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from budgettune.records import MachineInfo, TrialResult
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.trust import Trust
from budgettune.study.handle import StudyHandle
from budgettune.training.device import Device, pick_device
from budgettune.training.session import DataCache, follow_rank_0, prepare_process
from budgettune.training.team import Team, torchrun_store
from budgettune.worker.options import Ranks, WorkerOptions
from budgettune.worker.probing import probe_study

logger = logging.getLogger(__name__)


class BuiltIn:
    """Trains what a study file describes with the package's own trainer. Importing this loads torch.

    Attributes:
        device: that it trains on, as torch names it.

    Raises:
        UsageError: where this box has no such device.
    """

    def __init__(self, options: WorkerOptions, trust: Trust) -> None:
        ranks = Ranks.of_torchrun()
        device = pick_device(options.device)
        if ranks is not None and device.type == "cuda":
            device = pick_device(f"cuda:{ranks.on_this_box}")
        self.device, self._torch_device, self._trust = str(device), device, trust
        self._data = DataCache(device, trust)
        _, self._witness = prepare_process(device, options.threads)
        usual = (options.gpus_per_trial or 1) if ranks is None else ranks.size
        store = None if ranks is None else torchrun_store()
        self._team = Team(device, trust, usual=usual, is_fixed=device.type == "cuda", store=store)

    def machine(self, spec: StudySpec) -> MachineInfo:
        """Return the machine that the trials of a study are timed on.

        Raises:
            UsageError: where this worker has another number of processes than the study asks for.
        """
        return self._team.machine(spec)

    def probe(self, study: StudyHandle, limit_seconds: float, should_stop: Callable[[], bool]) -> None:
        """Time steps of a study that nobody has timed on this kind of machine."""
        if self._team.processes(study.spec) > 1:
            logger.warning("study %r: not probed, because a probe times one process", study.name)
            return
        probe_study(
            study.engine,
            study.study_id,
            study.spec,
            self._torch_device,
            limit_seconds=limit_seconds,
            should_stop=should_stop,
            say=logger.info,
        )

    def train(self, spec: StudySpec, params: dict[str, Any], *, seed: int, **hooks: Any) -> TrialResult:
        """Train one configuration; hooks are those of `Team.train`."""
        config = spec.resolve(params)
        self._trust.check_files(config)
        data, load_seconds = self._data.get(config.data)
        return self._team.train(
            spec, params, seed=seed, data=data, load_seconds=load_seconds, witness=self._witness, **hooks
        ).result

    @property
    def is_broken(self) -> bool:
        """Whether the device may wait for good for a process that has left."""
        return self._team.is_broken

    def is_lost(self) -> bool:
        """Whether the device answers this process no more."""
        return Device(self._torch_device).is_lost()

    def close(self) -> None:
        """End the processes that train with this one."""
        self._team.close()


def follow_torchrun(ranks: Ranks, options: WorkerOptions, trust: Trust) -> None:
    """Train with the worker of rank 0, until it ends or is gone."""
    device = pick_device(options.device)
    if device.type == "cuda":
        device = pick_device(f"cuda:{ranks.on_this_box}")
    follow_rank_0(torchrun_store(), ranks.rank, ranks.size, device, trust)

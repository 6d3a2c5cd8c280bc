"""A few warmed-up steps of configurations that never ran, timed on this box."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch

from budgettune.errors import OutOfMemory
from budgettune.predict.workload import Workload
from budgettune.records import StepProbe
from budgettune.training.data import ImageData
from budgettune.training.device import Device
from budgettune.training.probe import Probe, probe_images

SECONDS_OF_STEPS = 0.3
FEWEST_STEPS, MOST_STEPS = 5, 50


def probe_steps(
    workloads: Sequence[Workload],
    device: torch.device,
    *,
    limit_seconds: float,
    allow_import: Collection[str] = (),
    say: Callable[[str], None] = lambda line: None,
    make_probe: Callable[..., Probe] = Probe,
    clock: Callable[[], float] = time.perf_counter,
) -> list[StepProbe]:
    """Time the step of each distinct workload, until the time is up.

    They come in an order that spreads over the search space, so that a probe cut short still says something of all.
    What does not fit into memory is left out.

    Args:
        workloads: of one study; those whose steps are equal are timed once.
        device: to train on; the threads are those that the process has.
        limit_seconds: after which no further probe begins.
        allow_import: packages that code named in the spec may come from.
        say: told what happens, a line at a time.
        make_probe: builds a probe; a stand-in for tests.
        clock: seconds, monotonic.

    Raises:
        DataError: where images that are not built in cannot be read.
    """
    distinct = list({workload.step: workload for workload in workloads}.values())
    order = np.random.default_rng(0).permutation(len(distinct)).tolist()
    images = _Images(distinct, device, allow_import)
    box, began, found = Device(device), clock(), []
    for place, index in enumerate(order):
        if clock() - began >= limit_seconds:
            break
        workload, since = distinct[index], clock()
        say(f"probe {place + 1} of {len(distinct)}: {workload.step}")
        try:
            probe = make_probe(workload.config, images.of(workload), box, allow_import=allow_import)
            result = probe.measure(FEWEST_STEPS)
            more = round(SECONDS_OF_STEPS * 1e3 / result.ms_median)
            if more > FEWEST_STEPS:
                result = probe.measure(min(MOST_STEPS, more))
        except OutOfMemory as error:
            say(f"left out: {error}")
            continue
        found.append(
            StepProbe(
                params=workload.params,
                step=workload.step,
                ms_median=result.ms_median,
                ms_mad=result.ms_mad,
                steps=result.steps,
                seconds=clock() - since,
            )
        )
    return found


class _Images:
    """Images to probe with, shared by configurations that read the same."""

    def __init__(self, workloads: Sequence[Workload], device: torch.device, allow_import: Collection[str]) -> None:
        self._device, self._allow_import = device, allow_import
        self._largest: dict[str, int] = {}
        self._made: dict[str, ImageData] = {}
        for workload in workloads:
            key = workload.config.data.model_dump_json()
            self._largest[key] = max(self._largest.get(key, 0), workload.batch)

    def of(self, workload: Workload) -> ImageData:
        """Return images for a workload: as many as the largest batch of its data takes."""
        key = workload.config.data.model_dump_json()
        if key not in self._made:
            data = workload.config.data
            self._made = {key: probe_images(data, self._largest[key], self._device, self._allow_import)}
        return self._made[key]


"""Probes of a study: steps that nobody has timed on this kind of machine, timed here and kept with the study."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from budgettune.errors import DataError, OutOfMemory, StopRequested, UsageError
from budgettune.machine.fingerprint import default_threads
from budgettune.predict.predictor import unmeasured
from budgettune.predict.workload import Workload
from budgettune.records import StepProbe
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.connection import Engine
from budgettune.storage.studies import add_probes, read_probes
from budgettune.storage.trials import trial_records
from budgettune.training.device import Device, pick_device
from budgettune.training.profile.probe import Probe, fewest_steps, probe_images

SECONDS_OF_STEPS = 0.3
FEWEST_STEPS, MOST_STEPS = 5, 50  # the fewest on a CPU


def probe_here(
    engine: Engine,
    study_id: int,
    spec: StudySpec,
    *,
    limit_seconds: float,
    device: str = "auto",
    threads: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """Probe a study in this process; return the kind of machine that this is.

    After `limit_seconds` no further probe begins; `threads` None means `default_threads`.

    Raises:
        StudyNotFound: where the study was deleted meanwhile.
        UsageError: where several processes train a trial.
    """
    if (spec.train.processes or 1) > 1:
        raise UsageError(
            f"a probe times the steps of one process, and {spec.train.processes} train a trial of this study: "
            f"leave --probe out, and answer from trials that have run"
        )
    torch.set_num_threads(threads or default_threads())
    chosen = pick_device(device)
    probe_study(engine, study_id, spec, chosen, limit_seconds=limit_seconds, say=say)
    return Device(chosen).machine().key


def probe_study(
    engine: Engine,
    study_id: int,
    spec: StudySpec,
    device: torch.device,
    *,
    limit_seconds: float,
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda line: None,
) -> list[StepProbe]:
    """Probe what neither a finished trial nor a probe of this kind of machine has timed; return the new probes.

    As `probe_here`, on a device whose threads are set; `should_stop` is asked before each probe.
    """
    machine_key = Device(device).machine().key
    records = trial_records(engine, study_id, documents=False)
    known = read_probes(engine, study_id).get(machine_key, [])
    ends = time.perf_counter() + limit_seconds
    steps = unmeasured(spec, records, known, machine_key)
    probes = probe_steps(steps, device, should_stop=lambda: should_stop() or time.perf_counter() >= ends, say=say)
    if probes:
        add_probes(engine, study_id, machine_key, probes)
    return probes


def probe_steps(
    workloads: Sequence[Workload],
    device: torch.device,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda line: None,
) -> list[StepProbe]:
    """Time the step of each workload on random images of a built-in set's shape.

    They come in an order that spreads over the search space, so that a probe cut short still says something of all.
    What does not fit into memory is left out.
    """
    target, probes = Device(device), []
    target.prepare()  # as training does
    for place, index in enumerate(np.random.default_rng(0).permutation(len(workloads))):
        if should_stop():
            break
        say(f"probe {place + 1} of {len(workloads)}: {workloads[index].step}")
        try:
            probes.append(_probe(workloads[index], target))
        except (DataError, OutOfMemory) as error:
            say(f"left out: {error}")
        except StopRequested:
            break
    return probes


def _probe(workload: Workload, device: Device) -> StepProbe:
    began = time.perf_counter()
    probe = Probe(workload.config, probe_images(workload.config.data, workload.batch, device.torch), device)
    fewest = fewest_steps(device, on_cpu=FEWEST_STEPS)
    result = probe.measure(fewest)
    steps = min(MOST_STEPS, round(SECONDS_OF_STEPS * 1e3 / result.ms_median))
    if steps > fewest:
        result = probe.measure(steps)
    return StepProbe(
        params=workload.params,
        step=workload.step,
        ms_mean=result.ms_mean,
        ms_error=result.ms_error,
        steps=result.steps,
        seconds=time.perf_counter() - began,
    )

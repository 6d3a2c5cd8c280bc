"""A study whose truth is known: step times with fixed costs and a kernel cliff, learning curves, chance of seeds.

The truth is not one of the shapes that `budgettune.predict` fits: errors fall by powers of length to a floor that
depends on size and pruning, in the error and not in its logit, and annealing takes off a share of the error.
"""

import math
import random
from dataclasses import dataclass
from itertools import product

from budgettune.predict.run_time import effective_steps
from budgettune.predict.workload import Workloads
from budgettune.records import EpochRecord, MachineInfo, PhaseSeconds, StepProbe, TrialRecord
from budgettune.spec.study_spec import StudySpec

MACHINE = MachineInfo(hostname="box", device="cpu", device_name="Simulated CPU", cores=2, threads=2)
CLIFF = (24, 48, 96)
"""Widths that fall off a kernel cliff."""


def simulated_spec(**search):
    """Return a study of 5 scales, 4 prune rates and 4 batches, or of other axes."""
    axes = {
        "scale": [0.5, 0.75, 1.0, 1.5, 2.0],
        "prune_rate": [0.0, 0.15, 0.3, 0.45],
        "batch_size": [32, 64, 128, 256],
    }
    return StudySpec.from_document(
        {
            "name": "simulated",
            "data": {"name": "fashion-mnist", "train_size": 4_000, "image_size": 14},
            "model": {"blocks": 1},
            "train": {"epochs": 12, "precision": "fp32"},
            "pruning": {"strategy": "random"},
            "search": search or axes,
            "sampler": {"name": "random" if any(isinstance(axis, dict) for axis in search.values()) else "grid"},
        }
    )


@dataclass
class World:
    """Where trials of a study run.

    Args:
        spec: of the study.
        seed: of all chance.
        run_deviation: of the log of a run's time.
        seed_deviation: of the logit of a middling run's accuracy.
    """

    spec: StudySpec
    seed: int = 0
    run_deviation: float = 0.01
    seed_deviation: float = 0.04

    def __post_init__(self):
        self.workloads = Workloads(self.spec, [])

    def step_seconds(self, workload):
        """Return what a full step truly costs."""
        cliff = 1.6 if workload.config.model.realised_widths == CLIFF else 1.0
        network = workload.arithmetic
        per_image = cliff * (network.multiply_adds * 6e-11 + network.traffic * 4e-9)
        return 2e-4 * network.layers + per_image * workload.batch

    def train_seconds(self, workload, epochs):
        """Return what a run truly takes, its chance aside."""
        step = self.step_seconds(workload)
        fixed = 2e-4 * workload.arithmetic.layers / step
        return step * effective_steps(workload.epoch_sizes(epochs), workload.batch, fixed)

    def error(self, workload, samples):
        """Return the true error at the end of a run that visited so many samples, its chance aside."""
        size = workload.arithmetic.multiply_adds / 2.5e6
        rate = workload.config.pruning.prune_rate
        own = 0.01 * random.Random(f"{workload.params}").gauss(0, 1)
        floor = 0.09 + 0.05 * size**-0.4 + 0.05 * rate**2
        length = samples / (workload.batch + 100) / 250
        return min(0.9, (floor + 0.08 * size**-0.1 * length**-0.8) * math.exp(own))

    def accuracy(self, workload, epochs):
        """Return the true mean accuracy of a run."""
        return 1 - self.error(workload, workload.visits(epochs))

    def trial(self, number, params, repeat=0):
        """Return the record of one trial."""
        chance = random.Random(f"{self.seed}/{sorted(params.items())}/{repeat}")
        workload = self.workloads.of(params)
        epochs = params.get("train.epochs", self.spec.train.epochs)
        seconds = self.train_seconds(workload, epochs) * math.exp(chance.gauss(0, self.run_deviation))
        curve = self._curve(workload, epochs, seconds, chance)
        return TrialRecord(
            number=number,
            state="COMPLETE",
            params=params,
            train_seconds=seconds,
            value=curve[-1].value,
            repeat=repeat,
            status="clean",
            keep_fraction=sum(epoch.samples for epoch in curve) / workload.images / epochs,
            epochs=epochs,
            steps=sum(epoch.steps for epoch in curve),
            multiply_adds=workload.arithmetic.multiply_adds,
            device_name=MACHINE.key,
            curve=curve,
            phases=PhaseSeconds(plan=0.001 * seconds, data=0.1 * seconds, step=0.89 * seconds, observe=0.002 * seconds),
            machine=MACHINE,
        )

    def _curve(self, workload, epochs, seconds, chance):
        shift = chance.gauss(0, self.seed_deviation)
        sizes = [size for size, count in workload.epoch_sizes(epochs).items() for _ in range(count)]
        curve = []
        for epoch, size in enumerate(sizes):
            progress = (epoch + 1) / epochs
            left = 1 - progress
            # As far as a whole run of the same sum of learning rates, less what annealing has yet to take off.
            error = min(0.95, self.error(workload, sum(sizes) * (1 - left**2)) * (1 + 0.5 * left))
            noise = shift + chance.gauss(0, 0.02 + 0.3 * left**1.5)
            logit = math.log((1 - error) / error) + noise
            curve.append(
                EpochRecord(
                    epoch=epoch,
                    train_seconds=seconds * progress,
                    steps=math.ceil(size / workload.batch),
                    samples=size,
                    loss=error,
                    value=1 / (1 + math.exp(-logit)),
                )
            )
        return tuple(curve)

    def probes(self):
        """Return a probe of each step, which misses a little of what a step of a run costs."""
        distinct = {workload.step: workload for workload in map(self.workloads.of, self.spec.cells())}
        return [self._probe(workload) for workload in distinct.values()]

    def _probe(self, workload):
        seconds = 0.97 * self.step_seconds(workload) * math.exp(random.Random(workload.step).gauss(0, 0.01))
        return StepProbe(
            params=workload.params, step=workload.step, ms_mean=1e3 * seconds, ms_error=0.0, steps=50, seconds=0.5
        )

    def table(self, repeats=3):
        """Return the trials of all cells, each several times."""
        cells = product(self.spec.cells(), range(repeats))
        return [self.trial(number, params, repeat) for number, (params, repeat) in enumerate(cells)]

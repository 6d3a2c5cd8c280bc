"""Studies of own training code whose truth is known: losses that fall by powers of length, times by powers of width."""

import math
import random
from dataclasses import dataclass

from budgettune.records import EpochRecord, PhaseSeconds, TrialRecord
from budgettune.spec.study_spec import StudySpec
from tests.support.simulated import MACHINE

AXES = {
    "params.width": [32, 64, 96, 128],
    "params.batch": [8, 16, 32],
    "params.lr": {"low": 1e-3, "high": 1e-1, "log": True},
    "train.epochs": {"low": 4, "high": 12},
}


def own_spec(direction="minimize", search=None, name="loss", **tables):
    """Return a study of own training code."""
    return StudySpec.from_document(
        {
            "name": "own",
            "train": {"loop": "nowhere:train", "epochs": 8},
            "objective": {"name": name, "direction": direction},
            "params": {"width": 64, "batch": 16, "lr": 0.01},
            "search": search or AXES,
            "sampler": {"name": "random", "trials": 16},
        }
        | tables
    )


@dataclass
class OwnWorld:
    """Where trials of own training code run: loss is minimised, its negative maximised, and 1 - loss / 4 a share.

    Args:
        spec: of the study.
        seed: of all chance.
        run_deviation: of the log of a run's time.
        seed_deviation: of the log of a run's loss.
        anneals: whether the learning rate falls to zero, so that points within a curve are worse than ends there.
        growth: by which each epoch takes longer than the one before.
    """

    spec: StudySpec
    seed: int = 0
    run_deviation: float = 0.03
    seed_deviation: float = 0.02
    anneals: bool = False
    growth: float = 0.0

    def seconds(self, params, epochs):
        """Return what a run truly takes, its chance aside."""
        p = {"width": 64, "batch": 16} | {key.removeprefix("params."): value for key, value in params.items()}
        epoch = 0.02 * (0.3 + p["width"] / 64) * (8 / p["batch"]) ** 0.7
        return epoch * sum(1 + self.growth * number for number in range(epochs))

    def loss(self, params, epochs):
        """Return the true loss at the end of a run, its chance aside."""
        p = {"width": 64, "batch": 16, "lr": 0.01} | {k.removeprefix("params."): v for k, v in params.items()}
        best = 0.012 * (p["batch"] / 16) ** 0.5
        own = 0.01 * random.Random(f"{sorted(params.items())}").gauss(0, 1)
        off = (math.log(p["lr"] / best)) ** 2
        floor = 0.6 + 0.35 * (32 / p["width"]) ** 0.7
        return (floor + 0.8 * (epochs * 4 / p["batch"] ** 0.5) ** -0.7) * math.exp(0.05 * off + own)

    def value(self, loss):
        """Return a loss as the study's objective."""
        if self.spec.objective.is_accuracy:
            return 1 - loss / 4
        return loss if self.spec.objective.direction == "minimize" else -loss

    def trial(self, number, params, repeat=0):
        """Return the record of one trial."""
        chance = random.Random(f"{self.seed}/{sorted(params.items())}/{repeat}")
        own = {key: value for key, value in params.items() if key != "train.epochs"}
        epochs = params.get("train.epochs", self.spec.train.epochs)
        speed, shift = math.exp(chance.gauss(0, self.run_deviation)), chance.gauss(0, self.seed_deviation)
        curve = []
        for epoch in range(epochs):
            left = 1 - (epoch + 1) / epochs
            loss = self.loss(own, epoch + 1) * math.exp(shift + chance.gauss(0, 0.3 * self.seed_deviation))
            if self.anneals:
                loss *= 1 + 0.4 * left
            curve.append(
                EpochRecord(
                    epoch=epoch,
                    train_seconds=self.seconds(own, epoch + 1) * speed,
                    steps=25,
                    value=self.value(loss),
                )
            )
        return TrialRecord(
            number=number,
            state="COMPLETE",
            params=params,
            train_seconds=curve[-1].train_seconds,
            value=curve[-1].value,
            repeat=repeat,
            status="clean",
            epochs=epochs,
            device_name=MACHINE.key,
            curve=tuple(curve),
            phases=PhaseSeconds(step=curve[-1].train_seconds),
            machine=MACHINE,
            measures={"memory": 10.0 * params.get("params.width", 64)},
        )

    def drawn(self, count):
        """Return trials of points drawn at random."""
        chance = random.Random(self.seed)
        points = []
        for _ in range(count):
            place = {key: chance.random() for key in self.spec.search}
            points.append(
                {
                    key: axis[int(place[key] * len(axis))] if isinstance(axis, tuple) else axis.at(place[key])
                    for key, axis in self.spec.search.items()
                }
            )
        return [self.trial(number, point) for number, point in enumerate(points)]

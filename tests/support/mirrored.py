"""Two finished studies of own code: one minimises a loss, the other maximises its negative; all else is equal."""

import math
import random
from contextlib import ExitStack, contextmanager

from budgettune.records import EpochRecord, PhaseSeconds, TrialResult
from budgettune.spec.study_spec import StudySpec
from budgettune.study.handle import create_study
from tests.support.studies import machine

KEY = "validation_loss"
SEARCH = {"params.rank": [1, 2, 4, 8, 16, 32], "params.rate": [0.1, 0.5]}
REPEATS = 2


def own_spec(direction="minimize", name="mirror", **more):
    """Return a study of own code whose objective is a loss."""
    document = {
        "name": name,
        "train": {"loop": "mine:train", "epochs": 6},
        "search": SEARCH,
        "sampler": {"repeats": REPEATS},
        "objective": {"name": "validation loss", "direction": direction},
    }
    return StudySpec.from_document(document | more)


def own_result(seconds, values, seed=1, **more):
    """Return what a loop gives that reports one value an epoch, in the direction of its study."""
    curve = tuple(
        EpochRecord(epoch=epoch, train_seconds=seconds * (epoch + 1) / len(values), value=value)
        for epoch, value in enumerate(values)
    )
    facts = {"epochs": len(values), "curve": curve, "machine": machine(), "phases": PhaseSeconds(step=seconds)}
    return TrialResult(train_seconds=seconds, value=values[-1], seed=seed, **facts | more)


def losses_of(params, repeat, epochs=6):
    """Return seconds and a curve of losses: larger ranks are slower and better, a high rate is worse."""
    rank, rate = params["params.rank"], params["params.rate"]
    rng = random.Random(f"{rank}/{rate}/{repeat}")
    end = 0.4 + 1.2 / rank**0.7 + rate + rng.gauss(0, 0.02)
    losses = [end + 3.0 * math.exp(-0.9 * (epoch + 1)) + rng.gauss(0, 0.01) for epoch in range(epochs - 1)]
    return 2.0 * rank**0.8 * (1 + 0.02 * rng.random()), [*losses, end]


def work_off_mirrored(study, sign, **more):
    """Finish all trials of a study, its values being the losses or their negatives."""
    while (claim := study.claim()) is not None:
        seconds, losses = losses_of(claim.params, claim.repeat)
        measures = {"memory": 100.0 * claim.params["params.rank"]}
        study.complete(claim, own_result(seconds, [sign * loss for loss in losses], measures=measures, **more))


@contextmanager
def mirrored_pair(url_of, **changes):
    """Yield the study that minimises and the one that maximises, both finished; `url_of` gives each its database."""
    with ExitStack() as stack:
        pair = []
        for direction, sign in (("minimize", 1.0), ("maximize", -1.0)):
            study = stack.enter_context(create_study(own_spec(direction, **changes), url_of(direction)))
            work_off_mirrored(study, sign)
            pair.append(study)
        yield tuple(pair)


def negated(value, keys=(KEY,)):
    """Return JSON values with the numbers under some keys negated."""
    if isinstance(value, dict):
        return {
            name: -item if name in keys and isinstance(item, float) else negated(item, keys)
            for name, item in value.items()
        }
    return [negated(item, keys) for item in value] if isinstance(value, list) else value

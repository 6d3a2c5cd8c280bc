"""Comparisons made by hand, for tests of what is concluded from them."""

from budgettune.comparison.plan import shared_spec
from budgettune.comparison.result import Arm, ComparedRun, Comparison, Measured
from budgettune.spec.study_spec import load_spec
from tests.support.studies import machine

MACHINE = machine("Abacus")
DIGITS = load_spec("digits")
FULL_AT = (0.80, 0.81, 0.79, 0.80, 0.80)
BETTER = (0.85, 0.86, 0.85, 0.85, 0.86)
ALIKE = (0.81, 0.79, 0.80, 0.81, 0.80)


def run(arm, accuracy, *, seed=0, budget=10.0, status="clean", keep=0.7):
    measured = accuracy is not None and Measured(
        status=status,
        test_accuracy=accuracy,
        train_seconds=budget,
        prune_seconds=0.01 * budget,
        keep_fraction=keep,
        epochs=7,
        steps=70,
    )
    return ComparedRun(
        strategy=arm.strategy,
        prune_rate=arm.prune_rate,
        budget_seconds=budget,
        seed=seed,
        measured=measured or None,
        failure=None if measured else "out-of-memory: no room",
    )


def comparison(accuracies, *, budget=10.0, shuffle_labels=0.0, spec=DIGITS):
    """Return a comparison of arms ("name rate") with an accuracy per seed."""
    runs = [
        run(arm_of(name), accuracy, seed=seed, budget=budget)
        for name, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]
    return Comparison(
        spec=shared_spec(spec).to_document(), shuffle_labels=shuffle_labels, machine=MACHINE, runs=tuple(runs)
    )


def arm_of(name):
    strategy, _, rate = name.partition(" ")
    return Arm(strategy, float(rate or 0))


def joined(*comparisons):
    return comparisons[0].model_copy(update={"runs": tuple(r for one in comparisons for r in one.runs)})

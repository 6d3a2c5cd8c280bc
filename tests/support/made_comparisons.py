"""Comparisons made by hand, for tests of what is concluded from them."""

from budgettune.comparison.plan import shared_spec
from budgettune.comparison.result import Arm, ComparedRun, Comparison, JudgedOn, Measured
from budgettune.spec.study_spec import load_spec
from tests.support.studies import machine

MACHINE = machine("Abacus")
DIGITS = load_spec("digits")
FULL_AT = (0.80, 0.81, 0.79, 0.80, 0.80)
BETTER = (0.85, 0.86, 0.85, 0.85, 0.86)
ALIKE = (0.81, 0.79, 0.80, 0.81, 0.80)
RATES = (0.01, 0.03, 0.09)
JUDGES = {"scored": JudgedOn(images="test", count=360), "tuning": JudgedOn(images="validation", count=144)}


def run(arm, accuracy, *, seed=0, budget=10.0, status="clean", keep=0.7, lr=0.01, purpose="scored"):
    measured = accuracy is not None and Measured(
        status=status,
        accuracy=accuracy,
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
        lr=lr,
        purpose=purpose,
        seed=seed,
        measured=measured or None,
        failure=None if measured else "out-of-memory: no room",
    )


def tuning(name, means, *, budget=10.0, seeds=2):
    """Return the tuning runs of an arm ("name rate"), as accurate at each rate as said; None for failed ones."""
    return [
        run(arm_of(name), mean, seed=100 + seed, budget=budget, lr=lr, purpose="tuning")
        for lr, mean in means.items()
        for seed in range(seeds)
    ]


def comparison(accuracies, *, budget=10.0, shuffle_labels=0.0, spec=DIGITS, rates=None):
    """Return a comparison of arms ("name rate") with an accuracy per seed.

    Each is tuned to 0.03, in the middle of RATES, or to what `rates` says; where that is {}, nothing is tuned.
    """
    runs = []
    for name, values in accuracies.items():
        best = 0.01
        if rates != {}:
            best = (rates or {}).get(name, 0.03)
            runs += tuning(name, {lr: 0.8 if lr == best else 0.7 for lr in RATES}, budget=budget)
        runs += [run(arm_of(name), accuracy, seed=seed, budget=budget, lr=best) for seed, accuracy in enumerate(values)]
    return Comparison(
        spec=shared_spec(spec).to_document(),
        shuffle_labels=shuffle_labels,
        judged_on=JUDGES,
        machine=MACHINE,
        runs=tuple(runs),
    )


def arm_of(name):
    strategy, _, rate = name.partition(" ")
    return Arm(strategy, float(rate or 0))


def joined(*comparisons):
    return comparisons[0].model_copy(update={"runs": tuple(r for one in comparisons for r in one.runs)})

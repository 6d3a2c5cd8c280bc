"""The figures of the page in order, each with a heading and how to read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """One figure on the page.

    Attributes:
        figure: its name in FIGURES.
        title: heading.
        guide: how to read it, for somebody who has never seen one.
    """

    figure: str
    title: str
    guide: str


SECTIONS = (
    Section(
        "answer",
        "What should I train?",
        "The staircase is the best accuracy that a finished trial reached within each budget of training time.",
    ),
    Section(
        "front",
        "Every trial: time against accuracy",
        "One marker per finished trial; up and to the left is better. The red staircase is the Pareto front: for every "
        "trial below it, some other one is at least as fast and more accurate. Hover over a marker, or tap it, for its "
        "details.",
    ),
    Section(
        "curves",
        "Accuracy while training",
        "Each line is one trial, from its first epoch to its last. The red staircase is the best that any trial had "
        "reached by then. Accuracy on the way promises little: a learning rate that falls to zero earlier would have "
        "ended better.",
    ),
    Section(
        "panels",
        "The same trials, panel by panel",
        "Each panel holds the trials of one value, on the same scales. Red is the front of the panel, dotted the front "
        "of all trials.",
    ),
    Section("times", "What takes time", "Where values are few, lines join the median times of trials of one colour."),
    Section(
        "accuracies",
        "What gives accuracy",
        "Each cell has the mean accuracy of its trials, whatever their other parameters, and how many they are.",
    ),
    Section(
        "importance",
        "Which parameters matter",
        "Permutation importance (Breiman 2001) of a random forest, on trials that it was not fitted to (five folds; "
        "repeats stay together): how much its error grows when it is told wrong values of one parameter. Time counts "
        "by its logarithm.",
    ),
    Section(
        "repeats",
        "How much is chance",
        "Means over the repeats of each configuration, which differ in their seed only. Bars reach one standard "
        "deviation to each side.",
    ),
    Section(
        "phases",
        "Where the time went",
        "Phases on the clock add up to the training time. Hatched ones are off the clock and count for nothing.",
    ),
    Section(
        "pruning",
        "Samples left out",
        "The prune rate asks for a share of the run's sample visits to be dropped. On the dotted line as much was "
        "dropped; some strategies let chance or the model decide, and `paper-as-coded` drops what its script drops.",
    ),
    Section(
        "hypervolume",
        "How the search went",
        "Hypervolume is the area below the front, up to the reference point. It grows when a trial joins the front.",
    ),
)

FORECAST_SECTIONS = (
    Section(
        "recommended",
        "What should I train, of all that could run?",
        "`budgettune recommend --budget` gives the same answer for one budget, and says what to run next to know more. "
        "The configuration stands where you hover; each ends within its budget in 9 of 10 cases.",
    ),
    Section(
        "surface",
        "Budget by budget, value by value",
        "Each cell is the best run of that value that ends within the budget. Right: how far it may be off.",
    ),
    Section(
        "predicted",
        "How good are these predictions?",
        "Each marker is a trial, predicted from the configurations that remain when its own is taken away. On the "
        "dotted line the prediction came true. Bars are 90% intervals.",
    ),
    Section(
        "calibration",
        "Are they as sure as they should be?",
        "An honest 50% interval holds half of the trials. Below the dotted line predictions are too sure of "
        "themselves, above it too shy.",
    ),
)
"""Figures of what never ran."""

STOPPED = Section(
    "stopping",
    "Trials that were stopped early",
    "Trials add up from left to right: blue is what they trained, green what they would have trained to their end, as "
    "forecast when they were stopped. Controls are trials that the rule would have stopped and that ran on to test it.",
)
"""For the whole study, machines together."""

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
        "The prune rate is what a pruned epoch drops. Over the whole training less is left out where some epochs keep "
        "everything. On the dotted line the two agree.",
    ),
    Section(
        "hypervolume",
        "How the search went",
        "Hypervolume is the area below the front, up to the reference point. It grows when a trial joins the front.",
    ),
)

"""Statistics of a handful of seeds: arms against a baseline that has more of them, one noise for all.

Pure functions of numbers. Run k of every arm starts from the same weights and order, so its seed is a block: what a
seed does to all arms alike is told apart from the noise of single runs. The model is

    accuracy = mean of the arm + effect of the seed + noise,

with the seeds' effects random. The ratio of the two variances is that of restricted maximum likelihood (Patterson and
Thompson 1971), the means are those of generalised least squares, and the noise is the residual mean square with seeds
as fixed blocks, whose degrees of freedom are exact and count nothing of seeds that one arm alone has. All arms are held
against the baseline by Dunnett's test (1955), which counts how many there are. Where the arms' own noises differ by
more than chance would have it, each is drawn towards a common one, as Smyth (2004) does for genes: with one noise for
all, 38 arms whose deviations differ by a quarter would give a false winner in 12 of 100 comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from scipy import optimize, special

ALPHA = 0.05
POWER = 0.8
APART_AT = 0.01
"""Chance of taking an arm out of the common noise though its own is no larger, over all arms at once."""
NO_SPREAD = 1e-9
"""Below it a standard deviation of accuracies is rounding: the smallest real step is 1 / held-out images."""
CLEAR_ERRORS = 1.0  # standard errors beyond chance from which on the arms' noises are not taken for one
LARGEST_RATIO = 1e4  # of the variance of seeds over that of runs; beyond, seeds might as well be fixed

A = TypeVar("A", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds; the other values are None where too few runs leave them unknown."""

    count: int
    mean: float
    low: float | None = None  # ends of the 95% interval by Student's t
    high: float | None = None
    deviation: float | None = None  # sample standard deviation over seeds


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far an arm is from the baseline; intervals hold and p counts for all arms at once."""

    mean: float
    error: float  # its standard error
    low: float | None  # ends of the simultaneous 95% interval; None where the runs show no noise at all
    high: float | None
    p: float  # that chance alone shows any arm as far from the baseline, on either side
    freedom: float  # degrees of freedom behind the error
    test: Literal["dunnett", "welch"]  # Welch's (1947) with Bonferroni's correction, for an arm of a noise of its own


@dataclass(frozen=True, kw_only=True)
class Fit(Generic[A]):
    """The arms of one budget, held against a baseline."""

    baseline: A
    accuracy: Mapping[A, Estimate]  # of every arm with a run
    differences: Mapping[A, Difference]  # of every arm with two runs, but the baseline
    pool: Noise | None  # what the arms of equal noise share; None where nothing can be said of it
    apart: tuple[A, ...]  # arms whose own noise is larger than that
    most_runs: int  # of one arm that is not the baseline

    def detectable(self, seeds: int, baseline_seeds: int) -> float | None:
        """Return the true difference that so many seeds call significant four times in five; None if unknown.

        Of one arm, at the constant of Dunnett's test for all, by the noise that was seen here.
        """
        others = len(self.differences)
        if self.pool is None or not others or seeds < 2:
            return None
        met = np.zeros((max(seeds, baseline_seeds), 1 + others))
        met[:seeds] = 1
        met[:, 0] = 1
        covariance = np.linalg.inv(_information(met, self.pool.ratio))
        spread, errors = _against_first(covariance)
        freedom = min((seeds - 1) * (others - len(self.apart)), self.pool.weight + seeds - 1)
        critical = dunnett_critical(_loadings(spread), freedom)
        return float(special.nctdtrinc(freedom, 1 - POWER, critical)) * self.pool.deviation * float(errors[0])


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What chance does to single runs."""

    deviation: float  # standard deviation of a run, the effect of its seed taken off
    freedom: int
    ratio: float  # variance of the seeds' effects over that of the runs
    weight: float  # degrees of freedom that the common noise counts for beside an arm's own; infinite where all are one
    own: Mapping[Any, tuple[float, float]]  # variance and degrees of freedom by arm, the common noise weighed in


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of one or more values, with its interval where there are two."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count < 2:
        return Estimate(count=count, mean=mean)
    deviation = float(np.std(values, ddof=1))
    half = _t(count - 1) * deviation / math.sqrt(count)
    return Estimate(count=count, mean=mean, low=mean - half, high=mean + half, deviation=deviation)


def compare_arms(runs: Mapping[A, Mapping[int, float]], baseline: A) -> Fit[A]:
    """Hold every arm against a baseline.

    Args:
        runs: accuracy of each seed that an arm finished; arms without any are left out.
        baseline: an arm, which may be missing: then there are no differences.
    """
    runs = {arm: by_seed for arm, by_seed in runs.items() if by_seed}
    own = {arm: estimate(list(by_seed.values())) for arm, by_seed in runs.items()}
    tested = [arm for arm, found in own.items() if arm != baseline and found.count > 1]
    if baseline not in own or own[baseline].count < 2:
        tested = []
    most_runs = max((found.count for arm, found in own.items() if arm != baseline), default=0)
    pooled = {arm: runs[arm] for arm in [baseline, *tested]} if tested else {}
    apart = _apart(pooled)
    layout = _Layout({arm: by_seed for arm, by_seed in pooled.items() if arm not in apart})
    pool = layout.noise if len(layout.arms) > 1 and baseline in layout.arms else None
    if pool is not None and pool.deviation < NO_SPREAD:
        pool = None
    accuracy = dict(own)
    differences: dict[A, Difference] = {}
    if pool is not None:
        accuracy |= layout.means(pool, own)
        differences |= layout.against_first(pool, len(tested))
    for arm in tested:
        if arm not in differences and (arm in apart or baseline in apart):
            differences[arm] = _welch(own[arm], own[baseline], len(tested))
        elif arm not in differences:
            differences[arm] = _no_proof(own[arm].mean - own[baseline].mean)
    return Fit(
        baseline=baseline,
        accuracy=accuracy,
        differences={arm: differences[arm] for arm in tested},
        pool=pool,
        apart=tuple(apart),
        most_runs=most_runs,
    )


class _Layout(Generic[A]):
    """Which arm ran with which seed, and how accurate that was: a row per seed, a column per arm."""

    def __init__(self, runs: Mapping[A, Mapping[int, float]]) -> None:
        self.arms = list(runs)
        seeds = {seed: row for row, seed in enumerate(dict.fromkeys(seed for arm in runs.values() for seed in arm))}
        self.met = np.zeros((len(seeds), len(self.arms)))  # 1 where there is a run
        self.values = np.zeros_like(self.met)
        for column, by_seed in enumerate(runs.values()):
            for seed, value in by_seed.items():
                self.met[seeds[seed], column], self.values[seeds[seed], column] = 1, value
        self.middle = float(self.values.sum() / max(1.0, self.met.sum()))
        self.values -= self.met * self.middle  # small numbers lose no digits

    def residual(self) -> tuple[float, int]:
        """Return the sum of squares that arms and seeds, both fixed, leave over, and its degrees of freedom."""
        if not self.arms:
            return 0.0, 0
        sizes = self.met.sum(1)
        information = _information(self.met, math.inf)
        right = self.values.sum(0) - self.met.T @ (self.values.sum(1) / sizes)
        effects, _, rank, _ = np.linalg.lstsq(information, right, rcond=1e-9)
        rest = self.met * (self.values - effects)
        rest -= self.met * (rest.sum(1) / sizes)[:, None]
        return float((rest**2).sum()), round(self.met.sum()) - len(sizes) - int(rank)

    @cached_property
    def noise(self) -> Noise | None:
        squares, freedom = self.residual()
        if freedom < 1:
            return None
        added = self.added()
        variance, weight = _common([(squares, freedom) for squares, freedom, _, _ in added.values()])
        own = dict.fromkeys(self.arms, (squares / freedom, float(freedom)))
        if weight < freedom:
            for arm, (its_squares, its_freedom, _, _) in added.items():
                both = weight + its_freedom
                own[arm] = ((weight * variance + its_squares) / both, min(both, freedom))
        deviation = math.sqrt(squares / freedom)
        return Noise(deviation=deviation, freedom=freedom, ratio=self._ratio(), weight=weight, own=own)

    def added(self) -> dict[A, tuple[float, int, float, int]]:
        """Return what each arm adds to the residual of all others, and theirs: each squares and degrees of freedom.

        The two are independent, whatever the seeds do. Arms that add or leave none are left out.
        """
        squares, freedom = self.residual()
        found = {}
        for column, arm in enumerate(self.arms):
            rest, rest_freedom = self._without(column).residual()
            if freedom > rest_freedom > 0:
                found[arm] = (max(0.0, squares - rest), freedom - rest_freedom, rest, rest_freedom)
        return found

    def _without(self, column: int) -> _Layout[A]:
        others = [place for place in range(len(self.arms)) if place != column]
        seeds = self.met[:, others].sum(1) > 0
        rest: _Layout[A] = _Layout({})
        rest.arms = [self.arms[place] for place in others]
        rest.met, rest.values = self.met[seeds][:, others], self.values[seeds][:, others]
        return rest

    def means(self, pool: Noise, own: Mapping[A, Estimate]) -> dict[A, Estimate]:
        """Return the mean of each arm, with an interval for it alone by as many degrees of freedom as seeds allow."""
        means, covariance = self._solve(pool.ratio)
        halves = _t(len(self.met) - 1) * pool.deviation * np.sqrt(np.diag(covariance))
        return {
            arm: Estimate(
                count=own[arm].count, mean=mean, low=mean - half, high=mean + half, deviation=own[arm].deviation
            )
            for arm, mean, half in zip(self.arms, means.tolist(), halves.tolist(), strict=True)
        }

    def against_first(self, pool: Noise, count: int) -> dict[A, Difference]:
        """Return how far each arm is from the first, by Dunnett's test as if there were `count` other arms."""
        means, covariance = self._solve(pool.ratio)
        spread, errors = _against_first(covariance)
        loadings = _loadings(spread)
        loadings = np.append(loadings, [loadings.mean()] * (count - len(loadings)))
        of_first, _ = pool.own[self.arms[0]]
        found = {}
        for place, arm in enumerate(self.arms[1:], start=1):
            variance, freedom = pool.own[arm]
            mean, alone = float(means[place] - means[0]), 1 / float(self.met[:, place].sum())
            error = math.sqrt(variance * alone + of_first * max(0.0, float(errors[place - 1]) ** 2 - alone))
            half = dunnett_critical(loadings, freedom) * error
            found[arm] = Difference(
                mean=mean,
                error=error,
                low=mean - half,
                high=mean + half,
                p=dunnett_p(abs(mean) / error, loadings, freedom),
                freedom=freedom,
                test="dunnett",
            )
        return found

    def _solve(self, ratio: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the arms' means, and their covariance in units of the noise's variance."""
        information = _information(self.met, ratio)
        right = self.values.sum(0) - self.met.T @ (_shrunk(self.met, ratio) * self.values.sum(1))
        covariance = np.linalg.inv(information)
        return covariance @ right + self.middle, covariance

    def _ratio(self) -> float:
        """Return the ratio of variances under which the residuals are likeliest."""
        sizes, total = self.met.sum(1), float((self.values**2).sum())

        def lack(log_ratio: float) -> float:
            ratio = math.exp(log_ratio)
            means, covariance = self._solve(ratio)
            weights = _shrunk(self.met, ratio)
            right = self.values.sum(0) - self.met.T @ (weights * self.values.sum(1))
            squares = total - float((weights * self.values.sum(1) ** 2).sum()) - right @ (means - self.middle)
            freedom = float(sizes.sum()) - len(self.arms)
            logarithms = freedom * math.log(max(squares, 1e-300)) + np.log1p(ratio * sizes).sum()
            return float(logarithms - np.linalg.slogdet(covariance)[1])

        lowest, highest = math.log(1e-6), math.log(LARGEST_RATIO)
        grid = np.linspace(lowest, highest, 24)
        nearest = int(np.argmin([lack(place) for place in grid]))
        between = (grid[max(0, nearest - 1)], grid[min(len(grid) - 1, nearest + 1)])
        return math.exp(float(optimize.minimize_scalar(lack, bounds=between, method="bounded").x))


def _apart(runs: Mapping[A, Mapping[int, float]]) -> list[A]:
    """Return the arms whose noise is far larger than the others', the clearest first, by F tests."""
    found: list[A] = []
    left = dict(runs)
    while len(left) > 2:
        chances = {
            arm: float(special.fdtrc(freedom, rest_freedom, squares / freedom / (rest / rest_freedom)))
            for arm, (squares, freedom, rest, rest_freedom) in _Layout(left).added().items()
            if rest > NO_SPREAD**2
        }
        loosest = min(chances, key=chances.__getitem__, default=None)
        if loosest is None or chances[loosest] > APART_AT / len(runs):
            break
        found.append(loosest)
        del left[loosest]
    return found


def _common(parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Return the variance that the arms' own ones lie around, and how many degrees of freedom that is worth.

    Smyth's estimates (2004), of squares and degrees of freedom: infinite where they do not clearly differ. Of a few
    arms the estimates are too rough to gain anything by them.
    """
    if len(parts) < 3:
        return 0.0, math.inf
    squares, freedom = np.array(parts, dtype=float).T
    logs = np.log(np.maximum(squares / freedom, NO_SPREAD**2)) - special.digamma(freedom / 2) + np.log(freedom / 2)
    chance = float(special.polygamma(1, freedom / 2).mean())  # what their variance would be
    excess = float(logs.var(ddof=1)) - chance
    if excess < CLEAR_ERRORS * chance * math.sqrt(2 / (len(parts) - 1)):
        return 0.0, math.inf
    half = math.exp(optimize.brentq(lambda place: special.polygamma(1, math.exp(place)) - excess, -9, 18))
    return math.exp(float(logs.mean()) + float(special.digamma(half)) - math.log(half)), 2 * half


def _welch(arm: Estimate, baseline: Estimate, comparisons: int) -> Difference:
    """Return a difference by both sides' own noise, corrected for the number of comparisons."""
    assert arm.deviation is not None and baseline.deviation is not None
    parts = [(side.deviation or 0.0) ** 2 / side.count for side in (arm, baseline)]
    difference, error = arm.mean - baseline.mean, math.sqrt(sum(parts))
    if error < NO_SPREAD:
        return _no_proof(difference)
    terms = zip(parts, (arm.count, baseline.count), strict=True)
    freedom = sum(parts) ** 2 / sum(part**2 / (count - 1) for part, count in terms)
    half = error * float(special.stdtrit(freedom, 1 - ALPHA / comparisons / 2))
    p = min(1.0, comparisons * 2 * float(special.stdtr(freedom, -abs(difference) / error)))
    return Difference(
        mean=difference,
        error=error,
        low=difference - half,
        high=difference + half,
        p=p,
        freedom=freedom,
        test="welch",
    )


def _no_proof(difference: float) -> Difference:
    """Return a difference of runs that show no noise at all, by which nothing can be told from chance."""
    return Difference(mean=difference, error=0.0, low=None, high=None, p=1.0, freedom=0, test="dunnett")


# --- Dunnett's test -------------------------------------------------------------------------------------------------


def dunnett_critical(loadings: np.ndarray, freedom: float, level: float = 1 - ALPHA) -> float:
    """Return the constant that all arms' t values stay within, on either side, with a probability.

    Args:
        loadings: one per arm; two arms' t values are correlated as the product of theirs.
        freedom: of the common noise.
    """
    least, most = (float(special.stdtrit(freedom, 1 - (1 - level) / n / 2)) for n in (1, len(loadings)))
    if most <= least * (1 + 1e-12):
        return least
    low, high = 0.999 * least, 1.001 * most  # of one arm alone, and of Bonferroni's correction
    return float(optimize.brentq(lambda limit: 1 - level - dunnett_p(limit, loadings, freedom), low, high, xtol=1e-7))


def dunnett_p(limit: float, loadings: np.ndarray, freedom: float) -> float:
    """Return the probability that an arm's t value is beyond a limit, on either side, where no arm differs.

    Given the baseline's mean and the noise, the arms are independent: an integral over these two is left.
    """
    kinds, counts = np.unique(np.round(loadings, 6), return_counts=True)
    scales, scale_weights = _scales(freedom)
    places, place_weights = _normal_places()
    bound = limit * scales[:, None, None]
    shift = kinds * places[None, :, None]
    rest = np.sqrt(1 - kinds**2)
    beyond = special.ndtr((-bound - shift) / rest) + special.ndtr((-bound + shift) / rest)
    within = np.exp((counts * np.log1p(-np.minimum(beyond, 1 - 1e-16))).sum(-1))
    return float(min(1.0, max(0.0, scale_weights @ (1 - within) @ place_weights)))


@lru_cache
def _scales(freedom: float, count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return places and weights of the noise's estimate over its truth: the root of chi-square over its freedom."""
    least, most = (math.sqrt(special.chdtri(freedom, tail) / freedom) for tail in (1 - 1e-12, 1e-12))
    places, weights = np.polynomial.legendre.leggauss(count)
    places, weights = least + (most - least) * (places + 1) / 2, weights * (most - least) / 2
    logs = (freedom - 1) * np.log(places) - freedom * places**2 / 2
    logs += freedom / 2 * math.log(freedom) - special.gammaln(freedom / 2) - (freedom / 2 - 1) * math.log(2)
    weights = weights * np.exp(logs)
    return places, weights / weights.sum()


@lru_cache
def _normal_places(count: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Return places and weights of a standard normal value."""
    places, weights = np.polynomial.legendre.leggauss(count)
    places, weights = 8 * places, 8 * weights * np.exp(-((8 * places) ** 2) / 2)
    return places, weights / weights.sum()


def _against_first(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the correlation of the differences from the first mean, and their errors."""
    spread = covariance[1:, 1:] - covariance[1:, :1] - covariance[:1, 1:] + covariance[0, 0]
    errors = np.sqrt(np.diag(spread))
    return spread / np.outer(errors, errors), errors


def _loadings(correlation: np.ndarray) -> np.ndarray:
    """Return one number per arm, whose products are the correlations: exactly where all arms ran with all seeds."""
    count = len(correlation)
    if count == 1:
        return np.zeros(1)
    rest = correlation - np.diag(np.diag(correlation))
    loadings = np.full(count, math.sqrt(max(0.0, rest.sum() / (count * (count - 1)))))
    for _ in range(50):  # of least squares, an arm at a time given the others
        others = (loadings**2).sum() - loadings**2
        loadings = np.clip(rest @ loadings / np.maximum(others, 1e-12), 0.0, 0.999)
    return loadings


def _shrunk(met: np.ndarray, ratio: float) -> np.ndarray:
    """Return, by seed, the share of its runs' sum that is taken for the seed's effect, per run."""
    sizes: np.ndarray = met.sum(1)
    return 1 / sizes if math.isinf(ratio) else ratio / (1 + ratio * sizes)


def _information(met: np.ndarray, ratio: float) -> np.ndarray:
    """Return the inverse covariance of the arms' means, in units of the noise's variance."""
    return np.asarray(np.diag(met.sum(0)) - met.T @ (_shrunk(met, ratio)[:, None] * met))


def _t(freedom: float) -> float:
    return float(special.stdtrit(freedom, 1 - ALPHA / 2))

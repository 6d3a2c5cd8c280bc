"""Statistics over a handful of seeds, against tables, closed forms, scipy and simulated seeds."""

import math

import numpy as np
import pytest
from scipy import stats

from budgettune.comparison.significance import compare_arms, dunnett_critical, dunnett_p, estimate


def drawn(random, arms=4, seeds=5, of_full=10, seed_deviation=0.5, deviations=None):
    """Return accuracies of `full` and arms 1, 2, … that differ by chance alone."""
    deviations = [1.0] * (1 + arms) if deviations is None else deviations
    effects = seed_deviation * random.normal(size=max(seeds, of_full))
    counts = [of_full] + [seeds] * arms
    return {
        number or "full": dict(enumerate((effects[:count] + spread * random.normal(size=count)).tolist()))
        for number, (count, spread) in enumerate(zip(counts, deviations, strict=True))
    }


def equal(count):
    """Return the loadings of arms that are as many runs each as the baseline."""
    return np.full(count, math.sqrt(0.5))


def test_a_mean_of_three_has_the_interval_of_the_tables():
    found = estimate([1.0, 2.0, 3.0])
    assert (found.count, found.mean, found.deviation) == (3, 2.0, 1.0)
    half = 4.302653 / math.sqrt(3)  # Student's t at 97.5% with 2 degrees of freedom
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-6)


def test_one_value_has_a_mean_and_no_interval():
    found = estimate([0.5])
    assert (found.mean, found.low, found.high, found.deviation) == (0.5, None, None, None)
    assert compare_arms({"full": {1: 0.5}, 1: {1: 0.6}}, "full").differences == {}
    assert compare_arms({}, "full").accuracy == {}


# --- Dunnett's test -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freedom", "constants"),  # two-sided, 5%, of 1 to 9 arms (Dunnett 1964, table II)
    [
        (5, [2.57, 3.03, 3.29, 3.48, 3.62, 3.73, 3.82, 3.90, 3.97]),
        (10, [2.23, 2.57, 2.76, 2.89, 2.99, 3.07, 3.14, 3.19, 3.24]),
        (20, [2.09, 2.38, 2.54, 2.65, 2.73, 2.80, 2.86, 2.90, 2.95]),
        (60, [2.00, 2.27, 2.41, 2.51, 2.58, 2.64, 2.69, 2.73, 2.77]),
    ],
)
def test_dunnetts_constant_is_that_of_the_tables(freedom, constants):
    found = [dunnett_critical(equal(count), freedom) for count in range(1, 10)]
    assert found == pytest.approx(constants, abs=0.006)


def test_dunnetts_p_is_that_of_scipy():
    random = np.random.default_rng(0)
    arms, control = [random.normal(0.3 * shift, 1, 7 + shift) for shift in range(4)], random.normal(0, 1, 12)
    expected = stats.dunnett(*arms, control=control, rng=np.random.default_rng(1))
    sizes = np.array([len(arm) for arm in arms])
    found = [dunnett_p(abs(t), np.sqrt(sizes / (sizes + 12)), sizes.sum() + 12 - 5) for t in expected.statistic]
    assert found == pytest.approx(expected.pvalue, abs=2e-3)


def test_p_and_the_constant_belong_together_and_one_arm_alone_is_students():
    assert dunnett_p(dunnett_critical(equal(38), 340), equal(38), 340) == pytest.approx(0.05, abs=1e-6)
    assert dunnett_p(2.5, equal(1), 7) == pytest.approx(2 * stats.t.sf(2.5, 7), abs=1e-9)
    assert dunnett_p(40.0, equal(38), 340) < 1e-9


# --- the model ------------------------------------------------------------------------------------------------------


def test_two_arms_of_equal_seeds_are_a_paired_t_test():
    runs = drawn(np.random.default_rng(2), arms=1, seeds=6, of_full=6)
    found = compare_arms(runs, "full").differences[1]
    expected = stats.ttest_rel(list(runs[1].values()), list(runs["full"].values()))
    low, high = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    assert (found.mean, found.low, found.high) == pytest.approx(((low + high) / 2, low, high))
    assert found.freedom == 5


def test_balanced_runs_have_the_variances_of_the_analysis_of_variance():
    runs = drawn(np.random.default_rng(3), arms=3, seeds=8, of_full=8)
    table = np.array([list(by_seed.values()) for by_seed in runs.values()])
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    noise, of_seeds = (rest**2).sum() / (3 * 7), 4 * table.mean(0).var(ddof=1)
    pool = compare_arms(runs, "full").pool
    assert pool.freedom == 3 * 7
    assert pool.deviation == pytest.approx(math.sqrt(noise))
    assert pool.ratio == pytest.approx((of_seeds - noise) / 4 / noise, rel=1e-3)
    found = compare_arms(runs, "full")
    for arm, row in zip([1, 2, 3], table[1:], strict=True):
        assert found.differences[arm].mean == pytest.approx(row.mean() - table[0].mean())
        assert found.differences[arm].error == pytest.approx(math.sqrt(2 * noise / 8))


def test_seeds_that_full_alone_has_add_no_degrees_of_freedom_and_make_differences_surer():
    runs = drawn(np.random.default_rng(4), of_full=30)
    shared = {arm: {seed: by_seed[seed] for seed in range(5)} for arm, by_seed in runs.items()}
    many, few = compare_arms(runs, "full"), compare_arms(shared, "full")
    assert many.pool.freedom == few.pool.freedom == 4 * 4
    assert many.differences[1].error < 0.85 * few.differences[1].error


def test_a_seed_that_is_bad_for_all_is_nobodys_fault():
    runs = {"full": {1: 0.8, 2: 0.5}, 1: {1: 0.81, 2: 0.515, 3: 0.8}, 2: {1: 0.802, 3: 0.79}}
    found = compare_arms(runs, "full").differences
    assert found[2].mean == pytest.approx(0.0, abs=0.01)  # means of 0.65 and 0.796
    assert list(found) == [1, 2]


@pytest.mark.parametrize("values", [[0.5, 0.5, 0.5], [0.1 + 0.2, 0.3, 0.4]])
def test_equal_differences_are_no_proof(values):
    runs = {"full": dict(enumerate(values)), 1: {seed: value + 0.1 for seed, value in enumerate(values)}}
    found = compare_arms(runs, "full").differences[1]
    assert (found.mean, found.p, found.low) == (pytest.approx(0.1), 1.0, None)


def test_an_arm_of_five_times_the_noise_is_set_apart_and_tested_by_welchs_test():
    runs = drawn(np.random.default_rng(5), seeds=8, of_full=16, deviations=[1, 1, 1, 5, 1])
    found = compare_arms(runs, "full")
    assert found.apart == (3,)
    expected = stats.ttest_ind(list(runs[3].values()), list(runs["full"].values()), equal_var=False)
    assert found.differences[3].p == pytest.approx(min(1.0, 4 * expected.pvalue))
    assert found.differences[3].test == "welch"
    without = compare_arms({arm: by_seed for arm, by_seed in runs.items() if arm != 3}, "full")
    assert found.pool == without.pool
    assert found.differences[1].p > without.differences[1].p  # four are counted, and not three


@pytest.mark.slow
def test_the_smallest_difference_is_called_significant_four_times_in_five():
    random = np.random.default_rng(6)
    size = compare_arms(drawn(random, seeds=40, of_full=80), "full").detectable(6, 12)
    seen = 0
    for _ in range(400):
        runs = drawn(random, seeds=6, of_full=12)
        runs[2] = {seed: value + size for seed, value in runs[2].items()}
        found = compare_arms(runs, "full")
        seen += found.differences[2].p <= 0.05
    assert found.detectable(12, 24) < found.detectable(6, 12)
    assert seen / 400 == pytest.approx(0.8, abs=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("seed_deviation", [0.0, 2.0])
@pytest.mark.parametrize(("arms", "seeds", "of_full"), [(1, 5, 10), (4, 5, 10), (4, 2, 4)])
def test_at_most_one_comparison_in_twenty_finds_what_is_not_there(arms, seeds, of_full, seed_deviation):
    random = np.random.default_rng(0)
    wrong, outside = 0, 0
    for _ in range(400):
        found = compare_arms(drawn(random, arms, seeds, of_full, seed_deviation), "full").differences.values()
        wrong += any(difference.p <= 0.05 for difference in found)
        outside += any(not difference.low <= 0 <= difference.high for difference in found)
    assert wrong == outside
    assert wrong / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_arms_of_different_noise_are_each_held_by_their_own_drawn_towards_the_others():
    random, spreads = np.random.default_rng(8), [1.0, *np.exp(0.5 * np.random.default_rng(9).normal(size=20))]
    found = compare_arms(drawn(random, arms=20, seeds=10, of_full=40, deviations=spreads), "full")
    assert found.pool.weight < 40
    errors = [found.differences[arm].error for arm in found.differences if arm not in found.apart]
    spread = [spreads[arm] for arm in found.differences if arm not in found.apart]
    assert np.corrcoef(errors, spread)[0, 1] > 0.7
    assert all(difference.freedom < found.pool.freedom for difference in found.differences.values())
    alike = compare_arms(drawn(random, arms=20, seeds=10, of_full=40), "full")
    assert max(d.error for d in alike.differences.values()) < 1.3 * min(d.error for d in alike.differences.values())


@pytest.mark.slow
def test_noises_that_differ_make_few_false_winners():
    random, wrong = np.random.default_rng(10), 0
    for _ in range(300):
        spreads = np.exp(0.25 * random.normal(size=13))
        found = compare_arms(drawn(random, arms=12, seeds=10, of_full=35, deviations=spreads), "full")
        wrong += any(difference.p <= 0.05 for difference in found.differences.values())
    assert wrong / 300 <= 0.10

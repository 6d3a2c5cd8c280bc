"""Statistics over a handful of seeds, against hand-computed values, brute force and scipy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from budgettune.comparison.significance import (
    estimate,
    holm,
    paired_test,
    pooled_deviation,
    sign_flip_p,
    smallest_detectable,
    smallest_exact_p,
)

points = st.integers(-40, 40).map(lambda steps: steps / 400)


def test_a_mean_of_three_has_the_interval_of_the_tables():
    found = estimate([1.0, 2.0, 3.0])
    assert (found.count, found.mean, found.deviation) == (3, 2.0, 1.0)
    half = 4.302653 / math.sqrt(3)  # Student's t at 97.5% with 2 degrees of freedom
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-6)


def test_one_value_has_a_mean_and_no_interval():
    found = estimate([0.5])
    assert (found.mean, found.low, found.high, found.deviation) == (0.5, None, None, None)
    assert paired_test([0.5]) is None


def test_p_of_the_paired_t_test_has_its_closed_form_for_two_and_three_pairs():
    assert paired_test([1.0, 3.0]).t_p == pytest.approx(1 - 2 / math.pi * math.atan(2))
    assert paired_test([1.0, 2.0, 3.0]).t_p == pytest.approx(1 - math.sqrt(12 / 14))


@given(st.lists(points, min_size=3, max_size=9).filter(lambda values: np.std(values) > 1e-3))
def test_tests_and_interval_agree_with_scipy(values):
    found, expected = paired_test(values), stats.ttest_1samp(values, 0.0)
    assert found.t_p == pytest.approx(expected.pvalue, rel=1e-6)
    low, high = expected.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high), abs=1e-9)


@given(st.lists(points, min_size=2, max_size=7))
def test_the_exact_test_counts_every_sign_flip(values):
    flips = [float(np.dot(signs, values)) for signs in itertools.product((1, -1), repeat=len(values))]
    as_far = sum(abs(flip) >= abs(sum(values)) - 1e-12 for flip in flips)
    assert sign_flip_p(values) == pytest.approx(as_far / len(flips))


@pytest.mark.parametrize("count", [2, 5, 6])
def test_the_exact_test_cannot_go_below_two_of_all_flips(count):
    assert sign_flip_p([0.01 * (1 + number) for number in range(count)]) == smallest_exact_p(count) == 2 / 2**count


def test_many_pairs_are_flipped_at_random_and_always_alike():
    values = list(np.random.default_rng(0).normal(0.5, 1.0, 20))
    assert sign_flip_p(values) == sign_flip_p(values)
    assert sign_flip_p(values) == pytest.approx(paired_test(values).t_p, abs=0.02)


@pytest.mark.parametrize(("values", "p"), [([0.1 + 0.2, 0.3], 0.5), ([0.0, 0.0, 0.0], 1.0), ([-0.1] * 3, 0.25)])
def test_equal_differences_are_no_proof(values, p):
    found = paired_test(values)
    assert found.t_p == found.exact_p == p


def test_holm_corrects_in_steps_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([0.5, 0.9]) == (1.0, 1.0)
    assert holm([0.02]) == (0.02,)
    assert holm([]) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_definition_rejects(values):
    rejected, ranked = set(), sorted(range(len(values)), key=values.__getitem__)
    for rank, index in enumerate(ranked):
        if values[index] * (len(values) - rank) > 0.05:
            break
        rejected.add(index)
    assert {index for index, p in enumerate(holm(values)) if p <= 0.05} == rejected


@pytest.mark.parametrize(("count", "comparisons"), [(3, 1), (5, 4), (20, 1)])
def test_the_smallest_detectable_difference_is_detected_four_times_in_five(count, comparisons):
    difference = smallest_detectable(0.02, count, comparisons=comparisons)
    draws = np.random.default_rng(1).normal(difference, 0.02, (40_000, count))
    p = stats.ttest_1samp(draws, 0.0, axis=1).pvalue
    assert np.mean(p <= 0.05 / comparisons) == pytest.approx(0.8, abs=0.01)


def test_deviations_are_pooled_as_variances():
    assert pooled_deviation([3.0, 4.0]) == pytest.approx(math.sqrt(12.5))

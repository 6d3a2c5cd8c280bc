"""Scores of samples, the choice by them, and scores that a user brings."""

import itertools
import math
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from budgettune.errors import DataError
from budgettune.training.pruning.scores import (
    el2n,
    keep_by_score,
    keep_by_strata,
    last_layer_grad_norm,
    negative_margin,
    read_scores,
    softmax_error,
)

VALUES = st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0, float("nan"), float("inf")]), min_size=1, max_size=12)


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch():
    generator = chance(1)
    return torch.randn(9, 4, generator=generator), torch.randint(4, (9,), generator=generator)


class TestScoresOfASample:
    def test_el2n_is_the_norm_of_softmax_minus_onehot(self, batch):
        for logits, label, score in zip(batch[0], batch[1].tolist(), el2n(*batch).tolist(), strict=True):
            exps = [math.exp(value) for value in logits.tolist()]
            error = [exp / sum(exps) - (place == label) for place, exp in enumerate(exps)]
            assert score == pytest.approx(math.sqrt(sum(value**2 for value in error)), rel=1e-5)

    def test_the_error_is_what_autograd_finds(self, batch):
        logits = batch[0].clone().requires_grad_()
        functional.cross_entropy(logits, batch[1], reduction="sum").backward()
        torch.testing.assert_close(softmax_error(*batch), logits.grad)

    def test_the_gradient_norm_is_that_of_the_last_layer_sample_by_sample(self, batch):
        features, labels = torch.randn(9, 5, generator=chance(2)), batch[1]
        layer = nn.Linear(5, 4)
        scores = last_layer_grad_norm(layer(features).detach(), labels, features)
        for feature, label, score in zip(features, labels, scores.tolist(), strict=True):
            layer.zero_grad()
            functional.cross_entropy(layer(feature), label).backward()
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in layer.parameters()))
            assert score == pytest.approx(norm, rel=1e-5)

    def test_the_margin_is_the_largest_wrong_probability_minus_the_right_one(self, batch):
        for logits, label, margin in zip(*batch, negative_margin(*batch).tolist(), strict=True):
            *_, best_wrong = sorted(p for k, p in enumerate(logits.softmax(0).tolist()) if k != label)
            assert margin == pytest.approx(best_wrong - float(logits.softmax(0)[label]), abs=1e-6)

    def test_one_class_alone_is_learnt_and_has_no_margin_of_error(self):
        logits, labels = torch.randn(3, 1, generator=chance()), torch.zeros(3, dtype=torch.int64)
        assert el2n(logits, labels).tolist() == [0, 0, 0]
        assert negative_margin(logits, labels).tolist() == [-1, -1, -1]

    def test_half_precision_is_scored_in_single(self, batch):
        logits = batch[0].bfloat16()
        torch.testing.assert_close(el2n(logits, batch[1]), el2n(logits.float(), batch[1]), rtol=0, atol=0)


class TestKeepByScore:
    @given(VALUES, st.data(), st.sampled_from(["hard", "middle", "easy"]))
    def test_keeping_agrees_with_sorting(self, values, data, side):
        drop = data.draw(st.integers(0, len(values) + 2))
        kept = keep_by_score(torch.tensor(values), drop, side, chance()).tolist()
        finite = sorted(value for value in values if math.isfinite(value))
        gone = min(drop, len(finite), len(values) - 1)
        below = {"hard": gone, "middle": gone // 2, "easy": 0}[side]
        expected = finite[below : len(finite) - (gone - below)]
        assert kept == sorted(set(kept))
        assert sorted(values[k] for k in kept if math.isfinite(values[k])) == expected
        assert {k for k, value in enumerate(values) if not math.isfinite(value)} <= set(kept)
        assert len(kept) == len(values) - gone >= 1

    def test_each_tied_sample_is_as_likely_to_stay(self):
        generator, stays = chance(), torch.zeros(6)
        for _ in range(3_000):
            stays[keep_by_score(torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 2.0]), 3, "hard", generator)] += 1
        assert stays[0] == 0
        assert stays[5] == 3_000
        assert stays[1:5].sub(1_500).abs().max() < 150  # five standard deviations

    def test_the_global_random_state_is_untouched(self):
        state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
        keep_by_score(torch.ones(9), 4, "hard", chance())
        keep_by_strata(torch.rand(9, generator=chance()), 4, cut=0.1, generator=chance())
        assert torch.equal(torch.get_rng_state(), state)
        assert np.array_equal(np.random.get_state()[1], numpy_state)


def algorithm_1(scores: list[float], budget: int, cut: int, strata: int) -> list[int]:
    """Return how many samples each stratum gives, read line by line from Zheng et al. 2023."""
    left = sorted(scores)[: len(scores) - cut]
    low, width = left[0], (left[-1] - left[0]) / strata
    pools = [0] * strata
    for score in left:
        pools[min(strata - 1, int((score - low) / width)) if width else 0] += 1
    given_by, open_strata = [0] * strata, {k for k in range(strata) if pools[k]}
    while open_strata:
        least = min(open_strata, key=lambda k: pools[k])
        given_by[least] = min(pools[least], budget // len(open_strata))
        open_strata -= {least}
        budget -= given_by[least]
    return given_by


class TestKeepByStrata:
    @given(
        st.lists(st.integers(0, 40), min_size=2, max_size=40),
        st.floats(0, 0.99),
        st.sampled_from([0.0, 0.1, 0.5]),
        st.sampled_from([1, 3, 8]),
    )
    def test_every_stratum_gives_what_the_algorithm_says(self, values, rate, cut, strata):
        scores, drop = torch.tensor(values).float(), int(rate * len(values))
        kept = keep_by_strata(scores, drop, cut=cut, strata=strata, generator=chance())
        hardest = min(drop, int(cut * len(values)))
        assert len(kept) == len(set(kept.tolist())) == len(values) - drop
        highest = sorted(values)[len(values) - hardest - 1]
        assert scores[kept].max() <= highest
        low, width = min(values), (highest - min(values)) / strata
        found = [0] * strata
        for value in scores[kept].tolist():
            found[min(strata - 1, int((value - low) / width)) if width else 0] += 1
        expected = algorithm_1([float(value) for value in values], len(values) - drop, hardest, strata)
        assert sorted(found) == sorted(expected)  # strata of equal size may share a remainder in either order
        assert all(abs(one - other) <= 1 for one, other in zip(found, expected, strict=True))

    def test_samples_without_a_finite_score_stay_and_the_others_make_up_for_them(self):
        scores = torch.tensor([0.0, 1.0, 2.0, torch.nan, torch.inf, 3.0, 4.0, 5.0])
        for seed in range(20):
            kept = keep_by_strata(scores, 4, cut=0.25, strata=3, generator=chance(seed)).tolist()
            assert len(kept) == 4
            assert {3, 4} <= set(kept) <= {0, 1, 2, 3, 4, 5}
        only = keep_by_strata(torch.full((3,), torch.nan), 2, cut=0.5, generator=chance())
        assert only.tolist() == [0, 1, 2]
        assert keep_by_strata(torch.ones(1), 1, cut=0.9, generator=chance()).tolist() == [0]

    def test_within_a_stratum_the_choice_is_random(self):
        scores = torch.cat([torch.zeros(50), torch.ones(50)])
        one, other = (keep_by_strata(scores, 60, cut=0.0, strata=2, generator=chance(seed)) for seed in (0, 1))
        assert [int((kept < 50).sum()) for kept in (one, other)] == [20, 20]
        assert one.tolist() != other.tolist()
        again = keep_by_strata(scores, 60, cut=0.0, strata=2, generator=chance(0))
        assert torch.equal(one, again)

    def test_a_range_of_scores_near_the_largest_number_is_no_trouble(self):
        scores = torch.tensor([-3e38, -3e38, 0.0, 3e38, 3e38, 3e38])
        kept = keep_by_strata(scores, 3, cut=0.0, strata=3, generator=chance())
        assert sorted(scores[kept].sign().tolist()) == [-1, 0, 1]


def test_no_more_than_all_but_one_are_dropped():
    for drop, side in itertools.product([3, 4, 99], ["hard", "middle", "easy"]):
        assert len(keep_by_score(torch.tensor([2.0, 1.0, 3.0, 0.0]), drop, side, chance())) == 1
    assert keep_by_score(torch.tensor([2.0, 1.0, 3.0, 0.0]), 99, "hard", chance()).tolist() == [2]


# --- scores of the user: what is read, and everything that is refused -------------------------------------------------


def test_whole_numbers_and_half_precision_are_scores_too(tmp_path):
    for kind in (np.int16, np.float16, np.float64):
        np.save(tmp_path / "a.npy", np.array([3, 1, 2], dtype=kind))
        assert read_scores(str(tmp_path / "a.npy"), 3).tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    "scores", [np.zeros(4), np.zeros((3, 1)), np.zeros(3, dtype=complex), np.array(["a", "b", "c"])]
)
def test_another_shape_or_kind_is_refused_with_what_to_do(tmp_path, scores):
    np.save(tmp_path / "a.npy", scores)
    with pytest.raises(DataError, match=r"a\.npy must hold one number for each of the 3 training images"):
        read_scores(str(tmp_path / "a.npy"), 3)


def test_a_file_without_any_finite_score_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.full(3, np.nan))
    with pytest.raises(DataError, match="no finite score"):
        read_scores(str(tmp_path / "a.npy"), 3)


def test_a_pickle_is_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    np.save(tmp_path / "a.npy", np.array([Bomb()] * 3, dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.npy", "b.npy"):
        with pytest.raises(DataError, match="cannot be read"):
            read_scores(str(tmp_path / name), 3)
    assert not (tmp_path / "exploded").exists()


def test_other_files_are_refused_without_showing_what_is_in_them(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("root:hunter2")
    np.savez(tmp_path / "many.npz", a=np.zeros(3))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (tmp_path / "empty.npy").touch()
    for name in ("secret", "many.npz", "cut.npy", "empty.npy"):
        with pytest.raises(DataError) as caught:
            read_scores(str(tmp_path / name), 3)
        assert "hunter2" not in str(caught.value)


def test_a_header_that_promises_more_than_the_file_holds_takes_no_memory(tmp_path):
    header = {"descr": "<f8", "fortran_order": False, "shape": (3_000_000_000_000,)}
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(DataError, match="cannot be read"):
        read_scores(str(tmp_path / "a.npy"), 3_000_000_000_000)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing.npy", "pipe", "."):
        with pytest.raises(DataError, match="no file on this machine"):
            read_scores(str(tmp_path / name), 3)

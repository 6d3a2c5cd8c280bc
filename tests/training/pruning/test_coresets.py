import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from budgettune.training.pruning import coresets
from budgettune.training.pruning.coresets import apportion, medoids, spherical_kmeans, weighted_coreset


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_points(count: int, dimensions: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=chance(seed))


def one_group(points):
    return torch.zeros(len(points), dtype=torch.int64)


def value(points: torch.Tensor, chosen) -> float:
    """Return F of a set: what facility location gains over the phantom medoid."""
    phantom = 2 * points.norm(dim=1).max()
    if not len(chosen):
        return 0.0
    return float((phantom - torch.cdist(points, points[list(chosen)]).amin(dim=1)).sum())


def greedy(points: torch.Tensor, keep: int) -> list[int]:
    """Return the plain greedy choice: every candidate in every step."""
    chosen: list[int] = []
    for _ in range(keep):
        rest = set(range(len(points))) - set(chosen)
        chosen.append(max(rest, key=lambda candidate: value(points, [*chosen, candidate])))
    return chosen


def optimum(points: torch.Tensor, keep: int) -> float:
    return max(value(points, subset) for subset in itertools.combinations(range(len(points)), keep))


class TestStochasticGreedy:
    @pytest.mark.parametrize("keep", [1, 3, 6])
    def test_where_the_sample_is_everything_it_is_the_greedy_choice(self, keep):
        points = random_points(12)
        found, _ = medoids(points, one_group(points), keep, epsilon=1e-12, generator=chance())
        assert found.tolist() == greedy(points, keep)

    @pytest.mark.parametrize("keep", [1, 2, 4])
    def test_greedy_itself_keeps_the_bound_of_nemhauser(self, keep):
        points = random_points(9, seed=3)
        assert value(points, greedy(points, keep)) >= (1 - 1 / np.e) * optimum(points, keep)

    @pytest.mark.parametrize("epsilon", [0.5, 0.1, 0.01])
    def test_its_mean_value_is_within_the_bound_of_2015(self, epsilon):
        points, keep = random_points(14, seed=5), 3
        values = [
            value(points, medoids(points, one_group(points), keep, epsilon=epsilon, generator=chance(seed))[0].tolist())
            for seed in range(60)
        ]
        assert np.mean(values) >= (1 - 1 / np.e - epsilon) * optimum(points, keep)

    def test_more_candidates_come_closer_to_greedy_and_all_beat_chance(self):
        points, keep = random_points(60, seed=2), 6
        best = value(points, greedy(points, keep))

        def mean(epsilon):
            return np.mean(
                [
                    value(
                        points,
                        medoids(points, one_group(points), keep, epsilon=epsilon, generator=chance(s))[0].tolist(),
                    )
                    for s in range(40)
                ]
            )

        at_random = np.mean([value(points, torch.randperm(60, generator=chance(s))[:keep].tolist()) for s in range(40)])
        assert at_random < mean(0.5) < mean(0.01) <= best + 1e-3

    def test_clusters_hold_the_points_nearest_to_their_medoid(self):
        points = random_points(40, seed=1)
        chosen, sizes = medoids(points, one_group(points), 5, generator=chance())
        owners = torch.cdist(points, points[chosen]).argmin(dim=1)
        assert sizes.tolist() == owners.bincount(minlength=5).tolist()

    def test_groups_are_served_apart_in_proportion_and_missing_ones_are_no_trouble(self):
        points = random_points(30, seed=4)
        groups = torch.tensor([0] * 20 + [5] * 9 + [2])  # 1, 3 and 4 are missing
        chosen, sizes = medoids(points, groups, 12, generator=chance())
        assert (
            groups[chosen].bincount(minlength=6).tolist() == apportion(torch.tensor([20, 0, 1, 0, 0, 9]), 12).tolist()
        )
        for group, count in [(0, 20), (2, 1), (5, 9)]:
            inside = groups[chosen] == group
            assert sizes[inside].sum() == count
            owners = torch.cdist(points[groups == group], points[chosen[inside]]).argmin(dim=1)
            assert sorted(sizes[inside].tolist()) == sorted(owners.bincount(minlength=int(inside.sum())).tolist())

    def test_small_blocks_give_every_group_its_share_too(self, monkeypatch):
        points, groups = random_points(60), torch.arange(60) % 7
        monkeypatch.setattr(coresets, "_BLOCK_VALUES", 1)
        chosen, sizes = medoids(points, groups, 21, generator=chance())
        assert groups[chosen].bincount().tolist() == apportion(groups.bincount(), 21).tolist()
        assert sizes.sum() == 60

    @pytest.mark.parametrize("keep", [1, 9])
    def test_small_blocks_of_candidates_choose_the_same(self, monkeypatch, keep):
        points = random_points(50)
        whole = medoids(points, one_group(points), keep, generator=chance())
        monkeypatch.setattr(coresets, "_BLOCK_VALUES", 100)
        for one, other in zip(whole, medoids(points, one_group(points), keep, generator=chance()), strict=True):
            assert torch.equal(one, other)

    def test_duplicates_and_points_at_zero_each_stand_for_themselves(self):
        for points in (torch.zeros(8, 3), torch.ones(8, 3)):
            chosen, sizes = medoids(points, one_group(points), 5, generator=chance())
            assert len(set(chosen.tolist())) == 5
            assert sorted(sizes.tolist()) == [1, 1, 1, 1, 4]

    @given(st.integers(1, 30), st.integers(1, 4), st.data())
    def test_as_many_as_asked_are_chosen_once_each(self, count, kinds, data):
        keep = data.draw(st.integers(0, count))
        points, groups = random_points(count), torch.randint(kinds, (count,), generator=chance(count))
        chosen, sizes = medoids(points, groups, keep, generator=chance())
        assert len(chosen) == len(set(chosen.tolist())) == len(sizes) == keep
        assert (sizes >= 1).all()

    def test_the_seed_decides_and_the_global_random_state_is_untouched(self):
        points, state = random_points(50), torch.get_rng_state()
        one, again, other = (medoids(points, one_group(points), 9, generator=chance(seed))[0] for seed in (0, 0, 1))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
        assert torch.equal(torch.get_rng_state(), state)


class TestWeightedCoreset:
    def test_weights_are_cluster_sizes_with_a_mean_of_one(self):
        points, groups = random_points(40), torch.arange(40) % 3
        chosen, weights = weighted_coreset(points, groups, 28, generator=chance())
        expected, sizes = medoids(points, groups, 12, generator=chance())
        assert torch.equal(chosen, expected)
        torch.testing.assert_close(weights, sizes / (40 / 12))
        assert float(weights.mean()) == pytest.approx(1)

    def test_points_that_are_not_finite_stay_and_the_others_make_up_for_them(self):
        points = random_points(10)
        points[3, 1], points[7, 0] = torch.nan, torch.inf
        chosen, weights = weighted_coreset(points, one_group(points), 6, generator=chance())
        assert len(chosen) == len(weights) == 4
        assert chosen[-2:].tolist() == [3, 7]
        assert weights[-1] == weights[-2] == pytest.approx(0.4)
        everything, _ = weighted_coreset(torch.full((3, 2), torch.nan), torch.zeros(3).long(), 2, generator=chance())
        assert everything.tolist() == [0, 1, 2]

    def test_the_last_point_stays(self):
        assert weighted_coreset(random_points(1), torch.zeros(1).long(), 1, generator=chance())[0].tolist() == [0]
        assert len(weighted_coreset(random_points(5), torch.arange(5), 99, generator=chance())[0]) == 1

    def test_medoids_follow_the_mean_gradient_better_than_random_subsets(self):
        points = random_points(200, seed=8) * torch.tensor([3.0, 1.0, 0.3])
        mean, coreset_errors, random_errors = points.mean(dim=0), [], []
        for seed in range(20):
            chosen, weights = weighted_coreset(points, one_group(points), 180, generator=chance(seed))
            coreset_errors.append(float(((weights[:, None] * points[chosen]).mean(dim=0) - mean).norm()))
            random_errors.append(
                float((points[torch.randperm(200, generator=chance(seed))[:20]].mean(dim=0) - mean).norm())
            )
        assert np.mean(coreset_errors) < np.mean(random_errors)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.data())
def test_shares_are_exact_within_the_sizes_and_near_proportion(sizes, data):
    total = data.draw(st.integers(0, sum(sizes)))
    shares = apportion(torch.tensor(sizes), total).tolist()
    assert sum(shares) == total
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
    if total >= sum(size > 0 for size in sizes):
        assert all(share >= (size > 0) for share, size in zip(shares, sizes, strict=True))
    for one, other in itertools.combinations(range(len(sizes)), 2):
        assert shares[one] <= shares[other] or sizes[one] > sizes[other] or shares[one] <= shares[other] + 1


class TestSphericalKMeans:
    def test_every_distance_is_to_the_nearest_of_some_centres_that_no_round_would_move(self):
        directions = torch.eye(3).repeat_interleave(20, dim=0) + 0.1 * random_points(60)
        lengths = torch.rand(60, 1, generator=chance(1)) + 0.5
        unit = directions / directions.norm(dim=1, keepdim=True)
        centres = torch.stack([part.mean(dim=0) / part.mean(dim=0).norm() for part in unit.split(20)])
        expected = 1 - (unit @ centres.T).amax(dim=1)
        found = [spherical_kmeans(directions * lengths, 3, generator=chance(seed)) for seed in range(5)]
        for distances in found:
            torch.testing.assert_close(distances, expected, rtol=0, atol=1e-5)

    def test_more_rounds_never_raise_the_sum_of_distances(self):
        points = random_points(300, 4)
        sums = [float(spherical_kmeans(points, 8, rounds=r, generator=chance()).sum()) for r in (1, 2, 4, 8, 16)]
        assert sums == sorted(sums, reverse=True)
        assert sums[-1] < sums[0]

    def test_as_many_centres_as_points_or_more_leave_no_distance(self):
        distances = spherical_kmeans(random_points(5), 9, generator=chance())
        assert distances.abs().max() < 1e-6
        assert spherical_kmeans(random_points(1), 10, generator=chance()).abs().max() < 1e-6

    def test_duplicates_and_points_at_zero_are_no_trouble(self):
        points = torch.cat([torch.ones(6, 2), torch.zeros(2, 2)])
        distances = spherical_kmeans(points, 4, generator=chance())
        assert distances.isfinite().all()
        assert distances[:6].abs().max() < 1e-6
        assert distances[6:].tolist() == [1, 1]

    def test_the_seed_decides_and_the_global_random_state_is_untouched(self):
        points, state = random_points(100, 4), torch.get_rng_state()
        one, again, other = (spherical_kmeans(points, 8, generator=chance(seed)) for seed in (0, 0, 1))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
        assert torch.equal(torch.get_rng_state(), state)

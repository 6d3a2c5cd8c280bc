"""Small sets that stand for large ones: medoids by facility location, and k-means on the sphere. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

Step = Callable[[], None]

_BLOCK_VALUES = 16 * 2**20  # coordinates, or distances, that are held at a time: 64 MiB


def weighted_coreset(
    points: Tensor, groups: Tensor, drop: int, *, generator: torch.Generator, each_step: Step = lambda: None
) -> tuple[Tensor, Tensor]:
    """Return medoids of each group and weights in proportion to their clusters, when `drop` points go.

    Exactly `drop` points go, but never one with a coordinate that is not finite (it stands for itself), and never the
    last. Arguments are those of `medoids`; weights, float32 [n - drop], have a mean of one.
    """
    finite = points.isfinite().all(dim=1)
    inside, outside = finite.nonzero().squeeze(1), (~finite).nonzero().squeeze(1)
    keep = len(inside) - max(0, min(drop, len(inside), len(points) - 1))
    picks, clusters = medoids(points[inside], groups[inside], keep, generator=generator, each_step=each_step)
    sizes = torch.cat([clusters, torch.ones_like(outside)]).float()
    return torch.cat([inside[picks], outside]), sizes / sizes.mean()


def medoids(
    points: Tensor,
    groups: Tensor,
    keep: int,
    *,
    epsilon: float = 0.1,
    generator: torch.Generator,
    each_step: Step = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Return medoids of each group, and how many points of the group are nearest to each.

    Within a group S maximises facility location, F(S) = Σ_i (D − min_{j∈S} ‖x_i − x_j‖), with D no smaller than any
    distance (CRAIG; Mirzasoleiman, Bilmes and Leskovec 2020, algorithm 1). Where that takes the best
    of all points in each step, this takes the best of (n/k)·ln(1/ε) random ones ("Lazier than lazy greedy";
    Mirzasoleiman et al. 2015): n·ln(1/ε) evaluations of F instead of n·k, and in expectation F(S) ≥ (1 − 1/e − ε)·F*.

    Groups share out `keep` in proportion to their sizes, and all groups of a block take their steps together.
    Distances are computed as they are needed: memory grows with the points and never with their square.

    Args:
        points: float32 [n, dimensions], finite.
        groups: int64 [n], such as labels; some may be missing.
        keep: in all, 0 ≤ keep ≤ n.
        epsilon: what the guarantee gives up for speed, in (0, 1).
        generator: on the device of points.
        each_step: called before each of the steps, of which there are many; it may raise.

    Returns:
        int64 [keep] of indices, and int64 [keep] of cluster sizes, which sum to the sizes of the groups that have any.
    """
    if not keep:
        return groups[:0], groups[:0]
    sizes = groups.bincount()
    order = groups.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    quotas = apportion(sizes, keep)
    largest_first = quotas.argsort(descending=True, stable=True)[: int((quotas > 0).sum())]
    per_block = max(1, _BLOCK_VALUES // max(1, int(sizes.max()) * points.shape[1]))
    chosen, clusters = [], []
    for block in largest_first.split(per_block):
        places = torch.arange(int(sizes[block].max()), device=points.device)
        valid = places < sizes[block, None]
        members = order[(starts[block, None] + places).where(valid, 0)]
        picks, counts = _stochastic_greedy(points[members], sizes[block], quotas[block], epsilon, generator, each_step)
        taken = torch.arange(picks.shape[1], device=points.device) < quotas[block, None]
        chosen.append(members.gather(1, picks)[taken])
        clusters.append(counts[taken])
    return torch.cat(chosen), torch.cat(clusters)


def _stochastic_greedy(
    points: Tensor, sizes: Tensor, quotas: Tensor, epsilon: float, generator: torch.Generator, each_step: Step
) -> tuple[Tensor, Tensor]:
    """Choose in every row at once; a row's first `quota` picks count, the steps that it takes after them do not.

    Of points, float32 [rows, members, dimensions], a row's first `size` count. Returns int64 [rows, max(quotas)] of
    places in the row, and the sizes of their clusters.
    """
    rows, members, _ = points.shape
    device, steps = points.device, int(quotas.max())
    tries = min(members, math.ceil(float((sizes / quotas).max()) * math.log(1 / epsilon)))
    row = torch.arange(rows, device=device)[:, None]
    valid = torch.arange(members, device=device) < sizes[:, None]
    # A phantom medoid at the largest distance there can be; padding is at 0, so that nothing gains from it.
    nearest = (2 * points.norm(dim=-1).max()).where(valid, 0.0)
    owner = torch.zeros(rows, members, dtype=torch.int64, device=device)
    picks = torch.zeros(rows, steps, dtype=torch.int64, device=device)
    at_a_time = max(1, _BLOCK_VALUES // (rows * members))
    everyone = torch.arange(members, device=device).repeat(rows, 1)
    remaining = everyone.clone()  # of a row, the first size - step
    for step in range(steps):
        each_step()
        left = (sizes - step).clamp(min=1)[:, None]
        drawn = torch.randint(2**62, (rows, tries), generator=generator, device=device) if tries < members else everyone
        places = drawn % left
        candidates = remaining.gather(1, places)
        gains = [
            (nearest[:, None] - _distances(points[row, some], points)).clamp_(min=0).sum(dim=2)
            for some in candidates.split(at_a_time, dim=1)
        ]
        best = torch.cat(gains, dim=1).argmax(dim=1, keepdim=True)
        pick = candidates.gather(1, best)
        distance = _distances(points[row, pick], points).squeeze(1)
        closer = (distance < nearest).scatter(1, pick, True)  # a medoid stands for itself, also among duplicates
        owner.masked_fill_(closer & (step < quotas[:, None]), step)
        nearest = torch.minimum(nearest, distance)
        picks[:, step] = pick.squeeze(1)
        remaining.scatter_(1, places.gather(1, best), remaining.gather(1, left - 1))
    counts = (row * steps + owner)[valid].bincount(minlength=rows * steps)
    return picks, counts.view(rows, steps)


def _distances(some: Tensor, points: Tensor) -> Tensor:
    """Return Euclidean distances, [rows, some, members], without the rounding of the faster way by products."""
    return torch.cdist(some, points, compute_mode="donot_use_mm_for_euclid_dist")


def apportion(sizes: Tensor, total: int) -> Tensor:
    """Return shares of a total in proportion to sizes: int64, exact, and no larger than the sizes.

    By largest remainder. Where the total, at most the sum of sizes, allows, each that is not empty has at least one.
    """
    present = (sizes > 0).long()
    first = present if total >= int(present.sum()) else torch.zeros_like(sizes)
    rest, total = sizes - first, total - int(first.sum())
    whole = max(1, int(rest.sum()))
    shares = rest * total // whole
    shares[(rest * total % whole).argsort(descending=True, stable=True)[: total - int(shares.sum())]] += 1
    return first + shares


def spherical_kmeans(points: Tensor, clusters: int, *, rounds: int = 25, generator: torch.Generator) -> Tensor:
    """Return the cosine distance of each point to its nearest centre: float32 [n] in [0, 2], NaN where not finite.

    Lloyd's rounds on the unit sphere (Dhillon and Modha 2001) from a start by k-means++ (Arthur and Vassilvitskii
    2007); they end where no point changes its centre. A centre that loses all its points stays where it is. Of points,
    float32 [n, dimensions], the length is of no account, and those at zero are at distance 1.
    """
    finite = points.isfinite().all(dim=1)
    distances = torch.full((len(points),), torch.nan, device=points.device)
    if not finite.any():
        return distances
    inside = normalize(points[finite], dim=1)
    centres, nearest = _plus_plus(inside, min(clusters, len(inside)), generator), None
    for _ in range(rounds):
        previous, nearest = nearest, (inside @ centres.T).argmax(dim=1)
        if previous is not None and torch.equal(nearest, previous):
            break
        # As a product and not by scattering, whose sums are in no fixed order on CUDA.
        sums = one_hot(nearest, len(centres)).to(inside.dtype).T @ inside
        centres = normalize(sums, dim=1).where(sums.norm(dim=1, keepdim=True) > 0, centres)
    distances[finite] = 1 - (inside @ centres.T).amax(dim=1)
    return distances


def _plus_plus(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Return starting centres: each point is drawn in proportion to its squared distance from those before."""
    distance = torch.ones(len(points), device=points.device)  # half the square of the chord
    centres: list[Tensor] = []
    while len(centres) < clusters:
        centres.append(points[torch.multinomial(distance, 1, generator=generator)].squeeze(0))
        distance = torch.minimum(distance, 1 - points @ centres[-1]).clamp(min=1e-12)
    return torch.stack(centres)

"""How hard samples are, computed or read from a user's file, and which to keep by that. High means hard throughout."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from budgettune.errors import DataError
from budgettune.files import user_path


def softmax_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Return softmax − onehot: float32 [B, classes], the gradient of cross-entropy in the logits [B, classes]."""
    return logits.float().softmax(dim=1) - one_hot(labels, logits.shape[1])


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the norm of softmax − onehot: float32 [B] (Paul, Ganguli and Dziugaite 2021, definition 2.2)."""
    return softmax_error(logits, labels).square().sum(dim=1).sqrt()


def last_layer_grad_norm(logits: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """Return the norm of each sample's gradient in the last linear layer, bias included: float32 [B].

    That gradient is the outer product of softmax − onehot and (features, 1), and the norm of an outer product is the
    product of the norms. It is the practical form of GraNd (Paul, Ganguli and Dziugaite 2021, definition 2.1), whose
    gradient in all weights costs a backward pass per sample. Features, [B, width], are what the last layer takes in.
    """
    return el2n(logits, labels) * (1 + features.float().square().sum(dim=1)).sqrt()


def negative_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the largest wrong probability minus the right one: float32 [B] in [-1, 1].

    Its mean over epochs, with the sign turned, is the area under the margin (Pleiss et al. 2020), on probabilities as
    in the code of Zheng et al. (2023).
    """
    probabilities = logits.float().softmax(dim=1)
    right = probabilities.gather(1, labels[:, None]).squeeze(1)
    wrong = probabilities.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return wrong.clamp(min=0) - right  # with a single class there is no wrong one


def drop_lowest(losses: Tensor, drop: int, generator: torch.Generator) -> Tensor:
    """Return a mask of what is left when the lowest of n losses are dropped: bool [n].

    Exactly `drop` samples go, ties broken at random, but never a sample whose loss is not finite (unseen, NaN or
    infinite), and never the last one. Linear in the number of samples.
    """
    comparable = losses.isfinite()
    drop = min(drop, int(comparable.sum()), len(losses) - 1)
    if drop <= 0:
        return torch.ones_like(comparable)
    ranked = losses.masked_fill(~comparable, torch.inf)
    threshold = ranked.kthvalue(drop).values
    keep = ranked > threshold
    tied = (ranked == threshold).nonzero().squeeze(1)
    surplus = len(losses) - drop - int(keep.sum())
    if surplus:
        order = torch.randperm(len(tied), generator=generator, device=losses.device)
        keep[tied[order[:surplus]]] = True
    return keep


def drop_below_quantile(losses: Tensor, share: float, sample: Tensor) -> Tensor:
    """Return a mask of what is left when losses below the quantile of some samples' go: bool [n].

    About `share` goes: the linear quantile of the losses of `sample`, int64 [m], stands for that of all. A loss that
    equals it stays, so that equal losses drop nothing; what is not finite (unseen, NaN or infinite) stays too.
    """
    comparable = losses.isfinite()
    drawn = losses[sample[comparable[sample]]]
    threshold = drawn.quantile(share) if len(drawn) else -torch.inf
    return (losses >= threshold) | ~comparable


def keep_by_score(
    scores: Tensor, drop: int, side: Literal["hard", "middle", "easy"], generator: torch.Generator
) -> Tensor:
    """Return what is left when `drop` samples go: int64 [n - drop], ascending.

    Exactly `drop` samples go, ties broken at random, but never one whose score is not finite, and never the last. Kept
    are the hard, the easy, or the middle with as many gone below as above.
    """
    order, drop = _from_easy_to_hard(scores, drop, generator)
    first = {"easy": 0, "middle": drop // 2, "hard": drop}[side]
    return _with_the_unscored(order[first : first + len(order) - drop], scores)


def keep_by_strata(scores: Tensor, drop: int, *, cut: float, strata: int = 50, generator: torch.Generator) -> Tensor:
    """Return what coverage-centric selection keeps: int64 [n - drop], ascending (Zheng et al. 2023, algorithm 1).

    The hardest share `cut` goes, because the mislabelled are among it. The range of the other scores is split into
    strata of even width; from the emptiest stratum to the fullest, each gives the same number, or all it has where
    that is less. Exactly `drop` samples go, but never one whose score is not finite, and never the last; where the cut
    (the paper's β) alone would drop more, fewer are cut.
    """
    order, drop = _from_easy_to_hard(scores, drop, generator)
    if not len(order):
        return _with_the_unscored(order, scores)
    rest = order[: len(order) - min(drop, int(cut * len(scores)))]
    rest = rest[torch.randperm(len(rest), generator=generator, device=rest.device)]
    values = scores[rest].double()
    width = (values.max() - values.min()) / strata
    stratum = ((values - values.min()) / width).nan_to_num(0).long().clamp(max=strata - 1)
    sizes = stratum.bincount(minlength=strata)
    quotas = torch.tensor(_level(sizes.tolist(), len(order) - drop), device=rest.device)
    by_stratum = stratum.argsort(stable=True)
    place = torch.arange(len(rest), device=rest.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return _with_the_unscored(rest[by_stratum[place < quotas.repeat_interleave(sizes)]], scores)


def _level(sizes: list[int], total: int) -> list[int]:
    """Return how many each gives, so that the sum is `total`: the same number each, or all where that is less."""
    quotas = [0] * len(sizes)
    for done, place in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        quotas[place] = min(sizes[place], total // (len(sizes) - done))
        total -= quotas[place]
    return quotas


def _from_easy_to_hard(scores: Tensor, drop: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """Return the samples that have a finite score, ascending with ties in random order, and how many of them can go."""
    order = torch.randperm(len(scores), generator=generator, device=scores.device)
    order = order[scores[order].isfinite()]
    return order[scores[order].argsort(stable=True)], max(0, min(drop, len(order), len(scores) - 1))


def _with_the_unscored(kept: Tensor, scores: Tensor) -> Tensor:
    return torch.cat([kept, (~scores.isfinite()).nonzero().squeeze(1)]).sort().values


def read_scores(name: str, size: int) -> Tensor:
    """Return the scores of a `.npy` file: float64 [size], in the order in which the study loads its training samples.

    Nothing in the file is unpickled, and it is not read before its shape is known to be right. A score that is not
    finite stands for a sample without a score, which is always kept.

    Raises:
        DataError: where there is no such file, or it does not hold one number for each training sample.
    """
    path = user_path(name, "pruning.scores")
    if not path.is_file():
        raise DataError(f"pruning.scores: {path} is no file on this machine: copy it here, or correct the path")
    try:
        scores = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # a damaged header fails in numpy's parser in many ways, some of which quote the file
        raise DataError(f"pruning.scores: {path} cannot be read: write it with numpy.save(path, scores)") from None
    if not isinstance(scores, np.ndarray) or scores.shape != (size,) or scores.dtype.kind not in "fiu":
        raise DataError(
            f"pruning.scores: {path} must hold one number for each of the {size} training images, as an array of "
            f"shape ({size},): save the scores of exactly the images that [data] leaves for training"
        )
    values = torch.from_numpy(np.array(scores, dtype=np.float64))
    if not values.isfinite().any():
        raise DataError(f"pruning.scores: {path} has no finite score: save at least one number that is not NaN")
    return values

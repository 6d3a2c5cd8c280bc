"""A user's own scores, from a file that a study names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from budgettune.errors import DataError


def read_scores(name: str, size: int) -> Tensor:
    """Return the scores of a `.npy` file: float64 [size].

    Nothing in the file is unpickled, and it is not read before its shape is known to be right. A score that is not
    finite stands for a sample without a score, which is always kept.

    Args:
        name: of the file, as the study has it.
        size: number of training samples, in the order in which the study loads them.

    Raises:
        DataError: where there is no such file, or it does not hold one number for each training sample.
    """
    path = Path(name).expanduser()
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

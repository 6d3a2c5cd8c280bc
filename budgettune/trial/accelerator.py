"""What a trial must know of torch, where its code has loaded it: when a GPU is done, which weights a model has.

Nothing is imported for it.
"""

from __future__ import annotations

import hashlib
import sys
from collections import deque
from typing import Any

MOST_QUEUED = 2  # steps that a GPU may be behind: a host that runs ahead would see the deadline too late


class Accelerator:
    """Waits for the work that torch has queued on a GPU, where the code has loaded torch and uses one.

    Args:
        modules: where loaded modules are looked up; tests give a stand-in.
    """

    def __init__(self, modules: Any = sys.modules) -> None:
        self._modules = modules
        self._events: deque[Any] = deque()

    def _cuda(self) -> Any:
        """Return `torch.cuda` once the code has used it, else None."""
        torch = self._modules.get("torch")
        cuda = None if torch is None else getattr(torch, "cuda", None)
        return cuda if cuda is not None and cuda.is_initialized() else None

    def synchronize(self) -> None:
        """Return when nothing is left to do."""
        self._events.clear()
        if (cuda := self._cuda()) is not None:
            cuda.synchronize()
        elif (torch := self._modules.get("torch")) is not None and _uses_mps(torch):
            torch.mps.synchronize()

    def pace(self) -> None:
        """Note a step that was queued, and wait until the device is no further behind than it may be."""
        if (cuda := self._cuda()) is None:
            return
        event = cuda.Event()
        event.record()
        self._events.append(event)
        if len(self._events) > MOST_QUEUED:
            self._events.popleft().synchronize()


def _uses_mps(torch: Any) -> bool:
    mps = getattr(torch, "mps", None)
    return bool(mps is not None and torch.backends.mps.is_available() and mps.driver_allocated_memory())


def weights_sha256(model: Any) -> str:
    """Return a hash of all weights and buffers of a torch module: equal where two trainings gave identical models."""
    digest, torch = hashlib.sha256(), sys.modules["torch"]
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

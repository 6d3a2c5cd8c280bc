"""The processes that train one model together: who takes which part of a batch, and what they agree on.

All ranks run the same trainer on the same seed. What hangs on a clock, on a signal or on a strategy's choice is rank
0's word, so that all take the same steps; gradients and running statistics are averaged in every step, so that all have
the same model. Nothing is pickled.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, ParamSpec

import torch
from torch import Tensor, distributed, nn

from budgettune.errors import ProcessLost, UsageError
from budgettune.machine.verdict import STATUSES, Status, worst
from budgettune.training.pruning import EpochPlan, Selection

ANSWER_SECONDS = 300.0  # without an answer after which another process counts as hung

P = ParamSpec("P")


class Alone:
    """A process that trains by itself: its part is the whole, and there is nobody to agree with."""

    rank, size = 0, 1

    def part(self, count: int) -> slice:
        """Return which samples of a batch are this rank's: parts differ by one sample at most, and none is empty.

        A batch of fewer samples than ranks is everybody's.
        """
        if count < self.size:
            return slice(0, count)
        return slice(self._begin(self.rank, count), self._begin(self.rank + 1, count))

    def _begin(self, rank: int, count: int) -> int:
        return -(-count * rank // self.size)

    def agreed(self, value: float) -> float:
        """Return the value that rank 0 gave; hosts speak to each other, and no device is waited for."""
        return value

    def agreeing(self, question: Callable[P, bool]) -> Callable[P, bool]:
        """Return a function that answers as rank 0's does."""
        return question

    def plan(self, plan: EpochPlan) -> EpochPlan:
        """Return rank 0's plan."""
        return plan

    def selection(self, selection: Selection) -> Selection:
        """Return rank 0's selection."""
        return selection

    def same(self, values: Tensor, what: str) -> Tensor:
        """Return rank 0's values [n]; `what` they are is for the error where ranks have different numbers of them."""
        return values

    def content(self, content: bytes | None) -> bytes | None:
        """Return the bytes that rank 0 gave, or None where it has none."""
        return content

    def worst(self, status: Status) -> Status:
        """Return the worst of the verdicts of all ranks."""
        return status

    def whole(self, values: Tensor, count: int) -> Tensor:
        """Return the values of all parts of a batch of count samples, in the order of the batch."""
        return values

    def average(self, model: nn.Module, count: int) -> None:
        """Average gradients and running statistics over the ranks, in place, by their parts of a batch of count."""

    def wait(self) -> None:
        """Return when all ranks are here."""


ALONE = Alone()


class Group(Alone):
    """One of several processes, which meet by a store. Gloo connects the hosts, NCCL the GPUs.

    Raises:
        ProcessLost: by each method, where another rank has left, or gives no answer for a long time.
    """

    def __init__(self, store: Any, rank: int, size: int, device: torch.device) -> None:
        if distributed.is_initialized():
            raise UsageError("this process belongs to a torch.distributed group already: train in one of its own")
        # Imported later, as by the first optimiser, its functions would keep this group for good: it is their default.
        importlib.import_module("torch.distributed.nn.functional")
        self.rank, self.size, self.device = rank, size, device
        is_cuda = device.type == "cuda"
        self._call(
            distributed.init_process_group,
            "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=ANSWER_SECONDS),
            device_id=device if is_cuda else None,
        )

    def close(self) -> None:
        """Leave: whoever waits for this rank gets ProcessLost."""
        if distributed.is_initialized():
            if self.device.type == "cuda" and distributed.group.WORLD is not None:
                distributed.group.WORLD.abort()  # else it would wait for what is under way, which may never end
            distributed.destroy_process_group()

    def agreed(self, value: float) -> float:
        told = torch.tensor([value], dtype=torch.float64)
        self._call(distributed.broadcast, told, 0)
        return float(told)

    def agreeing(self, question: Callable[P, bool]) -> Callable[P, bool]:
        def answer(*args: P.args, **kwargs: P.kwargs) -> bool:
            return bool(self.agreed(question(*args, **kwargs)))

        return answer

    def plan(self, plan: EpochPlan) -> EpochPlan:
        return replace(
            plan,
            indices=self._told(plan.indices, torch.int64),
            weights=self._told(plan.weights, torch.float32),
            select=bool(self.agreed(plan.select)),
            lr_factor=self.agreed(plan.lr_factor),
        )

    def selection(self, selection: Selection) -> Selection:
        positions = self._told(selection.positions, torch.int64)
        assert positions is not None
        return Selection(positions, self._told(selection.weights, torch.float32))

    def same(self, values: Tensor, what: str) -> Tensor:
        count = int(self.agreed(len(values)))
        if count != len(values):
            raise UsageError(
                f"process {self.rank} has {len(values)} {what}, and process 0 has {count}: give all the same files"
            )
        told = self._told(values, values.dtype)
        assert told is not None
        return told

    def content(self, content: bytes | None) -> bytes | None:
        given = None if content is None else torch.frombuffer(bytearray(content), dtype=torch.uint8)
        told = self._told(given, torch.uint8)
        return None if told is None else told.cpu().numpy().tobytes()

    def worst(self, status: Status) -> Status:
        number = torch.tensor([STATUSES.index(status)], device=self.device)
        return worst(*(STATUSES[each] for each in self.whole(number, self.size).tolist()))

    def _told(self, values: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Return rank 0's values [n], or None where it has none."""
        count = int(self.agreed(-1 if values is None else len(values)))
        if count < 0:
            return None
        if self.rank == 0 and values is not None:
            told = values.to(self.device, dtype).contiguous()
        else:
            told = torch.empty(count, dtype=dtype, device=self.device)
        self._call(distributed.broadcast, told, 0)
        return told

    def whole(self, values: Tensor, count: int) -> Tensor:
        if count < self.size:
            return values
        sizes = [self._begin(rank + 1, count) - self._begin(rank, count) for rank in range(self.size)]
        padded = values.new_zeros(max(sizes), *values.shape[1:])
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in sizes]
        self._call(distributed.all_gather, parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def average(self, model: nn.Module, count: int) -> None:
        part = self.part(count)
        share = (part.stop - part.start) / count if count >= self.size else 1 / self.size
        averaged = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        averaged += [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        if not averaged:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in averaged]).mul_(share)
        self._call(distributed.all_reduce, flat)
        parts = flat.split([tensor.numel() for tensor in averaged])
        with torch.no_grad():
            torch._foreach_copy_(averaged, [part.view_as(own) for part, own in zip(parts, averaged, strict=True)])

    def wait(self) -> None:
        self._call(distributed.all_reduce, torch.zeros(1))

    def _call(self, collective: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        try:
            collective(*args, **kwargs)
        except RuntimeError as error:
            raise ProcessLost(f"process {self.rank} gets no answer from the others: {error}") from error


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads of the CPU inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""The paper's recipe, written plainly: the baseline that throughput.py measures BudgetTune against.

After Chang and Chen (2024), "ML Training Under Tight Budget Constraints With Data Pruning and Model Scaling", as its
section 4 and its published script describe it: PIL transforms for each image in a DataLoader with four workers that
is made anew for every epoch, a Subset of the kept samples, fp32 in the default memory order, unrounded widths, Adam
at a constant rate with one update per parameter, each batch's losses written to a table on the host, and everything
trained on every `refresh_every` epochs.

Wherever the script wastes time by accident it is given the benefit: no Lightning, no checkpoints, a warm-up outside
the clock, and BudgetTune's own network module. What is left is what most people would write.
"""

from __future__ import annotations

import copy
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

from budgettune.spec.study_spec import StudySpec
from budgettune.training.data.load import ImageData, ImageSet, normalise
from budgettune.training.device import Device
from budgettune.training.resnet import ScalableResNet, count_multiply_adds

QUANTILE_SAMPLES = 5_000
WARMUP_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class PaperRun:
    """What one run of the recipe took and gave.

    Attributes:
        seconds: of training: planning, loading, steps and the loss table; evaluation out.
        visits: samples trained on, over all epochs.
        multiply_adds: of one image's forward pass.
        accuracy: share of the held-out images classified correctly at the end.
        widths: realised channels of the stages.
    """

    seconds: float
    visits: int
    multiply_adds: int
    accuracy: float
    widths: list[int]


class PilImages(Dataset[tuple[Tensor, int, int]]):
    """Images that are turned into PIL images and transformed one by one: (x, y, index)."""

    def __init__(self, images: ImageSet, transform: Any) -> None:
        pixels = images.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        self.labels = images.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index], index


def train_paper_recipe(
    spec: StudySpec, data: ImageData, *, seed: int, device: torch.device | str = "cpu", workers: int = 4
) -> PaperRun:
    """Train one configuration as the paper's script would.

    Args:
        spec: without a search; its schedule, precision and strategy are taken for the paper's.
        data: on the CPU.
        seed: of the global random state.
        device: to train on.
        workers: of the DataLoader.
    """
    # The recipe has four workers, whatever the number of cores.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    torch.manual_seed(seed)
    device = Device(device)
    dataset = PilImages(data.train, transform_of(data, augment=spec.data.augment))
    model = ScalableResNet.from_spec(spec.model, channels=data.channels, num_classes=data.num_classes)
    multiply_adds = count_multiply_adds(model, (data.channels, data.image_size, data.image_size))
    model = model.to(device.torch)
    warm_up(model, data, spec, device.torch)
    optimizer = torch.optim.Adam(model.parameters(), lr=spec.train.lr, fused=False)
    table = torch.full((len(dataset),), torch.nan)
    visits = 0
    device.synchronize()
    began = time.perf_counter()
    for epoch in range(spec.train.epochs or 0):
        kept = keep(table, epoch, spec)
        loader = DataLoader(Subset(dataset, kept), spec.train.batch_size, shuffle=True, num_workers=workers)
        for images, labels, indices in loader:
            losses = step(model, optimizer, images.to(device.torch), labels.to(device.torch))
            table[indices] = losses.cpu()
            visits += len(indices)
    device.synchronize()
    seconds = time.perf_counter() - began
    return PaperRun(
        seconds=seconds,
        visits=visits,
        multiply_adds=multiply_adds,
        accuracy=accuracy(model, data, device.torch),
        widths=list(spec.model.realised_widths),
    )


def transform_of(data: ImageData, *, augment: bool) -> transforms.Compose:
    """Return the per-image transform: the same crop, flip and normalisation that BudgetTune does in batches."""
    chance: list[Any] = [transforms.RandomCrop(data.image_size, padding=data.pad)]
    chance += [transforms.RandomHorizontalFlip()] if data.flip else []
    fixed = [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    return transforms.Compose([*(chance if augment else []), *fixed])


def keep(table: Tensor, epoch: int, spec: StudySpec) -> list[int]:
    """Return the samples of an epoch: all when losses are refreshed, else those at or above the quantile."""
    if epoch % spec.pruning.refresh_every == 0:
        return list(range(len(table)))
    subset = table[torch.randperm(len(table))[:QUANTILE_SAMPLES]]
    return (table >= subset.quantile(spec.pruning.prune_rate)).nonzero().squeeze(1).tolist()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> Tensor:
    """Take one optimiser step; return the detached loss of each sample."""
    losses = functional.cross_entropy(model(images), labels, reduction="none")
    optimizer.zero_grad()
    losses.mean().backward()
    optimizer.step()
    return losses.detach()


def warm_up(model: nn.Module, data: ImageData, spec: StudySpec, device: torch.device) -> None:
    """Pay for kernel selection at every batch size that comes, on a copy of the model."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=spec.train.lr, fused=False)
    count, size = len(data.train), spec.train.batch_size
    kept = count - round(spec.pruning.prune_rate * count)
    for batch in {size, count % size, kept % size} - {0}:
        images = torch.randn(batch, data.channels, data.image_size, data.image_size, device=device)
        for _ in range(WARMUP_STEPS):
            step(model, optimizer, images, data.train.labels[:batch].to(device))


def accuracy(model: nn.Module, data: ImageData, device: torch.device, batch: int = 1_000) -> float:
    """Return the share of held-out images classified correctly, without the script's random crops of them."""
    model.eval()
    correct = 0
    with torch.inference_mode():
        for images, labels in zip(data.held_out.images.split(batch), data.held_out.labels.split(batch), strict=True):
            x = normalise(images, data.mean, data.std, torch.float32).to(device)
            correct += int((model(x).argmax(dim=1).cpu() == labels).sum())
    return correct / len(data.held_out)

"""What a GPU must show, and what of it a CPU can show as well.

On a box with torch, numpy, pydantic and pytest alone: `pytest --noconftest -m cuda tests/training/test_cuda.py`. No GPU
has run this yet.
"""

import gc
import weakref
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from budgettune.errors import DataError, OutOfMemory
from budgettune.spec.pruning import STRATEGIES
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.trust import Trust
from budgettune.training.data.load import ImageData, ImageSet
from budgettune.training.device import Device
from budgettune.training.feed import Feed
from budgettune.training.trainer import TrainingRun, train
from budgettune.trial.stopwatch import Stopwatch

IMAGES, BATCH = 600, 100
ON_GPU = (
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU: run `pytest -m cuda` on a box with one"
    ),
)


def gpu_only(test):
    for mark in ON_GPU:
        test = mark(test)
    return test


DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]
CHOOSES_WHILE_IT_TRAINS = {"selective-backprop", "rho-loss", "batch-coreset"}  # and must know how many it has chosen


@pytest.fixture(scope="module")
def data():
    """Images that can be learnt: a template for each class, and noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(IMAGES + 200) % 10
    coarse = torch.randint(128, (10, 3, 4, 4), generator=generator, dtype=torch.uint8)
    noise = torch.randint(128, (len(labels), 3, 8, 8), generator=generator, dtype=torch.uint8)
    images = functional.interpolate(coarse.float(), size=8).byte()[labels] + noise
    return ImageData(
        name="cifar10",
        train=ImageSet(images[:IMAGES], labels[:IMAGES]),
        held_out=ImageSet(images[IMAGES:], labels[IMAGES:]),
        num_classes=10,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        flip=True,
        pad=1,
    )


def spec(strategy="full", *, model=None, **table):
    pruning = {"strategy": strategy, "prune_rate": 0.0 if strategy == "full" else 0.3, "refresh_every": 2}
    document = {
        "name": "gpu",
        "data": {"name": "cifar10"},
        "model": {"widths": [8, 16, 32], "blocks": 1} | (model or {}),
        "train": {"batch_size": BATCH, "epochs": 3} | table,
        "pruning": pruning | {"helper_epochs": 1},
    }
    return StudySpec.from_document(document).resolve({})


def run(config, data, device, seed=0):
    return train(config, seed=seed, data=data, device=device, trust=Trust(["tests"]))


class Waits(TorchDispatchMode):
    """Notes operations for which the host would wait, were the tensors on a GPU."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique", "unique_dim", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            leaf.dtype == torch.bool for leaf in tree_leaves(args[1]) if isinstance(leaf, torch.Tensor)
        )
        if by_mask or name.startswith(self.NAMES):
            self.noted.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting(device):
    if device == "cpu":
        with Waits() as waits:
            yield
        if waits.noted:
            raise RuntimeError(f"synchronizing operations: {waits.noted[0]}")
        return
    with Device(device).refusing_waits():
        yield


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_step_waits_for_the_device_unless_its_strategy_chooses_in_it(data, strategy, device, monkeypatch):
    def watched(call):
        def calling(*args):
            with no_waiting(device):
                return call(*args)

        return calling

    for owner, name in ((Feed, "gather"), (Feed, "_choose"), (TrainingRun, "step")):
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    config = spec(strategy, precision="fp32" if device == "cpu" else "auto")  # new shapes in bf16 take a CPU a second
    if strategy in CHOOSES_WHILE_IT_TRAINS:
        with pytest.raises(RuntimeError, match="synchronizing"):
            run(config, data, device)
    else:
        assert run(config, data, device).result.steps


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_trial_gives_the_same_weights_whatever_was_trained_between(data, device):
    hashes = set()
    for widths in ([8, 8, 8], [8, 16, 24], [16, 16, 16]):
        config = spec("stale-quantile", lr=0.01, deterministic=True)  # else cuDNN may add atomically
        hashes.add(run(config, data, device).result.weights_sha256)
        run(spec(model={"widths": widths}, epochs=1), data, device, seed=1)
    assert len(hashes) == 1


class Greedy(nn.Module):
    """Wants more memory than any device has, once it is trained."""

    last = None

    def __init__(self, *, num_classes, channels, image_size, **_):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * image_size**2, 1_000), nn.Linear(1_000, num_classes)
        )
        Greedy.last = weakref.ref(self)

    def forward(self, images):
        if len(images) == BATCH:
            torch.empty(2**50, device=images.device)
        return self.layers(images)


def allocated(device):
    return torch.cuda.memory_allocated() if device == "cuda" else 0


@pytest.mark.parametrize("device", DEVICES)
def test_after_a_trial_that_did_not_fit_its_memory_is_free_and_the_next_trial_trains(data, device):
    there = data.to(device)
    run(spec(epochs=1), there, device)  # libraries keep a workspace from their first use on
    gc.collect()
    before = allocated(device)
    gc.disable()
    try:
        with pytest.raises(OutOfMemory, match=f"at batch size {BATCH}: a smaller batch_size"):
            run(spec(model={"name": f"{__name__}:Greedy"}), there, device)
        assert Greedy.last() is None
        assert allocated(device) <= before + 2**20
    finally:
        gc.enable()
    assert run(spec(epochs=1), there, device).result.test_accuracy >= 0


@gpu_only
def test_a_trial_on_a_gpu_is_whole_and_its_phases_add_up(data):
    result = run(spec(epochs=30, lr=0.01), data, "cuda").result
    assert result.test_accuracy > 0.5
    # Steps of microseconds: between phases the host is the slower of the two.
    assert 0.9 < result.phases.on_clock / result.train_seconds <= 1.001
    assert (result.machine.device, result.peak_memory_mb > 0) == ("cuda", True)


@gpu_only
@pytest.mark.parametrize("batch_size", [50, 200])
def test_a_budget_on_a_gpu_ends_within_a_step(data, batch_size):
    for budget in (1.0, 1.37):
        result = run(spec(epochs=None, budget=budget, batch_size=batch_size), data, "cuda").result
        assert abs(result.train_seconds - budget) < 1.5 * result.train_seconds / result.steps


@gpu_only
def test_the_clock_says_what_the_events_of_a_gpu_say(data, monkeypatch):
    run(spec("stale-quantile"), data, "cuda")  # its rehearsal has a clock too
    running, events = Stopwatch.running, []

    @contextmanager
    def timed(watch):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with running(watch):
            first.record()
            yield
            last.record()
        events.append((first, last))

    monkeypatch.setattr(Stopwatch, "running", timed)
    result = run(spec("stale-quantile", epochs=30), data, "cuda").result
    by_events = sum(first.elapsed_time(last) for first, last in events) / 1e3
    assert result.train_seconds == pytest.approx(by_events, rel=0.02)


@gpu_only
def test_images_that_a_gpu_has_no_room_for_are_a_fault_of_the_data(data):
    many = replace(data, train=ImageSet(data.train.images.repeat(1_000, 1, 1, 1), data.train.labels))  # 115 MB
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**20) / total)
    try:
        with pytest.raises(DataError, match=r"no room on cuda.*data\.train_size"):
            many.to("cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@gpu_only  # test_pretended_gpu.py has what a CPU can show of it
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("optimizer", "strategy"), [("adam", "infobatch"), ("adamw", "full"), ("sgd", "rho-loss")])
def test_graphs_end_in_the_very_weights_of_steps_one_by_one(data, optimizer, strategy, precision):
    table = {"optimizer": optimizer, "precision": precision, "deterministic": True}
    eager, graphed = (run(spec(strategy, cuda_graphs=on, **table), data, "cuda").result for on in (False, True))
    assert (graphed.cuda_graphs, eager.cuda_graphs) == (True, False)
    assert graphed.weights_sha256 == eager.weights_sha256


@gpu_only
def test_compiled_steps_are_captured_too(data):
    compiled, captured = (
        run(spec(compile=True, deterministic=True, cuda_graphs=on), data, "cuda").result for on in (False, True)
    )
    assert compiled.compiled
    assert captured.phases.capture > 0
    assert captured.weights_sha256 == compiled.weights_sha256


@gpu_only
def test_phases_are_the_device_s_own_time_and_add_up(data):
    result = run(spec("selective-backprop", epochs=20), data, "cuda").result
    assert 0.9 < result.phases.on_clock / result.train_seconds <= 1.001

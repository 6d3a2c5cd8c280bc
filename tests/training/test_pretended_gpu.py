"""What training does on CUDA alone, on a stand-in whose graphs repeat the operations that they recorded."""

import warnings
from contextlib import nullcontext
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion

from budgettune.errors import DeviceLost, OutOfMemory, SpecError
from budgettune.spec.pruning import STRATEGIES
from budgettune.spec.study_spec import load_spec
from budgettune.spec.trust import Trust
from budgettune.training import trainer
from budgettune.training.data.load import load_data
from budgettune.training.learner import Learner
from budgettune.training.pruning import EpochPlan, Strategy
from tests.support.gpu import PretendCuda, PretendGpu


@pytest.fixture
def cuda():
    return PretendCuda()


@pytest.fixture
def run(monkeypatch, cuda):
    monkeypatch.setattr(trainer, "Device", lambda device, group: PretendGpu(device, cuda, group=group))
    monkeypatch.setattr(trainer, "_REHEARSED", set(STRATEGIES))
    base = load_spec("digits").with_overrides(
        ["search={}", "train.epochs=3", "train.batch_size=64", "data.train_size=200", "clock.warmup_steps=1"]
    )
    data = load_data(base.data)

    def train(*overrides):
        return trainer.train(base.with_overrides([*overrides]), seed=1, data=data, trust=Trust(["tests"])).result

    return train


@pytest.mark.parametrize(
    "changes",
    [
        ["train.optimizer=adam", "pruning.strategy=infobatch", "prune_rate=0.3"],  # weights
        ["train.optimizer=adamw", "train.weight_decay=0.1", "train.precision=fp32"],
        ["train.optimizer=sgd", "train.momentum=0.9", "train.lr=0.05", "train.lr_schedule=cosine"],
        ["pruning.strategy=selective-backprop", "prune_rate=0.3"],  # chooses in batches, of sizes nobody knows
        ["data.augment=false"],
    ],
)
def test_graphs_end_in_the_very_weights_of_steps_one_by_one(run, cuda, changes):
    eager, graphed = run(*changes), run(*changes, "train.cuda_graphs=true")
    assert "capture" in cuda.log
    assert (eager.cuda_graphs, graphed.cuda_graphs) == (False, True)
    assert graphed.phases.capture > 0 == eager.phases.capture
    assert [epoch.loss for epoch in graphed.curve] == [epoch.loss for epoch in eager.curve]
    assert graphed.weights_sha256 == eager.weights_sha256
    assert graphed.curve[-1].loss < graphed.curve[0].loss


@pytest.mark.parametrize("release", ["2.9.1", "2.14.1"])
def test_graphs_are_told_of_the_generator_where_torch_wants_it(run, monkeypatch, release):
    monkeypatch.setattr(torch, "__version__", TorchVersion(release))
    assert run("train.epochs=1", "train.cuda_graphs=true").cuda_graphs


class KeepsLosses(Strategy):
    """Keeps what it is given, as a strategy may."""

    seen: ClassVar[list] = []

    def plan(self, epoch, progress):
        return EpochPlan()

    def observe(self, indices, losses, logits=None):
        self.seen.append((indices, losses, logits))


def test_what_a_strategy_keeps_is_not_written_over_by_the_next_step(run):
    kept = []
    for graphs in ("false", "true"):
        KeepsLosses.seen.clear()
        run(f"pruning.strategy={__name__}:KeepsLosses", f"train.cuda_graphs={graphs}")
        kept.append(list(KeepsLosses.seen))
    assert len(kept[0]) == 12
    for eager, graphed in zip(*kept, strict=True):
        assert all(map(torch.equal, eager, graphed))


class LooksAtValues(nn.Sequential):
    def forward(self, images):
        logits = super().forward(images.float())
        return logits * 2 if logits.sum().item() > 0 else logits


def looks_at_values(*, num_classes, channels, image_size, scale):
    return LooksAtValues(nn.Flatten(), nn.Linear(channels * image_size**2, num_classes))


LOOKS = f"model.name={__name__}:looks_at_values"


def test_a_network_that_cannot_be_captured_is_refused_with_the_reason_before_it_is_tried(run, cuda):
    run(LOOKS)
    with pytest.raises(SpecError, match=r"train.cuda_graphs: .*called a synchronizing CUDA operation.*set it to false"):
        run(LOOKS, "train.cuda_graphs=true")
    assert cuda.captured_on == cuda.captured_on[:1]  # of gathering
    assert cuda.get_sync_debug_mode() == 0
    assert run("train.cuda_graphs=true").cuda_graphs


def test_a_capture_that_fails_ends_the_process_with_the_first_reason(run, cuda, monkeypatch):
    monkeypatch.setattr(PretendGpu, "refusing_waits", lambda device: nullcontext())  # torch does not notice all of them
    with pytest.raises(DeviceLost, match=r"not permitted when stream is capturing\): set train.cuda_graphs to false"):
        run(LOOKS, "train.cuda_graphs=true")
    assert cuda.current is cuda.streams[0]


class Full(nn.Sequential):
    def forward(self, images):
        if torch.utils._python_dispatch._len_torch_dispatch_stack():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(images.float())


def full(*, num_classes, channels, image_size, scale):
    return Full(nn.Flatten(), nn.Linear(channels * image_size**2, num_classes))


def test_a_capture_for_which_there_is_no_room_is_out_of_memory_and_no_more(run, cuda, monkeypatch):
    monkeypatch.setattr(PretendGpu, "refusing_waits", lambda device: nullcontext())
    with pytest.raises(OutOfMemory):
        run(f"model.name={__name__}:full", "train.cuda_graphs=true")
    assert cuda.current is cuda.streams[0]


def test_all_captures_of_a_process_share_a_stream_with_the_runs_before_them(run, cuda, monkeypatch):
    benchmarked, graph = [], cuda.graph

    def noting(*args, **kwargs):
        benchmarked.append(torch.backends.cudnn.benchmark)
        return graph(*args, **kwargs)

    monkeypatch.setattr(cuda, "graph", noting, raising=False)
    for _ in range(2):
        run("train.cuda_graphs=true")
    assert len(cuda.streams) == 2
    assert set(cuda.captured_on) == {(cuda.streams[1], cuda.streams[1])}
    assert set(benchmarked) == {False}


def test_a_trial_without_a_gpu_has_no_graphs():
    spec = load_spec("digits").with_overrides(["search={}", "train.epochs=1", "train.cuda_graphs=true"])
    result = trainer.train(spec, seed=1, data=load_data(spec.data)).result
    assert (result.cuda_graphs, result.phases.capture) == (False, 0)


@pytest.fixture
def searches(monkeypatch):
    """Return sizes of batches, by whether cuDNN searched for kernels and whether they were trained on or looked at."""
    found = {(how, search): set() for how in ("trained", "scored") for search in (True, False)}
    update, score = Learner._update, Learner.score_batch

    def noting_update(self, images, *args, **kwargs):
        found["trained", torch.backends.cudnn.benchmark].add(len(images))
        return update(self, images, *args, **kwargs)

    def noting_score(self, batch):
        found["scored", torch.backends.cudnn.benchmark].add(len(batch))
        return score(self, batch)

    monkeypatch.setattr(Learner, "_update", noting_update)
    monkeypatch.setattr(Learner, "score_batch", noting_score)
    return found


def test_kernels_are_searched_for_in_warm_up_and_never_on_the_clock(run, searches, monkeypatch):
    result = run("pruning.strategy=selective-backprop", "prune_rate=0.3")
    cold = set(result.batch_shapes) - searches["trained", True]
    assert cold  # of sizes that nobody could foresee
    assert searches["trained", True] >= {64, 200 - 3 * 64}
    assert searches["trained", False] == set(result.batch_shapes)
    assert {359, 360} <= searches[
        "scored", True
    ]  # held-out images, whose search would free the blocks of the next epoch

    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    searches["trained", True].clear()
    run("train.deterministic=true")
    assert torch.backends.cudnn.deterministic
    assert not searches["trained", True]


@pytest.mark.parametrize("graphs", ["false", "true"])
def test_whatever_frees_cached_memory_is_over_before_the_last_steps_of_warm_up(run, cuda, monkeypatch, graphs):
    events, update, capture = [], Learner._update, Learner.capture

    def noting_update(self, images, *args, **kwargs):
        events.append(len(images))
        return update(self, images, *args, **kwargs)

    def noting_capture(self, *args, **kwargs):
        capture(self, *args, **kwargs)
        events.append("captured")

    def noting_train(self, *args):
        events.append("clock")
        return train(self, *args)

    train = trainer.TrainingRun.train
    monkeypatch.setattr(Learner, "_update", noting_update)
    monkeypatch.setattr(Learner, "capture", noting_capture)
    monkeypatch.setattr(trainer.TrainingRun, "train", noting_train)
    run(f"train.cuda_graphs={graphs}")
    warm = events[: events.index("clock")]
    small = 200 - 3 * 64
    assert warm[:2] == [64, small]  # the searches
    assert warm[2:] == [64, small] if graphs == "false" else warm[-2:] == ["captured", small]


def test_peak_memory_is_that_of_training_and_of_captured_steps(run, cuda):
    cuda.in_use = [2**20]
    assert run().peak_memory_mb == 1
    assert (
        cuda.log.count("reset_peak_memory_stats") >= 2
    )  # the last one behind warm-up, whose searches take what is free
    cuda.in_use = [7 * 2**20, 5 * 2**20, 2**20]  # while two sizes were captured, and in training
    assert run("train.cuda_graphs=true").peak_memory_mb == 7


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_are_rehearsed_once_in_a_process_and_learn_the_same(run, monkeypatch, name):
    changes = [f"pruning.strategy={name}", f"prune_rate={0.0 if name == 'full' else 0.3}", "pruning.helper_epochs=1"]
    monkeypatch.setattr(trainer, "_REHEARSED", set())
    ended, train = [], trainer.TrainingRun.train

    def noting(self, *args):
        trained = train(self, *args)
        ended.append((self.config.pruning.strategy, self.config.clock.warmup_steps))
        return trained

    monkeypatch.setattr(trainer.TrainingRun, "train", noting)
    hashes = {run(*changes).weights_sha256 for _ in range(2)}
    assert ended == [(name, 0), (name, 1), (name, 1)]
    assert len(hashes) == 1


@pytest.fixture
def _put_back(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_put_back")
@pytest.mark.parametrize(
    ("asked", "has_it", "said"),
    [
        ("fp32", True, "fp32"),
        ("tf32", True, "tf32"),
        ("auto", True, "tf32"),
        ("auto", False, "fp32"),
        ("tf32", False, "fp32"),
    ],
)
def test_tf32_is_said_and_fp32_is_what_it_says(run, monkeypatch, asked, has_it, said):
    monkeypatch.setattr("budgettune.training.device.has_tf32", lambda device: has_it)
    monkeypatch.setattr("budgettune.training.device.has_fast_bf16", lambda device: False)
    set_precision = torch.set_float32_matmul_precision

    def warning(precision):  # as torch 2.9
        warnings.warn("Please use the new API settings to control TF32 behavior, such as", stacklevel=2)
        set_precision(precision)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "set_float32_matmul_precision", warning)
        assert run(f"train.precision={asked}").precision == said
    assert torch.backends.cudnn.allow_tf32 == (said == "tf32")
    assert torch.get_float32_matmul_precision() == ("high" if said == "tf32" else "highest")

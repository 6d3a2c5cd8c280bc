"""Trials that several processes train together: who does what, that all end with one model, and how that goes wrong."""

import itertools
import os
import signal
import threading
from contextlib import closing

import pytest
import torch
from torch import distributed, nn

from budgettune.errors import Interrupted, NonFiniteLoss, OutOfMemory, ProcessLost, SpecError, UsageError
from budgettune.spec.pruning import STRATEGIES
from budgettune.spec.study_spec import StudySpec, load_spec
from budgettune.spec.trust import Trust
from budgettune.training.data.load import load_data
from budgettune.training.group import Group
from budgettune.training.team import Team, together
from budgettune.training.trainer import TrainingRun, train
from budgettune.trial.accelerator import weights_sha256
from budgettune.trial.checkpoint import Checkpoint
from tests.support.studies import result

SMALL = [
    "search={}",
    "data.train_size=203",
    "train.batch_size=50",
    "train.epochs=3",
    "train.precision=fp32",
    "clock.warmup_steps=1",
    "model.scale=0.5",
]
TRUST = Trust(["tests"])
CPU = torch.device("cpu")


class Plain(nn.Module):
    """A network without batch norm, which no part of a batch changes."""

    def __init__(self, *, num_classes, channels, image_size, **_):
        super().__init__()
        self.features = nn.Conv2d(channels, 8, 3, padding=1)
        self.head = nn.Linear(8 * image_size**2, num_classes)

    def forward(self, images):
        return self.head(self.features(images).relu().flatten(1))


class Failing(Plain):
    """A network with a fault in one process alone."""

    def __init__(self, *, error, in_process, **facts):
        super().__init__(**facts)
        self.error, self.in_process = error, in_process

    def forward(self, images):
        if distributed.is_initialized() and distributed.get_rank() == self.in_process and self.training:
            raise {"memory": torch.OutOfMemoryError("CUDA out of memory"), "value": ValueError("no such thing")}[
                self.error
            ]
        return super().forward(images)


class Own(Plain):
    """A network that is another one in each process."""

    def forward(self, images):
        if distributed.is_initialized():
            self.register_buffer("own", torch.tensor(distributed.get_rank()))
        return super().forward(images)


class Normalised(Plain):
    """A network that normalises numbers, not pictures, over its batch."""

    def __init__(self, **facts):
        super().__init__(**facts)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, images):
        means = self.norm(self.features(images).mean((2, 3)))
        return self.head(self.features(images).flatten(1)) + means.sum(1, keepdim=True)


def network(name, **options):
    text = ", ".join(
        f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in options.items()
    )
    return [f"model.name=tests.training.test_team:{name}", "model.scale=1.0", f"model.options={{{text}}}"]


def spec_of(*overrides) -> StudySpec:
    return load_spec("digits").with_overrides([*SMALL, *overrides])


@pytest.fixture(scope="module")
def data():
    return load_data(spec_of().data)


@pytest.fixture(scope="module")
def team():
    """Return two processes for all tests of this file."""
    with closing(Team(CPU, TRUST, usual=2)) as team:
        yield team


@pytest.fixture
def run(team, data):
    def run(*overrides, processes=team, **how):
        return processes.train(spec_of(*overrides), seed=1, data=data, **how)

    return run


def pids(team):
    return [child.pid for child in team._children]


def difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


# --- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 8])
def test_parts_cover_a_batch_and_differ_by_one_sample_at_most(size):
    def part(rank, count):
        group = object.__new__(Group)
        group.rank, group.size = rank, size
        return list(range(count))[group.part(count)]

    for count in range(size, 40):
        parts = [part(rank, count) for rank in range(size)]
        assert list(itertools.chain(*parts)) == list(range(count))
        assert 0 < min(map(len, parts)) >= max(map(len, parts)) - 1
    assert [part(rank, 1) for rank in range(size)] == [[0]] * size  # fewer samples than ranks are everybody's


# --- one model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.slow
def test_every_strategy_trains_in_two_processes_with_equal_weights(strategy, run, tmp_path):
    scores = tmp_path / "scores.csv"
    scores.write_text("index,score\n" + "".join(f"{i},{i % 7}\n" for i in range(203)))
    options = [f'pruning.scores="{scores}"'] if strategy == "scores-file" else []
    trained = run(f"pruning.strategy={strategy}", "prune_rate=0.3", *options)  # unequal weights would be an error
    assert trained.result.machine.processes == 2
    assert trained.result.machine.key.endswith("x1 ×2")
    assert trained.result.weights_sha256 == weights_sha256(trained.model)


@pytest.mark.parametrize(
    "strategy", ["full", "random", "stale-quantile", "infobatch", "selective-backprop", "el2n", "kakurenbo"]
)
def test_two_processes_give_what_one_gives_within_rounding(strategy, run, data):
    overrides = [*network("Plain"), f"pruning.strategy={strategy}", "prune_rate=0.3"]
    both = run(*overrides)
    alone = train(spec_of(*overrides), seed=1, data=data, trust=TRUST)
    assert difference(both.model, alone.model) < 1e-5
    counts = ("epochs", "steps", "samples", "scored_samples", "helper_samples", "keep_fraction", "batch_shapes")
    assert [getattr(both.result, name) for name in counts] == [getattr(alone.result, name) for name in counts]
    assert both.result.validation_accuracy == pytest.approx(alone.result.validation_accuracy, abs=0.01)
    assert both.result.test_accuracy == pytest.approx(alone.result.test_accuracy, abs=0.01)
    assert alone.result.machine.processes == 1


def test_labels_are_those_of_the_first_process(run, data, team):
    changed = spec_of(*network("Plain"))
    wrong = load_data(changed.data)
    wrong.train.labels[:] = wrong.train.labels.roll(1)
    both, alone = (
        team.train(changed, seed=1, data=wrong),
        train(changed, seed=1, data=wrong, trust=TRUST),
    )
    assert difference(both.model, alone.model) < 1e-5


# --- who decides ----------------------------------------------------------------------------------------------------


def test_the_deadline_is_that_of_the_first_process(run):
    """Each look at its clock takes a millisecond; the other's clock, which is the true one, is not asked."""
    ticks = itertools.count()
    found = run("train.epochs=", "train.budget=1s", clock=lambda: next(ticks) / 1000).result
    assert abs(found.train_seconds - 1.0) <= found.step_ms_median / 1000
    assert found.final_lr == 0


def test_early_stops_end_all(run, team):
    before = pids(team)
    found = run(ends_early=lambda record: record.epoch == 1).result
    assert found.epochs == 2
    assert pids(team) == before


def test_a_request_to_stop_ends_all_and_they_go_on(run, team):
    asked = itertools.count()
    before = pids(team)
    with pytest.raises(Interrupted):
        run(should_stop=lambda: next(asked) > 5)
    assert run().result.epochs == 3
    assert pids(team) == before


def test_an_interruption_in_the_first_process_ends_all_and_they_go_on(run, team):
    """As Ctrl-C does, wherever the process is."""

    def interrupt(record):
        raise KeyboardInterrupt

    before = pids(team)
    with pytest.raises(KeyboardInterrupt):
        run(on_epoch=interrupt)
    assert run().result.epochs == 3
    assert pids(team) == before


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_all_alike(run, team):
    before = pids(team)
    with pytest.raises(NonFiniteLoss):
        run("train.lr=1e30", *network("Plain"))
    assert run().result.epochs == 3
    assert pids(team) == before


@pytest.mark.parametrize(
    ("error", "process", "kind", "message"),
    [
        ("memory", 1, OutOfMemory, "process 1 of 2: no memory left on cpu at batch size 50"),
        ("memory", 0, OutOfMemory, "no memory left on cpu at batch size 50"),
        ("value", 1, RuntimeError, "process 1 of 2: ValueError: no such thing"),
        ("value", 0, ValueError, "no such thing"),
    ],
)
@pytest.mark.slow
def test_what_fails_in_one_process_fails_the_trial_with_its_reason_and_they_go_on(
    error, process, kind, message, run, team
):
    run()
    before = pids(team)
    with pytest.raises(kind) as caught:
        run(*network("Failing", error=error, in_process=process))
    assert str(caught.value).startswith(message)
    assert run().result.epochs == 3
    assert pids(team) == before


@pytest.mark.slow
def test_an_unexpected_error_of_another_process_shows_its_own_lines(run, team, capfd):
    team.close()  # the next process writes where this test looks
    with pytest.raises(RuntimeError, match="no such thing"):
        run(*network("Failing", error="value", in_process=1))
    said = capfd.readouterr().err
    assert "process 1 of 2 failed" in said
    assert "in forward\n" in said


@pytest.mark.slow
def test_a_process_that_is_killed_fails_the_trial_and_the_next_one_has_another(run, team):
    with pytest.raises(ProcessLost, match="process 1 of 2 was ended by SIGKILL"):
        run(on_epoch=lambda record: os.kill(pids(team)[0], signal.SIGKILL))
    assert run().result.epochs == 3


@pytest.mark.slow
def test_a_process_that_hangs_fails_the_trial_and_the_next_one_has_another(run, team, monkeypatch):
    assert run().result.epochs == 3
    team._part()  # a group keeps the patience that it was made with
    monkeypatch.setattr("budgettune.training.group.ANSWER_SECONDS", 1.5)
    monkeypatch.setattr("budgettune.training.team.REASON_SECONDS", 0.1)
    stopped = []
    with pytest.raises(ProcessLost, match="process 0 gets no answer from the others"):
        run(on_epoch=lambda record: stopped.append(os.kill(pids(team)[0], signal.SIGSTOP)))
    assert stopped == [None]
    monkeypatch.undo()
    assert run().result.epochs == 3


@pytest.mark.slow
def test_a_process_that_hangs_between_trials_fails_the_next_one_alone(run, team, monkeypatch):
    assert run().result.epochs == 3  # with all the time that a start takes
    monkeypatch.setattr("budgettune.training.team.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("budgettune.training.team.REASON_SECONDS", 0.1)
    os.kill(pids(team)[0], signal.SIGSTOP)
    with pytest.raises(ProcessLost, match="process 1 of 2 gives no answer"):
        run()
    monkeypatch.undo()
    assert run().result.epochs == 3


def test_a_fault_of_the_first_process_after_the_last_step_leaves_them_together(run, team, monkeypatch):
    """The other has trained to the end by then, and knows of no fault."""
    before = pids(team)
    with monkeypatch.context() as context, pytest.raises(ZeroDivisionError):
        context.setattr(TrainingRun, "_result", lambda *args: 1 / 0)
        run()
    assert run().result.epochs == 3
    assert pids(team) == before


def test_where_a_process_would_be_waited_for_for_good_the_reason_is_told_from_a_thread(run, team, monkeypatch):
    """As on a GPU, which waits for one that has left without noticing."""
    monkeypatch.setattr("budgettune.training.team.WATCH_SECONDS", 0.05)
    monkeypatch.setattr("budgettune.training.team.HANG_SECONDS", 0.05)
    monkeypatch.setattr(team, "may_hang", True)
    told, reasons = threading.Event(), []

    def hang(record):
        os.kill(pids(team)[0], signal.SIGKILL)
        assert told.wait(60)

    with pytest.raises(ProcessLost):
        run(on_epoch=hang, on_hang=lambda reason: reasons.append(reason) or told.set())
    assert "was ended by SIGKILL" in str(reasons[0])


@pytest.mark.slow
def test_processes_that_end_with_different_weights_fail_the_trial(run):
    with pytest.raises(
        SpecError, match=r"process 1 ended with other weights than process 0.*train it with one process"
    ):
        run(*network("Own"))


def test_nobody_stands_by_where_one_process_trains(run, team):
    assert run("train.processes=1").result.machine.processes == 1
    assert pids(team) == []


@pytest.mark.slow
def test_a_last_batch_of_fewer_samples_than_processes_is_trained_by_all(team):
    """Last among those that train: another number of processes is another team."""
    few = [*network("Plain"), "data.train_size=102"]
    images = load_data(spec_of(*few).data)
    three = team.train(spec_of(*few, "train.processes=3"), seed=1, data=images)
    alone = train(spec_of(*few), seed=1, data=images, trust=TRUST)
    assert alone.result.batch_shapes == (50, 2)
    assert three.result.machine.processes == 3
    assert difference(three.model, alone.model) < 1e-5


@pytest.mark.slow
def test_a_part_of_one_image_that_batch_norm_cannot_learn_from_is_named(run):
    with pytest.raises(SpecError, match="take at least 4, and keep at least 4 images in every epoch"):
        run(*network("Normalised"), "train.batch_size=3", "clock.warmup_steps=0")


# --- what is put together -------------------------------------------------------------------------------------------


def test_the_worst_verdict_and_the_largest_peak_count():
    own = result()
    own = type(own)(**{**vars(own), "status": "clean", "evidence": {"seconds": 2.0, "reasons": []}})
    answer = {
        "weights_sha256": own.weights_sha256,
        "peak_memory_mb": 50.0,
        "status": "clean",
        "evidence": {"reasons": []},
    }
    assert together(own, [answer]) == own
    bad = {**answer, "status": "disturbed", "evidence": {"reasons": ["others took 9%"]}, "peak_memory_mb": 500.0}
    found = together(own, [answer, bad])
    assert (found.status, found.peak_memory_mb) == ("disturbed", 500.0)
    assert found.evidence == {"seconds": 2.0, "reasons": ["process 2: others took 9%"]}


# --- how many -------------------------------------------------------------------------------------------------------


def test_the_study_says_how_many_processes_train_a_trial_else_the_worker():
    assert Team(CPU, TRUST).processes(spec_of()) == 1
    assert Team(CPU, TRUST, usual=2).processes(spec_of()) == 2
    assert Team(CPU, TRUST, usual=2).processes(spec_of("train.processes=3")) == 3
    with pytest.raises(UsageError, match=r"asks for 3, and this worker has 1 process.*--gpus-per-trial 3"):
        Team(CPU, TRUST, is_fixed=True).processes(spec_of("train.processes=3"))
    with pytest.raises(UsageError, match=r"asks for 3, and this worker has 2 processes.*torchrun --nproc-per-node 3"):
        Team(CPU, TRUST, usual=2, store=distributed.HashStore()).processes(spec_of("train.processes=3"))


def test_a_box_is_not_asked_for_more_processes_than_it_can_run(monkeypatch):
    monkeypatch.setattr("budgettune.training.team.usable_cores", lambda: 3)
    assert Team(CPU, TRUST).processes(spec_of("train.processes=6")) == 6
    with pytest.raises(UsageError, match="1000 are too many for 3 cores: take 6 at most"):
        Team(CPU, TRUST).processes(spec_of("train.processes=1000"))
    assert Team(CPU, TRUST, usual=8).processes(spec_of("train.processes=8")) == 8


def test_what_torchrun_started_starts_no_processes_of_its_own(run, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(UsageError, match="goes with `budgettune worker` alone"):
        run()


def test_processes_share_the_threads_and_times_are_of_a_kind_of_their_own():
    machine = Team(CPU, TRUST).machine(spec_of("train.processes=2"))
    assert machine.key == f"{machine.device_name} x{max(1, torch.get_num_threads() // 2)} ×2"
    assert Team(CPU, TRUST).machine(spec_of()).key == f"{machine.device_name} x{torch.get_num_threads()}"


def test_processes_are_not_searched():
    with pytest.raises(SpecError, match=r"search.train.processes: times of one process and of several"):
        load_spec("digits").with_overrides(['search={"train.processes" = [1, 2]}'])


@pytest.mark.parametrize("strategy", ["infobatch", "selective-backprop"])
def test_a_trial_of_two_processes_that_was_cut_off_goes_on_to_the_same_end(run, tmp_path, strategy):
    (tmp_path / "kept").mkdir(mode=0o700)
    more = [f"pruning.strategy={strategy}", "prune_rate=0.3", "data.augment=true"]
    place, seen = Checkpoint(tmp_path / "kept" / "trial", "mine", every_seconds=0.0), []
    whole = run(*more).result
    with pytest.raises(Interrupted):
        run(*more, checkpoint=place, on_epoch=seen.append, should_stop=lambda: len(seen) == 2)
    resumed = run(*more, checkpoint=place).result
    assert (resumed.resumed, resumed.weights_sha256) == ((2,), whole.weights_sha256)
    assert [each.value for each in resumed.curve] == [each.value for each in whole.curve]

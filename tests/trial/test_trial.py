"""`Trial`: the clock, the length, the curve, and what is said to code that uses it as it cannot be used."""

import math

import numpy as np
import pytest

from budgettune.errors import Interrupted, NonFiniteLoss, TrialMisused
from budgettune.machine.fingerprint import fingerprint
from budgettune.spec.objective import ObjectiveSpec
from budgettune.trial.checkpoint import NOWHERE, Checkpoint
from budgettune.trial.terms import ALONE, Outside, Terms
from budgettune.trial.trial import Trial

MACHINE = fingerprint(device="cpu", threads=1)
BITS = ObjectiveSpec(name="bits per byte", direction="minimize")


class Clock:
    """Seconds that pass where a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def make(clock, outside=ALONE, checkpoint=NOWHERE, **terms):
    terms = {"params": {"lr": 0.1}, "seed": 7, "epochs": 3, **terms}
    return Trial(Terms(**terms), outside, clock, checkpoint)


def run(trial, clock, *, steps=4, step_seconds=1.0, evaluation_seconds=10.0, accuracy=0.5):
    for epoch in trial.epochs():
        with trial.clock():
            for _ in range(steps):
                clock.sleep(step_seconds)
                if not trial.step(32, loss=2.0):
                    break
        clock.sleep(evaluation_seconds)
        trial.report(accuracy=accuracy + epoch / 100)
    return trial


def test_the_clock_counts_what_is_inside_it_and_nothing_else(clock):
    trial = make(clock)
    clock.sleep(50)
    with trial.aside("load"):
        clock.sleep(20)
    result = run(trial, clock).result(MACHINE)
    assert result.train_seconds == pytest.approx(12)
    assert (result.phases.step, result.phases.build, result.phases.evaluate) == pytest.approx((12, 50, 30))
    assert dict(result.phases.asides) == {"load": pytest.approx(20)}
    assert [record.train_seconds for record in result.curve] == pytest.approx([4, 8, 12])
    assert [record.value for record in result.curve] == pytest.approx([0.5, 0.51, 0.52])
    assert (result.epochs, result.steps, result.samples, result.value) == (3, 12, 384, 0.52)
    assert result.step_ms_median == pytest.approx(1000)
    assert result.curve[0].loss == 2.0
    assert result.seed == 7


def test_several_clocks_of_an_epoch_add_up(clock):
    trial = make(clock, epochs=1)
    for _ in trial.epochs():
        for _ in range(3):
            with trial.clock():
                clock.sleep(2)
            clock.sleep(5)
        trial.report(accuracy=1)
    assert trial.result(MACHINE).train_seconds == pytest.approx(6)


def test_what_code_does_not_say_is_absent(clock):
    trial = make(clock, epochs=1)
    for _ in trial.epochs():
        with trial.clock():
            clock.sleep(1)
        trial.report(accuracy=0.5)
    result = trial.result(MACHINE)
    absent = ("steps", "samples", "parameters", "multiply_adds", "peak_memory_mb", "step_ms_median", "keep_fraction")
    assert [getattr(result, name) for name in absent] == [None] * len(absent)
    assert (result.curve[0].loss, result.curve[0].samples) == (None, None)


def test_what_code_describes_is_in_its_columns_and_the_rest_beside_them(clock):
    trial = make(clock)
    trial.describe(parameters=12, kind="linear")
    result = run(trial, clock).result(MACHINE)
    assert (result.parameters, dict(result.architecture)) == (12, {"kind": "linear"})


def test_facts_are_what_json_holds(clock):
    trial = make(clock)
    trial.describe(parameters=np.int64(12), peak_memory_mb=np.float32(0.5), shape=(np.int64(2), 3))
    result = run(trial, clock).result(MACHINE)
    assert (result.parameters, result.peak_memory_mb, dict(result.architecture)) == (12, 0.5, {"shape": [2, 3]})


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"kernel": object()}, r"trial\.describe\(kernel=…\): object is nothing that JSON can hold"),
        ({"weights": np.zeros(2)}, r"trial\.describe\(weights=…\): ndarray is nothing that JSON can hold"),
        ({"norm": math.nan}, r"trial\.describe\(norm=…\): float is nothing that JSON can hold"),
        ({"parameters": "many"}, r"trial\.describe\(parameters='many'\): must be a number"),
        ({"precision": 16}, r"trial\.describe\(precision=16\): must be text"),
    ],
)
def test_other_facts_are_misuse(clock, facts, message):
    with pytest.raises(TrialMisused, match=message):
        make(clock).describe(**facts)


@pytest.mark.parametrize("budget_seconds", [7.0, 7.4, 7.6, 9.9])
def test_a_budget_ends_within_half_a_step_and_progress_with_it(clock, budget_seconds):
    trial = make(clock, epochs=None, budget_seconds=budget_seconds)
    seen = []
    for _ in trial.epochs():
        with trial.clock():
            for _ in range(4):
                seen.append(trial.progress)
                clock.sleep(1.0)
                if not trial.step():
                    break
        clock.sleep(10)
        trial.report(accuracy=0.5)
    assert abs(trial.result(MACHINE).train_seconds - budget_seconds) <= 0.5
    assert seen == sorted(seen)
    assert seen[0] == 0.0
    assert seen[-1] >= 0.9


def test_progress_goes_by_steps_of_epochs(clock):
    trial, seen = make(clock, epochs=2), []
    for _ in trial.epochs(steps=4):
        with trial.clock():
            for _ in range(4):
                seen.append(trial.progress)
                trial.step()
        trial.report(accuracy=0.5)
    assert seen == [0, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8]


def test_the_last_epoch_is_known_where_epochs_are(clock):
    trial, last = make(clock), []
    for _ in trial.epochs():
        with trial.clock():
            trial.step()
        last.append(trial.is_last_epoch)
        if trial.is_last_epoch:
            trial.report(accuracy=0.5)
    assert last == [False, False, True]
    assert [record.value for record in trial.result(MACHINE).curve] == [None, None, 0.5]


def test_an_objective_by_its_name_and_further_numbers(clock):
    trial = make(clock, epochs=1, objective=BITS)
    for _ in trial.epochs():
        with trial.clock():
            trial.step()
        trial.report(bits_per_byte=2.5, memory=12)
    result = trial.result(MACHINE)
    assert (result.value, dict(result.measures), dict(result.curve[0].measures)) == (
        2.5,
        {"memory": 12},
        {"memory": 12},
    )


def test_it_ends_where_the_rule_of_the_study_says_so(clock):
    trial = run(make(clock, Outside(ends_early=lambda record: record.epoch == 1)), clock)
    assert trial.result(MACHINE).epochs == 2


def test_code_may_end_it_itself(clock):
    trial = make(clock)
    for _ in trial.epochs():
        with trial.clock():
            trial.step()
        trial.report(accuracy=0.9)
        break
    assert trial.is_whole
    assert trial.result(MACHINE).epochs == 1


def test_a_stop_is_heard_at_a_step_and_before_an_epoch(clock):
    asked = []
    trial = make(clock, Outside(should_stop=lambda: len(asked) > 2))
    with pytest.raises(Interrupted):
        for _ in trial.epochs():
            with trial.clock():
                asked.append(trial.step())
                asked.append(trial.step())
    assert len(asked) == 3
    with pytest.raises(Interrupted):
        next(make(clock, Outside(should_stop=lambda: True)).epochs())


def body(*calls, epochs=1, **terms):
    """Return training code that makes some calls in each epoch, and the trial that it trained."""

    def train(clock):
        trial = make(clock, epochs=epochs, **terms)
        for _ in trial.epochs():
            for call in calls:
                call(trial)
        return trial.result(MACHINE)

    return train


def tick(trial):
    with trial.clock():
        trial.step()


def inside(call):
    def clocked(trial):
        with trial.clock():
            call(trial)

    return clocked


def said(trial):
    trial.report(accuracy=0.5)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (body(said), "the clock never ran in epoch 0: train inside `with trial.clock():`"),
        (body(), "the clock never ran in epoch 0"),
        (body(tick), "the last epoch was not reported: call trial.report(accuracy=…) where trial.is_last_epoch"),
        (body(tick, said, said), "trial.report() twice in epoch 0"),
        (body(tick, said, tick), "the clock runs after trial.report(): report once, at the end of an epoch"),
        (body(inside(said)), "trial.report() inside trial.clock(): evaluate after the clock, or it is charged"),
        (body(inside(tick)), "trial.clock() inside trial.clock(): the clock runs already"),
        (body(lambda trial: trial.step()), "trial.step() outside of trial.clock(): steps are what the clock counts"),
        (body(inside(lambda trial: trial.aside("load").__enter__())), "trial.aside('load') inside trial.clock()"),
        (
            body(tick, lambda trial: trial.report(accuracy=93)),
            "trial.report(accuracy=93): an accuracy is a share from 0",
        ),
        (
            body(tick, lambda trial: trial.report(loss=1)),
            "trial.report() tells loss, and the study's objective is test",
        ),
        (body(tick, lambda trial: trial.report()), "trial.report() tells nothing, and the study's objective is test"),
        (
            body(tick, said, objective=BITS),
            "trial.report() tells accuracy, and the study's objective is bits per byte: ",
        ),
        (body(tick, lambda trial: trial.report(accuracy=10**400)), "trial.report(accuracy=…): int is no number"),
        (body(tick, lambda trial: trial.report(accuracy="x")), "trial.report(accuracy=…): str is no number"),
        (
            body(tick, lambda trial: next(trial.epochs())),
            "trial.epochs() is called twice: go through the epochs in one",
        ),
        (
            lambda clock: make(clock).result(MACHINE),
            "the code has ended without an epoch: train in `for epoch in trial",
        ),
        (lambda clock: inside(said)(make(clock)), "trial.clock() outside of an epoch: call it in `for epoch in trial"),
        (
            lambda clock: said(make(clock)),
            "trial.report() outside of an epoch: call it in `for epoch in trial.epochs():`",
        ),
    ],
)
def test_misuse_is_one_clear_sentence(clock, train, message):
    with pytest.raises(TrialMisused) as caught:
        train(clock)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "call", [lambda trial: trial.report(accuracy=math.nan), lambda trial: trial.report(accuracy=0.5, x=math.inf)]
)
def test_a_number_that_is_none_fails_the_trial_as_diverged(clock, call):
    with pytest.raises(NonFiniteLoss, match=r"the code reports (accuracy|x) = (nan|inf)"):
        body(tick, call)(clock)


def test_so_does_a_loss(clock):
    with pytest.raises(NonFiniteLoss, match="the loss of epoch 0 is nan"):
        body(inside(lambda trial: trial.step(8, math.nan)), said)(clock)


def test_an_error_inside_the_clock_stops_it(clock):
    trial = make(clock)
    with pytest.raises(ZeroDivisionError):
        for _ in trial.epochs():
            with trial.clock():
                clock.sleep(1)
                1 / 0  # noqa: B018
    clock.sleep(100)
    assert trial._watch.elapsed() == pytest.approx(1)


class TestHalfTrained:
    """A trial whose code saves goes on in another process after its last epoch, its clock with it."""

    @pytest.fixture
    def place(self, tmp_path):
        (tmp_path / "kept").mkdir(mode=0o700)
        return lambda: Checkpoint(tmp_path / "kept" / "trial", "mine", every_seconds=0.0)

    def train(self, trial, clock, told=None):
        weight = trial.restored or 0
        with trial.aside("load"):
            clock.sleep(20)
        for epoch in trial.epochs():
            if told is not None:
                told.append(epoch)
            with trial.clock():
                clock.sleep(2)
                trial.step(8)
                weight += 1
            trial.report(accuracy=weight / 10)
            trial.save(weight)
        return trial

    def cut_off(self, place, clock, after, status="clean", **terms):
        epochs = []
        trial = make(clock, Outside(should_stop=lambda: len(epochs) > after), place(), **terms)
        trial.look = lambda: (status, {"reasons": ["heat"]})
        with pytest.raises(Interrupted):
            self.train(trial, clock, epochs)

    def test_curve_clock_and_parts_off_the_clock_go_on(self, clock, place):
        self.cut_off(place, clock, after=2, epochs=5)
        trial = make(clock, checkpoint=place(), epochs=5)
        assert trial.restored == 2
        told = []
        result = self.train(trial, clock, told).result(MACHINE, "clean", {"seconds": 1.0, "reasons": []})
        whole = self.train(make(clock, epochs=5), clock).result(MACHINE)
        assert told == [2, 3, 4]
        assert result.curve == whole.curve
        assert result.train_seconds == whole.train_seconds == 10
        assert result.phases.asides == {"load": 40}
        assert result.resumed == (2,)
        assert (result.status, result.evidence["reasons"]) == ("clean", ["before epoch 2: heat"])

    @pytest.mark.parametrize(("before", "after"), [("disturbed", "clean"), ("clean", "disturbed")])
    def test_the_worst_verdict_counts(self, clock, place, before, after):
        self.cut_off(place, clock, after=2, status=before)
        assert self.train(make(clock, checkpoint=place()), clock).result(MACHINE, after).status == "disturbed"

    def test_a_budget_is_used_up_once(self, clock, place):
        budget = {"epochs": None, "budget_seconds": 8.5}
        self.cut_off(place, clock, after=2, **budget)
        result = self.train(make(clock, checkpoint=place(), **budget), clock).result(MACHINE)
        assert result.train_seconds == 8
        assert result.curve == self.train(make(clock, **budget), clock).result(MACHINE).curve

    def test_the_stopping_rule_hears_of_the_epochs_before(self, clock, place):
        self.cut_off(place, clock, after=2, epochs=5)
        heard = []
        outside = Outside(ends_early=lambda record: (heard.append(record.epoch), record.epoch == 3)[1])
        assert self.train(make(clock, outside, place(), epochs=5), clock).result(MACHINE).epochs == 4
        assert heard == [0, 1, 2, 3]

    def test_code_that_saves_nothing_begins_anew(self, clock, place):
        epochs = []
        trial = make(clock, Outside(should_stop=lambda: len(epochs) > 2), place())
        with pytest.raises(Interrupted):
            for epoch in trial.epochs():
                epochs.append(epoch)
                with trial.clock():
                    trial.step()
                trial.report(accuracy=0.5)
        assert make(clock, checkpoint=place()).restored is None

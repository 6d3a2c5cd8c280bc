"""Stopping by dominance: forecasts and stops on made-up curves, rows of stopped trials."""

import json
from dataclasses import replace

import numpy as np
import optuna
import pytest

from budgettune.cli.output import Format
from budgettune.cli.study import study_show
from budgettune.errors import SpecError
from budgettune.predict.sampler.encoding import Encoding
from budgettune.predict.sampler.history import history_of
from budgettune.records import StoppingNote, TrialRecord, TrialResult
from budgettune.spec.study_spec import StudySpec, load_spec
from budgettune.storage.connection import writing
from budgettune.storage.writes import end_trial
from budgettune.study.early_stop import (
    LEAST_RIVALS,
    Finished,
    Progress,
    Rival,
    is_control,
    judge,
    summary_of_notes,
)
from budgettune.study.handle import create_study
from budgettune.study.sampling import search_space
from tests.support.studies import curve, grid, let_lease_run_out, records, result, sampled, work_off


def finished(number, seconds, error, **options):
    epochs = curve(seconds, error, **options)
    accuracy = epochs[-1].accuracy
    record = TrialRecord(
        number=number, state="COMPLETE", params={}, train_seconds=seconds, value=accuracy, curve=epochs
    )
    rival = Rival.of(record)
    assert rival is not None
    return rival


def progress(epochs, of=10):
    return Progress.of(epochs, epochs=of, budget_seconds=None)


@pytest.fixture
def rivals():
    """Return twenty trials: the longer, the more accurate, from 10 s to 105 s and from an error of 0.30 to 0.11."""
    rng = np.random.default_rng(0)
    return [finished(k, 10.0 + 5 * k, 0.3 - 0.01 * k, noise=0.02, rng=rng) for k in range(20)]


# --- Forecast and stop ----------------------------------------------------------------------------------------------


def test_a_slow_trial_with_a_poor_curve_is_dominated_by_a_trial_that_beats_its_bounds(rivals):
    note = judge(progress(curve(200.0, 0.29)[:4]), Finished(rivals), 3, 0.95)
    assert note is not None
    assert note.stopped
    assert note.wrong is None
    assert note.least_seconds <= 200.0 * 1.001
    assert 0.65 < note.expected_accuracy < note.most_accuracy < rivals[19].score
    assert rivals[19].seconds <= note.least_seconds
    assert note.rival == 19
    assert note.train_seconds == pytest.approx(80.0)
    assert "after epoch 4 (1m20s)" in note.reason
    assert "it would take about 3m20s and reach about 7" in note.reason
    assert "matters with a chance of 0.0" in note.reason
    assert "trial 19 took 1m45s and reached 89.0%" in note.reason


def test_a_trial_that_is_faster_than_all_others_goes_on_however_poor_it_is(rivals):
    assert judge(progress(curve(9.0, 0.6)[:5]), Finished(rivals), 4, 0.95) is None


def test_a_trial_on_its_way_to_the_best_accuracy_goes_on(rivals):
    assert judge(progress(curve(200.0, 0.08)[:5]), Finished(rivals), 4, 0.95) is None


def test_few_finished_trials_tell_nothing(rivals):
    poor = progress(curve(200.0, 0.29)[:6])
    assert Finished(rivals[: LEAST_RIVALS - 1]).forecast(poor) is None
    assert Finished(rivals[:LEAST_RIVALS]).forecast(poor) is not None
    assert judge(poor, Finished([]), 5, 0.5) is None
    # Twenty trials bear out that one in twenty is stopped wrongly, fewer than nineteen do not.
    assert Finished(rivals[:18]).limit(0.95) == 0.0
    assert judge(poor, Finished(rivals[:18]), 5, 0.95) is None
    assert judge(poor, Finished(rivals), 5, 0.99) is None
    assert judge(poor, Finished(rivals[:18]), 5, 0.9) is not None


def test_a_trial_is_looked_at_where_finished_ones_were_evaluated(rivals):
    fine = curve(200.0, 0.29, epochs=100)
    looks = [n for n in range(1, 60) if judge(progress(fine[:n], of=100), Finished(rivals), n - 1, 0.95)]
    assert looks == [10, 20, 30, 40, 50]
    assert len(Finished([finished(k, 10.0 + k, 0.3, epochs=300) for k in range(20)]).looks) == 20


def test_what_matters_is_half_a_point_or_a_twentieth_of_the_time(rivals):
    two = Finished(rivals[:2])  # 10 s to 70%, 15 s to 71%
    assert two.lack(9.9, 0.2)  # none was as fast
    assert not two.lack(10.0, 0.7)
    assert not two.lack(14.5, 0.704)
    assert two.lack(14.5, 0.706)
    assert two.lack(14.2, 0.704)
    assert two.lack(30.0, 0.8)
    assert two.gains(14.5, 0.706) == pytest.approx((0.006, 1 - 14.5 / 15))


def test_controls_stand_for_the_trials_that_were_stopped():
    """Half-way, trials are alike; the half that turns out worse is stopped a little later, but for the controls."""
    rng = np.random.default_rng(2)
    ends = rng.normal(-1.5, 0.4, 1000)
    survived, control = ends < -1.5, rng.random(1000) < 0.1
    shares = np.linspace(0.1, 1.0, 10)
    start = rng.normal(-0.5, 0.1, 1000)

    def rival(number, weight):
        errors = np.exp(np.where(shares < 0.6, start[number], ends[number]))
        seconds = {"seconds": 10.0, "seconds_so_far": 10.0 * shares}
        return Rival(number=number, score=1 - errors[-1], shares=shares, scores=1 - errors, weight=weight, **seconds)

    here = Progress(share=0.5, before=0.4, seconds=5.0, recent=(1 - np.exp(-0.5),) * 3)
    whole = [rival(k, 1.0) for k in range(1000)]
    survivors = [rival(k, 1.0) for k in np.flatnonzero(survived)]
    controls = [rival(k, 10.0) for k in np.flatnonzero(~survived & control)]
    true, alone, both = (Finished(each).forecast(here) for each in (whole, survivors, controls + survivors))
    true, alone, both = (float(each.level[0, 0]) for each in (true, alone, both))
    assert true == pytest.approx(-1.5, abs=0.05)
    assert alone < true - 0.25
    assert both == pytest.approx(true, abs=0.1)


def replayed(seed, trials, confidence):
    """Return the shares of random trials that are stopped, and stopped although they matter, beside 40 others."""
    rng = np.random.default_rng(seed)
    stopped, wrong = 0, 0
    for _ in range(trials):
        seconds, errors = rng.uniform(10, 100, 41), np.exp(rng.normal(-1.5, 0.3, 41))
        made = [finished(k, *each, noise=0.1, rng=rng) for k, each in enumerate(zip(seconds, errors, strict=True))]
        others = Finished(made[:40])
        own = curve(seconds[40], errors[40], noise=0.1, rng=rng)
        if any(judge(progress(own[:n]), others, n - 1, confidence) for n in range(1, 10)):
            stopped += 1
            wrong += others.lack(made[40].seconds, made[40].score)
    return stopped / trials, wrong / trials


@pytest.mark.slow
def test_of_all_trials_fewer_than_asked_for_are_stopped_wrongly_in_all_looks_together():
    stopped, wrong = replayed(3, 300, 0.9)
    assert stopped > 0.5
    assert wrong < 0.05
    assert replayed(3, 300, 0.975)[0] < stopped


def test_bounds_hold_as_often_as_asked_for():
    rng = np.random.default_rng(1)
    held = []
    for _ in range(400):
        seconds, errors = rng.uniform(10, 100, 21), np.exp(rng.normal(-1.5, 0.3, 21))
        trials = [finished(k, *each, noise=0.1, rng=rng) for k, each in enumerate(zip(seconds, errors, strict=True))]
        own = curve(seconds[20], errors[20], noise=0.1, rng=rng)
        ahead = Finished(trials[:20]).forecast(progress(own[:4]))
        most_score = 1.0 - np.exp(ahead.level - 1.28 * ahead.level_deviation)
        least_seconds = np.exp(ahead.end - 1.28 * ahead.end_deviation)
        held.append(
            (own[-1].accuracy <= most_score[0, 0] + 0.005, own[-1].train_seconds >= least_seconds[0, 0] * 0.999)
        )
    accuracy, time = np.mean(held, axis=0)
    assert 0.85 < accuracy < 0.95
    assert time > 0.9


def test_trials_of_other_lengths_are_compared_where_they_were_as_far():
    lengths = [finished(k, 10.0 + k, 0.2 + 0.01 * k, epochs=10 + 5 * k) for k in range(8)]
    ahead = Finished(lengths).forecast(progress(curve(40.0, 0.25, epochs=20)[:10], of=20))
    assert np.exp(ahead.end) == pytest.approx(40.0, rel=1e-6)
    assert 1 - np.exp(ahead.level) == pytest.approx(0.75, abs=0.02)


def test_a_trial_with_a_time_budget_is_as_far_as_its_clock():
    own = curve(60.0, 0.25)[:3]
    assert Progress.of(own, epochs=None, budget_seconds=60.0).share == pytest.approx(0.3)


def test_trials_that_were_not_evaluated_that_early_do_not_count(rivals):
    late = [replace(rival, shares=rival.shares[5:], scores=rival.scores[5:]) for rival in rivals]
    late = [replace(rival, seconds_so_far=rival.seconds_so_far[5:]) for rival in late]
    early = progress(curve(200.0, 0.29)[:3])
    assert Finished(late).forecast(early) is None
    with_late, without = (Finished(each).forecast(early) for each in ([*late, *rivals[:8]], rivals[:8]))
    assert with_late.level == pytest.approx(without.level)
    assert with_late.end_deviation == pytest.approx(without.end_deviation)


def test_a_trial_without_a_curve_is_no_rival():
    record = TrialRecord(number=0, state="COMPLETE", params={}, train_seconds=1.0, value=0.5)
    assert Rival.of(record) is None


def test_equal_trials_and_perfect_accuracy_are_no_trouble():
    alike = [finished(k, 10.0, 1e-9, start=0.5) for k in range(10)]
    trial = progress(curve(12.0, 1e-9, start=0.5)[:9])
    assert np.exp(Finished(alike).forecast(trial).end) == pytest.approx(12.0)
    assert judge(trial, Finished(alike), 8, 0.5) is None  # as accurate as the others it may well be


# --- Control --------------------------------------------------------------------------------------------------------


def test_one_in_ten_is_a_control_the_same_on_every_box_and_others_in_another_study():
    controls = [is_control(0, cell, 0, 0.1) for cell in range(5_000)]
    assert 0.08 < np.mean(controls) < 0.12
    assert controls == [is_control(0, cell, 0, 0.1) for cell in range(5_000)]
    assert controls != [is_control(1, cell, 0, 0.1) for cell in range(5_000)]
    assert not any(is_control(0, cell, 0, 0.0) for cell in range(500))
    assert all(is_control(0, cell, 0, 1.0) for cell in range(500))


def stop(rivals) -> StoppingNote:
    note = judge(progress(curve(200.0, 0.29)[:4]), Finished(rivals), 3, 0.95)
    assert note is not None
    return note


def control(note, *, wrong):
    return replace(note, stopped=False, wrong=wrong)


def test_the_rate_of_wrong_stops_is_estimated_from_controls_with_an_exact_bound(rivals):
    note = stop(rivals)
    notes = [note] * 3 + [control(note, wrong=False)] * 9 + [control(note, wrong=True)]
    summary = summary_of_notes(notes)
    assert (summary.stopped, summary.controls, summary.wrong) == (3, 10, 1)
    assert summary.wrong_rate_at_most == pytest.approx(0.3942, abs=1e-4)  # the textbook's for 1 of 10, one-sided 95%
    assert summary.spent_seconds == pytest.approx(240.0)
    assert summary.saved_seconds == pytest.approx(360.0, rel=0.01)
    assert "3 trials were stopped early: 6m00s of 10m00s (60%) saved" in summary.describe()
    assert (
        "of 10 controls 1 would have been stopped wrongly where it matters: at most 39% of the stops"
        in summary.describe()
    )
    assert summary_of_notes([control(note, wrong=True)]).wrong_rate_at_most == 1.0
    foreign = StoppingNote(stopped=False, train_seconds=1.0, expected_seconds=2.0)  # says not how it ended
    assert summary_of_notes([foreign]).wrong == 0
    assert summary_of_notes([]).wrong_rate_at_most is None


# --- Rows -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(rivals) -> TrialResult:
    return replace(result(), stopping=stop(rivals))


@pytest.fixture
def study(storage_url):
    """Return a grid of four cells whose trials may be stopped."""
    spec = StudySpec.from_document({**grid().to_document(), "stopping": {"rule": "dominance"}})
    with create_study(spec, storage_url) as handle:
        yield handle


def test_a_stopped_trial_is_done_and_keeps_its_curve_and_the_reason(study, stopped):
    claim = study.claim()
    assert study.complete(claim, stopped)
    assert study.complete(claim, stopped)  # the answer to the first delivery was lost
    work_off(study)
    assert study.is_finished()
    assert study.reconcile().queued == 0
    assert study.counts() == {"RUNNING": 0, "COMPLETE": 3, "PRUNED": 1, "FAIL": 0, "WAITING": 0}
    verification = study.verify()
    assert verification.whole
    assert (verification.complete, verification.stopped) == (3, 1)
    assert "3 of 4 cells × repeats have exactly one complete trial, 1 exactly one that was stopped early" in (
        verification.describe()
    )
    record = next(record for record in records(study) if record.state == "PRUNED")
    assert (record.train_seconds, record.test_accuracy, record.failure) == (None, None, None)
    assert record.stopped == stopped.stopping.reason
    assert record.curve == stopped.curve


def test_optuna_reads_a_stopped_trial_and_its_samplers_go_on(study, stopped):
    study.complete(study.claim(), stopped)
    work_off(study)
    for sampler in (optuna.samplers.TPESampler(n_startup_trials=1), optuna.samplers.NSGAIISampler(population_size=2)):
        theirs = optuna.load_study(study_name=study.name, storage=study.storage, sampler=sampler)
        assert len(theirs.best_trials) >= 1
        theirs.ask(search_space(study.spec))
    trial = theirs.trials[0]
    assert trial.state is optuna.trial.TrialState.PRUNED
    assert trial.user_attrs["stopping"]["rival"] == 19
    assert len(trial.user_attrs["curve"]) == 2


def test_a_late_stop_counts_where_its_cell_still_waits(study, stopped):
    claim = study.claim()
    let_lease_run_out(study)
    assert study.reconcile().lost == 1
    assert study.complete(claim, stopped)
    assert study.complete(claim, stopped)
    work_off(study)
    assert study.verify().whole
    assert study.counts()["PRUNED"] == 1


def test_a_stop_on_another_kind_of_machine_leaves_the_cell_open(study, stopped):
    study.complete(study.claim(), result(device_name="gpu"))
    claim = study.claim()
    assert not study.complete(claim, stopped)
    assert claim.cell in {record.cell for record in records(study) if record.state == "WAITING"}


def test_a_trial_that_another_program_called_pruned_is_run_again(study):
    claim = study.claim()
    with writing(study.engine) as connection:
        end_trial(connection, claim.trial_id, "PRUNED", {"why": "another rule"})
    study.reconcile()
    work_off(study)
    assert study.verify().whole
    assert study.counts()["COMPLETE"] == 4


def test_stopped_trials_use_up_a_total_by_their_seconds_on_the_clock(storage_url, stopped):
    study = create_study(sampled("random", total="85s"), storage_url)
    study.complete(study.claim(), stopped)  # 80 s
    study.complete(study.claim(), result(train_seconds=6.0))
    assert study.claim() is None
    assert study.is_finished()
    assert study.verify().whole
    study.close()


def test_the_cost_sampler_takes_a_stopped_trial_at_its_forecast(study, stopped):
    study.complete(study.claim(), stopped)
    work_off(study)
    trials = optuna.load_study(study_name=study.name, storage=study.storage).trials
    history = history_of(trials, Encoding(search_space(study.spec)), number=99)
    assert len(history.failed) == 0
    assert history.seconds[0] == pytest.approx(200.0, rel=0.01)
    assert history.scores[0] == pytest.approx(stopped.stopping.expected_accuracy)
    assert list(history.seconds[1:]) == [10.0] * 3


def test_a_study_shows_what_stopping_did(study, stopped, capsys, monkeypatch):
    study.complete(study.claim(), stopped)
    study.complete(study.claim(), replace(result(), stopping=replace(stopped.stopping, stopped=False, wrong=True)))
    study_show(study.name, storage=study.url)
    assert "of 1 controls 1 would have been stopped wrongly" in " ".join(capsys.readouterr().out.split())
    study_show(study.name, storage=study.url, form=Format.json)
    assert json.loads(capsys.readouterr().out)["stopping"]["stopped"] == 1


def test_a_study_without_the_rule_says_nothing_of_it(sqlite_url):
    with create_study(grid(), sqlite_url) as study:
        assert study.early_stops() is None


def test_a_damaged_note_is_no_stop(study, stopped):
    for note in ("stopped", {"stopped": "yes"}, {"stopped": True, "train_seconds": None}):
        claim = study.claim()
        with writing(study.engine) as connection:
            end_trial(connection, claim.trial_id, "PRUNED", {"stopping": note})
    study.reconcile()
    assert study.verify().stopped == 0
    assert len(study.verify().missing) == 4
    assert study.early_stops().stopped == 0


@pytest.mark.parametrize("setting", ["rule=median", "confidence=1.0", "control=1.5"])
def test_settings_that_cannot_work_are_refused(setting):
    with pytest.raises(SpecError, match=f"stopping.{setting.partition('=')[0]}"):
        load_spec("digits").with_overrides([f"stopping.{setting}"])

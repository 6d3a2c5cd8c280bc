"""How long trials take on the wall, by those that finished, and which still fit into the time that is left."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from budgettune.records import TrialRecord
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.connection import writing
from budgettune.storage.schema import trials, utc_in
from budgettune.study.durations import LOOKING_SHARE, Durations, Outlook
from budgettune.study.handle import create_study
from tests.support.simulated import World, simulated_spec
from tests.support.studies import result

OWN = {
    "name": "own",
    "train": {"loop": "tests.support.own_training:train", "epochs": 4},
    "params": {"x": 1.0},
    "search": {"params.x": [1.0, 2.0, 4.0]},
    "objective": {"name": "distance", "direction": "minimize"},
}
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def spec(**tables):
    return StudySpec.from_document({**OWN, **tables})


def lasted(record, wall_seconds):
    ended = BEGAN + timedelta(seconds=wall_seconds)
    return replace(record, started_at=BEGAN.isoformat(), completed_at=ended.isoformat())


def trial(params, train_seconds, wall_seconds, **more):
    bare = TrialRecord(number=0, state="COMPLETE", params=params, train_seconds=train_seconds, value=1.0, **more)
    return lasted(bare, wall_seconds)


def test_a_cell_takes_as_long_as_its_trials_took_evaluation_and_all():
    walls = [trial({"params.x": 1.0}, 10.0, wall) for wall in (14.0, 16.0, 40.0)]
    assert Durations(spec(), walls).of({"params.x": 1.0}).seconds == 16.0


def test_what_took_less_than_its_training_tells_nothing():
    """The row of a late result begins when it ends; one that went on elsewhere is the rest of a trial."""
    records = [trial({"params.x": 1.0}, 10.0, 0.0), trial({"params.x": 1.0}, 10.0, 6.0)]
    assert Durations(spec(), records).of({"params.x": 1.0}) is None
    unknown = TrialRecord(number=0, state="COMPLETE", params={"params.x": 1.0}, train_seconds=1.0)
    assert Durations(spec(), [unknown]).of({"params.x": 1.0}) is None


@pytest.mark.parametrize(("fixed", "share"), [(0.0, 0.0), (20.0, 0.0), (0.0, 0.5), (5.0, 0.25)])
def test_what_never_ran_takes_as_long_as_the_model_says_and_what_comes_beside_training(fixed, share):
    world = World(simulated_spec())
    table = world.table(repeats=1)
    chosen, known = table[-1], table[:-1:3]
    walls = [lasted(record, fixed + (1 + share) * record.train_seconds) for record in known]
    predicted = Durations(world.spec, walls).of(chosen.params)
    truth = fixed + (1 + share) * chosen.train_seconds
    assert 0.8 * truth < predicted.seconds < 1.1 * truth
    assert predicted.first_epoch_seconds == pytest.approx(fixed + (predicted.seconds - fixed) / 12, rel=0.1, abs=0.1)


def test_probes_tell_of_steps_that_no_trial_has_run():
    world = World(simulated_spec())
    params = dict(world.spec.cells()[0])
    predicted = Durations(world.spec, [], world.probes()).of(params)
    truth = world.train_seconds(world.workloads.of(params), 12)
    assert 0.5 * truth < predicted.seconds < 1.2 * truth


def test_own_code_that_never_ran_with_these_params_takes_as_long_as_what_ran():
    from tests.support.studies import curve

    records = [
        trial({"params.x": x}, 40.0, 50.0, curve=curve(40.0, 0.1, epochs=4), epochs=4, device_name="cpu x2")
        for x in (1.0, 2.0)
    ]
    assert Durations(spec(), records).of({"params.x": 4.0}).seconds == pytest.approx(50.0, rel=0.2)


def test_a_budget_is_known_before_anything_has_run():
    budget = spec(train={"loop": OWN["train"]["loop"], "budget": "10m"})
    known = Durations(budget, []).of({"params.x": 1.0})
    assert (known.seconds, known.first_epoch_seconds) == (600.0, 0.0)
    ran = trial({"params.x": 2.0}, 600.0, 660.0, epochs=6)
    other = Durations(budget, [ran]).of({"params.x": 1.0})
    assert other.seconds == pytest.approx(660.0)
    assert 100.0 <= other.first_epoch_seconds <= 160.0


def test_params_that_no_study_of_ours_has_end_no_worker():
    world = World(simulated_spec())
    walls = [lasted(record, 2 * record.train_seconds) for record in world.table(repeats=1)[::5]]
    durations = Durations(world.spec, walls)
    for odd in ({"scale": "large"}, {"scale": None}, {"scale": 1.0, "prune_rate": [0.3]}, {"scale": -1.0}):
        durations.of(odd)


@pytest.mark.parametrize("params", [{"params.x": 1.0}, {"params.x": "nonsense"}, {"no.such": 1}, {}])
def test_where_nothing_is_known_nothing_is_said(params):
    assert Durations(spec(), []).of(params) is None


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def finished_study(url, wall_seconds, **tables):
    """Return a study of own code whose first cell took so long on this machine, kept epochs or not."""
    study = create_study(spec(**tables), url)
    study.complete(study.claim(), result())
    with writing(study.engine) as connection:
        ended = sa.update(trials).where(trials.c.state == "COMPLETE")
        connection.execute(ended.values(datetime_start=utc_in(-wall_seconds), datetime_complete=utc_in()))
    return study


def test_an_outlook_learns_from_trials_of_this_machine_only(storage_url):
    study = finished_study(storage_url, 1_000.0)
    here, elsewhere = (Outlook(study, key, is_kept=True) for key in ("cpu x2", "another"))
    for outlook in (here, elsewhere):
        outlook.look()
    assert here.shortest_seconds is None
    assert not here.fits({"params.x": 1.0}, 900.0)
    assert here.shortest_seconds == pytest.approx(1_000.0, rel=0.01)
    assert here.fits({"params.x": 1.0}, 1_100.0)
    assert elsewhere.fits({"params.x": 1.0}, 1.0)


def test_own_code_can_go_on_elsewhere_once_it_has_been_seen_to_save(storage_url):
    study = finished_study(storage_url, 1_000.0)

    def fits(is_kept=True):
        outlook = Outlook(study, "cpu x2", is_kept=is_kept)
        outlook.look()
        return outlook.fits({"params.x": 1.0}, 700.0)

    assert not fits()
    claim = study.claim()
    study.heartbeat(claim.trial_id, 2)
    assert fits()
    assert not fits(is_kept=False)


def test_looking_takes_a_small_share_of_the_time(sqlite_url, monkeypatch):
    from budgettune.study import durations

    study, clock, looks = finished_study(sqlite_url, 1.0), Clock(), []

    def slow(*_, **__):
        looks.append(clock.now)
        clock.now += 1.0
        return []

    monkeypatch.setattr(durations, "latest_trials", slow)
    outlook = Outlook(study, "cpu x2", is_kept=False, clock=clock)
    while clock.now < 1_000.0:
        outlook.look()
        clock.now += 0.5
    assert len(looks) <= 1_000.0 * LOOKING_SHARE + 1
    assert len(looks) > 20
    assert math.isfinite(outlook._due_at)

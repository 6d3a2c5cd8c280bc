"""Files of half-trained trials: kept whole, read only by whoever they are for, and never an error."""

import logging
import os
import pickle
import threading
from pathlib import Path

import pytest

from budgettune.errors import BudgetTuneError
from budgettune.records import EpochRecord
from budgettune.spec.study_spec import load_spec
from budgettune.text import warn_once
from budgettune.trial.checkpoint import NOWHERE, Checkpoint, HalfTrained, identity_of

EPOCHS = tuple(EpochRecord(epoch=e, train_seconds=e + 0.1, steps=3, samples=9, loss=1 / 3, value=0.5) for e in range(2))


def half(**changes):
    values = {"curve": EPOCHS, "elapsed_seconds": 0.1 + 0.2, "seconds": {"step": 0.1}, "state": b"\x00\n\xff"}
    return HalfTrained(**values | changes)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "kept").mkdir(mode=0o700)
    return Checkpoint(tmp_path / "kept" / "trial", "mine")


@pytest.fixture(autouse=True)
def said_anew():
    warn_once.cache_clear()


@pytest.mark.parametrize("state", [b"bytes\n", None, {"weights": [1.5, 2.5], "step": 3}, bytearray(b"x")])
def test_what_is_kept_comes_back(place, state):
    kept = half(state=state, status="clean", evidence={"seconds": 1.5, "reasons": ["why"]}, resumed=(1,))
    assert place.load() is None
    assert place.save(kept)
    assert Checkpoint(place.path, "mine").load() == kept
    place.forget()
    place.forget()
    assert place.load() is None


def test_a_later_state_takes_the_place_of_an_earlier_one_and_nothing_else_stays(place):
    place.save(half())
    place.save(half(state=b"later"))
    assert place.load().state == b"later"
    assert [path.name for path in place.path.parent.iterdir()] == ["trial"]
    assert place.path.stat().st_mode & 0o777 == 0o600


def test_nowhere_keeps_nothing():
    assert not NOWHERE.is_due()
    assert not NOWHERE.save(half())
    assert NOWHERE.load() is None
    NOWHERE.forget()


def damaged(content):
    yield b""
    yield b"\n"
    yield content[:10]
    yield content[:-1]
    yield content + b"more"
    yield content.replace(b"0.3", b"0.4", 1)
    yield content[:-1] + b"z"
    yield content.replace(b" 1 ", b" 2 ", 1)
    yield content.partition(b"\n")[2]
    yield b"\xff" * 1000


def test_a_damaged_file_is_said_and_left_alone(place, caplog):
    place.save(half())
    content = place.path.read_bytes()
    for each in damaged(content):
        caplog.clear()
        place.path.write_bytes(each)
        assert place.load() is None, each[:40]
        assert len(caplog.records) == 1
        assert "the trial begins anew" in caplog.text


def test_a_file_of_another_trial_is_not_used(place, caplog):
    place.save(half())
    assert Checkpoint(place.path, "yours").load() is None
    assert "of another study, configuration, seed or kind of machine" in caplog.text


def test_an_identity_tells_spec_params_seed_and_machine_apart():
    spec = load_spec("digits")
    other = spec.with_overrides(["train.epochs=3"])
    ways = [(spec, {}, 1, "cpu"), (other, {}, 1, "cpu"), (spec, {"a": 1}, 1, "cpu"), (spec, {}, 2, "cpu")]
    ways.append((spec, {}, 1, "gpu"))
    assert len({identity_of(*way) for way in ways}) == len(ways)
    assert identity_of(spec, {"a": 1, "b": 2}, 1, "cpu") == identity_of(spec, {"b": 2, "a": 1}, 1, "cpu")


class Trap:
    """What runs code where it is unpickled."""

    sprung = threading.Event()

    def __reduce__(self):
        return spring, ()


def spring():
    Trap.sprung.set()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="a system without these rights")
@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_no_code_is_read_that_others_could_have_written(place, caplog, what, mode):
    place.save(half(state=Trap()))
    (place.path if what == "file" else place.path.parent).chmod(mode)
    Trap.sprung.clear()
    assert place.load() is None
    assert not Trap.sprung.is_set()
    assert "others may write to it" in caplog.text


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="a system without these rights")
def test_no_code_is_read_of_another_user(place, monkeypatch, caplog):
    place.save(half(state=Trap()))
    Trap.sprung.clear()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert place.load() is None
    assert not Trap.sprung.is_set()
    assert "belongs to another user" in caplog.text


def test_a_folder_that_the_operator_named_is_shared_with_its_group_but_not_with_everybody(tmp_path, monkeypatch):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o770)
    shared = Checkpoint(folder / "trial", "mine", is_shared=True)
    shared.save(half())
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1, raising=False)
    assert shared.load() == half()
    folder.chmod(0o777)
    assert shared.load() is None


def test_code_of_the_user_s_own_comes_back_as_it_was(place):
    place.save(half(state=Trap()))
    Trap.sprung.clear()
    place.load()
    assert Trap.sprung.is_set()  # so that the tests above show something


def test_who_asks_for_bytes_runs_no_code(place, caplog):
    place.save(half(state=Trap()))
    Trap.sprung.clear()
    assert place.load(bytes_only=True) is None
    assert not Trap.sprung.is_set()
    assert "a pickle" in caplog.text
    place.save(half())
    assert place.load(bytes_only=True) == half()


def test_a_state_that_cannot_be_unpickled_is_no_error(place, caplog, monkeypatch):
    place.save(half(state={"code": half}))

    def gone(content):
        raise ModuleNotFoundError("No module named 'theirs'")

    monkeypatch.setattr(pickle, "loads", gone)
    assert place.load() is None
    assert "No module named 'theirs'" in caplog.text


def test_a_state_that_cannot_be_pickled_is_an_error_that_says_so(place):
    with pytest.raises(BudgetTuneError, match="what pickle takes"):
        place.save(half(state=threading.Lock()))


def test_a_folder_that_takes_nothing_is_said_once_and_training_goes_on(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    place = Checkpoint(tmp_path / "file" / "trial", "mine")
    assert not place.save(half())
    assert not place.save(half())
    assert place.load() is None
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_said_and_training_goes_on(tmp_path, caplog):
    (tmp_path / "trial").symlink_to("/dev/full")
    assert not Checkpoint(tmp_path / "trial", "mine").save(half())
    assert "No space left" in caplog.text


class TestWhenToSave:
    def test_after_some_seconds_or_where_it_costs_next_to_nothing(self, tmp_path):
        now = [0.0]
        place = Checkpoint(tmp_path / "trial", every_seconds=30, clock=lambda: now[0])

        def passes(seconds):
            now[0] += seconds
            return place.is_due()

        assert not passes(4.9)  # as if the first saving took 0.05 s
        assert passes(0.2)
        now[0] += 2  # which saving takes
        place.save(half())
        assert not passes(29)  # 2 s are more than a hundredth of it
        assert passes(1)
        now[0] += 0.001
        place.save(half())
        assert not passes(0.09)
        assert passes(0.02)

    def test_always_where_it_is_told_so(self, tmp_path):
        place = Checkpoint(tmp_path / "trial", every_seconds=0, clock=lambda: 0.0)
        assert place.is_due()
        place.save(half())
        assert place.is_due()


@pytest.mark.parametrize(
    ("before", "after", "both"),
    [
        ("clean", "clean", "clean"),
        ("clean", "disturbed", "disturbed"),
        ("disturbed", "clean", "disturbed"),
        ("unverified", "clean", "unverified"),
        ("unverified", "disturbed", "disturbed"),
    ],
)
def test_the_worst_of_two_verdicts_counts_with_the_reasons_of_both(before, after, both):
    status, evidence = half(status=before, evidence={"seconds": 1, "reasons": ["heat"]}).verdict_with(
        after, {"seconds": 2, "reasons": ["noise"]}
    )
    assert status == both
    assert evidence == {"seconds": 2, "reasons": ["before epoch 2: heat", "noise"]}

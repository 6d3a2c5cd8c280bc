"""What outlives a training: the file of its model."""

import resource
from contextlib import contextmanager

import pytest
import torch

from budgettune.errors import UsageError
from budgettune.records import TrialResult
from budgettune.spec.study_spec import StudySpec
from budgettune.training.session import prepare_process, save_model
from budgettune.trial.terms import Trained
from tests.support.studies import RESULT

SPEC = StudySpec.from_document({"name": "ours"})
SMALL, LARGE = Trained(RESULT, torch.nn.Linear(10, 10)), Trained(RESULT, torch.nn.Linear(1_000, 1_000))


@contextmanager
def room_for(count):
    """Let no file become longer than that many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_model_is_kept_with_where_it_came_from(tmp_path):
    save_model(tmp_path / "model.pt", SMALL, SPEC, {"train.lr": 0.1})
    kept = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.equal(kept["state_dict"]["weight"], SMALL.model.weight)
    assert (kept["spec"], kept["params"]) == (SPEC.to_document(), {"train.lr": 0.1})
    assert TrialResult.from_json(kept["result"]).curve == RESULT.curve


def test_the_model_of_before_stays_where_the_disk_has_no_room_for_the_next(tmp_path):
    path = tmp_path / "model.pt"
    save_model(path, SMALL, SPEC, {})
    before = path.read_bytes()
    with room_for(1_000_000), pytest.raises(UsageError, match=r"model\.pt cannot be written: File too large"):
        save_model(path, LARGE, SPEC, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", [".", "nowhere/model.pt"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, place):
    with pytest.raises(UsageError, match=r"model file .* cannot be written: .* directory"):
        save_model(tmp_path / place, SMALL, SPEC, {})


@pytest.fixture
def threads_put_back():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("option", "threads"), [(None, 1), (2, 2)])
def test_training_and_its_machine_key_heed_omp_num_threads_unless_threads_are_given(
    option, threads, monkeypatch, threads_put_back
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    machine, _ = prepare_process(torch.device("cpu"), option)
    assert torch.get_num_threads() == machine.threads == threads
    assert machine.key.endswith(f" x{threads}")

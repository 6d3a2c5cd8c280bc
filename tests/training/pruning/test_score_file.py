"""Scores of the user: what is read, and everything that is refused."""

import os
import pickle

import numpy as np
import pytest

from budgettune.errors import DataError
from budgettune.training.pruning.scores import read_scores


def test_whole_numbers_and_half_precision_are_scores_too(tmp_path):
    for kind in (np.int16, np.float16, np.float64):
        np.save(tmp_path / "a.npy", np.array([3, 1, 2], dtype=kind))
        assert read_scores(str(tmp_path / "a.npy"), 3).tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    "scores", [np.zeros(4), np.zeros((3, 1)), np.zeros(3, dtype=complex), np.array(["a", "b", "c"])]
)
def test_another_shape_or_kind_is_refused_with_what_to_do(tmp_path, scores):
    np.save(tmp_path / "a.npy", scores)
    with pytest.raises(DataError, match=r"a\.npy must hold one number for each of the 3 training images"):
        read_scores(str(tmp_path / "a.npy"), 3)


def test_a_file_without_any_finite_score_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.full(3, np.nan))
    with pytest.raises(DataError, match="no finite score"):
        read_scores(str(tmp_path / "a.npy"), 3)


def test_a_pickle_is_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    np.save(tmp_path / "a.npy", np.array([Bomb()] * 3, dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.npy", "b.npy"):
        with pytest.raises(DataError, match="cannot be read"):
            read_scores(str(tmp_path / name), 3)
    assert not (tmp_path / "exploded").exists()


def test_other_files_are_refused_without_showing_what_is_in_them(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("root:hunter2")
    np.savez(tmp_path / "many.npz", a=np.zeros(3))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (tmp_path / "empty.npy").touch()
    for name in ("secret", "many.npz", "cut.npy", "empty.npy"):
        with pytest.raises(DataError) as caught:
            read_scores(str(tmp_path / name), 3)
        assert "hunter2" not in str(caught.value)


def test_a_header_that_promises_more_than_the_file_holds_takes_no_memory(tmp_path):
    header = {"descr": "<f8", "fortran_order": False, "shape": (3_000_000_000_000,)}
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(DataError, match="cannot be read"):
        read_scores(str(tmp_path / "a.npy"), 3_000_000_000_000)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing.npy", "pipe", "."):
        with pytest.raises(DataError, match="no file on this machine"):
            read_scores(str(tmp_path / name), 3)

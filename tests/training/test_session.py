"""Model files."""

from types import SimpleNamespace

import pytest
import torch

from budgettune.errors import UsageError
from budgettune.records import TrialResult
from budgettune.spec.study_spec import load_spec
from budgettune.training.session import save_model
from tests.support.studies import result


def test_a_model_file_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def save_and_fill_the_disk(document, file):
        file.write(b"begun")
        raise OSError("no space left on device")

    path, trained = tmp_path / "model.pt", SimpleNamespace(model=torch.nn.Linear(2, 1), result=result())
    save_model(path, trained, load_spec("digits"), {"scale": 1.0})
    monkeypatch.setattr(torch, "save", save_and_fill_the_disk)
    with pytest.raises(UsageError, match="cannot be written: no space left"):
        save_model(path, trained, load_spec("digits"), {"scale": 1.4})
    saved = torch.load(path, weights_only=True)
    assert saved["params"] == {"scale": 1.0}
    assert TrialResult.from_json(saved["result"]).curve == trained.result.curve
    assert list(tmp_path.iterdir()) == [path]

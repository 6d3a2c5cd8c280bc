"""The examples train for real: scikit-learn without torch, a small GPT on bytes, gradient boosting by the tree."""

import subprocess
import sys

import pytest

from budgettune import api
from budgettune.spec.study_spec import load_spec
from budgettune.spec.trust import Trust
from budgettune.study.handle import create_study
from budgettune.trial.checkpoint import Checkpoint
from budgettune.worker.loop import run_worker
from budgettune.worker.options import WorkerOptions
from budgettune.worker.own_code import OwnCode
from tests.support.documents import ROOT, blocks

EXAMPLES = ROOT / "examples"
SMALL = {
    "digits_sgd": ["train.epochs=2", "search.params.alpha=[1e-4]"],
    "char_gpt": [
        *("train.epochs=2", "params.steps=4", "params.width=32", "params.layers=1", "params.lr=5e-3"),
        *("search.params.batch_size=[4, 8]", "sampler.name=grid"),
    ],
    "trees": [
        *("train.epochs=6", "params.max_depth=2", "params.learning_rate=0.2", "search.params.max_features=[4, 8]"),
        "sampler.name=grid",
    ],
}


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("BUDGETTUNE_SPOOL", str(tmp_path / "spool"))
    monkeypatch.syspath_prepend(str(EXAMPLES))


def small(name):
    return load_spec(EXAMPLES / f"{name}.toml").with_overrides(SMALL[name])


@pytest.mark.parametrize("name", list(SMALL))
@pytest.mark.slow
def test_an_example_is_a_study_that_learns(name, tmp_path):
    study = create_study(small(name), f"sqlite:///{tmp_path / 'study.db'}")
    assert run_worker(study.url, study.name, WorkerOptions(device="cpu", allow_import=frozenset([name]))).failed == 0
    assert study.verify().whole
    for record in api.trial_records(study):
        values = [point.value for point in record.curve if point.value is not None]
        scores = [study.spec.objective.score(value) for value in values]
        assert len(scores) == 1 or scores[-1] > scores[0]
        assert record.steps >= record.epochs


def test_the_page_shows_the_example_as_it_is():
    shown = {block.file: block.text for block in blocks(ROOT / "docs" / "your-training.md") if block.file}
    for file, text in shown.items():
        assert text.split("\n", 1)[1].strip() in (EXAMPLES / file).read_text(encoding="utf-8")


@pytest.mark.slow
def test_scikit_learn_trains_without_torch(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    create_study(small("digits_sgd"), url)
    script = (
        "import sys; from budgettune.cli.main import app\n"
        f"try: app(['worker', '--storage', {url!r}, '--allow-import', 'digits_sgd', '--device', 'cpu'])\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env={"PYTHONPATH": str(EXAMPLES)}
    )
    assert done.stdout.splitlines()[-1] == "False", done.stderr


@pytest.mark.slow
def test_a_gpt_goes_on_where_it_was_cut_off_with_the_same_weights(tmp_path):
    pytest.importorskip("torch")
    from budgettune.trial.terms import Outside

    spec = small("char_gpt").with_overrides(["train.epochs=3"])
    params = {"params.batch_size": 4}
    own = OwnCode(WorkerOptions(device="cpu", threads=1), Trust(["char_gpt"]))
    whole = own.trained(spec, params, 3)

    class CutOff(Exception):
        pass

    def cut(record):
        if record.epoch == 2:
            raise CutOff

    def kept():
        return Checkpoint(tmp_path / "half", "one", every_seconds=0.0)

    with pytest.raises(CutOff):
        own.trained(spec, params, 3, Outside(on_epoch=cut), kept())
    resumed = own.trained(spec, params, 3, checkpoint=kept())
    assert [point.value for point in resumed.result.curve] == [point.value for point in whole.result.curve]
    assert resumed.result.weights_sha256 == whole.result.weights_sha256
    assert resumed.result.train_seconds > max(point.train_seconds for point in resumed.result.curve[:2])

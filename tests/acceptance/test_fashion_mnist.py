"""Real images: set BUDGETTUNE_FASHION_MNIST to the folder that holds the four files."""

import os

import pytest

from budgettune.spec.study_spec import load_spec
from budgettune.study.handle import create_study
from budgettune.training.data.load import load_data
from budgettune.training.trainer import train
from budgettune.worker.loop import run_worker
from budgettune.worker.options import WorkerOptions

ROOT = os.environ.get("BUDGETTUNE_FASHION_MNIST", "")
pytestmark = [
    pytest.mark.fashion,
    pytest.mark.skipif(not ROOT, reason="set BUDGETTUNE_FASHION_MNIST to the folder of the four Fashion-MNIST files"),
]


@pytest.fixture(scope="module")
def spec():
    small = ["data.train_size=2000", "data.image_size=14", "train.epochs=4", "train.batch_size=100"]
    return load_spec("fashion-mnist").with_overrides([f"data.root={ROOT}", *small])


def test_a_small_network_learns_real_images_in_a_few_epochs(spec):
    result = train(spec, {"scale": 1.0, "prune_rate": 0.2}, seed=0, data=load_data(spec.data)).result
    assert result.test_accuracy > 0.65
    # The first epoch keeps all; 0.2 of all visits are left out of the other three.
    assert [round(epoch.samples / 2000, 2) for epoch in result.curve] == [1.0, 0.73, 0.73, 0.73]
    assert result.keep_fraction == pytest.approx(0.8, abs=0.001)


def test_a_study_of_real_images_is_whole(spec, sqlite_url):
    search = "search={scale = [1.0, 1.5], prune_rate = [0.0, 0.4]}"
    study = create_study(spec.with_overrides([search, "train.epochs=1", "pruning.strategy=random"]), sqlite_url)
    run_worker(sqlite_url, None, WorkerOptions(device="cpu"))
    assert study.verify().whole

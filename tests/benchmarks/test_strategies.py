"""The tables that the benchmarks make of comparisons: what they choose by, and what they call beyond chance."""

import json

import pytest

from benchmarks import paper_claim, strategies
from benchmarks.support import cifar_shaped
from budgettune.comparison.result import write_comparison
from budgettune.errors import UsageError
from budgettune.spec.tables import DataSpec
from tests.support.made_comparisons import ALIKE, BETTER, DIGITS, FULL_AT, comparison

WORSE = (0.70, 0.72, 0.71, 0.70, 0.70)


def test_a_table_has_budgets_side_by_side_and_marks_what_is_beyond_chance(tmp_path, capsys):
    files = [tmp_path / "short.json", tmp_path / "long.json"]
    for file, budget, infobatch in zip(files, (3.0, 10.0), (ALIKE, BETTER), strict=True):
        write_comparison(file, comparison({"full": FULL_AT, "infobatch 0.5": infobatch}, budget=budget))
    numbers = tmp_path / "numbers.json"
    strategies.main([*map(str, files), "--json", str(numbers)])
    best, full = json.loads(numbers.read_text())["table"]
    assert best["strategy"] == "`infobatch`" and full["strategy"] == "`full`"  # the best at the longest budget first
    assert best["10.0s: to full"].startswith("**+5.40 ±") and best["10.0s: p"]
    assert best["3.0s: to full"].startswith("+0.20 ±") and not best["3.0s: p"]
    assert "supported: infobatch 0.5" in capsys.readouterr().out
    with pytest.raises(UsageError, match="two files hold"):  # such as one with wrong labels
        strategies.main([str(files[0]), str(files[0])])


def test_a_repetition_is_inside_what_was_stated_or_said_to_be_outside(tmp_path, capsys):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    write_comparison(first, comparison({"full": FULL_AT, "infobatch 0.5": BETTER, "ucb 0.5": BETTER}))
    write_comparison(second, comparison({"full": FULL_AT, "infobatch 0.5": BETTER[::-1], "ucb 0.5": WORSE}))
    strategies.main([str(first), "--again", str(second)])
    lines = capsys.readouterr().out.splitlines()
    [infobatch] = [line for line in lines if line.startswith("| infobatch 0.5")]
    [ucb] = [line for line in lines if line.startswith("| ucb 0.5")]
    assert infobatch.rstrip(" |").endswith("yes") and ucb.rstrip(" |").endswith("NO")


def test_each_side_of_the_claim_answers_by_the_seeds_that_tune(tmp_path, capsys):
    # The larger network is better on the seeds that tune, and its pruned arm worse on those that are scored.
    files = []
    for scale, accuracies in ((1.0, (FULL_AT, BETTER)), (2.0, (FULL_AT, WORSE))):
        spec = DIGITS.resolve({"model.scale": scale})
        arms = dict(zip(("full", "stale-quantile 0.3"), accuracies, strict=True))
        files.append(tmp_path / f"{scale}.json")
        made = comparison(arms, spec=spec)
        if scale == 2.0:
            better = {"update": {"accuracy": 0.9}}
            made = made.model_copy(
                update={
                    "runs": tuple(
                        run.model_copy(update={"measured": run.measured.model_copy(**better)})
                        if run.purpose == "tuning" and run.lr == 0.03
                        else run
                        for run in made.runs
                    )
                }
            )
        write_comparison(files[-1], made)
    numbers = tmp_path / "numbers.json"
    paper_claim.main([*map(str, files), "--json", str(numbers)])
    document = json.loads(numbers.read_text())
    [row] = document["answers"]
    assert row["with pruning"].startswith("scale 2, stale-quantile 0.3")
    assert row["pruning ahead by"].startswith("**−9.40 ±")
    assert row["seeds"] == 5
    [pair] = document["pairs"]  # 5.4 ahead in one network and 9.4 behind in the other: at each seed their mean
    assert pair["10.0s"].startswith("**−2.00 ±")


def test_files_of_a_claim_that_share_too_little_are_refused(tmp_path):
    files = {}
    for scale, arm in ((1.0, "stale-quantile 0.3"), (2.0, "stale-quantile 0.2")):
        files[scale] = tmp_path / f"{scale}.json"
        made = comparison({"full": FULL_AT, arm: BETTER}, spec=DIGITS.resolve({"model.scale": scale}))
        write_comparison(files[scale], made)
    with pytest.raises(UsageError, match="a file has no"):
        paper_claim.main([*map(str, files.values())])
    made = comparison({"full": FULL_AT, "stale-quantile 0.3": BETTER}, spec=DIGITS.resolve({"model.scale": 2.0}))
    moved = tuple(run.model_copy(update={"seed": run.seed + 1000}) for run in made.runs)
    write_comparison(files[2.0], made.model_copy(update={"runs": moved}))
    with pytest.raises(UsageError, match="share no two seeds"):
        paper_claim.main([*map(str, files.values())])


def test_made_up_images_have_the_shape_of_cifar_and_are_the_same_each_time():
    spec = DataSpec(train_size=450, evaluate_on="validation", validation_fraction=0.1)
    images, labels, test_images, test_labels = cifar_shaped.images(spec)
    assert images.shape == (501, 3, 32, 32) and test_images.shape == (2000, 3, 32, 32)
    assert set(labels.tolist()) == set(test_labels.tolist()) == set(range(100))
    assert (cifar_shaped.images(spec)[0] == images).all()
    assert len({image.tobytes() for image in images}) == 501

"""A comparison as a value: hand-made runs, what they say, and how they go to a file and come back."""

import json

import pytest

from budgettune.comparison.plan import Turn, arms_of, budgets_of, shared_spec, turns, with_turn
from budgettune.comparison.result import FULL, Arm, read_comparison, write_comparison
from budgettune.comparison.show import draw, panels, sentences, table_rows, write_figure
from budgettune.errors import UsageError
from budgettune.spec.pruning import STRATEGIES
from tests.support.made_comparisons import ALIKE, BETTER, DIGITS, FULL_AT, comparison, joined, run

# --- standings ------------------------------------------------------------------------------------------------------


def test_differences_are_taken_at_equal_seeds():
    found = comparison({"random 0.3": [0.7, 0.8, 0.9], "full": [0.6, 0.7, None]})
    full, random = found.standings(10.0)
    assert (full.arm, full.runs, full.failed, full.against_full) == (FULL, 2, 1, None)
    assert random.accuracy.mean == pytest.approx(0.8)
    assert random.against_full.difference.count == 2
    assert random.against_full.difference.mean == pytest.approx(0.1)
    assert (random.overhead, random.realised_prune_rate, random.epochs) == pytest.approx((0.01, 0.3, 7))


def test_p_is_corrected_for_the_arms_of_its_own_budget_only():
    ten = comparison({"full": FULL_AT, "random 0.3": ALIKE, "random 0.5": BETTER})
    twenty = comparison({"full": FULL_AT, "random 0.3": ALIKE}, budget=20.0)
    found = joined(ten, twenty)
    assert found.budgets == (10.0, 20.0)
    _, alike, better = found.standings(10.0)
    assert better.corrected_p == pytest.approx(2 * better.against_full.t_p)
    assert alike.corrected_p == pytest.approx(alike.against_full.t_p)
    assert found.standings(20.0)[1].corrected_p == found.standings(20.0)[1].against_full.t_p


def test_an_arm_that_only_failed_keeps_its_row_and_its_reason():
    row = comparison({"full": FULL_AT, "random 0.3": [None, None]}).standings(10.0)[1]
    assert (row.runs, row.failed, row.accuracy, row.overhead) == (0, 2, None, None)
    assert row.failures == ("out-of-memory: no room",)


def test_a_run_again_takes_the_place_of_the_failed_one():
    found = comparison({"full": [None, 0.8]}).with_run(run(FULL, 0.9))
    assert sorted(one.measured.test_accuracy for one in found.runs) == [0.8, 0.9]


# --- file -----------------------------------------------------------------------------------------------------------


def test_a_comparison_comes_back_from_its_file_as_it_was(tmp_path):
    found = comparison({"full": FULL_AT, "random 0.3": [*BETTER[:4], None]}, shuffle_labels=0.2)
    write_comparison(tmp_path / "c.json", found)
    assert read_comparison(tmp_path / "c.json") == found
    document = json.loads((tmp_path / "c.json").read_text())
    assert [row["strategy"] for row in document["standings"]] == ["full", "random"]
    assert document["standings"][1]["difference"] == pytest.approx(0.0525)
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"cannot be read \(No such file"),
        ("{", "no comparison .*Invalid JSON"),
        ("[]", "no comparison"),
        ('{"format": "else"}', r"no comparison \(format"),
    ],
)
def test_what_is_no_comparison_is_refused_with_its_path(tmp_path, text, message):
    if text is not None:
        (tmp_path / "c.json").write_text(text)
    with pytest.raises(UsageError, match=rf"c\.json: {message}.*budgettune compare --out"):
        read_comparison(tmp_path / "c.json")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere.*cannot be written"):
        write_comparison(tmp_path / "nowhere" / "c.json", comparison({"full": FULL_AT}))


# --- plan -----------------------------------------------------------------------------------------------------------


def test_full_and_random_are_always_compared_and_full_has_one_row():
    arms = arms_of(DIGITS, ["stale-quantile", "full"], [0.3, 0.5])
    assert [str(arm) for arm in arms] == [
        *("full", "random 0.3", "random 0.5"),
        *("stale-quantile 0.3", "stale-quantile 0.5"),
    ]


def test_strategies_and_rates_come_from_the_search_of_the_spec():
    spec = DIGITS.with_overrides(['search={"pruning.strategy" = ["full", "stale-quantile"], prune_rate = [0, 0.4]}'])
    assert [str(arm) for arm in arms_of(spec)] == ["full", "random 0.4", "stale-quantile 0.4"]
    fixed = arms_of(DIGITS.with_overrides(["prune_rate=0.1"]))
    assert {arm.strategy for arm in fixed} == set(STRATEGIES)
    assert {arm.prune_rate for arm in fixed} == {0.0, 0.1}
    assert {arm.prune_rate for arm in arms_of(DIGITS.with_overrides(["search={}"]))} == {0.0, 0.3}


@pytest.mark.parametrize(
    ("strategies", "rates", "message"),
    [(["magic"], [], "'magic' is unknown"), ([], [0.0], "prune rate 0"), ([], [1.0], "prune rate 1")],
)
def test_arms_that_cannot_be_are_refused(strategies, rates, message):
    with pytest.raises(UsageError, match=message):
        arms_of(DIGITS, strategies, rates)


def test_a_comparison_without_a_training_time_is_refused():
    assert budgets_of(DIGITS, [20, 5, 20]) == [5.0, 20.0]
    assert budgets_of(DIGITS.with_overrides(["train.budget=7s"])) == [7.0]
    with pytest.raises(UsageError, match="--budget"):
        budgets_of(DIGITS)


def test_every_arm_runs_once_per_seed_and_none_is_always_first():
    arms = arms_of(DIGITS, ["stale-quantile"], [0.3, 0.5])
    order = turns(arms, [5.0, 20.0], [11, 12, 13])
    assert len(set(order)) == len(order) == 5 * 2 * 3
    assert [turn.seed for turn in order] == sorted(turn.seed for turn in order)
    assert len({order[10 * number][:2] for number in range(3)}) == 3


def test_runs_share_all_but_what_is_compared_and_end_at_a_learning_rate_of_zero():
    spec = DIGITS.with_overrides(["train.lr_schedule=constant", "train.budget=9s", "search={}", "prune_rate=0.4"])
    shared = shared_spec(spec)
    assert shared == shared_spec(spec.with_overrides(["train.epochs=3", "pruning.strategy=random", "prune_rate=0"]))
    assert shared.train.lr_schedule == "linear"
    assert shared_spec(DIGITS.with_overrides(["train.lr_schedule=cosine"])).train.lr_schedule == "cosine"
    config = with_turn(shared, Turn(Arm("random", 0.5), 3.0, 1))
    assert (config.train.budget, config.train.epochs) == (3.0, None)
    assert (config.pruning.strategy, config.pruning.prune_rate) == ("random", 0.5)


# --- words and figure -----------------------------------------------------------------------------------------------


def test_the_table_says_mean_interval_difference_p_overhead_and_realised_rate():
    found = comparison({"full": FULL_AT, "random 0.3": BETTER})
    full, random = table_rows(found.standings(10.0))
    assert full["strategy"] == "full"
    assert full["against full"] is None
    assert random["accuracy %"] == "85.40 ±0.68"
    assert random["against full"] == "+5.40 ±0.68"
    assert random["p"] == "<0.001"
    assert (random["overhead"], random["pruned"]) == ("1.0%", "30%")
    assert "failed" not in random
    assert table_rows(comparison({"full": [None]}).standings(10.0))[0]["failed"] == 1


def test_words_name_the_support_the_visible_difference_the_clock_and_the_failures():
    found = comparison({"full": FULL_AT, "random 0.3": [*ALIKE[:4], None]})
    text = "\n".join(sentences(found, 10.0))
    assert "supported: full: no other strategy has two runs and no failed one at 10.0s" in text
    assert "p: paired t-test over 4 seeds with Holm's correction (comparisons: 1)" in text
    assert "cannot be below 0.12" in text
    assert " at 4, " in text and " at 40" in text
    assert "9 of 9 runs had a clean clock" in text
    assert "failed runs of random 0.3: 1 (out-of-memory: no room)" in text


def test_more_seeds_show_smaller_differences():
    text = sentences(comparison({"full": FULL_AT, "random 0.3": ALIKE}), 10.0)[2]
    shown = [float(word) for word in text.replace(",", " ").split() if "." in word]
    assert len(shown) == 4
    assert shown == sorted(shown, reverse=True)


def test_the_figure_has_a_panel_per_budget_and_colours_what_is_clear():
    found = joined(
        comparison({"full": FULL_AT, "random 0.3": BETTER, "paper-as-coded 0.3": ALIKE, "random 0.9": [0.5] * 5}),
        comparison({"full": FULL_AT, "random 0.3": [0.5, None, None, None, None], "x.y:Z 0.3": [None]}, budget=20.0),
    )
    ten, twenty = panels(found)
    assert [mark.label for mark in ten.accuracy] == ["full", "random 0.3", "paper-as-coded 0.3", "random 0.9"]
    assert [(mark.label, mark.verdict) for mark in ten.against_full] == [
        ("random 0.3", "better"),
        ("paper-as-coded 0.3", "no different"),
        ("random 0.9", "worse"),
    ]
    assert ten.against_full[0].seeds == pytest.approx([5, 5, 6, 5, 6])
    assert [mark.label for mark in twenty.accuracy] == ["full", "random 0.3"]
    assert twenty.accuracy[1].half is None
    drawn = draw((ten, twenty))
    assert list(drawn.data[0].x) == [mark.mean for mark in ten.accuracy]
    assert [title.text for title in drawn.layout.annotations][::2] == ["accuracy at 10.0s, %", "accuracy at 20.0s, %"]


@pytest.mark.parametrize("accuracies", [{"full": FULL_AT, "random 0.3": BETTER}, {"full": [None]}])
def test_the_page_of_the_figure_needs_nothing_else(tmp_path, accuracies):
    write_figure(tmp_path / "c.html", comparison(accuracies))
    page = (tmp_path / "c.html").read_text()
    assert "Plotly.newPlot" in page
    assert "<script src=" not in page and "<link" not in page.partition("<body>")[0]

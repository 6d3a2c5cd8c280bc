"""A comparison as a value: hand-made runs, what they say, and how they go to a file and come back."""

import itertools
import json

import pytest

from budgettune.comparison.plan import Plan, arms_of, budgets_of, rates_of, shared_spec, with_key
from budgettune.comparison.result import FULL, Arm, RunKey, read_comparison, write_comparison
from budgettune.comparison.show import draw, figure_title, panels, sentences, table_rows, write_figure
from budgettune.errors import UsageError
from budgettune.spec.pruning import STRATEGIES
from tests.support.made_comparisons import ALIKE, BETTER, DIGITS, FULL_AT, comparison, joined, run, tuning

# --- standings ------------------------------------------------------------------------------------------------------


def test_differences_take_off_what_a_seed_does_to_all():
    found = comparison({"random 0.3": [0.7, 0.801, 0.9], "full": [0.6, 0.7, None]})
    full, random = found.standings(10.0)
    assert (full.arm, full.runs, full.failed, full.against_full) == (FULL, 2, 1, None)
    assert random.accuracy.mean == pytest.approx(0.8, abs=1e-3)
    assert random.against_full.mean == pytest.approx(0.1, abs=1e-3)  # and not 0.8 - 0.65
    assert (random.overhead, random.realised_prune_rate, random.epochs) == pytest.approx((0.01, 0.3, 7))


def test_p_counts_the_arms_of_its_own_budget_only():
    ten = comparison({"full": FULL_AT, "random 0.3": ALIKE, "random 0.5": ALIKE[::-1]})
    twenty = comparison({"full": FULL_AT, "random 0.3": ALIKE}, budget=20.0)
    found = joined(ten, twenty)
    assert found.budgets == (10.0, 20.0)
    assert found.standings(10.0) == ten.standings(10.0)
    assert found.standings(20.0) == twenty.standings(20.0)


def test_an_arm_that_only_failed_keeps_its_row_and_its_reason():
    row = comparison({"full": FULL_AT, "random 0.3": [None, None]}).standings(10.0)[1]
    assert (row.runs, row.failed, row.accuracy, row.overhead) == (0, 2, None, None)
    assert row.failures == ("out-of-memory: no room",)


def test_a_run_again_takes_the_place_of_the_failed_one():
    found = comparison({"full": [None, 0.8]}, rates={}).with_run(run(FULL, 0.9))
    assert sorted(one.measured.accuracy for one in found.runs) == [0.8, 0.9]


# --- learning rates -------------------------------------------------------------------------------------------------


def test_an_arm_is_tuned_to_the_rate_of_the_best_mean_and_a_failed_run_counts_as_worst():
    found = comparison({"full": FULL_AT}).model_copy(update={"runs": ()})
    runs = tuning("full", {0.3: 0.9, 0.01: 0.7, 0.1: 0.8})
    found = found.model_copy(update={"runs": tuple(runs)})
    assert found.tuned(FULL, 10.0) == (0.3, pytest.approx({0.01: 0.7, 0.1: 0.8, 0.3: 0.9}))
    assert found.tuned(FULL, 10.0).end == "highest"
    broken = found.with_run(run(FULL, None, seed=101, lr=0.3, purpose="tuning"))
    assert broken.tuned(FULL, 10.0).lr == 0.1
    assert broken.tuned(FULL, 10.0).end is None
    useless = found.model_copy(update={"runs": tuple(tuning("full", dict.fromkeys([0.01, 0.1])))})
    assert useless.tuned(FULL, 10.0).end is None
    assert found.tuned(FULL, 20.0) is None
    assert found.tuned(Arm("random", 0.3), 10.0) is None


def test_scored_runs_at_a_rate_that_is_the_best_no_more_do_not_count():
    found = comparison({"full": FULL_AT, "random 0.3": ALIKE})
    for extra in tuning("random 0.3", {0.09: 0.95}, seeds=6)[2:]:
        found = found.with_run(extra)
    assert found.standings(10.0)[1].lr == 0.09
    assert found.standings(10.0)[1].runs == 0
    assert found.with_run(run(Arm("random", 0.3), 0.9, lr=0.09)).standings(10.0)[1].by_seed == {0: 0.9}


def test_runs_of_tuning_and_runs_that_are_scored_are_different_runs():
    made = [run(FULL, 0.8), run(FULL, 0.8, purpose="tuning"), run(FULL, 0.8, lr=0.5), run(FULL, 0.8, seed=1)]
    assert len({one.key for one in made}) == 4


# --- file -----------------------------------------------------------------------------------------------------------


def test_a_comparison_comes_back_from_its_file_as_it_was(tmp_path):
    found = comparison({"full": FULL_AT, "random 0.3": [*BETTER[:4], None]}, shuffle_labels=0.2)
    write_comparison(tmp_path / "c.json", found)
    assert read_comparison(tmp_path / "c.json") == found
    document = json.loads((tmp_path / "c.json").read_text())
    assert [row["strategy"] for row in document["standings"]] == ["full", "random"]
    assert document["standings"][1]["difference"] == pytest.approx(0.0525, abs=1e-3)
    assert document["standings"][1]["lr"] == 0.03
    assert [row["lr_is"] for row in document["standings"]] == ["tuned", "tuned"]
    assert document["judged_on"]["tuning"] == {"images": "validation", "count": 144}
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


def plan(strategies=("stale-quantile",), prune_rates=(0.3, 0.5), **changes):
    values = {
        "arms": arms_of(DIGITS, strategies, prune_rates),
        "budgets_seconds": [5.0, 20.0],
        "rates": [0.01, 0.03, 0.09],
        "seeds": 3,
        "full_seeds": 6,
        "tune_seeds": 2,
        "seed_of": DIGITS.trial_seed,
    }
    return Plan(**values | changes)


def test_every_arm_runs_once_per_seed_and_none_is_always_first():
    order = plan().scored(lambda arm, budget: 0.03)
    seeds = [DIGITS.trial_seed(0, number) for number in range(6)]
    assert len(set(order)) == len(order) == (4 * 3 + 6) * 2 == plan().scored_runs * 2
    of_others = [key.seed for key in order if key.arm != FULL]
    assert of_others == sorted(of_others, key=seeds.index)
    first = {seed: next(key for key in order if key.seed == seed) for seed in seeds[:3]}
    assert len({(key.arm, key.budget_seconds) for key in first.values()}) == 3


def test_full_has_the_seeds_of_the_others_and_more_all_along():
    order = plan(full_seeds=12).scored(lambda arm, budget: 0.03)
    of_others = {key.seed for key in order if key.arm != FULL}
    full = [key for key in order if key.arm == FULL]
    assert of_others < {key.seed for key in full}
    assert len(full) == 12 * 2
    places = [place for place, key in enumerate(order) if key.arm == FULL]
    assert max(after - before for before, after in itertools.pairwise(places)) <= 6


def test_rates_are_chosen_on_seeds_of_their_own_before_anything_is_scored():
    order = plan().tuning()
    assert len(set(order)) == len(order) == 3 * (4 * 2 + 4) * 2 == plan().tuning_runs * 2
    assert {key.lr for key in order} == {0.01, 0.03, 0.09}
    scored = {key.seed for key in plan().scored(lambda arm, budget: 0.03)}
    assert scored.isdisjoint(key.seed for key in order)
    assert {key.purpose for key in order} == {"tuning"}
    assert plan(rates=[0.03]).tuning() == []
    whole = DIGITS.with_overrides(["data.evaluate_on=test", "data.train_size=1400"])
    config = with_key(shared_spec(whole), order[0])
    assert (config.data.evaluate_on, config.data.train_size) == ("validation", 1_078)


def test_rates_are_those_given_or_searched_or_around_the_specs_own():
    assert rates_of(DIGITS, [0.1, 0.01, 0.1]) == [0.01, 0.1]
    assert rates_of(DIGITS) == [0.0033, 0.01, 0.03, 0.09]
    assert rates_of(DIGITS.with_overrides(['search={"train.lr" = [0.2, 0.1]}'])) == [0.1, 0.2]
    with pytest.raises(UsageError, match="learning rate -1: give rates above 0"):
        rates_of(DIGITS, [-1.0])


def test_the_cost_says_how_much_is_tuning_and_what_would_halve_it():
    assert plan().cost() == (
        "22m30s of training: 72 runs to tune the learning rate (15m00s), 36 scored; --tune-seeds 1 makes it 15m00s"
    )
    assert plan(rates=[0.01], seeds=10, full_seeds=20).cost() == (
        "25m00s of training: 120 scored at one rate for all, tuned for none; --seeds 5 makes it 12m30s"
    )
    assert plan(rates=[0.01], seeds=2, full_seeds=4).cost().endswith("tuned for none")


def test_runs_share_all_but_what_is_compared_and_end_at_a_learning_rate_of_zero():
    spec = DIGITS.with_overrides(["train.lr_schedule=constant", "train.budget=9s", "search={}", "prune_rate=0.4"])
    shared = shared_spec(spec)
    assert shared == shared_spec(spec.with_overrides(["train.epochs=3", "pruning.strategy=random", "prune_rate=0"]))
    assert shared == shared_spec(spec.with_overrides(["data.evaluate_on=validation"]))
    assert shared.train.lr_schedule == "linear"
    assert shared_spec(spec, [0.5]).train.lr == 0.5
    assert shared_spec(DIGITS.with_overrides(["train.lr_schedule=cosine"])).train.lr_schedule == "cosine"
    config = with_key(shared, RunKey(Arm("random", 0.5), 3.0, 1, 0.07, "scored"))
    assert (config.train.budget, config.train.epochs, config.train.lr) == (3.0, None, 0.07)
    assert (config.pruning.strategy, config.pruning.prune_rate) == ("random", 0.5)
    assert config.data.evaluate_on == "test"


# --- words and figure -----------------------------------------------------------------------------------------------


def test_the_table_says_rate_mean_interval_difference_p_overhead_and_realised_rate():
    found = comparison({"full": FULL_AT, "random 0.3": BETTER})
    full, random = table_rows(found.standings(10.0))
    assert (full["strategy"], full["lr"]) == ("full", "0.03")
    assert full["against full"] is None
    assert random["accuracy %"] == "85.40 ±0.79"
    assert random["against full"] == "+5.40 ±0.68"
    assert random["p"] == "<0.001"
    assert (random["overhead"], random["pruned"]) == ("1.0%", "30%")
    assert "failed" not in random
    assert table_rows(comparison({"full": [None]}).standings(10.0))[0]["failed"] == 1


def test_words_name_the_support_the_visible_difference_the_images_the_clock_and_the_failures():
    found = comparison({"full": FULL_AT, "random 0.3": [*ALIKE[:4], None]})
    text = "\n".join(sentences(found, 10.0))
    assert "supported: full: no other strategy has two runs and no failed one at 10.0s" in text
    assert "Dunnett's test of 1 against full, 4 seeds and 5 of full, seeds as blocks; noise of a run 1." in text
    assert "points (3 degrees of freedom), one for all" in text
    assert " at 4, " in text and " at 40" in text
    assert "learning rate of each: the best of 0.01, 0.03, 0.09 by 144 validation images, on 12 runs" in text
    assert "judged by 360 test images" in text
    assert "9 of 9 runs had a clean clock" in text
    assert "failed runs of random 0.3: 1 (out-of-memory: no room)" in text
    assert "best at the" not in text


def test_words_say_where_a_better_rate_may_lie_and_where_none_was_sought():
    found = comparison({"full": FULL_AT, "random 0.3": ALIKE}, rates={"full": 0.09})
    found = found.with_run(run(Arm("random", 0.3), None, seed=101, lr=0.09, purpose="tuning"))
    text = "\n".join(sentences(found, 10.0))
    assert "best at the highest rate that was tried: full 0.09; add rates above it with --lr" in text
    assert "failed tuning runs, counted as worst: 1 (out-of-memory: no room)" in text
    untuned = "\n".join(sentences(comparison({"full": FULL_AT, "random 0.3": BETTER}, rates={}), 10.0))
    assert "learning rate 0.01, one for all: tuned for none" in untuned


def test_an_arm_of_a_noise_of_its_own_is_named_and_leaves_the_others_theirs():
    wild = [value + swing for value, swing in zip(FULL_AT, (0.2, -0.2, 0.15, -0.15, 0.1), strict=True)]
    more = {"random 0.5": ALIKE[::-1], "random 0.7": ALIKE[1:] + ALIKE[:1]}
    found = comparison({"full": FULL_AT, "random 0.3": BETTER, **more, "random 0.9": wild})
    rows = {str(row.arm): row for row in found.standings(10.0)}
    assert [str(arm) for arm in found.fit(10.0).apart] == ["random 0.9"]
    assert (rows["random 0.3"].verdict, rows["random 0.9"].verdict) == ("better", "no different")
    assert (rows["random 0.3"].against_full.test, rows["random 0.9"].against_full.test) == ("dunnett", "welch")
    assert "noise of their own, larger than that of the others" in "\n".join(sentences(found, 10.0))


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
    title = figure_title(found)
    assert "judged by 360 test images" in title and "each at its best learning rate" in title
    drawn = draw((ten, twenty), title)
    assert drawn.layout.title.text == title
    assert list(drawn.data[0].x) == [mark.mean for mark in ten.accuracy]
    assert [title.text for title in drawn.layout.annotations][::2] == ["accuracy at 10.0s, %", "accuracy at 20.0s, %"]


@pytest.mark.parametrize("accuracies", [{"full": FULL_AT, "random 0.3": BETTER}, {"full": [None]}])
def test_the_page_of_the_figure_needs_nothing_else(tmp_path, accuracies):
    write_figure(tmp_path / "c.html", comparison(accuracies))
    page = (tmp_path / "c.html").read_text()
    assert "Plotly.newPlot" in page
    assert "<script src=" not in page and "<link" not in page.partition("<body>")[0]

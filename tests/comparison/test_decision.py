"""What a comparison supports, and how a study gets it: `[pruning] when = "auto"`."""

import pytest

from budgettune.api import create_study
from budgettune.comparison.decision import decide, decided
from budgettune.comparison.result import write_comparison
from budgettune.errors import SpecError, UsageError
from budgettune.spec.study_spec import StudySpec, load_spec
from tests.support.made_comparisons import ALIKE, BETTER, DIGITS, FULL_AT, comparison, joined


def test_the_most_accurate_of_those_that_beat_full_beyond_chance_is_chosen():
    best = tuple(value + 0.01 for value in BETTER)
    found = decide(comparison({"full": FULL_AT, "random 0.3": BETTER, "random 0.5": best, "stale-quantile 0.3": ALIKE}))
    assert (found.strategy, found.prune_rate) == ("random", 0.5)
    assert found.sentence.startswith(
        "random 0.5 at learning rate 0.03: +6.40 points against full at 0.03 (95% interval +5."
    )
    assert "5 seeds and 5 of full, p " in found.sentence
    assert "counting 3) at 10.0s on digits, by 360 test images, Abacus x2" in found.sentence
    assert found.sentence.endswith("; the best of 3, so expect somewhat less")


def test_nothing_wins_at_a_learning_rate_that_was_tuned_for_none():
    found = decide(comparison({"full": FULL_AT, "random 0.3": BETTER}, rates={}))
    assert (found.strategy, found.prune_rate) == ("full", 0.0)
    assert "full: the learning rate was tuned for none (0.01 for all): compare again with --lr 0.0033,0.01," in (
        found.sentence
    )
    assert "random 0.3 leads: +5.40 points against full at 0.01" in found.sentence


def test_an_arm_that_ran_less_than_others_is_not_chosen():
    found = decide(comparison({"full": FULL_AT, "random 0.3": BETTER[:3], "random 0.5": ALIKE}))
    assert (found.strategy, found.prune_rate) == ("full", 0.0)
    assert "random 0.5 at learning rate 0.03 comes closest" in found.sentence


@pytest.mark.parametrize("values", [ALIKE, (0.9, 0.78, 0.83, 0.79, 0.86), tuple(value - 0.05 for value in FULL_AT)])
def test_full_stays_where_nothing_beats_it_or_only_noise_does(values):
    found = decide(comparison({"full": FULL_AT, "random 0.3": values}))
    assert (found.strategy, found.prune_rate) == ("full", 0.0)
    assert "nothing beats it beyond chance" in found.sentence
    assert "random 0.3 at learning rate 0.03 comes closest" in found.sentence


def test_what_is_significant_alone_is_not_after_correction_for_many():
    weak = (0.814, 0.822, 0.799, 0.802, 0.810)  # p 0.01 by itself
    noise = {f"x.y:Z{number} 0.3": ALIKE for number in range(9)}
    assert decide(comparison({"full": FULL_AT, "random 0.3": weak})).strategy == "random"
    assert decide(comparison({"full": FULL_AT, "random 0.3": weak, **noise})).strategy == "full"


def test_a_strategy_that_failed_now_and_then_is_not_chosen():
    survived = {"full": FULL_AT, "random 0.3": [*BETTER[:4], None]}
    assert "no other strategy has two runs and no failed one" in decide(comparison(survived)).sentence
    found = decide(comparison({**survived, "random 0.5": ALIKE}))
    assert found.strategy == "full"
    assert "random 0.5 at learning rate 0.03 comes closest" in found.sentence
    assert "counting 2)" in found.sentence


@pytest.mark.parametrize(
    ("accuracies", "message"),
    [
        ({"random 0.3": BETTER}, "no finished run of full"),
        ({"full": [None, None], "random 0.3": BETTER}, "no finished run of full"),
        ({"full": FULL_AT}, "no other strategy has two runs"),
        ({"full": FULL_AT[:1], "random 0.3": BETTER[:1]}, "no other strategy has two runs"),
        ({}, "holds no run"),
    ],
)
def test_evidence_without_a_baseline_supports_full(accuracies, message):
    found = decide(comparison(accuracies), 10.0)
    assert (found.strategy, found.prune_rate) == ("full", 0.0)
    assert message in found.sentence


def test_the_budget_nearest_by_ratio_decides():
    found = joined(
        comparison({"full": FULL_AT, "random 0.3": BETTER}, budget=10.0),
        comparison({"full": FULL_AT, "random 0.3": ALIKE}, budget=60.0),
    )
    assert decide(found, 20.0).strategy == "random"
    assert decide(found, 30.0).strategy == "full"
    assert decide(found).strategy == "random"


def auto(tmp_path, found, *lines, search=""):
    """Return a study file whose pruning is decided on a comparison beside it."""
    write_comparison(tmp_path / "compare.json", found)
    text = "\n".join(['name = "s"', *lines, '[pruning]\nwhen = "auto"\nevidence = "compare.json"', search])
    (tmp_path / "s.toml").write_text(text)
    return load_spec(tmp_path / "s.toml")


def test_a_study_is_created_with_what_its_evidence_supports(tmp_path, sqlite_url, monkeypatch):
    spec = auto(tmp_path, comparison({"full": FULL_AT, "random 0.3": BETTER}), search="[search]\nscale = [1.0, 2.0]")
    monkeypatch.chdir("/")  # the evidence lies beside the study file, wherever we are
    with create_study(spec, storage=sqlite_url) as study:
        pruning = study.spec.pruning
        assert (pruning.strategy, pruning.prune_rate, pruning.evidence) == ("random", 0.3, "compare.json")
        assert pruning.decided.startswith("random 0.3 at learning rate 0.03: +5.40 points against full")
        assert pruning.decided.endswith("; the study trains at 0.001: set train.lr = 0.03, or search it")
        assert len(study.spec.cells()) == 2
        assert decided(study.spec) == study.spec
    create_study(spec, storage=sqlite_url, skip_if_exists=True).close()


def test_a_strategy_runs_in_the_study_as_it_was_compared(tmp_path):
    compared = DIGITS.with_overrides(["pruning.refresh_every=9"])
    spec = auto(tmp_path, comparison({"full": FULL_AT, "stale-quantile 0.3": BETTER}, spec=compared))
    assert decided(spec).pruning.refresh_every == 9


def test_evidence_is_looked_for_in_the_working_directory_too(tmp_path, monkeypatch):
    write_comparison(tmp_path / "c.json", comparison({"full": FULL_AT, "random 0.3": BETTER}))
    monkeypatch.chdir(tmp_path)
    overrides = ["search={}", "pruning.when=auto", "pruning.evidence=c.json"]
    assert decided(DIGITS.with_overrides(overrides)).pruning.strategy == "random"


def test_a_study_that_searches_pruning_cannot_have_it_decided():
    text = 'name = "s"\n[pruning]\nwhen = "auto"\nevidence = "c.json"\n[search]\n'
    for axis in ("prune_rate = [0.0, 0.3]", '"pruning.strategy" = ["full", "random"]', '"pruning.refresh_every" = [5]'):
        with pytest.raises(SpecError, match="decides on pruning for the whole study: take search"):
            StudySpec.from_toml(text + axis)
    with pytest.raises(SpecError, match=r"search\.pruning\.when"):
        DIGITS.with_overrides(['search={"pruning.when" = ["always"]}'])
    with pytest.raises(SpecError, match="needs evidence"):
        DIGITS.with_overrides(["search={}", "pruning.when=auto"])


def test_evidence_that_does_not_fit_the_study_is_refused(tmp_path):
    found = comparison({"full": FULL_AT, "random 0.3": BETTER})
    with pytest.raises(SpecError, match=r"about digits, and the study about cifar10: run `budgettune compare`"):
        decided(auto(tmp_path, found, '[data]\nname = "cifar10"'))
    photos = DIGITS.with_overrides(["data.name=folder", "data.root=/srv/photos"])
    about_photos = comparison({"full": FULL_AT, "random 0.3": BETTER}, spec=photos)
    with pytest.raises(SpecError, match="is about folder photos, and the study about folder ants:"):
        decided(auto(tmp_path, about_photos, '[data]\nname = "folder"\nroot = "ants"'))
    assert decided(auto(tmp_path, about_photos, '[data]\nname = "folder"\nroot = "photos"'))
    both = joined(found, comparison({"full": FULL_AT}, budget=20.0))
    with pytest.raises(SpecError, match=r"several budgets \(10.0s, 20.0s\) and the study has none"):
        decided(auto(tmp_path, both))
    assert decided(auto(tmp_path, both, '[train]\nbudget = "12s"')).pruning.strategy == "random"
    spec = auto(tmp_path, found)
    (tmp_path / "compare.json").unlink()
    with pytest.raises(UsageError, match=r"compare\.json: cannot be read"):
        decided(spec)


def test_a_decision_survives_json():
    spec = DIGITS.with_overrides(["search={}", "pruning.when=auto", "pruning.evidence=c", "pruning.decided=because"])
    assert StudySpec.from_json(spec.to_json()) == spec


def test_a_comparison_that_shares_a_key_of_another_strategy_is_decided(tmp_path):
    made = comparison({"full": FULL_AT, "random 0.3": BETTER})
    shared = made.model_copy(
        update={"spec": {**made.spec, "pruning": {"threshold_sample": 5_000, "rate_per": "epoch"}}}
    )
    write_comparison(tmp_path / "compare.json", shared)
    overrides = ["prune_rate=0", "pruning.when=auto", f"pruning.evidence={tmp_path / 'compare.json'}"]
    found = decided(load_spec("digits").with_overrides(overrides)).pruning
    assert (found.strategy, found.threshold_sample, found.rate_per) == ("random", None, "epoch")

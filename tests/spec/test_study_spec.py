import re
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgettune.errors import SpecError
from budgettune.spec.axes import RangeSpec
from budgettune.spec.pruning import epoch_sizes
from budgettune.spec.study_spec import StudySpec, bundled_studies, load_spec


def spec_of(text: str) -> StudySpec:
    return StudySpec.from_toml(f'name = "a"\n{text}')


@pytest.mark.parametrize("name", ["digits", "fashion-mnist", "paper", "paper-as-coded"])
def test_bundled_studies_survive_the_way_through_json(name):
    spec = load_spec(name)
    assert StudySpec.from_json(spec.to_json()) == spec
    assert bundled_studies()[name].name == f"{name}.toml"


def test_the_paper_has_80_cells_over_scale_prune_rate_and_batch():
    cells = load_spec("paper").cells()
    assert len(cells) == 80
    assert cells[0] == {"scale": 1.0, "prune_rate": 0.0, "batch_size": 1400}
    assert cells[-1] == {"scale": 1.4, "prune_rate": 0.3, "batch_size": 2000}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nlrr = 1", r"train\.lrr: unknown key \(did you mean lr\?\); allowed: epochs"),
        ("[train]\nlr = '1'", r"train\.lr: '1' must be a number above 0: write 1\.0$"),
        ("[train]\nlr = -1", r"train\.lr: -1 must be a number above 0$"),
        ("[train]\nlr = nan", r"train\.lr: nan must be a finite number above 0$"),
        ("[train]\nepochs = true", r"train\.epochs: true must be a whole number of at least 1$"),
        ("[train]\nepochs = 3\nbudget = '5s'", "epochs and budget exclude each other"),
        ("[train]\nbudget = '5x'", r"train\.budget: '5x' is not a duration"),
        ("[data]\nname = 'mnist'", r"data\.name: 'mnist' must be one of digits, fashion-mnist"),
        ("[data]\ncache = 'there'", "cache works with name = 'folder' only"),
        ("[pruning]\nstrategy = 'magic'", "must be one of full, random"),
        ("[model]\nwidths = [1, 2]", r"model\.widths: \[1, 2\] must be three whole numbers from 1 to 65536"),
        ("[model]\nwidths = [0, 2, 3]", r"model\.widths: \[0, 2, 3\] must be three whole numbers"),
        ("[search]\nscale = []", r"search\.scale: empty"),
        ("[search]\nscale = [1, 1.0]", r"search\.scale: the same value twice"),
        ("[search]\nscale = [1, [2]]", r"search\.scale: \[2\] must be a finite number, text, or true or false"),
        ("[search]\nprune_rate = [0.5, 1.0]", r"search\.prune_rate: 1\.0 must be a number of at least 0 and below 1$"),
        ("[search]\nscales = [1]", r"search\.scales: unknown key \(did you mean scale\?\)"),
        ("[search]\n'train.foo' = [1]", r"search\.train\.foo: .*unknown key"),
        ("[search]\nscale = [1]\n'model.scale' = [2]", "the same setting as"),
        ("[search]\nscale = {low = 1, high = 2}", "a grid needs a list of values, not a range"),
        ("[search]\nscale = {low = 2, high = 1}", "low must be below high"),
        ("[search]\nscale = {low = 0, high = 1, log = true}", "low is 0, and with log = true it must be above 0"),
        ("[search]\nbatch_size = [64, 4000]", "batch_size: 4000 is larger than the 1437 training images"),
        ("[data]\ntrain_size = 1500", "train_size: 1500 is more than the 1437"),
        (
            '[data]\ntrain_size = 1400\nevaluate_on = "validation"',
            "images of digits that validation_fraction 0.1 leaves",
        ),
        ("[sampler]\nname = 'tpe'", "a sampler needs something to search"),
        ("[extra]\na = 1", "extra: unknown key"),
        ("search = 3", "search: 3 must be a table$"),
        ("[train", "not valid TOML"),
    ],
)
def test_a_bad_file_is_refused_with_its_key_and_what_is_allowed(text, message):
    with pytest.raises(SpecError, match=message):
        spec_of(text)


def test_a_missing_file_names_the_bundled_ones():
    with pytest.raises(SpecError, match="digits, fashion-mnist, paper, paper-as-coded"):
        load_spec("papers")


def test_unquoted_dotted_search_keys_mean_the_same_as_quoted_ones():
    quoted = spec_of("[search]\n'train.lr' = [0.1, 0.2]")
    assert spec_of("[search]\ntrain.lr = [0.1, 0.2]") == quoted


def test_overrides_are_read_as_toml_and_the_last_word_wins():
    spec = load_spec("paper").with_overrides(
        ["train.budget=60s", "data.name=digits", "search.scale=[1.0]", "batch_size=100", "search.prune_rate=[0.5]"]
    )
    assert (spec.train.budget, spec.train.epochs) == (60.0, None)
    assert spec.train.batch_size == 100
    assert spec.search == {"scale": (1.0,), "prune_rate": (0.5,)}


@pytest.mark.parametrize("override", ["train.epochs", "=1", "train.epochs=x", "train.epochs.deep=1", "nothing=1"])
def test_overrides_that_cannot_work_are_refused(override):
    with pytest.raises(SpecError):
        load_spec("digits").with_overrides([override])


def test_resolving_puts_searched_values_in_their_places():
    spec = load_spec("paper").resolve({"scale": 1.4, "prune_rate": 0.3, "batch_size": 2000, "train.lr": 0.1})
    assert (spec.model.scale, spec.pruning.prune_rate, spec.train.batch_size) == (1.4, 0.3, 2000)
    assert spec.train.lr == 0.1
    assert spec.search == {}
    sampled = load_spec("digits").with_overrides(["sampler.name=tpe"])
    assert sampled.resolve({"scale": 1.2}).model.scale == 1.2


def test_scales_that_round_to_the_same_network_run_once_and_are_named():
    spec = load_spec("paper").with_overrides(["model.width_multiple=8", "model.depth_rounding=nearest"])
    assert len(spec.cells()) == 64
    assert spec.twin_note() == "left out, because they build the same network: scale 1.3 as scale 1.2"
    assert load_spec("paper").twin_note() is None


@pytest.mark.parametrize(
    ("axis", "values", "places", "spread"),
    [
        ({"low": 1, "high": 6, "step": 2}, [1, 3, 5], [1, 3, 5], (1, 2, 4, 5, 6)),
        ({"low": 1, "high": 3}, [1, 2, 3], [1, 2, 3], (1, 2, 3)),
        ({"low": 0.1, "high": 0.45, "step": 0.1}, [0.1, 0.2, 0.3, 0.4], [0.1, 0.3, 0.4], None),
        ({"low": 1.0, "high": 3.0}, None, [1.0, 2.0, 2.8], (1.0, 1.5, 2.0, 2.5, 3.0)),
        ({"low": 1e-4, "high": 1.0, "log": True}, None, [1e-4, 1e-2, 10**-0.4], (1e-4, 1e-3, 1e-2, 1e-1, 1.0)),
        ({"low": 1, "high": 100, "log": True}, range(1, 101), [1, 10, 63], (1, 3, 10, 32, 100)),
        ({"low": 1e-9, "high": 1e-5, "log": True}, None, [1e-9, 1e-7, 10**-5.4], (1e-9, 1e-8, 1e-7, 1e-6, 1e-5)),
    ],
)
def test_a_range_lists_its_values_and_what_lies_between_its_ends(axis, values, places, spread):
    searched = RangeSpec.model_validate(axis)
    assert searched.values() is None if values is None else searched.values() == pytest.approx(list(values))
    assert [searched.at(place) for place in (0.0, 0.5, 0.9)] == pytest.approx(places)
    assert spread is None or searched.spread(5) == pytest.approx(spread)


def test_every_cell_and_repeat_has_a_seed_of_its_own():
    spec = load_spec("paper")
    seeds = {spec.trial_seed(cell, repeat) for cell in range(80) for repeat in range(5)}
    assert len(seeds) == 400
    assert spec.trial_seed(3, 1) == load_spec("paper").trial_seed(3, 1)
    assert spec.with_overrides(["sampler.seed=1"]).trial_seed(3, 1) != spec.trial_seed(3, 1)


def test_what_a_study_does_not_do_though_it_may_have_been_meant_to_is_said():
    sampled = ["sampler.name=tpe", "search.scale={low=1, high=3}", "search.batch_size={low=16, high=64}"]
    [note] = load_spec("digits").with_overrides(sampled).notes()
    assert note == "search.scale: only whole numbers are drawn, because low and high are: write 1.0 for all between"
    assert not load_spec("digits").with_overrides([*sampled, "search.scale={low=1.0, high=3}"]).notes()
    assert not load_spec("digits").with_overrides([*sampled, "search.scale={low=1, high=3, step=1}"]).notes()
    [note] = load_spec("digits").with_overrides(["sampler.trials=3"]).notes()
    assert note == "trials = 3 is for samplers: a grid runs all its cells"


PER_EPOCH = ["pruning.rate_per=epoch", "search.prune_rate=[0.0, 0.3]"]


@pytest.mark.parametrize(
    ("overrides", "notes"),
    [
        (["train.epochs=1"], ["in 1 epoch, because stale-quantile trains on all images there: train for 2 epochs"]),
        (["train.epochs=2"], []),
        (["train.epochs=1", "pruning.strategy=paper-as-coded"], ["in 1 epoch, because paper-as-coded trains on"]),
        (["pruning.refresh_every=1"], ["in 10 epochs, because stale-quantile .* there: raise pruning.refresh_every"]),
        (["pruning.strategy=infobatch", "pruning.delta=0.01"], ["because infobatch .*: train for 101 epochs"]),
        (["search.train.epochs=[1, 5]"], ["in 1 epoch, because"]),
        (["train.epochs=1", "pruning.strategy=random"], []),
        (["train.epochs=1", "search.prune_rate=[0.0]"], []),
    ],
)
def test_a_rate_per_epoch_in_a_run_without_an_epoch_that_prunes_is_noted(overrides, notes):
    found = load_spec("digits").with_overrides([*PER_EPOCH, *overrides]).notes()
    assert len(found) == len(notes)
    assert all(re.search(note, text) for note, text in zip(notes, found, strict=True))


MANY = 10_000


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("train.lr", [(place + 1) / MANY for place in range(MANY)]),
        ("scale", [1 + place / MANY for place in range(MANY)]),
        ("prune_rate", [place / MANY / 2 for place in range(MANY)]),
        ("train.epochs", list(range(10, MANY + 10))),
        ("pruning.refresh_every", list(range(2, MANY + 2))),
        ("data.train_size", list(range(128, MANY + 128))),
        ("model.options.name", [f"n{place}" for place in range(MANY)]),
    ],
)
def test_ten_thousand_values_on_one_axis_are_checked_in_about_a_second(key, values):
    document = {"name": "a", "data": {"name": "cifar10"}, "pruning": {"prune_rate": 0.1}, "search": {key: values}}
    before = time.process_time()
    spec = StudySpec.from_document(document)
    assert len(spec.cells()) == spec.cell_count() == (MANY if key != "scale" else 17)
    assert time.process_time() - before < 3  # it took a minute


@pytest.mark.parametrize("pruning", [{"strategy": "infobatch"}, {"strategy": "seta"}, {"refresh_every": 10**9}])
@pytest.mark.parametrize("train", [{"epochs": 10**9}, {"budget": "9d"}])
def test_a_run_of_any_length_is_checked_at_once(pruning, train):
    before = time.process_time()
    spec = StudySpec.from_document({"name": "a", "train": train, "pruning": {**pruning, "prune_rate": 0.1}})
    assert len(epoch_sizes(spec.pruning, 1_000, spec.train.epochs)) > 1
    assert time.process_time() - before < 1


toml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
tables = st.sampled_from(["data", "model", "train", "pruning", "search", "sampler", "clock", "x"])
keys = st.sampled_from(["name", "scale", "train.lr", "epochs", "widths", "low", "options", "seed", "prune_rate", ""])


@given(st.dictionaries(tables, st.dictionaries(keys, toml_values, max_size=3) | toml_values, max_size=4))
def test_no_document_whatever_gives_anything_but_a_spec_or_a_spec_error(document):
    try:
        spec = StudySpec.from_document({"name": "a", **document})
    except SpecError as error:
        assert "\n" not in str(error) or "\\n" in str(error)
    else:
        assert StudySpec.from_json(spec.to_json()) == spec


def test_models_of_libraries_run_equal_steps_where_name_and_options_are_equal():
    def label(*overrides):
        return load_spec("digits").with_overrides(["search={}", *overrides]).step_label()

    plain = label("model.name=timm:resnet10t")
    assert plain.startswith("timm:resnet10t, batch ")
    assert label("model.name=timm:resnet10t", "model.scale=2") == plain
    assert label("model.name=timm:resnet10t", "model.options.drop_rate=0.1") != plain


def test_names_of_models_are_searched_and_no_scale_beside_them():
    names = 'search."model.name"=["timm:resnet10t", "resnet"]'
    spec = load_spec("digits").with_overrides(["search={}", names])
    assert spec.model_names == ("timm:resnet10t", "resnet")
    assert [cell["model.name"] for cell in spec.cells()] == ["timm:resnet10t", "resnet"]
    with pytest.raises(SpecError, match=r'does nothing to timm:resnet10t: give it when = { "model\.name" = "resnet" }'):
        spec.with_overrides(["search.scale=[1.0, 2.0]"])
    spec = spec.with_overrides(['search.scale={values=[1.0, 2.0], when={"model.name"="resnet"}}'])
    assert [cell.get("model.scale") for cell in spec.cells()] == [None, 1.0, 2.0]


def test_a_document_holds_weights_only_where_there_are_some():
    assert "weights" not in load_spec("digits").to_document()["model"]
    spec = load_spec("digits").with_overrides(["model.weights=resnet.pt"])
    assert StudySpec.from_json(spec.to_json()) == spec

"""What is said of a study file that cannot work: one sentence with the key, the value and what is allowed."""

import math
from datetime import date

import pytest

from budgettune.errors import SpecError
from budgettune.spec.faults import all_keys
from budgettune.spec.study_spec import StudySpec, load_spec

WRONG = [True, "x", -1, 1.5, math.nan, math.inf, [1], [[1]], {"a": 1}, {}, date(2024, 5, 1), 10**30, "", "1"]
PYDANTIC = ("a valid", "Input", "Value error", "union", "tuple[", "function-", "True", "datetime", "None")


def complaint(document):
    try:
        StudySpec.from_document({"name": "a", **document})
    except SpecError as error:
        return str(error)
    return None


def complaint_of_override(*overrides, study="digits"):
    with pytest.raises(SpecError) as caught:
        load_spec(study).with_overrides(overrides)
    return str(caught.value).removeprefix("--set: ")


@pytest.mark.parametrize("key", list(all_keys(StudySpec)))
def test_every_key_with_a_wrong_value_is_refused_in_one_sentence_without_words_of_the_library(key):
    table, _, field = key.partition(".")
    refused = list(filter(None, (complaint({table: {field: value}}) for value in WRONG)))
    assert len(refused) >= 9
    for text in refused:
        assert text.removeprefix("study file: ").startswith((f"{key}: ", f"{table}: ", "search: 1 cells × 1,000"))
        assert text.count(": ") <= 4
        assert "; " not in text
        assert len(text) < 400
        assert not any(word in text for word in PYDANTIC), text


@pytest.mark.parametrize("value", [*WRONG, 10**20])
@pytest.mark.parametrize("where", ["axis", "value of an axis", "low", "step", "log", "option"])
def test_a_wrong_value_anywhere_in_a_union_is_one_sentence(where, value):
    name, sampled = "search.train.lr", {"sampler": {"name": "random"}}
    searched = {"axis": value, "value of an axis": [0.1, value]}.get(where, {"low": 0.1, "high": 1.0, where: value})
    document = {"search": {"train.lr": searched}, **sampled}
    if where == "option":
        name, document = "model.options.depth", {"model": {"options": {"depth": value}}}
    if (text := complaint(document)) is not None:
        assert text.removeprefix("study file: ").startswith(name)
        assert text.count("study file") == 1
        assert not any(word in text for word in PYDANTIC), text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "search.train.lr=[nan]",
            "search.train.lr: nan must be a finite number, text, or true or false, as in [0.1, 0.3]",
        ),
        (
            "search.train.lr=[0.1, [0.2]]",
            "search.train.lr: [0.2] must be a finite number, text, or true or false, as in",
        ),
        ("search.train.lr=0.1", "search.train.lr: 0.1 must be a list of values, or a range such as { low = 1e-4"),
        ("search.train.lr={min=0.1, max=1}", "search.train.lr.min: unknown key; allowed: low, high, log, step"),
        ("search.train.lr={}", "search.train.lr.low: missing: add low = …"),
        ("search.lr=[0.1]", "search.lr: unknown key (did you mean train.lr?); allowed: scale, width_scale"),
        ("search.batch_size=[64, 128.0]", "search.batch_size: 128.0 must be a whole number of at least 1: write 128"),
        ("search.model.options.x=[true, 1]", "search.model.options.x: the same value twice, true and 1: keep one"),
        ("search.scale=[1, 1.0]", "search.scale: the same value twice, 1 and 1.0: keep one"),
        ("model.options.x=[1]", "model.options.x: [1] must be a finite number, text, or true or false"),
        ("model.widths=[16, 32]", "model.widths: [16, 32] must be three whole numbers from 1 to 65536, such as"),
        ("train.epochs=1e3", "train.epochs: 1000.0 must be a whole number of at least 1: write 1000"),
        ("train.epochs=01", "train.epochs: '01' must be a whole number of at least 1: write 1"),
        ("train.epochs=1,train.lr=3", "train.epochs: '1,train.lr=3' must be a whole number of at least 1"),
        (
            "train.epochs=2_000_000_000",
            "train.epochs: 2000000000 must be a whole number of at least 1 and at most 1,000,",
        ),
        ("train.lr=.5", "train.lr: '.5' must be a number above 0: write 0.5"),
        ("train.lr='-1'", "train.lr: '-1' must be a number above 0"),
        ("data.augment=True", "data.augment: 'True' must be true or false"),
        ("train.prune_rate=0.3", "train.prune_rate: unknown key (did you mean pruning.prune_rate?); allowed: epochs"),
        ("epochs=3", "epochs: unknown key (did you mean train.epochs?); allowed: name, data"),
        ("train.epochs.deep=1", "train.epochs.deep: unknown key: train.epochs is one value, and no table"),
        ("sampler.total=4h", "sampler: total ends a sampler, and a grid runs every cell: leave it out, or take name"),
        ("pruning.when=auto", "pruning: when = 'auto' needs evidence"),
    ],
)
def test_an_override_that_cannot_work_says_what_would(override, message):
    assert complaint_of_override(override).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.options.pretrained=true", "model: options.pretrained: weights are never downloaded: name a file of"),
        ("model.options.pretrained_cfg=x", "model: options.pretrained_cfg: weights are never downloaded: name a file"),
        ("search.model.options.weights=[1]", "search.model.options.weights: options.weights: weights are never down"),
        ("model.options.in_chans=3", "model: options.in_chans: follows from the images"),
        ("search.scale=[1.0, 2.0]", "search.model.scale: sizes the built-in network, and does nothing to timm:"),
        ("search.model.blocks=[1, 2]", "search.model.blocks: sizes the built-in network, and does nothing to timm:"),
        ("model.name=timm:resnet18.a1_in1k", "model.name: 'timm:resnet18.a1_in1k' must be a model without weights, as"),
        ("model.name=timm:hf-hub:x", "model.name: 'timm:hf-hub:x' must be one of resnet, torchvision:NAME, timm:NAME"),
    ],
)
def test_what_a_model_of_a_library_does_not_take_is_refused_with_the_reason(override, message):
    assert complaint_of_override("model.name=timm:resnet10t", "search={}", override).startswith(message)


@pytest.mark.parametrize(
    "override", ["search.scale=[1.0,", "search.pruning.strategy=[full,random]", "model.widths=[16 32 64]"]
)
def test_a_list_that_the_shell_took_apart_says_how_to_quote_it(override):
    text = complaint_of_override(override)
    assert override in text
    assert text.endswith("""as in --set 'search.pruning.strategy=["full", "random"]'""")


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("name=2024", "name", "2024"),
        ("name=2024-05-01", "name", "2024-05-01"),
        ("name=true", "name", "true"),
        (r'data.root="C:\Users\me"', "data.root", r"C:\Users\me"),
        ("data.root=a b # c", "data.root", "a b # c"),
        ("data.root='x=1, y=2'", "data.root", "x=1, y=2"),
    ],
)
def test_text_needs_no_quotes_after_set(override, key, value):
    document = load_spec("digits").with_overrides([override]).to_document()
    for part in key.split("."):
        document = document[part]
    assert document == value


@pytest.mark.parametrize(
    "override", ["search.train.batch_size=[32]", 'search."train.batch_size"=[32]', "search.batch_size=[32]"]
)
def test_an_axis_is_overridden_by_whatever_name_it_goes(override):
    assert load_spec("digits").with_overrides([override]).search["batch_size"] == (32,)


def test_a_range_with_a_decimal_point_is_refused_where_only_whole_numbers_are_drawn():
    for axis in ("{low=16.0, high=64}", "{low=16, high=64, step=0.5}"):
        assert complaint_of_override("sampler.name=random", f"search.batch_size={axis}") == (
            "search.batch_size: low, high and step must be whole numbers, without a decimal point"
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "a"}', "looks like JSON: a study file is TOML, such as epochs = 30 below a line [train]"),
        ("# mine\nname: a\ntrain:\n  epochs: 3", "looks like YAML: a study file is TOML"),
        ("name = mine", "(at line 1, column 8): name = mine: text goes in quotes"),
        ("name = 'a'\n[data]\naugment = True", "augment = True: text goes in quotes, true and false in small letters"),
        ("name = 'a'\nname = 'b'", "name = 'b': the key is there twice"),
        ("name = 'a'\n[train]\n[data]\n[train]", "[train]: the table is there twice"),
        ('name = "a"\n[data]\nroot = "C:\\data"', r'root = "C:\data": write paths with / or in single quotes'),
        ('name = "a"\n[data]\nroot = "C:\\Users"', "write paths with / or in single quotes"),
        ("name = “mine”", "name = “mine”: it holds a left double quotation mark: write straight quotes, plain spaces"),
        ("name = 'a'\n[train]\nepochs\u00a0= 3", "it holds a no-break space: write straight quotes, plain spaces"),
        ("name = 'a'\n\u200b[train]", "it holds a zero width space: write straight quotes, plain spaces"),
        ("[train]\nepochs = 3", "name: missing: add name = … at the top of the file"),
        ("name = 2024-05-01", 'name: 2024-05-01 must be text: write "2024-05-01"'),
    ],
)
def test_a_file_that_is_no_toml_shows_its_line_and_what_to_do(text, message):
    with pytest.raises(SpecError) as caught:
        StudySpec.from_toml(text, "mine.toml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("mine.toml: ")


def test_one_epoch_on_a_study_that_prunes_says_which_epochs_or_strategy_would_work():
    text = complaint_of_override("train.epochs=1")
    assert text == (
        "prune_rate: 0.3 is more than stale-quantile can drop in 1 epoch, because it trains on all images there: "
        'train for 2 epochs, or take pruning.strategy = "random", which drops as much in every epoch'
    )
    for advice in ("train.epochs=2", "pruning.strategy=random"):
        load_spec("digits").with_overrides(["train.epochs=1", advice])


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        (["train.epochs=6", "search.prune_rate=[0.75]"], ["stay below 0.6666", "train for 9 epochs"]),
        (["train.budget=10s", "search.prune_rate=[0.8]"], ["stay below 0.8,"]),
        (
            ["pruning.strategy=infobatch", "search.prune_rate=[0.6]"],
            ["drops no image above the mean loss", "stay below"],
        ),
        (["pruning.refresh_every=1"], ["because it trains on all images there: raise pruning.refresh_every, or take"]),
    ],
)
def test_a_prune_rate_out_of_reach_comes_with_what_is_within_reach(overrides, advice):
    text = complaint_of_override(*overrides)
    assert all(each in text for each in advice), text


def test_a_range_of_epochs_is_checked_where_a_refresh_costs_the_most():
    overrides = ["sampler.name=random", "search.prune_rate=[0.7]", "search.train.epochs={low=5, high=10}"]
    assert "can drop in 6 epochs" in complaint_of_override(*overrides)
    load_spec("digits").with_overrides([*overrides, "search.prune_rate=[0.6]"])

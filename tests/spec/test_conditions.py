"""Axes that are searched only where others have certain values."""

import itertools
import time

import pytest

from budgettune.errors import SpecError
from budgettune.spec.conditions import active, count_points, every_point
from budgettune.spec.study_spec import LARGEST_STUDY, StudySpec

STUDY_FILE = """
name = "own"
[train]
loop = "mine:train"
epochs = 3
[params]
momentum = 0.0
[search]
"params.momentum" = { values = [0.9, 1], when = { params.optimizer = "sgd" } }
"params.optimizer" = ["sgd", "adam", "adamw"]
"params.beta" = { values = [0.9, 0.999], when = { "params.optimizer" = ["adamw", "adam"] } }
"params.fused" = { values = [true, false], when = { "params.beta" = 0.9 } }
"""
OPTIMIZERS = ["sgd", "adam"]


def own(search, sampler="grid", **document):
    train = {"loop": "mine:train", "epochs": 3}
    return StudySpec.from_document(
        {"name": "own", "train": train, "search": search, "sampler": {"name": sampler}} | document
    )


def complaint(search, **document):
    with pytest.raises(SpecError) as caught:
        own(search, **document)
    return str(caught.value).removeprefix("study file: ")


def test_conditions_go_into_the_database_and_back_and_axes_stay_what_they_were():
    spec = StudySpec.from_toml(STUDY_FILE)
    assert spec.search["params.momentum"] == (0.9, 1)
    assert spec.conditions == {
        "params.momentum": {"params.optimizer": ("sgd",)},
        "params.beta": {"params.optimizer": ("adam", "adamw")},
        "params.fused": {"params.beta": (0.9,)},
    }
    assert StudySpec.from_json(spec.to_json()) == spec
    assert StudySpec.from_document(spec.to_document()) == spec
    assert "conditions" not in own({"params.optimizer": OPTIMIZERS}).to_document()


def test_a_grid_has_each_point_once_without_what_is_inactive_there():
    spec = StudySpec.from_toml(STUDY_FILE)
    cells = spec.cells()
    assert [tuple(cell.values()) for cell in cells] == [
        ("sgd", 0.9),
        ("sgd", 1),
        *((name, *rest) for name in ("adam", "adamw") for rest in ((0.9, True), (0.9, False), (0.999,))),
    ]
    assert spec.cell_count() == len(cells) == 8
    assert all(map(spec.is_complete, cells))
    assert not spec.is_complete(cells[0] | {"params.beta": 0.9})
    assert not spec.is_complete({"params.optimizer": "sgd"})


def test_code_gets_the_default_of_what_is_inactive_and_a_float_where_the_default_is_one():
    spec = StudySpec.from_toml(STUDY_FILE)
    params = [spec.resolve(cell).params for cell in spec.cells()]
    assert params[1] == {"optimizer": "sgd", "momentum": 1.0}
    assert type(params[1]["momentum"]) is float
    assert params[-1] == {"optimizer": "adamw", "momentum": 0.0, "beta": 0.999}


def test_the_points_are_those_of_the_whole_product_without_what_is_inactive():
    axes = {"d": (1, 2), "c": (True, False), "b": ("x", "y", "z"), "a": (1.0, 2.0, 3.0), "e": (0, 5)}
    conditions = {"d": {"c": (True,), "a": (1.0, 2.0)}, "c": {"b": ("y", "z")}, "e": {"d": (2,)}}
    whole = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    expected = {tuple(sorted(active(conditions, point).items())) for point in whole}
    points = every_point(axes, conditions)
    assert {tuple(sorted(point.items())) for point in points} == expected
    assert len(points) == count_points(axes, conditions, 1_000) == len(expected)


def test_large_grids_are_counted_and_listed_in_time_and_too_large_ones_refused_unlisted():
    half = LARGEST_STUDY // 2
    search = {
        "params.a": ["x", "y"],
        "params.b": {"values": list(range(half)), "when": {"params.a": "x"}},
        "params.c": {"values": list(range(half)), "when": {"params.a": "y"}},
    }
    began = time.process_time()
    spec = own(search)
    assert spec.cell_count() == len(spec.cells()) == LARGEST_STUDY
    assert complaint(search | {"params.d": [1, 2]}).startswith("search: at least 200,000 cells × 1 repeats are more")
    deciding = {f"params.p{n}": list(range(9)) for n in range(12)}
    children = {f"params.q{n}": {"values": [1, 2], "when": {f"params.p{n}": 0}} for n in range(12)}
    assert complaint(deciding | children).startswith("search: at least ")
    assert time.process_time() - began < 20  # 282 thousand million points would take years


def test_a_set_takes_a_condition_along_and_an_axis_that_goes_takes_its_own():
    spec = own({"params.optimizer": OPTIMIZERS})
    longer = spec.with_overrides(['search.params.momentum={values=[0.8, 0.9], when={"params.optimizer"="sgd"}}'])
    assert longer.conditions == {"params.momentum": {"params.optimizer": ("sgd",)}}
    assert longer.cell_count() == 3
    assert longer.with_overrides(["search.params.momentum=[0.8]"]).conditions == {}
    assert longer.with_overrides(["params.momentum=0.8"]).conditions == {}
    with pytest.raises(SpecError, match=r"names [a-z.]+, which is not searched"):
        longer.with_overrides(["params.optimizer=sgd"])


def test_params_may_be_called_as_the_keys_of_an_axis_are():
    spec = own({"params": {"low": [1, 2], "values": [3], "when": {"values": [4], "when": {"params.low": 1}}}})
    assert spec.search == {"params.low": (1, 2), "params.values": (3,), "params.when": (4,)}
    assert spec.conditions == {"params.when": {"params.low": (1,)}}


def test_settings_of_the_built_in_trainer_have_conditions_too_by_any_of_their_names():
    search = {
        "pruning.strategy": ["full", "random", "stale-quantile"],
        "prune_rate": {"values": [0.3, 0.95], "when": {"pruning.strategy": "random"}},
        "train.lr": {"values": [0.1], "when": {"pruning.prune_rate": 0.3}},
    }
    spec = StudySpec.from_document({"name": "built-in", "search": search})
    assert spec.conditions["train.lr"] == {"prune_rate": (0.3,)}
    assert spec.cell_count() == 4
    assert [spec.resolve(cell).pruning.prune_rate for cell in spec.cells()] == [0.0, 0.3, 0.95, 0.0]
    always = {**search, "prune_rate": [0.3, 0.95]}
    with pytest.raises(SpecError, match="stale-quantile"):  # cannot reach it
        StudySpec.from_document({"name": "built-in", "search": always})


def test_scales_that_build_the_same_network_are_kept_where_something_depends_on_them():
    lr = {"values": [0.1], "when": {"scale": 1.3}}
    spec = StudySpec.from_document({"name": "twins", "search": {"scale": [1.2, 1.3], "train.lr": lr}})
    assert spec.cell_count() == len(spec.cells()) == 2
    assert StudySpec.from_document({"name": "twins", "search": {"scale": [1.2, 1.3]}}).cell_count() == 1


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ({"values": [1], "when": {"params.lr": 1}}, "search.params.x: its condition names params.lr, which is not"),
        ({"values": [1], "when": {"params.optimiser": "sgd"}}, "search.params.x: its condition names params.optimiser"),
        ({"values": [1], "when": {"params.rank": 1}}, "search.params.x: its condition names params.rank, which is sea"),
        (
            {"values": [1], "when": {"params.optimizer": "adamw"}},
            "search.params.x: its condition names params.optimizer = 'adamw', which is not searched: params.opt",
        ),
        (
            {"values": [1], "when": {"params.x": 1}},
            "search.params.x: the conditions go in a circle (params.x, params.x",
        ),
        (
            {"values": [1], "when": {"params.y": 1}},
            "search.params.x: the conditions go in a circle (params.x, params.y",
        ),
        ({"values": [1], "when": "sgd"}, "search.params.x.when: 'sgd' must be a table of another axis and its values"),
        (
            {"values": [1], "when": {"params.optimizer": []}},
            "search.params.x.when: params.optimizer: [] must be a value",
        ),
        ({"values": [1], "when": {"params.flag": 1}}, "search.params.x: its condition names params.flag = 1, which is"),
        ({"values": [1], "low": 1}, "search.params.x: values and low exclude each other: keep one"),
        ({"values": 1}, "search.params.x.values: 1 must be a list, as in [0.1, 0.3]"),
        ({"when": {"params.optimizer": "sgd"}}, "search.params.x.low: missing: add low = …"),
        ({"low": 1, "high": 2, "wen": {}}, "search.params.x.wen: unknown key (did you mean when?); allowed: low, high"),
        ({"values": [[1]]}, "search.params.x: [1] must be a finite number, text, or true or false"),
    ],
)
def test_conditions_that_cannot_work_are_refused_in_one_sentence(axis, message):
    y = {"values": [1], "when": {"params.x": 1}} if "params.y" in axis.get("when", ()) else [1]
    search = {
        "params.optimizer": OPTIMIZERS,
        "params.rank": {"low": 1, "high": 8},
        "params.flag": [True, False],
        "params.x": axis,
        "params.y": y,
    }
    assert complaint(search, sampler="tpe").startswith(message)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"params.x": {"params.optimizer": ["sgd"]}}, "conditions.params.x: is not searched: take its condition out"),
        (
            {"params.optimizer": {"params.optimizer": [[1]]}},
            "conditions.params.optimizer.params.optimizer: [[1]] must be",
        ),
        ([1], "conditions: [1] must be a table"),
    ],
)
def test_conditions_of_a_document_are_checked_too(conditions, message):
    assert complaint({"params.optimizer": OPTIMIZERS}, conditions=conditions).startswith(message)


def test_a_command_has_a_default_for_what_is_inactive():
    search = {
        "params.optimizer": OPTIMIZERS,
        "params.momentum": {"values": [0.9], "when": {"params.optimizer": "sgd"}},
    }
    train = {"command": ["train", "--momentum={momentum}"], "epochs": 3}
    assert complaint(search, train=train).startswith(
        "train.command: '--momentum={momentum}': params.momentum is searched only where params.optimizer is sgd: give"
    )
    assert own(search, train=train, params={"momentum": 0.0}).cell_count() == 2


@pytest.mark.parametrize("value", [True, 3, 0.5, "text"])
def test_params_keep_their_types_from_the_study_file_to_the_code(value):
    spec = StudySpec.from_json(own({"params.x": [value]}, params={"y": value}).to_json())
    params = spec.resolve(spec.cells()[0]).params
    assert params == {"x": value, "y": value}
    assert {type(one) for one in params.values()} == {type(value)}


def test_whole_numbers_of_a_range_reach_code_as_floats_where_the_default_is_one():
    spec = own({"params.rank": {"low": 1, "high": 8}, "params.lr": {"low": 1, "high": 8}}, "tpe", params={"lr": 0.1})
    params = spec.resolve({"params.rank": 3, "params.lr": 3}).params
    assert [type(params[name]) for name in ("rank", "lr")] == [int, float]
    assert [note.split(":")[0] for note in spec.notes()] == ["search.params.lr"]  # only whole numbers are drawn

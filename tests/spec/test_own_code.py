"""Study files whose trials train code of one's own: what they may hold, and what is refused in one sentence."""

import pytest

from budgettune.errors import SpecError
from budgettune.spec.own_code import built_in_only
from budgettune.spec.study_spec import StudySpec

LOOP = {"train": {"loop": "mine:train", "epochs": 3}}
WHOLE = {
    "name": "own",
    "train": {"command": ["python", "train.py", "--lr={lr}", "{rank}", "{seed}", "{{}}"], "budget": "60s"},
    "params": {"lr": 0.1, "optimizer": "sgd"},
    "search": {"params.lr": {"low": 1e-3, "high": 1, "log": True}, "params": {"rank": [1, 2]}},
    "sampler": {"name": "tpe"},
    "objective": {"name": "bits per byte", "direction": "minimize"},
    "constraints": {"memory": {"limit": 512}},
}


def complaint(document):
    with pytest.raises(SpecError) as caught:
        StudySpec.from_document({"name": "own", **document})
    return str(caught.value).removeprefix("study file: ")


def test_a_whole_study_goes_into_the_database_and_back():
    spec = StudySpec.from_document(WHOLE)
    assert StudySpec.from_json(spec.to_json()) == spec
    assert spec.resolve({"params.lr": 0.2, "params.rank": 2}).params == {"lr": 0.2, "optimizer": "sgd", "rank": 2}
    assert (spec.objective.key, spec.objective.score(1.5), spec.objective.is_accuracy) == ("bits_per_byte", -1.5, False)
    assert spec.with_overrides(["params.lr=0.3"]).search.keys() == {"params.rank"}


def test_what_others_do_not_know_is_left_out_of_their_documents():
    document = StudySpec.from_document({"name": "usual"}).to_document()
    assert not {"params", "objective", "constraints"} & document.keys()
    assert not {"loop", "command"} & document["train"].keys()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"train": {"loop": "mine"}}, "train.loop: 'mine' must be code as package.module:name"),
        ({"train": {"loop": "a:b", "command": ["c"]}}, "train: loop and command exclude each other: keep one"),
        ({"train": {"command": "python train.py"}}, "train.command: 'python train.py' must be a list of a program and"),
        ({"train": {"command": []}}, "train.command: [] must be a list of a program and its arguments, such as"),
        (
            {"train": {"command": ["a", "{rat}"]}, "params": {"rate": 1}},
            "train.command: '{rat}': no param is called rat (did",
        ),
        (
            {"train": {"command": ["a", "{"]}},
            "train.command: '{': Single '{' encountered in format string: write {{ and",
        ),
        (
            {"train": {"command": ["{lr:>999999999}"]}, "params": {"lr": 1}},
            "train.command: '{lr:>999999999}': the",
        ),
        ({"params": {"lr": 1}}, "params: are for code of your own: name it in train.loop or train.command"),
        (
            {"objective": {"name": "loss"}},
            "objective.name: the built-in trainer reports test accuracy, and no loss: train",
        ),
        (
            {"objective": {"direction": "minimize"}},
            "objective: direction is 'minimize', and nobody wants the least test",
        ),
        ({**LOOP, "objective": {"name": "steps"}}, "objective.name: 'steps' is what every trial has beside it: take"),
        (
            {**LOOP, "objective": {"name": "%"}},
            "objective.name: '%' must be a name of letters, digits and spaces, such",
        ),
        ({"constraints": {"memory": {"limit": 1}}}, "constraints.memory: the built-in trainer measures peak_memory_mb"),
        ({**LOOP, "constraints": {"a b": {"limit": 1}}}, "constraints.a b: must be a word of letters, digits and _"),
        ({**LOOP, "constraints": {"test_accuracy": {"limit": 1}}}, "constraints.test_accuracy: is the objective: take"),
        (
            {**LOOP, "constraints": {"train_seconds": {"limit": 1}}},
            "constraints.train_seconds: is what every trial has",
        ),
        ({**LOOP, "objective": {"name": "a\nb"}}, "objective.name: 'a\\nb' must be a name of letters"),
        ({**LOOP, "constraints": {"memory": {}}}, "constraints.memory.limit: missing: add limit = …"),
        ({**LOOP, "model": {"scale": 2.0}}, "model: is for the built-in trainer; train.loop gets what is in [params]"),
        (
            {"train": {"loop": "a:b", "lr": 1.0}},
            "train.lr: is for the built-in trainer: give it to train.loop as params.lr",
        ),
        (
            {**LOOP, "params": {"seed": 1}},
            "params.seed: must be a word of letters, digits and _, and none of seed, device",
        ),
        (
            {**LOOP, "search": {"scale": [1.0]}},
            "search.scale: is for the built-in trainer: code of your own has params",
        ),
        ({"search": {"params.x": [1]}}, "search.params.x: params are for code of your own: name it in train.loop or"),
        (
            {**LOOP, "params": {"x": 1}, "search": {"params.x": [1, 1.5]}},
            "search.params.x: 1.5 is not of the type of its",
        ),
        ({**LOOP, "search": {"params.a b": [1]}}, "search.params.a b: must be a word of letters, digits and _"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(document, message):
    assert complaint(document).startswith(message)


def test_what_is_about_the_built_in_trainer_takes_no_own_code():
    spec = StudySpec.from_document({"name": "a"})
    assert built_in_only(spec) is spec
    with pytest.raises(SpecError, match="study 'b' trains code of its own, and this is about the built-in trainer"):
        built_in_only(StudySpec.from_document({"name": "b", **LOOP}))

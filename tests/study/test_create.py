"""Making, opening, listing and deleting studies."""

import time
import tomllib

import pytest
import sqlalchemy as sa

from budgettune.errors import SpecError, StorageError, StudyExists, StudyNotFound
from budgettune.spec.study_spec import StudySpec
from budgettune.storage import transactions
from budgettune.storage.connection import open_engine, reading, writing
from budgettune.storage.schema import (
    TABLES_OF_A_STUDY,
    TABLES_OF_A_TRIAL,
    studies,
    trial_params,
    trials,
)
from budgettune.storage.studies import all_studies
from budgettune.study.dashboard_note import study_note
from budgettune.study.handle import create_study, delete_study, load_study
from budgettune.study.sampling import grid_params
from budgettune.study.summary import list_studies
from tests.support.studies import grid, records, result, work_off


def test_a_grid_is_a_waiting_trial_per_cell_and_repeat_that_optuna_can_read(storage_url):
    import optuna

    spec = grid(repeats=2, seed=7)
    with create_study(spec, storage_url) as study:
        seen = optuna.load_study(study_name="study", storage=study.storage)
        assert seen.metric_names == ["train_seconds", "test_accuracy"]
        assert [direction.name for direction in seen.directions] == ["MINIMIZE", "MAXIMIZE"]
        assert StudySpec.from_document(seen.user_attrs["budgettune:spec"]) == spec
        assert [trial.number for trial in seen.trials] == list(range(8))
        assert {trial.state.name for trial in seen.trials} == {"WAITING"}
        for trial in seen.trials:
            assert trial.params == spec.cells()[trial.user_attrs["cell"]]
            assert trial.distributions["scale"].choices == (1.0, 1.4)
            assert trial.user_attrs["attempt"] == 1
            assert trial.user_attrs["seed"] == spec.trial_seed(trial.user_attrs["cell"], trial.user_attrs["repeat"])
        assert len({(trial.user_attrs["cell"], trial.user_attrs["repeat"]) for trial in seen.trials}) == 8


def test_a_worker_needs_only_the_url(study):
    with load_study(study.url) as other:
        assert (other.name, other.spec, other.study_id) == (study.name, study.spec, study.study_id)


@pytest.mark.parametrize(
    "name", ["x", "Fränzi’s “Studie” 🚀", "a'; DROP TABLE studies; --", "%s {0} \\ \n", "名" * 400]
)
def test_any_name_works(storage_url, name):
    with create_study(grid(name), storage_url), load_study(storage_url, name) as study:
        assert study.name == name
        assert [summary.name for summary in list_studies(storage_url)] == [name]


@pytest.mark.parametrize("name", ["a\0b", "lone \ud800 surrogate"])
def test_a_name_that_no_database_keeps_is_refused(sqlite_url, name):
    with pytest.raises(SpecError, match=r"name: .*leave it out"):
        create_study(grid().model_copy(update={"name": name}), sqlite_url)


def test_a_name_that_is_taken_is_refused_and_skipped_if_asked(study):
    with pytest.raises(StudyExists, match="--skip-if-exists"):
        create_study(grid(), study.url)
    with create_study(grid(), study.url, skip_if_exists=True) as again:
        assert again.study_id == study.study_id
        assert again.counts()["WAITING"] == 4
    with pytest.raises(StudyExists, match="other settings"):
        create_study(grid(repeats=2), study.url, skip_if_exists=True)


def test_a_study_is_made_whole_or_not_at_all(sqlite_url, monkeypatch):
    def killed(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(transactions, "insert_trials", killed)
    with pytest.raises(KeyboardInterrupt):
        create_study(grid(), sqlite_url)
    assert all_studies(open_engine(sqlite_url)) == []


def test_the_study_file_in_a_studys_note_makes_the_same_study():
    axes = {"train.lr": {"low": 1e-4, "high": 0.1, "log": True}, "batch_size": [16, 64], "prune_rate": [0.0, 0.25]}
    document = {"name": "Fränzi’s \x7f", "search": axes, "model": {"name": "mine:Net", "options": {"a b": '\\ "'}}}
    spec = StudySpec.from_document({**document, "sampler": {"name": "random"}})
    text = study_note(spec).partition("```toml\n")[2].partition("\n```")[0]
    again = StudySpec.from_document(tomllib.loads(text))
    assert again == spec
    assert list(again.search) == list(axes)


def test_a_studys_note_names_the_objective_the_limits_and_the_code_that_trains():
    own = {
        "objective": {"name": "bits per byte", "direction": "minimize"},
        "constraints": {"joules": {"limit": 50}, "memory_mb": {"limit": 8e3}},
        "search": {"params.lr": [0.1, 0.2]},
    }
    loop = study_note(StudySpec.from_document({"name": "own", "train": {"loop": "mine:train"}, **own}))
    assert loop.startswith("**Training time against bits per byte**: ")
    assert "`bits_per_byte` (less is better). Trained by `mine:train`." in loop
    assert "Trials beyond a limit are no answers: `joules` at most 50, `memory_mb` at most 8000." in loop
    command = ["python", "train.py", "--lr", "{lr}"]
    note = study_note(StudySpec.from_document({"name": "own", "train": {"command": command}, **own}))
    assert "Trained by the command `python train.py --lr '{lr}'`." in note
    usual = study_note(grid())
    assert "Trained by" not in usual
    assert "beyond a limit" not in usual


def test_a_study_of_a_newer_budgettune_is_refused_by_name_and_still_listed(study):
    with writing(study.engine) as connection:
        connection.execute(sa.text("UPDATE study_user_attributes SET value_json = '{\"warp\": 9}'"))
    with pytest.raises(StorageError, match=r"study 'study': .*open it with the budgettune that made it"):
        load_study(study.url)
    [summary] = list_studies(study.url)
    assert (summary.name, summary.cells, summary.states["WAITING"]) == ("study", None, 4)


def test_a_summary_counts_and_estimates(study):
    assert list_studies(study.url)[0].seconds_left is None
    for seconds in (10.0, 30.0, 20.0):
        study.complete(study.claim(), result(seconds))
    study.claim()
    [summary] = list_studies(study.url)
    assert (summary.name, summary.cells, summary.devices) == ("study", 4, ("cpu x2",))
    assert (summary.train_seconds, summary.seconds_left) == (60.0, 20.0)
    assert summary.states == {"RUNNING": 1, "COMPLETE": 3, "PRUNED": 0, "FAIL": 0, "WAITING": 0}


def test_deleting_a_study_leaves_no_row_of_it_and_others_untouched(study):
    with create_study(grid("other", repeats=50), study.url) as other:
        work_off(study)
        for _ in range(3):
            other.complete(other.claim(), result())
        before = records(study)
        delete_study(study.url, "other")
        assert records(study) == before
        delete_study(study.url, "study")
        with reading(study.engine) as connection:
            for table in (studies, trials, *TABLES_OF_A_STUDY, *TABLES_OF_A_TRIAL):
                assert connection.execute(sa.select(table)).all() == []
    with pytest.raises(StudyNotFound):
        delete_study(study.url, "study")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([place + 1 for place in range(500)], "IntDistribution"),
        ([1, *(place / 500 + 1.001 for place in range(499))], "FloatDistribution"),
        ([f"n{place}" for place in range(300)], "CategoricalDistribution"),
    ],
)
def test_a_grid_over_a_long_axis_keeps_no_copy_of_all_values_with_every_trial(sqlite_url, values, kind):
    import optuna

    spec = StudySpec.from_document({"name": "long", "search": {"model.options.x": values}})
    with create_study(spec, sqlite_url) as study:
        [first, *_] = optuna.load_study(study_name="long", storage=study.storage).get_trials(deepcopy=False)
        assert first.distributions["model.options.x"].__class__.__name__ == kind
        assert [record.params["model.options.x"] for record in records(study)] == values
        with reading(study.engine) as connection:
            kept = connection.execute(sa.select(sa.func.sum(sa.func.length(trial_params.c.distribution_json)))).scalar()
        assert kept < 150 * len(values)


def test_the_note_of_a_long_axis_is_written_in_no_time_and_shows_its_beginning():
    values = [(place + 1) / 10_000 for place in range(10_000)]
    before = time.process_time()
    note = study_note(StudySpec.from_document({"name": "long", "search": {"train.lr": values}}))
    assert time.process_time() - before < 4  # it took 40 s
    assert "| `train.lr` | 0.0001, 0.0002, " in note
    assert "0.005 and 9950 more |" in note
    assert tomllib.loads(note.split("```toml")[1].split("```")[0])["search"]["train.lr"] == values


def test_a_long_axis_is_checked_in_a_time_that_grows_with_its_length():
    """As its square it would be a hundred times."""

    def seconds(count):
        texts = [f"recipe {place}" for place in range(count)]
        search = {"params.x": texts, "params.y": {"values": [1.0], "when": {"params.x": texts[: count // 2]}}}
        began = time.process_time()
        spec = StudySpec.from_document({"name": "long", "search": search, "train": {"loop": "mine:train"}})
        assert len(grid_params(spec)) == spec.cell_count() == count
        return time.process_time() - began

    seconds(10)  # imports
    assert min(seconds(8_000) for _ in range(2)) < 40 * max(seconds(800) for _ in range(3))

import json
import math

import optuna
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from budgettune.errors import NothingWithinBudget, StudyNotFound, UsageError
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.answers import best_under_budget, param_names, score_points, state_counts
from budgettune.storage.connection import open_engine, open_storage, writing
from budgettune.storage.schema import TABLES_OF_A_TRIAL, trials
from budgettune.storage.studies import all_studies, comparable_machine_key, find_study
from budgettune.storage.trials import record_batches, trial_records
from budgettune.study.handle import create_study
from budgettune.study.pareto import hypervolume, pareto_front

SPEC = {"name": "ours", "search": {"scale": [1.0, 1.4], "batch_size": [100, 200]}}


@pytest.fixture
def study(storage_url):
    """Return an empty sampled study: its rows are up to each test."""
    document = {**SPEC, "sampler": {"name": "random"}}
    with create_study(StudySpec.from_document(document), storage_url) as handle:
        yield handle


def add(study, seconds, accuracy, state=TrialState.COMPLETE, params=None, distributions=None, **attributes):
    """Add a finished trial the way any Optuna program would."""
    values = [seconds, accuracy] if state == TrialState.COMPLETE else None
    trial = create_trial(state=state, values=values, params=params, distributions=distributions, user_attrs=attributes)
    return study.storage.create_new_trial(study.study_id, trial)


def numbers(records):
    return [record.number for record in records]


# --- Best -----------------------------------------------------------------------------------------------------------


def test_the_best_is_the_most_accurate_that_fits_the_budget(study):
    for seconds, accuracy in [(10, 0.5), (20, 0.7), (30, 0.9)]:
        add(study, seconds, accuracy)
    best = best_under_budget(study.engine, study.study_id, 20)
    assert [(record.train_seconds, record.test_accuracy) for record in best] == [(20, 0.7)]


def test_ties_go_to_the_faster_then_to_the_lower_number(study):
    for seconds, accuracy in [(3, 0.9), (2, 0.9), (2, 0.9), (1, 0.1)]:
        add(study, seconds, accuracy)
    assert numbers(best_under_budget(study.engine, study.study_id, 9, top=3)) == [1, 2, 0]


def test_a_budget_below_the_fastest_names_the_fastest(study):
    add(study, 10, 0.5)
    with pytest.raises(NothingWithinBudget, match=r"the fastest takes 10\.0s") as caught:
        best_under_budget(study.engine, study.study_id, 9.99)
    assert caught.value.fastest_seconds == 10


def test_a_study_without_finished_trials_says_so(study):
    add(study, None, None, TrialState.FAIL)
    with pytest.raises(NothingWithinBudget, match="no finished trial yet"):
        best_under_budget(study.engine, study.study_id, 10)


def test_only_the_named_kind_of_machine_counts(study):
    add(study, 1, 0.9, device_name="GPU – “fast”")
    add(study, 2, 0.5, device_name="cpu x2")
    add(study, 3, 0.6)
    ask = {"device_name": "cpu x2"}
    assert numbers(best_under_budget(study.engine, study.study_id, 9, **ask)) == [1]
    assert numbers(pareto_front(study.engine, study.study_id, device_name="GPU – “fast”")) == [0]
    assert score_points(study.engine, study.study_id, **ask) == [(2, 0.5)]
    with pytest.raises(NothingWithinBudget):
        best_under_budget(study.engine, study.study_id, 9, device_name="cpu' OR '1'='1")


def test_no_more_than_top_are_returned_and_at_least_one_is_asked_for(study):
    for accuracy in (0.1, 0.2, 0.3):
        add(study, 1, accuracy)
    assert numbers(best_under_budget(study.engine, study.study_id, 1, top=2)) == [2, 1]
    assert len(best_under_budget(study.engine, study.study_id, 1, top=99)) == 3
    with pytest.raises(UsageError, match="top must be at least 1"):
        best_under_budget(study.engine, study.study_id, 1, top=0)


# --- Against brute force --------------------------------------------------------------------------------------------

# Few values, so that ties are common.
OBJECTIVE = st.one_of(st.integers(0, 4).map(float), st.floats(0, 5), st.sampled_from([math.inf, -math.inf]))
POINTS = st.lists(st.tuples(OBJECTIVE, OBJECTIVE), max_size=12)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return one study for all examples of a property, emptied by each."""
    url = f"sqlite:///{tmp_path_factory.mktemp('query') / 'study.db'}"
    with create_study(StudySpec.from_document({**SPEC, "sampler": {"name": "random"}}), url) as handle:
        yield handle


def refill(study, points):
    """Replace the trials of a study by complete ones, infinities stored as Optuna stores them."""
    with writing(study.engine) as connection:
        for table in (*TABLES_OF_A_TRIAL, trials):
            connection.execute(sa.delete(table))
        for number, point in enumerate(points):
            row = {"id": number + 1, "number": number, "study": study.study_id}
            connection.execute(
                sa.text(
                    "INSERT INTO trials (trial_id, number, study_id, state) VALUES (:id, :number, :study, 'COMPLETE')"
                ),
                row,
            )
            for objective, value in enumerate(point):
                kind = "FINITE" if math.isfinite(value) else "INF_POS" if value > 0 else "INF_NEG"
                connection.execute(
                    sa.text(
                        "INSERT INTO trial_values (trial_id, objective, value, value_type) VALUES (:id, :o, :v, :k)"
                    ),
                    {"id": number + 1, "o": objective, "v": value if math.isfinite(value) else None, "k": kind},
                )


def usable(points):
    return [(seconds, accuracy, number) for number, (seconds, accuracy) in enumerate(points)
            if math.isfinite(seconds) and math.isfinite(accuracy)]  # fmt: skip


@given(POINTS, st.floats(0, 6), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_best_equals_a_look_at_every_trial(shared, points, budget_seconds, top):
    refill(shared, points)
    fitting = [point for point in usable(points) if point[0] <= budget_seconds]
    expected = [number for *_, number in sorted(fitting, key=lambda point: (-point[1], point[0], point[2]))][:top]
    try:
        found = numbers(best_under_budget(shared.engine, shared.study_id, budget_seconds, top=top))
    except NothingWithinBudget as nothing:
        assert nothing.fastest_seconds == min((seconds for seconds, *_ in usable(points)), default=None)
        found = []
    assert found == expected


@given(POINTS)
@settings(max_examples=60, deadline=None)
def test_front_equals_a_look_at_every_pair(shared, points):
    refill(shared, points)
    candidates = usable(points)
    expected = {
        mine[2]
        for mine in candidates
        if not any(other[0] <= mine[0] and other[1] >= mine[1] and other[:2] != mine[:2] for other in candidates)
    }
    front = pareto_front(shared.engine, shared.study_id)
    assert set(numbers(front)) == expected
    assert [(record.train_seconds, record.number) for record in front] == sorted(
        (record.train_seconds, record.number) for record in front
    )


GRID = st.integers(0, 6)


@given(st.lists(st.tuples(GRID, GRID), max_size=8), st.tuples(GRID, GRID))
def test_hypervolume_equals_the_count_of_dominated_unit_squares(points, reference):
    squares = sum(
        any(seconds <= x and accuracy >= y + 1 for seconds, accuracy in points)
        for x in range(reference[0])
        for y in range(reference[1], 7)
    )
    assert hypervolume(points, reference) == squares


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1)), max_size=10))
def test_hypervolume_equals_optunas(points):
    losses = [(seconds, -accuracy) for seconds, accuracy in points]
    import numpy as np
    from optuna._hypervolume import compute_hypervolume

    expected = compute_hypervolume(np.array(losses), np.array([101.0, 0.0])) if points else 0.0
    assert hypervolume(points, (101.0, 0.0)) == pytest.approx(expected)


def test_points_that_are_not_finite_add_no_volume():
    points = [(1.0, 0.5), (math.nan, 1.0), (0.0, math.inf), (-math.inf, 0.9), (0.5, math.nan)]
    assert hypervolume(points, (2.0, 0.0)) == 0.5


# --- Records --------------------------------------------------------------------------------------------------------


def test_params_come_back_as_they_were_sampled(study):
    params = {"scale": 1.4, "name": "b", "flag": False, "layers": 3, "lr": 0.01}
    distributions = {
        "scale": CategoricalDistribution([1.0, 1.4]),
        "name": CategoricalDistribution(["a", "b"]),
        "flag": CategoricalDistribution([True, False]),
        "layers": IntDistribution(1, 5),
        "lr": FloatDistribution(1e-4, 1e-1, log=True),
    }
    add(study, 1, 0.5, params=params, distributions=distributions)
    [record] = trial_records(study.engine, study.study_id)
    assert dict(record.params) == params
    assert list(record.params) == list(params)
    assert [type(value) for value in record.params.values()] == [type(value) for value in params.values()]
    assert param_names(study.engine, study.study_id) == list(params)


def test_records_hold_times_states_and_failures(study):
    add(study, 1, 0.5)
    add(study, None, None, TrialState.FAIL, failure={"kind": "out-of-memory", "message": "no room"})
    add(study, None, None, TrialState.FAIL, failure="as another program wrote it")
    complete, failed, odd = trial_records(study.engine, study.study_id)
    assert (complete.state, complete.failure) == ("COMPLETE", None)
    assert complete.started_at <= complete.completed_at
    assert complete.completed_at.endswith("+00:00")
    assert (failed.state, failed.train_seconds, failed.failure) == ("FAIL", None, "out-of-memory: no room")
    assert odd.failure == "unknown: as another program wrote it"


def test_records_can_be_chosen_by_state_and_number(study):
    for state in (TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE):
        add(study, 1, 0.5, state)
    ask = (study.engine, study.study_id)
    assert numbers(trial_records(*ask, states={"COMPLETE"})) == [0, 2]
    assert numbers(trial_records(*ask, numbers=[2, 1, 77])) == [1, 2]
    assert trial_records(*ask, states=[]) == []
    assert [len(batch) for batch in record_batches(*ask)] == [3]


def test_counts_name_every_state(study):
    add(study, 1, 0.5)
    none = {"RUNNING": 0, "COMPLETE": 0, "PRUNED": 0, "FAIL": 0, "WAITING": 0}
    assert state_counts(study.engine, study.study_id) == none  # it is of no cell
    assert state_counts(study.engine, study.study_id, of_cells=False) == {**none, "COMPLETE": 1}


# --- What other programs leave --------------------------------------------------------------------------------------

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=5),
    st.integers(),
    st.floats(),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
NAMES = ["cell", "repeat", "attempt", "seed", "status", "device_name", "failure", "curve", "phases", "machine"]
NAMES += ["epochs", "keep_fraction", "extra", "late_of"]


@given(st.dictionaries(st.sampled_from(NAMES), ODD), OBJECTIVE, OBJECTIVE)
@settings(max_examples=60, deadline=None)
def test_attributes_that_are_not_what_we_wrote_break_no_answer(shared, attributes, seconds, accuracy):
    refill(shared, [])
    add(shared, seconds, accuracy, **attributes)
    for record in trial_records(shared.engine, shared.study_id):
        json.dumps(record.to_json(), allow_nan=False)
    pareto_front(shared.engine, shared.study_id)
    comparable_machine_key(shared.engine, shared.study_id)
    shared.reconcile()
    shared.verify()
    assert shared.claim() is None or shared.spec.sampler.name != "grid"


def test_broken_rows_are_left_out_and_the_rest_is_answered(sqlite_url):
    """SQLite keeps any value in any column."""
    with create_study(StudySpec.from_document({**SPEC, "sampler": {"name": "random"}}), sqlite_url) as study:
        refill(study, [(1.0, 0.5)] * 9)
        statements = [
            "UPDATE trial_values SET value = 'fast' WHERE trial_id = 1 AND objective = 0",
            "UPDATE trial_values SET value = 'good' WHERE trial_id = 2 AND objective = 1",
            "UPDATE trial_values SET value = NULL WHERE trial_id = 3",
            "UPDATE trial_values SET value = 9e999 WHERE trial_id = 4",
            "UPDATE trial_values SET value = x'00ff' WHERE trial_id = 5",
            "DELETE FROM trial_values WHERE trial_id = 6 AND objective = 1",
            "UPDATE trials SET state = 'DREAMING' WHERE trial_id = 7",
            "UPDATE trials SET datetime_start = 'yesterday', datetime_complete = 7 WHERE trial_id = 8",
            "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) VALUES (8, 'a', 'b', '{')",
            "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) VALUES (8, 'c', 7, "
            """'{"name": "CategoricalDistribution", "attributes": {"choices": [1]}}')""",
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (8, 'curve', 'not json')",
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (8, 'machine', NULL)",
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (8, 'phases', '{\"step\": [1]}')",
            "UPDATE trials SET number = NULL WHERE trial_id = 9",
        ]
        with writing(study.engine) as connection:
            for statement in statements:
                connection.execute(sa.text(statement))
        records = trial_records(study.engine, study.study_id)
        assert [record.number for record in records if record.train_seconds == 1.0] == [1, 5, 6, 7]
        assert (records[7].started_at, records[7].params, records[7].curve) == (None, {}, ())
        assert (records[7].phases, records[7].machine) == (None, None)
        best = best_under_budget(study.engine, study.study_id, 1.0, top=99)
        assert {record.number for record in best} <= {7}
        assert numbers(pareto_front(study.engine, study.study_id)) == [7]
        assert state_counts(study.engine, study.study_id, of_cells=False)["COMPLETE"] == 8
        study.reconcile()


def test_not_a_number_in_postgresql_is_left_out(postgresql_url):
    with create_study(StudySpec.from_document({**SPEC, "sampler": {"name": "random"}}), postgresql_url) as study:
        for seconds, accuracy in [(1.0, 0.1), (2.0, 0.2), (3.0, 0.3)]:
            add(study, seconds, accuracy)
        with writing(study.engine) as connection:
            connection.execute(sa.text("UPDATE trial_values SET value = 'NaN' WHERE value = 0.3"))
            connection.execute(sa.text("UPDATE trial_values SET value = 'Infinity' WHERE value = 0.2"))
        assert numbers(pareto_front(study.engine, study.study_id)) == [0]
        assert score_points(study.engine, study.study_id) == [(1.0, 0.1)]


# --- Studies --------------------------------------------------------------------------------------------------------


def test_studies_of_other_programs_are_never_taken_for_ours(storage_url):
    storage = open_storage(storage_url, create=True)
    optuna.create_study(storage=storage, study_name="theirs")
    engine = open_engine(storage_url)
    with pytest.raises(StudyNotFound, match="0 studies: make one with `budgettune study create`"):
        find_study(engine)
    create_study(StudySpec.from_document(SPEC), storage_url)
    assert find_study(engine).name == "ours"
    with pytest.raises(StudyNotFound, match="'theirs' was made by another program: name one of: ours"):
        find_study(engine, "theirs")
    with pytest.raises(StudyNotFound, match="'nobody' is not in the storage"):
        find_study(engine, "nobody")
    create_study(StudySpec.from_document({**SPEC, "name": "second"}), storage_url)
    with pytest.raises(StudyNotFound, match="2 studies: name one of: ours, second"):
        find_study(engine)
    assert [(row.name, row.spec_json is None) for row in all_studies(engine)] == [
        ("theirs", True), ("ours", False), ("second", False),
    ]  # fmt: skip
    storage.engine.dispose()

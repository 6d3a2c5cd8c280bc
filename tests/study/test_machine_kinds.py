"""Studies keep to one kind of machine."""

import dataclasses

import pytest
import sqlalchemy as sa

from budgettune import api
from budgettune.errors import UsageError
from budgettune.records import MachineInfo
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.connection import reading, writing
from budgettune.storage.studies import comparable_machine_key, machine_keys
from budgettune.study.handle import create_study, load_study
from budgettune.study.pareto import pareto_front
from tests.support.studies import let_lease_run_out, records, result, statements_of, work_off


def keys_of(study):
    with reading(study.engine) as connection:
        return machine_keys(connection, study.study_id)


def test_the_first_finished_trial_says_which_machine_counts_and_other_times_are_kept_as_extras(study):
    first, second = study.claim(), study.claim()
    assert study.machine_key() is None
    assert study.complete(first, result(device_name="fast")) is True
    assert study.machine_key() == "fast x2"
    other = load_study(study.url)  # a worker that knows nothing of the first one's kind
    assert other.complete(second, result(device_name="slow")) is False
    assert other.complete(second, result(device_name="slow")) is False
    extras = [record for record in records(study) if record.extra]
    assert [(record.number, record.device_name) for record in extras] == [(second.number, "slow x2")]
    again = [record for record in records(study) if record.cell == second.cell and record.state == "WAITING"]
    assert [record.attempt for record in again] == [second.attempt]
    work_off(study, device_name="fast")
    assert study.verify().whole


def test_kinds_may_be_mixed_knowingly(study):
    first, second = study.claim(), study.claim()
    study.complete(first, result(device_name="fast"))
    assert study.complete(second, result(device_name="slow"), allow_mixed=True) is True
    assert api.machines(study) == (
        "fast x2",
        "times of fast x2 only; the study also holds slow x2: --device-name chooses, any takes all",
    )


def test_boxes_with_one_key_that_are_not_quite_alike_are_said(study, run):
    gpu = MachineInfo(
        hostname="a", device="cuda", device_name="H100", cpu="Xeon", driver="570", power_limit_w=700, threads=4
    )
    for machine in (gpu, dataclasses.replace(gpu, hostname="b")):
        study.complete(study.claim(), dataclasses.replace(result(), machine=machine))
    assert study.machine_note() is None
    other = dataclasses.replace(gpu, cpu="EPYC", driver="580", power_limit_w=None, sm_clock_limit_mhz=1980)
    assert study.complete(study.claim(), dataclasses.replace(result(), machine=other)) is True
    assert study.machine_note() == (
        "these times come from boxes that are not quite alike: those of H100 differ in processor (EPYC, Xeon), "
        "driver (570, 580)"
    )
    assert f"note: {study.machine_note()}\n" in run("study", "show", study.name, "--storage", study.url)[2]


def test_kinds_are_looked_up_with_the_study_and_not_in_each_of_its_trials(study):
    from budgettune.storage.schema import study_user_attributes

    for device_name in ("fast", "slow"):
        study.complete(study.claim(), result(device_name=device_name), allow_mixed=True)
    assert keys_of(study) == ["fast x2", "slow x2"]
    assert statements_of(study, lambda: keys_of(study)) == 1
    with writing(study.engine) as connection:  # as before the list was kept
        table = study_user_attributes
        connection.execute(sa.delete(table).where(table.c.key == "budgettune:machine_kinds"))
    assert load_study(study.url).machine_key() == "fast x2"
    assert keys_of(study) == ["fast x2", "slow x2"]
    later = load_study(study.url)
    later.complete(later.claim(), result(device_name="third"), allow_mixed=True)
    assert statements_of(study, lambda: keys_of(study)) == 1
    assert keys_of(study) == ["fast x2", "slow x2", "third x2"]


def test_a_late_result_of_another_machine_takes_no_cell(study):
    study.complete(study.claim(), result(device_name="fast"))
    late = study.claim()
    let_lease_run_out(study)
    study.reconcile()
    assert study.complete(late, result(device_name="slow")) is False
    work_off(study, device_name="fast")
    assert study.verify().whole


def test_a_spec_may_name_the_machine(storage_url):
    spec = StudySpec.from_document({"name": "s", "search": {"scale": [1.0]}, "machine": {"device_name": "fast x2"}})
    study = create_study(spec, storage_url)
    assert study.machine_key() == "fast x2"
    assert study.complete(study.claim(), result(device_name="slow")) is False
    assert study.complete(study.claim(), result(device_name="fast")) is True
    assert study.verify().whole


def test_answers_hold_the_times_of_one_kind_of_machine_unless_all_are_asked_for(study):
    for device_name, seconds in (("fast", 10.0), ("slow", 5.0)):
        study.complete(study.claim(), result(seconds, device_name=device_name), allow_mixed=True)
    for asked, fastest in ((None, 10.0), ("slow x2", 5.0), ("any", 5.0)):
        kind = comparable_machine_key(study.engine, study.study_id, asked)
        front = pareto_front(study.engine, study.study_id, device_name=kind)
        assert front[0].train_seconds == fastest
    with pytest.raises(UsageError, match="'fast x2', 'slow x2'"):
        comparable_machine_key(study.engine, study.study_id, "unknown")

"""Studies as files."""

import csv
import io
import json
import math
import os
from pathlib import Path

import pytest
import sqlalchemy as sa

from budgettune.errors import BudgetTuneError, UsageError
from budgettune.storage.connection import reading
from budgettune.storage.schema import (
    trial_user_attributes,
)
from budgettune.study.export import export
from budgettune.study.handle import create_study
from tests.support.studies import (
    grid,
    records,
    result,
    sampled,
)


def test_numbers_that_are_not_finite_reach_no_other_program(study, tmp_path):
    def refuse(constant):
        raise AssertionError(constant)

    study.complete(study.claim(), result())  # its step_ms_mad is NaN
    with reading(study.engine) as connection:
        for text in connection.execute(sa.select(trial_user_attributes.c.value_json)).scalars():
            json.loads(text, parse_constant=refuse)
    trial = _trial_with_param("seed")
    trial.user_attrs["curve"] = [{"epoch": 0, "train_seconds": 1, "steps": 1, "samples": 1, "loss": math.inf}]
    study.storage.create_new_trial(study.study_id, trial)
    export(study.engine, study.study_id, "json", tmp_path / "trials.json")
    json.loads((tmp_path / "trials.json").read_text(), parse_constant=refuse)


def test_csv_has_one_row_per_trial_and_a_column_per_param(study, tmp_path):
    study.complete(study.claim(), result())
    out = tmp_path / "trials.csv"
    export(study.engine, study.study_id, "csv", out)
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [row["state"] for row in rows] == ["COMPLETE", "WAITING", "WAITING", "WAITING"]
    assert (rows[0]["train_seconds"], rows[0]["scale"], rows[3]["prune_rate"]) == ("10.0", "1.0", "0.3")
    assert list(tmp_path.glob(".trials*")) == []


def test_json_holds_what_the_records_hold(study, tmp_path):
    study.complete(study.claim(), result())
    out = tmp_path / "trials.json"
    export(study.engine, study.study_id, "json", out)
    assert json.loads(out.read_text()) == json.loads(json.dumps([record.to_json() for record in records(study)]))


def test_a_study_without_trials_exports_as_empty(sqlite_url, tmp_path):
    with create_study(sampled(), sqlite_url) as study:
        export(study.engine, study.study_id, "json", tmp_path / "none.json")
        export(study.engine, study.study_id, "csv", tmp_path / "none.csv")
    assert json.loads((tmp_path / "none.json").read_text()) == []
    assert (tmp_path / "none.csv").read_text().startswith("number,state,")


@pytest.mark.parametrize("out", [None, "-"])
def test_a_dash_is_standard_output(study, capfdbinary, out):
    export(study.engine, study.study_id, "json", out)
    assert len(json.loads(capfdbinary.readouterr().out)) == 4


def test_a_failed_export_leaves_the_old_file(study, tmp_path, monkeypatch):
    out = tmp_path / "trials.csv"
    out.write_text("old")
    monkeypatch.setattr("budgettune.study.export.record_batches", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        export(study.engine, study.study_id, "csv", out)
    assert out.read_text() == "old"
    assert list(tmp_path.glob(".trials*")) == []


def test_places_that_cannot_be_written_are_named_and_devices_are_not_replaced(study, tmp_path):
    for out in (tmp_path, tmp_path / "missing" / "trials.csv"):
        with pytest.raises(UsageError, match="cannot be written"):
            export(study.engine, study.study_id, "csv", out)
    export(study.engine, study.study_id, "csv", os.devnull)
    assert not Path(os.devnull).is_file()
    with pytest.raises(UsageError, match="choose one of csv, json, parquet"):
        export(study.engine, study.study_id, "xlsx", tmp_path / "x")


def test_parquet_without_its_packages_names_the_extra(study, tmp_path):
    try:
        import pandas as pd
        import pyarrow  # noqa: F401
    except ImportError:
        with pytest.raises(BudgetTuneError, match=r"budgettune\[parquet\]"):
            export(study.engine, study.study_id, "parquet", tmp_path / "trials.parquet")
        assert list(tmp_path.glob("*parquet*")) == []
    else:
        export(study.engine, study.study_id, "parquet", tmp_path / "trials.parquet")
        assert list(pd.read_parquet(tmp_path / "trials.parquet")["number"]) == [0, 1, 2, 3]


def test_a_param_named_like_a_column_gets_a_prefix(sqlite_url, tmp_path):
    search = {"train.epochs": [1, 2], "data.seed": [0, 1]}
    with create_study(grid(search=search), sqlite_url) as study:
        study.storage.create_new_trial(study.study_id, _trial_with_param("seed"))
        export(study.engine, study.study_id, "csv", tmp_path / "trials.csv")
    header = (tmp_path / "trials.csv").read_text().splitlines()[0].split(",")
    assert "params.seed" in header
    assert {"train.epochs", "data.seed"} <= set(header)
    assert len(set(header)) == len(header)


def _trial_with_param(name):
    from optuna.distributions import FloatDistribution
    from optuna.trial import create_trial

    return create_trial(params={name: 0.5}, distributions={name: FloatDistribution(0, 1)}, values=[1.0, 0.5])

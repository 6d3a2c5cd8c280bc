"""The benchmark of large studies runs in a tiny setting, alone and beside another checkout."""

import json
from pathlib import Path

import pytest

from benchmarks import claims

pytestmark = pytest.mark.slow


def test_draws_looks_and_making_are_measured_before_and_after(tmp_path, capsys):
    numbers = tmp_path / "numbers.json"
    sizes = ["--draw", "20", "--idle", "8", "--create", "10", "10100", "--rounds", "2", "--json", str(numbers)]
    claims.main(["--before", str(Path(claims.__file__).parents[1]), "--databases", "sqlite", *sizes])
    text, tables = capsys.readouterr().out, json.loads(numbers.read_text())
    assert "| finished trials | figure" in text
    assert "A look of a worker that finds nothing" in text
    draws = {row["figure"]: row for row in tables["draw"]}
    assert draws["reserve, ms"]["after"] <= draws["locked, ms"]["after"] <= draws["claim, ms"]["after"]
    [statements, _] = tables["idle"]
    assert statements["before"] == statements["after"] == 2
    assert {row["values of an axis, or cells"] for row in tables["create"]} == {10, 10_100}

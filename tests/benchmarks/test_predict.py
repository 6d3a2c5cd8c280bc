"""The prediction benchmark runs on a tiny table, and a table keeps what it was made of. Its figures are not judged."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import predict
from benchmarks.support import own_table
from tests.support.simulated import MACHINE, World, simulated_spec

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def table():
    world = World(simulated_spec(scale=[0.5, 1.0, 1.5], prune_rate=[0.0, 0.3], batch_size=[32, 64, 128]))
    return own_table.Table(world.spec, MACHINE, tuple(world.table()), tuple(world.probes()))


def test_a_table_comes_back_from_its_file_without_what_tells_of_the_box(table, tmp_path):
    rooted = replace(table, spec=table.spec.with_overrides(["data.root=/home/me"]))
    own_table.write(rooted, tmp_path / "table.json.xz")
    found = own_table.read(tmp_path / "table.json.xz")
    assert found.spec == table.spec
    assert [trial.to_json() | {"machine": None} for trial in table.trials] == [one.to_json() for one in found.trials]
    assert found.probes == table.probes
    assert found.machine.hostname == ""


def test_it_judges_every_method_on_time_accuracy_and_recommendations(table, tmp_path, capsys):
    own_table.write(table, tmp_path / "table.json.xz")
    predict.main(
        ["--table", f"{tmp_path / 'table.json.xz'}", "--sizes", "8", "--draws", "2", "--json", f"{tmp_path / 'n.json'}"]
    )
    text, tables = capsys.readouterr().out, json.loads((tmp_path / "n.json").read_text())
    assert "Noise ceiling of R²" in text
    time, accuracy, advice = tables.values()
    names = {"BudgetTune", "linear in arithmetic", "Gaussian process, raw params", "random forest, raw params"}
    assert {row[""] for row in time} == names | {"BudgetTune, probed"}
    assert {row[""] for row in accuracy} == names
    assert {row[""] for row in advice} == names | {
        "BudgetTune, probed",
        "best observed",
        predict.ALL_ONCE,
        predict.ALL_KNOWN,
    }
    assert {row["from"] for row in time} == {"8 random cells", "no scale of its own", "no batch_size of its own"}
    probed = next(row for row in time if row[""] == "BudgetTune, probed")
    assert probed["never timed: median"] is None


def test_an_answer_is_held_against_the_best_cell_within_the_budget(table):
    grid = own_table.Grid(table)
    seconds, truth = np.median(grid.future, axis=1), grid.accuracies.mean(1)
    assert seconds == pytest.approx(grid.seconds.mean(1), rel=0.05)
    budget = sorted(seconds)[9]
    best = max((cell for cell in range(len(seconds)) if seconds[cell] <= budget), key=lambda cell: truth[cell])
    advice = predict.Advice()
    advice.add(grid, budget, best)
    slow = int(seconds.argmax())
    advice.add(grid, budget, slow)
    advice.add(grid, budget, None)
    assert advice.regrets == [0, pytest.approx(100 * (truth[best] - truth[slow]))]
    assert advice.broken[1] == 1
    assert advice.row()["no answer"] == "33%"


def test_designs_leave_out_what_they_predict(table):
    grid = own_table.Grid(table)
    for trials, rest in predict.random_designs(grid, 8, 3):
        ran = {grid.cells.index(grid.workloads.of(trial.params)) for trial in trials}
        assert len(ran) == 8
        assert ran | set(rest.tolist()) == set(range(18))
        assert not ran & set(rest.tolist())
    for trials, rest in predict.left_out(grid, "scale"):
        (value,) = {grid.cells[cell].params["scale"] for cell in rest.tolist()}
        assert value not in {trial.params["scale"] for trial in trials}

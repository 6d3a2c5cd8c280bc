"""Imports point down: the table of layers, and who may know what. Read from the source, lazy imports included."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "budgettune"

LAYERS = {
    # 5: what people call
    "__init__": 5,
    "__main__": 5,
    "api": 5,
    "cli": 5,
    "cli_answers": 5,
    "cli_options": 5,
    "cli_predict": 5,
    "cli_study": 5,
    "cli_training": 5,
    "progress": 5,
    "render": 5,
    "watch": 5,
    # 4: programs
    "comparing": 4,
    "comparison_figure": 4,
    "comparison_plan": 4,
    "comparison_report": 4,
    "dashboard": 4,
    "live_figures": 4,
    "one_trial": 4,
    "early_ends": 4,
    "fleet": 4,
    "guard": 4,
    "probing": 4,
    "profile": 4,
    "profile_report": 4,
    "profile_space": 4,
    "report": 4,
    "shared_view": 4,
    "spool": 4,
    "watchdog": 4,
    "webserver": 4,
    "worker": 4,
    # 3: studies, answers, models
    "export": 3,
    "live_storage": 3,
    "planning": 3,
    "predict": 3,
    "probes": 3,
    "query": 3,
    "sampling": 3,
    "slots": 3,
    "study": 3,
    "summaries": 3,
    "transactions": 3,
    "trial_rows": 3,
    # 2: Optuna's tables, the box, torch
    "cells": 2,
    "database_errors": 2,
    "disturbance": 2,
    "dominance": 2,
    "engines": 2,
    "evidence": 2,
    "locks": 2,
    "note": 2,
    "machine": 2,
    "nvml": 2,
    "procfs": 2,
    "roots": 2,
    "rows": 2,
    "slot_values": 2,
    "sentinel": 2,
    "stopping": 2,
    "stopping_notes": 2,
    "storage": 2,
    "tables": 2,
    "training": 2,
    # 1: frozen values
    "comparison": 1,
    "files": 1,
    "passwords": 1,
    "prune_rates": 1,
    "records": 1,
    "spec": 1,
    "spec_checks": 1,
    "spec_documents": 1,
    "spec_faults": 1,
    "spec_pruning": 1,
    "spec_tables": 1,
    "worker_options": 1,
    # 0: nothing
    "errors": 0,
    "significance": 0,
    "certainty": 0,
    "renewal": 0,
    "textplot": 0,
    "texts": 0,
    "units": 0,
}
"""Layer of each module; a package stands for all its modules, which may import each other."""

NEIGHBOURS = {
    "__init__": {"api"},
    "cli": {
        "__init__",
        "api",
        "cli_answers",
        "cli_options",
        "cli_predict",
        "cli_study",
        "cli_training",
        "progress",
        "render",
    },
    "cli_answers": {"api", "cli_options", "render"},
    "__main__": {"cli"},
    "cli_options": {"render"},
    "cli_predict": {"api", "cli_options", "render"},
    "cli_study": {"api", "cli_options", "render", "watch"},
    "cli_training": {"api", "cli_options", "cli_predict", "render"},
    "cells": {"slot_values"},
    "comparing": {"comparison_plan", "one_trial", "profile_space"},
    "comparison": {"files", "records", "spec_tables"},
    "dashboard": {"guard", "live_figures", "shared_view", "webserver"},
    "disturbance": {"procfs", "sentinel"},
    "engines": {"database_errors"},
    "errors": {"texts", "units"},
    "export": {"query"},
    "live_storage": {"trial_rows"},
    "locks": {"database_errors", "engines"},
    "machine": {"disturbance", "nvml", "procfs"},
    "nvml": {"disturbance"},
    "planning": {"sampling"},
    "profile": {"profile_report", "profile_space"},
    "profile_report": {"profile_space"},
    "probes": {"trial_rows"},
    "progress": {"render"},
    "prune_rates": {"spec_pruning"},
    "query": {"slots", "trial_rows"},
    "rows": {"tables"},
    "sampling": {"predict"},
    "spec": {"spec_checks", "spec_documents", "spec_faults", "spec_pruning", "spec_tables"},
    "spec_checks": {"prune_rates", "spec_documents", "spec_faults", "spec_pruning", "spec_tables"},
    "spec_documents": {"spec_tables"},
    "spec_faults": {"spec_tables"},
    "spec_pruning": {"spec_tables"},
    "shared_view": {"guard"},
    "slots": {"trial_rows"},
    "storage": {"database_errors", "engines", "locks"},
    "study": {"export", "planning", "query", "sampling", "slots", "summaries", "transactions"},
    "summaries": {"query", "slots"},
    "training": {"machine"},
    "transactions": {"slots", "trial_rows"},
    "stopping_notes": {"dominance"},
    "worker": {"early_ends", "one_trial", "probing", "spool", "watchdog"},
}
"""Imports within a layer that are meant; everything else points down."""

DATABASE_ROOMS = {
    "database_errors",
    "engines",
    "live_storage",
    "locks",
    "probes",
    "query",
    "rows",
    "slots",
    "storage",
    "study",
    "summaries",
    "tables",
    "transactions",
    "trial_rows",
}
"""Who may speak to the database itself (SQLAlchemy)."""

FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(file):
    """Return `query`, `training.data`, `training` for a package's own file, `__init__` for the whole package's."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def room(name):
    """Return the part of a module's name that the table knows."""
    return name.split(".")[0]


def types_only(tree):
    """Return the nodes that run for type checkers alone."""
    blocks = (node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    return {inner for block in blocks for statement in block.body for inner in ast.walk(statement)}


@functools.cache
def imports(file, *, with_types=True):
    """Return every module that a file imports, dotted and in full, wherever in the file it does."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped = set() if with_types else types_only(tree)
    found = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports in full"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if is_own_module(submodule) else node.module)
    return found


def is_own_module(name):
    """Whether a dotted name is a file or a package of ours, not something inside one."""
    head, *rest = name.split(".")
    path = PACKAGE.joinpath(*rest)
    return head == "budgettune" and bool(rest) and (path.with_suffix(".py").is_file() or path.is_dir())


def own_rooms(file):
    """Return the rooms of ours that a file imports."""
    names = (
        name.removeprefix("budgettune").lstrip(".") for name in imports(file) if name.split(".")[0] == "budgettune"
    )
    return {room(name) or "__init__" for name in names}


def knows(file, *packages):
    """Whether a file imports one of these packages when it runs."""
    return any(
        name == package or name.startswith(f"{package}.")
        for name in imports(file, with_types=False)
        for package in packages
    )


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_point_down(file):
    name = room(module_name(file))
    assert name in LAYERS, f"budgettune/{name} is in no layer: list it in LAYERS of tests/test_layers.py"
    for other in own_rooms(file) - {name}:
        assert other in LAYERS, f"budgettune/{other} is in no layer: list it in LAYERS of tests/test_layers.py"
        below = LAYERS[other] < LAYERS[name]
        assert below or other in NEIGHBOURS.get(name, ()), (
            f"{name} (layer {LAYERS[name]}) imports {other} (layer {LAYERS[other]}): "
            "move the code, or list the two in NEIGHBOURS if they are meant to be neighbours"
        )


def test_neighbours_share_a_layer_and_form_no_circle():
    for name, others in NEIGHBOURS.items():
        assert all(LAYERS[other] == LAYERS[name] for other in others)
    open_rooms = dict(NEIGHBOURS)
    while leaves := [name for name, others in open_rooms.items() if not others & open_rooms.keys()]:
        for name in leaves:
            del open_rooms[name]
    assert not open_rooms


def test_only_the_worker_knows_both_torch_and_optuna():
    both = {
        module_name(file)
        for file in FILES
        if knows(file, "torch", "torchvision", "budgettune.training")
        and knows(file, "optuna", "optuna_dashboard", "budgettune.study.handle")
    }
    assert both <= {"worker"}


def test_training_never_imports_optuna_and_studies_never_import_torch():
    for file in FILES:
        name = module_name(file)
        if room(name) == "training":
            assert not knows(file, "optuna", "sqlalchemy"), name
        elif LAYERS.get(room(name), 5) <= 3:
            assert not knows(file, "torch", "torchvision"), name


def test_sql_stays_in_the_rooms_of_the_database():
    speakers = {module_name(file) for file in FILES if knows(file, "sqlalchemy")}
    assert speakers <= DATABASE_ROOMS


@pytest.mark.parametrize(
    "modules",
    [
        "budgettune, budgettune.query, budgettune.storage.opening",
        "budgettune.cli.main",
        "budgettune.machine.fingerprint",
        "budgettune.spec.study_spec",
        "budgettune.predict.recommending, budgettune.storage.probes",
    ],
)
def test_answers_come_without_loading_torch_or_optuna(modules):
    script = f"import sys; import {modules}; print(*sorted({{'torch', 'optuna'}} & set(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == ""

"""What a box lets a study name: folders of files, and packages of code."""

import os
import shlex
import signal
import sys
from pathlib import Path

import pytest

from budgettune.errors import SpecError, UsageError
from budgettune.spec.study_spec import StudySpec, load_spec
from budgettune.spec.trust import Trust, allowed_commands, allowed_packages, allowed_roots, contained

SERVER = "postgresql://anna@db/budgettune"


def check(text, trust):
    trust.check_files(StudySpec.from_document({"name": "a", "data": {"name": "folder", "root": text}}))


def test_a_database_of_this_box_is_trusted_unless_folders_are_named():
    assert Trust.of_database("sqlite:///study.db").folders is None
    check("/etc", Trust.of_database("sqlite:///study.db"))
    with pytest.raises(UsageError):
        check("/etc", Trust.of_database("sqlite:///study.db", roots=["/srv/images"]))


def test_a_study_of_a_server_gets_the_working_folder_and_what_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for fine in ("data", str(tmp_path / "data"), "deep/er/../data"):
        check(fine, Trust.of_database(SERVER))
    for outside in ("/etc", "..", "data/../../etc", "~"):
        with pytest.raises(UsageError, match=r"data\.root: .*--allow-root"):
            check(outside, Trust.of_database(SERVER))
    check("/etc/images", Trust.of_database(SERVER, roots=["/etc"]))


def test_links_are_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to("/etc")
    with pytest.raises(UsageError):
        check("data", Trust.of_database(SERVER))


def test_a_service_that_runs_in_the_top_folder_has_opened_nothing(monkeypatch):
    monkeypatch.chdir(Path("/"))
    with pytest.raises(UsageError):
        check("etc", Trust.of_database(SERVER))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a package of the given modules and make it importable."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write(name, **modules):
        (tmp_path / name).mkdir()
        for module, text in {"__init__": "", **modules}.items():
            (tmp_path / name / f"{module}.py").write_text(text)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_an_allowed_name_is_imported(package):
    package("bt_own", models="def build():\n    return 42\n")
    assert Trust(["bt_own"]).import_code("bt_own.models:build")() == 42


@pytest.mark.parametrize("allowed", [[], ["bt_other"], ["bt_secret.models"]])
def test_a_package_that_is_not_allowed_is_never_run(package, allowed):
    package("bt_secret", models="raise SystemExit('ran')")
    with pytest.raises(UsageError, match="--allow-import bt_secret"):
        Trust(allowed).import_code("bt_secret.models:build")
    assert "bt_secret" not in sys.modules


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("bt_a.models:missing", SpecError, "has no missing"),
        ("bt_a.nowhere:build", UsageError, "PYTHONPATH"),
        ("bt_a.broken:build", SpecError, "ZeroDivisionError"),
        ("bt_a.models", SpecError, "package.module:name"),
    ],
)
def test_a_name_that_cannot_work_says_why(package, name, error, message):
    package("bt_a", models="def build(): ...", broken="1 / 0")
    with pytest.raises(error, match=message):
        Trust(["bt_a"]).import_code(name)


def test_the_environment_counts_where_the_command_line_names_nothing(monkeypatch):
    monkeypatch.setenv("BUDGETTUNE_ALLOW_IMPORT", "mine, yours,")
    monkeypatch.setenv("BUDGETTUNE_ALLOW_ROOT", os.pathsep.join(["/srv/a", "/srv/b"]))
    assert allowed_packages(None) == {"mine", "yours"}
    assert allowed_packages(["theirs"]) == {"theirs"}
    assert allowed_roots(None) == {"/srv/a", "/srv/b"}
    assert allowed_roots(["/srv/c"]) == {"/srv/c"}
    monkeypatch.delenv("BUDGETTUNE_ALLOW_ROOT")
    assert allowed_roots(None) is None


@pytest.mark.parametrize("key", ["data.root", "data.cache", "pruning.scores"])
def test_a_home_that_is_not_here_is_named_by_its_key(key, no_home):
    overrides = ["data.name=folder", "data.root=photos", "pruning.strategy=el2n", f"{key}=~/mine"]
    spec = load_spec("digits").with_overrides(overrides)
    with pytest.raises(UsageError, match=rf"{key}: ~/mine: no such home folder on this box: .* or set HOME"):
        Trust.of_database(SERVER).check_files(spec)


def test_an_allowed_folder_without_a_home_opens_nothing_and_stops_nothing(no_home, tmp_path, caplog):
    trust = Trust.of_database(SERVER, roots=["~/images", str(tmp_path)])
    assert "--allow-root: ~/images: no such home folder" in caplog.text
    check(str(tmp_path / "photos"), trust)


ARGPARSE = """import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--lr", required=True)
parser.parse_args()
"""


@pytest.mark.parametrize("text", [ARGPARSE, "import sys\nsys.exit('no weights here')", "exit()"])
def test_code_that_ends_the_process_where_it_is_imported_is_an_error(text, package, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["budgettune", "worker"])
    package("ending", net=text)
    with pytest.raises(
        SpecError, match=r"cannot import ending\.net \(RuntimeError: it called sys\.exit\(.*: correct it"
    ):
        Trust(["ending"]).import_code("ending.net:build")


def test_signals_that_code_takes_over_come_back(package):
    text = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nbuild = None"
    package("greedy", net=text)
    before = signal.getsignal(signal.SIGTERM)
    Trust(["greedy"]).import_code("greedy.net:build")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_command_that_a_signal_ends_while_code_runs_ends():
    class Left(SystemExit):
        pass

    with pytest.raises(Left), contained():
        raise Left(143)


def test_what_is_no_exception_is_an_error_of_the_code():
    class PanicException(BaseException):
        """As extensions in Rust raise."""

    with pytest.raises(RuntimeError, match="PanicException: index out of bounds"), contained():
        raise PanicException("index out of bounds")


RUN = ("python", "train.py", "--lr", "{lr}")


@pytest.mark.parametrize("allowed", [["python train.py"], ["python"], ["other", "python 'train.py' --lr {lr}"]])
def test_a_command_may_begin_with_allowed_words(allowed):
    Trust(commands=allowed).check_command(RUN)


@pytest.mark.parametrize("allowed", [[], ["python train.pyc"], ["train.py"], ["pyth"], ["python train.py --lr {lr} x"]])
def test_a_command_that_is_not_allowed_says_what_would_allow_it(allowed):
    with pytest.raises(UsageError, match=r"wants to run python train.py --lr '\{lr\}', and .* 'python train.py', or"):
        Trust(commands=allowed).check_command(RUN)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["torchrun", "--nproc-per-node", "2", "t.py", "--lr={lr}"], "'torchrun --nproc-per-node 2 t.py'"),
        (["./train", "--lr={lr}"], "'./train '\"'\"'--lr={lr}'\"'\"''"),  # what an interpreter is nobody can tell
        (["python", "-c", "print({lr})"], "'python -c '\"'\"'print({lr})'\"'\"''"),
        (["awk", "-f", "descent.awk", "-v", "lr={lr}"], "'awk -f descent.awk'"),
    ],
)
def test_what_is_proposed_allows_the_command_and_no_interpreter_alone(command, told):
    with pytest.raises(UsageError) as caught:
        Trust().check_command(command)
    assert f"--allow-command {told}, or" in str(caught.value)
    Trust(commands=shlex.split(told)).check_command(command)


def test_an_allowed_command_that_cannot_be_read_is_named():
    with pytest.raises(UsageError, match="--allow-command 'sh \"': No closing quotation: write it as for a shell"):
        Trust(commands=['sh "']).check_command(RUN)


def test_commands_of_the_environment(monkeypatch):
    monkeypatch.setenv("BUDGETTUNE_ALLOW_COMMAND", "python train.py, awk -f a.awk")
    assert allowed_commands(None) == {"python train.py", "awk -f a.awk"}
    assert allowed_commands(["sh"]) == {"sh"}

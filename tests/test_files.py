"""Text files as editors of any system leave them: byte order marks, UTF-16, carriage returns; or one clear line."""

import codecs
from pathlib import Path

import pytest

from budgettune.comparison.result import read_comparison
from budgettune.dashboard.passwords import Passwords
from budgettune.errors import SpecError, UsageError
from budgettune.files import read_text, user_path
from budgettune.spec.study_spec import StudySpec, load_spec
from budgettune.spec.trust import allowed_packages, allowed_roots
from budgettune.storage.url import storage_url
from budgettune.text import variable
from budgettune.worker.spool import default_folder

COMPARISON = Path(__file__).parent / "fixtures" / "before_house" / "comparison.json"
STUDY = "name = 'größe'\n[train]\nepochs = 3  # wenige\n"
EDITORS = {
    "plain": lambda text: text.encode(),
    "notepad": lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
    "mark alone": lambda text: codecs.BOM_UTF8 + text.encode(),
    "carriage returns": lambda text: text.replace("\n", "\r\n").encode(),
    "old mac": lambda text: text.replace("\n", "\r").encode(),
    "powershell": lambda text: codecs.BOM_UTF16_LE + text.replace("\n", "\r\n").encode("utf-16-le"),
    "put together": lambda text: b"".join(codecs.BOM_UTF8 + line.encode() + b"\n" for line in text.splitlines()),
    "utf-16, big end first": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
}
editors = pytest.mark.parametrize("encoded", EDITORS.values(), ids=EDITORS)


@editors
def test_a_study_file_is_read_as_any_editor_writes_it(encoded, tmp_path):
    file = tmp_path / "my study.toml"
    file.write_bytes(encoded(STUDY))
    assert load_spec(file) == StudySpec.from_toml(STUDY)


def test_a_study_text_with_a_byte_order_mark_is_read():
    assert StudySpec.from_toml(f"\ufeff{STUDY}") == StudySpec.from_toml(STUDY)


@editors
def test_a_password_file_is_read_as_any_editor_writes_it(encoded, tmp_path):
    file = tmp_path / "users.txt"
    file.write_bytes(encoded("# wer darf\nännä:gehéim\nbob:x\n"))
    passwords = Passwords.from_file(file)
    assert passwords.check("ännä", "gehéim")
    assert passwords.check("bob", "x")


@editors
def test_a_comparison_is_read_as_any_editor_writes_it(encoded, tmp_path):
    file = tmp_path / "compare.json"
    file.write_bytes(encoded(COMPARISON.read_text(encoding="utf-8")))
    assert read_comparison(file) == read_comparison(COMPARISON)


@pytest.mark.parametrize(
    ("content", "line"), [(STUDY.encode("cp1252"), 1), (b"\n" + STUDY.encode("latin-1"), 2), (b"\xff\xfea", 1)]
)
def test_a_file_in_another_encoding_is_refused_with_what_to_do(content, line, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(content)
    advice = f"line {line} is not UTF-8 text: save the file as UTF-8"
    for read, error in ((load_spec, SpecError), (Passwords.from_file, UsageError), (read_comparison, UsageError)):
        with pytest.raises(error, match=advice) as caught:
            read(file)
        assert "\n" not in str(caught.value)


def test_what_cannot_be_opened_says_why(tmp_path):
    with pytest.raises(SpecError, match=r"Is a directory; give a TOML file's path or one of: digits"):
        load_spec(tmp_path)
    with pytest.raises(OSError, match="NUL"):
        read_text(Path("a\0b"))


def test_variables_of_an_env_file_from_windows_lose_their_carriage_return(monkeypatch):
    for name in ("STORAGE", "SPOOL", "ALLOW_IMPORT", "ALLOW_ROOT"):
        monkeypatch.setenv(f"BUDGETTUNE_{name}", "/there\r")
    assert storage_url() == "/there"
    assert str(default_folder()) == "/there"
    assert allowed_packages(None) == allowed_roots(None) == {"/there"}
    monkeypatch.setenv("BUDGETTUNE_STORAGE", "\r")
    assert variable("BUDGETTUNE_STORAGE") is None


def test_a_path_that_file_names_of_this_locale_cannot_spell_says_which_locale_can(monkeypatch):
    """Under LC_ALL=C with PYTHONUTF8=0; a worker hands the trial back rather than failing it three times."""
    assert user_path("/data/größe", "data.root") == Path("/data/größe")
    monkeypatch.setattr("os.fsencode", lambda path: str(path).encode("ascii"))
    assert user_path("/data", "data.root") == Path("/data")
    with pytest.raises(UsageError, match=r"data\.root: .*größe: file names are .*: set LC_ALL=C\.UTF-8"):
        user_path("/data/größe", "data.root")

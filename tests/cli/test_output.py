"""What commands print reaches its reader whole: on narrow terminals, in pipes, in any encoding."""

import errno
import io
import json
import re
import sys

import pytest
from rich.cells import cell_len

from budgettune.cli import main, output
from budgettune.cli.live import TerminalProgress, drawn, snapshot
from budgettune.cli.output import Screen, print_fields, print_table, shown
from budgettune.comparison.show import table_rows
from budgettune.records import Claim, TrialRecord
from budgettune.spec.study_spec import StudySpec, load_spec
from budgettune.study.handle import create_study
from tests.support.made_comparisons import BETTER, FULL_AT, comparison
from tests.support.studies import result

AXES = {
    "scale": [1.0, 1.4],
    "prune_rate": [0.0, 0.3],
    "batch_size": [64, 1024],
    "train.lr": [0.00123, 0.01],
    "train.weight_decay": [0.0, 0.0005],
    "train.lr_schedule": ["constant", "linear"],
    "pruning.refresh_every": [5, 10],
    "data.augment": [True, False],
}
WIDTHS = [80, 60, 40, 20]


def screen(width=None):
    """Return a terminal of so many columns, or a pipe."""
    return Screen(file=io.StringIO(), width=width or 80, force_terminal=width is not None, color_system=None)


def text_of(width, show):
    console = screen(width)
    show(console)
    return console.file.getvalue()


def words(text):
    return re.findall(r"\S+", text)


def in_order(parts, text):
    """Whether all words of some texts stand in another, in that order and none of them broken."""
    remaining = iter(words(text))
    return all(word in remaining for part in parts for word in words(part))


@pytest.fixture
def terminal(run, monkeypatch):
    """Run a command in this process on a terminal of some width, or in a pipe; return what it prints."""

    def command(width, *line):
        monkeypatch.setenv("TTY_COMPATIBLE", "1" if width else "0")
        for console in (output.out, output.err):
            monkeypatch.setattr(console, "width", width or 80)
        status, printed, err = run(*line)
        assert status == 0, err
        return printed

    return command


def study_of(url, axes, name="ours"):
    """Return a study of so many axes with three finished trials."""
    search = dict(list(AXES.items())[:axes])
    study = create_study(StudySpec.from_document({"name": name, "search": search}), url)
    for number in range(2 if axes == 1 else 3):
        study.complete(study.claim(), result(754.0 + 1000 * number, 0.8 + number / 20))
    return study


@pytest.mark.parametrize("axes", [1, 4, 8])
def test_front_and_best_keep_every_figure_at_any_width_however_many_axes(terminal, sqlite_url, axes):
    study_of(sqlite_url, axes)
    for width in [None, *WIDTHS]:
        for line in (["front", "ours"], ["best", "ours", "--budget", "1h", "--top", "9"]):
            text = terminal(width, *line)
            for figure in ("12m34s", "29m14s", "80.00%", "85.00%"):
                assert figure in words(text), (width, line)
            heads = [name.rpartition(".")[2].replace("_", " ") for name in list(AXES)[:axes]]
            assert in_order(["trial time accuracy", *heads, "kept epochs clock"], text), (width, line)
            assert text.count("unverified") == (2 if axes == 1 else 3)
            assert width is None or max(map(cell_len, text.partition("hypervolume")[0].splitlines())) <= width


def test_a_pipe_has_one_line_for_each_trial_however_long(terminal, sqlite_url):
    study_of(sqlite_url, 8)
    head, *lines = terminal(None, "front").splitlines()
    assert in_order(["lr schedule", "refresh every", "clock"], head)
    assert [len(words(line)) for line in lines[:3]] == [14, 14, 14]


NAMES = ["x" * 300, "学習" * 60, "🏃‍♀️ läuft " * 20 + "!", "[bold]no markup[/bold]", "a b" * 90]


def test_a_long_or_wide_study_name_costs_no_figure_of_its_row(terminal, sqlite_url):
    for name in NAMES:
        study_of(sqlite_url, 1, name)
    for width in [None, *WIDTHS]:
        rows = [part for name in NAMES for part in (name, "41m48s", "cpu x2")]
        assert in_order(rows, terminal(width, "study", "list")), width
        assert in_order(rows[:3], terminal(width, "study", "show", NAMES[0])), width


CHOICES = ["a" * 70, "two words " * 12, "値" * 50, "12m34s", "", None, True, 1e-5, 123456.0, "‮turned", "[red]x[/red]"]


@pytest.mark.parametrize("value", CHOICES)
def test_a_long_or_wide_choice_costs_no_figure_of_its_trial(value):
    record = TrialRecord(
        number=7,
        state="COMPLETE",
        params={"model.options.kind": value, "scale": 1.2},
        train_seconds=754.0,
        value=0.8,
        epochs=12345,
        status="clean",
    )
    for width in [None, *WIDTHS, 1]:
        console = screen(width)
        print_table(output.trial_rows([record]), screen=console)
        text = console.file.getvalue()
        for word in ("12m34s", "80.00%", "12345", "clean", "1.2", *words(shown(value))):
            assert word in words(text), width


def test_params_that_end_alike_or_are_called_like_a_column_have_columns_of_their_own():
    params = {"train.lr": 0.1, "model.options.lr": 0.2, "model.options.time": 9, "train.epochs": 3}
    (row,) = output.trial_rows(
        [TrialRecord(number=1, state="COMPLETE", params=params, train_seconds=2.0, value=0.5, epochs=3)]
    )
    assert row["time"] == "2.0s"
    assert {name: row[name] for name in params} == params


@pytest.mark.parametrize("width", [None, *WIDTHS])
def test_a_comparison_keeps_every_figure_at_any_width(width):
    rows = table_rows(comparison({"full": FULL_AT, "stale-quantile 0.3": BETTER}).standings(10.0))
    text = text_of(width, lambda console: print_table(rows, title="10s", screen=console))
    for row in rows:
        assert in_order([shown(value) for value in row.values()], text) or width is not None
        assert all(word in words(text) for value in row.values() for word in words(shown(value)))


@pytest.mark.parametrize("width", [*WIDTHS, 10])
def test_what_is_watched_is_cut_nowhere_and_the_plot_goes_where_there_is_no_room(sqlite_url, width):
    study = study_of(sqlite_url, 8, "a name of many words " * 12)
    now = snapshot(study)
    for height in (8, 24):
        console = screen(width)
        console.height = height
        console.print(drawn(now, console))
        text = console.file.getvalue()
        assert in_order([study.name, "3 of 256 complete, 253 waiting", "1h28m trained"], text)
        assert in_order(["newest: trial 2, 45m54s,", "accuracy 90.00%, unverified"], text)
        assert ("the front" in text) == ("accuracy over training time" in text)
        assert max(map(cell_len, text.splitlines())) <= width


def test_named_texts_go_on_below_themselves_from_word_to_word():
    fields = [("train", "scale 1, batch_size 125 for 11 epochs"), ("to know more", "nothing")]
    assert text_of(40, lambda console: print_fields(fields, console)) == (
        "train         scale 1, batch_size 125\n              for 11 epochs\nto know more  nothing\n"
    )
    assert text_of(None, lambda console: print_fields(fields, console)).splitlines()[0].endswith("for 11 epochs")
    assert words(text_of(8, lambda console: print_fields(fields, console))) == words(
        " ".join(f"{name} {text}" for name, text in fields)
    )


def test_a_sentence_wraps_in_its_column_and_a_narrower_terminal_gets_blocks():
    rows = [{"what": "load", "found": "6.30 in the last minute: end what else runs"}, {"what": "gpu", "found": "none"}]
    wide, narrow = (
        text_of(width, lambda console: print_table(rows, sentences="found", screen=console)) for width in (34, 24)
    )
    assert wide == "what  found\nload  6.30 in the last minute: end\n      what else runs\ngpu   none\n"
    assert narrow.splitlines()[0] == "what load"
    assert in_order([row["found"] for row in rows], narrow)


def test_a_number_beyond_floats_is_printed_as_it_is():
    rows = [{"epochs": 10**400}]
    printed = text_of(80, lambda console: print_table(rows, screen=console))
    assert "".join(printed.split()) == f"epochs{10**400}"


def test_no_rows_print_nothing():
    assert text_of(80, lambda console: print_table([], screen=console)) == ""


@pytest.mark.parametrize("columns", ["0", "abc", "-1", ""])
def test_a_width_that_is_none_leaves_room_for_tables_and_help(run, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert Screen(file=io.StringIO(), force_terminal=True).room >= 40
    assert "Pareto front" in run("front", "--help")[1]


def test_colours_that_are_forced_into_a_log_bring_no_moving_lines(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    log = Screen(file=io.StringIO())
    assert log.is_terminal and not log.is_live
    with log.status("training"):
        pass
    progress = TerminalProgress(log)
    claim = Claim(trial_id=1, number=1, params={}, cell=0, repeat=0, attempt=1, seed=0)
    progress.claimed(None, claim)
    progress.close()
    assert log.file.getvalue() == ""


@pytest.fixture
def strict(run, monkeypatch):
    """Run a command whose standard output has some encoding and takes nothing else; return its status and output."""

    def command(encoding, *line):
        with monkeypatch.context() as patch:
            stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "argv", ["budgettune", *map(str, line)])
            with pytest.raises(SystemExit) as leaving:
                main.main()
            stream.flush()
            return leaving.value.code or 0, stream.buffer.getvalue()

    return command


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "shift_jis", "utf-8"])
@pytest.mark.slow
def test_what_an_encoding_lacks_is_spelled_out_and_changes_no_exit_status(strict, sqlite_url, tmp_path, encoding):
    study_of(sqlite_url, 1, "学習 é 🏃")
    times = {"ascii": b"x", "utf-8": "×".encode()}.get(encoding, b"")
    status, text = strict(encoding, "study", "verify")
    assert (status, text.startswith(b"2 of 2 cells " + times)) == (0, True)
    assert strict(encoding, "front")[1].splitlines()[-2].startswith(b"hypervolume 949.1 (seconds " + times)
    for line in ("study list", "study show", "study retry", "best --budget 1h", "best --budget 1h --format csv"):
        assert strict(encoding, *line.split())[0] == 0, line
    (listed,) = json.loads(strict(encoding, "study", "list", "--format", "json")[1])
    assert listed["name"] == "学習 é 🏃"
    for name, line in (("page.html", "report"), ("é.csv", "study export"), ("é.json", "study export --format json")):
        assert strict(encoding, *line.split(), "--out", tmp_path / name)[0] == 0, line
        (tmp_path / name).read_text("utf-8")
    assert strict(encoding, "nonsense", "é×🏃")[0] == 2
    assert strict(encoding, "study", "show", "é×🏃")[0] == 1


def test_a_bar_and_a_status_in_ascii_move_in_ascii(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    with Screen(file=stream, force_terminal=True, width=40).status("training"):
        pass
    stream.flush()
    assert b"training" in stream.buffer.getvalue()


@pytest.mark.parametrize("line", ["front", "front --format json", "front --format csv", "study export", "--help"])
def test_a_closed_standard_output_fails_no_command(run, monkeypatch, sqlite_url, line):
    study_of(sqlite_url, 1)
    monkeypatch.setattr(sys, "stdout", None)
    assert run(*line.split())[0] == 0
    sys.stdout.close()


def test_csv_on_standard_output_ends_its_lines_as_an_export_does(run, sqlite_url):
    study_of(sqlite_url, 1)
    assert run("study", "export")[1].count("\n") == 3
    for line in ("front", "best --budget 1h", "study list", "study show"):
        text = run(*line.split(), "--format", "csv")[1]
        assert "\r" not in text, line
        assert text.endswith("\n")


def test_a_database_without_studies_says_so_beside_an_empty_list(run, sqlite_url):
    study_of(sqlite_url, 1)
    run("study", "delete", "ours", "--yes")
    for form, empty in (("table", ""), ("csv", ""), ("json", "[]\n")):
        status, out, err = run("study", "list", "--format", form)
        assert (status, out) == (0, empty)
        assert "study create" in err


@pytest.mark.parametrize("width", [None, 60, 40, 12])
def test_a_line_about_a_trial_breaks_none_of_its_figures(sqlite_url, width):
    study = study_of(sqlite_url, 8)
    console = screen(width)
    claim = study.claim()
    TerminalProgress(console).completed(study, claim, result(754.0, 0.8))
    text = console.file.getvalue()
    assert in_order(["12m34s,", "accuracy 80.00%, unverified;", "252 trials waiting, about"], text)
    assert in_order([name.rpartition(".")[2] for name in AXES], text.replace("(", "( "))
    assert (len(text.splitlines()) == 1) == (width is None)
    assert width is None or width < 20 or max(map(cell_len, text.splitlines())) <= width


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_a_log_that_cannot_be_written_ends_no_worker(number, run, monkeypatch, sqlite_url):
    overrides = ["search={scale=[1.0], prune_rate=[0, 0.5]}", "pruning.strategy=random", "train.epochs=1"]
    study = create_study(load_spec("digits").with_overrides(overrides), sqlite_url)

    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(number, "gone")

    monkeypatch.setattr(sys, "stderr", Gone())
    assert run("worker", "--threads", "1")[0] == 0
    assert study.verify().whole

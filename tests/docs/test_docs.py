"""What README and docs show is run: files are written, commands and Python work, messages stand in the code."""

import ast
import functools
import itertools
import re
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from budgettune.machine.witness import Witness
from budgettune.spec.study_spec import StudySpec, load_spec
from budgettune.study.handle import create_study
from budgettune.training import team, trainer
from budgettune.worker.loop import run_worker
from tests.support.documents import (
    PAGES,
    README,
    ROOT,
    blocks,
    command_of,
    commands,
    options_of,
    ours,
    parse,
    simple_commands,
)

NOT_RUN = {
    "budgettune --install-completion": "writes to the shell's own file: tests/test_cli.py does it in a home of its own",
    "budgettune compare paper": "trains on CIFAR-100 for hours",
    "budgettune profile paper": "takes minutes, and CIFAR-100",
    "budgettune report paper": "its study was not trained here",
    "budgettune report digits --format svg": "needs kaleido and a browser: tests/report/test_figures.py",
    "budgettune study verify paper": "its study was not trained here",
    "budgettune worker paper": "trains on CIFAR-100 for hours",
}
"""Beginnings of commands on pages that are run otherwise; all of them are parsed."""

PARSED_ONLY = {
    "clusters.md": "needs Slurm, Ray, Kubernetes and clouds: tests/fleet starts the first two",
    "README.md": "Fashion-MNIST and a server that does not exist; its Python is run",
    "many-boxes.md": "a server that does not exist, and a worker that waits for ever",
    "the-stack.md": "needs Docker and a registry of images: deploy/README.md says what was run",
}
"""Pages whose commands are parsed and not run."""

RAN_BEFORE = {"predicting.md", "reading-the-report.md", "timing.md", "troubleshooting.md"}
"""Pages that begin with a finished study `digits`."""

TAKE_LONG = {
    "comparing.md",
    "first-study.md",
    "gpu.md",
    "predicting.md",
    "reproducing-the-paper.md",
    "searching.md",
    "your-data.md",
    "your-model.md",
    "your-strategy.md",
    "your-training.md",
}
"""Pages that train for some seconds and more."""

MEASURED = re.compile(r"\d(?:s|%)")
VALUE = re.compile(r"(?:\d[\d.,]*(?:ms|[smhd](?![a-z]))?)+%?")


def names(pages):
    return [page.name for page in pages]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Return the database of a small study `digits` that ran to its end, with clean times."""
    file = tmp_path_factory.mktemp("digits") / "study.db"
    small = [
        "train.epochs=2",
        "search.scale=[1.0, 2.0]",
        "search.batch_size=[256]",
        "search.prune_rate=[0.0, 0.15, 0.3]",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Witness, "stop", lambda self: ("clean", {"reasons": []}))
        create_study(load_spec("digits").with_overrides(small), f"sqlite:///{file}").close()
        run_worker(f"sqlite:///{file}")
    return file


@pytest.fixture
def follow(run, tmp_path, monkeypatch):
    """Follow a page as a reader does: write its files, type its commands, run its Python, in an empty folder."""
    scope = {}

    def export(assignments):
        for name, _, value in (assignment.partition("=") for assignment in assignments):
            monkeypatch.setenv(name, value)
            if name == "PYTHONPATH":
                monkeypatch.syspath_prepend(tmp_path / value)

    def type_in(words, shown):
        if words[0] == "export":
            export(words[1:])
        elif not is_left_out(words):
            status, out, err = run(*ours(words))
            assert status == any(line.startswith("error:") for line in shown), f"{words}: {err}"
            printed = {shape(line) for line in (out + err).splitlines()}
            assert {shape(line) for line in shown} - {"…"} <= printed, f"{words}: {out}{err}"

    def follow_page(page):
        for block in blocks(page):
            if block.file:
                (tmp_path / block.file).write_text(block.text)
            elif block.language == "python":
                exec(block.text, scope)
            elif block.language == "console" and page.name not in PARSED_ONLY:
                for command, shown in block.commands():
                    for words in simple_commands(command):
                        type_in(words, shown)
        return scope

    return follow_page


def is_left_out(words):
    return any(" ".join(words).startswith(beginning) for beginning in NOT_RUN)


def shape(line):
    """Return a line of output; where it holds times, without what differs from run to run: numbers and verdicts."""
    if MEASURED.search(line):
        line = re.sub(r"\b(clean|disturbed|unverified)\b", "clock", VALUE.sub("#", line))
    return " ".join(line.split())


def make_photos(folder):
    random = np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 4)):
        for label, name in enumerate(("ant", "bee")):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(100 * label, 100 * label + 100, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")


def sometimes_slow(page):
    return pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in TAKE_LONG else [])


@pytest.mark.parametrize("page", [sometimes_slow(page) for page in PAGES])
def test_a_page_works_from_top_to_bottom(page, follow, digits, tmp_path):
    if page.name == "your-data.md":
        make_photos(tmp_path / "photos")
    if page.name in RAN_BEFORE:
        with closing(sqlite3.connect(digits)) as source, closing(sqlite3.connect(tmp_path / "study.db")) as copy:
            source.backup(copy)
    follow(page)


@pytest.fixture
def counted_time(monkeypatch):
    """Let training take a millisecond from each look at the clock to the next, however fast this machine is."""
    ticks = itertools.count()
    counted = functools.partial(trainer.train, clock=lambda: next(ticks) / 1000)
    monkeypatch.setattr(team, "train", counted)


def test_the_readmes_python_answers(follow, counted_time, capsys):
    scope = follow(README)
    assert scope["answer"].train_seconds <= 2
    assert scope["trained"].result.test_accuracy == pytest.approx(scope["answer"].test_accuracy, abs=0.05)
    assert "test_accuracy" not in capsys.readouterr().err


def test_the_readmes_study_file_is_one():
    (block,) = (block for block in blocks(README) if block.language == "toml")
    spec = StudySpec.from_toml(block.text, "README")
    assert len(spec.cells()) == 64  # of 80: scales 1.2 and 1.3 build the same network
    assert spec == StudySpec.from_json(spec.to_json())


@pytest.mark.parametrize("page", [README, *PAGES], ids=names([README, *PAGES]))
def test_every_command_exists_and_takes_its_options(page):
    for words in commands(page):
        if (rest := ours(words)) is not None:
            parse(rest)


def test_every_command_that_is_named_in_a_sentence_exists():
    texts = [page.read_text(encoding="utf-8") for page in (README, *PAGES)]
    named = [words for text in texts for words in re.findall(r"`budgettune ([a-z][^`…]*)`", text)]
    assert len(named) > 10
    for text in named:
        words, _, of_workers = text.partition(" -- ")
        command, rest = command_of(words.split())
        assert {word for word in rest if word.startswith("--")} <= options_of(command), text
        assert {word for word in of_workers.split() if word.startswith("--")} <= options_of(command_of(["worker"])[0])


def test_what_is_left_out_is_on_a_page():
    shown = [" ".join(words) for page in PAGES if page.name not in PARSED_ONLY for words in commands(page)]
    assert [beginning for beginning in NOT_RUN if not any(line.startswith(beginning) for line in shown)] == []
    assert PARSED_ONLY.keys() | RAN_BEFORE <= set(names([README, *PAGES]))


def test_every_message_of_the_troubleshooting_page_stands_in_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^- \*\*`(.+?)`\*\*", page, re.MULTILINE)
    assert len(quoted) > 25
    said = list(texts_of_the_code())
    unknown = [text for text in quoted if not any(text.strip("… :;") in one for one in said)]
    assert unknown == []


def texts_of_the_code():
    """Yield every text of the package, with … where a value goes."""
    for path in (ROOT / "budgettune").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"\{[^}]*\}|%[a-z]", "…", node.value)


@pytest.mark.parametrize("page", [README, *PAGES], ids=names([README, *PAGES]))
def test_links_lead_to_files_that_are_there(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


def test_the_readme_leads_to_every_page():
    text = README.read_text(encoding="utf-8")
    assert [page.name for page in PAGES if f"(docs/{page.name})" not in text] == []

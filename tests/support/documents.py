"""Pages of documentation as their readers use them: blocks of code from top to bottom, and the commands in them."""

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

import typer.main

from budgettune.cli.main import app

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
_BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (\S+\.(?:py|sh|toml))\n")
_ENDS_A_COMMAND = ("&", "&&")


@dataclass(frozen=True)
class Block:
    """One fenced block of code."""

    language: str
    text: str

    @property
    def file(self):
        """Name of the file that a reader makes of it, as in a first line `# first.toml`; None where it has none."""
        match = _FILE.match(self.text)
        return match and match[1]

    def commands(self):
        """Return every command behind a dollar sign, with the lines that it is shown to print."""
        texts = re.split(r"^\$ ", self.text.replace("\\\n", " "), flags=re.MULTILINE)[1:]
        return [(command, shown.splitlines()) for command, _, shown in (text.partition("\n") for text in texts)]


def blocks(page):
    """Return the blocks of a page that name their language, in order."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [Block(language, textwrap.dedent(text)) for language, text in found]


def commands(page):
    """Return the words of every command of a page's console blocks."""
    shown = [command for block in blocks(page) if block.language == "console" for command, _ in block.commands()]
    return [words for command in shown for words in simple_commands(command)]


def simple_commands(line):
    """Take a line of a shell apart: the words of each command in it, comments left out."""
    found = [[]]
    for word in shlex.split(line, comments=True):
        if word in _ENDS_A_COMMAND:
            found.append([])
        else:
            found[-1].append(word)
    return [words for words in found if words]


def ours(words):
    """Return the words behind `budgettune`, in a container too; None for other programs and where there are none."""
    if words[0] == "budgettune":
        return words[1:]
    if words[:3] == ["docker", "compose", "run"]:
        return words[words.index("create") + 1 :] or None
    return None


def command_of(words):
    """Return the command that words begin with, and the rest of them; a group where an option comes first."""
    command, rest = typer.main.get_command(app), list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        command = command.commands[rest.pop(0)]
    return command, rest


def options_of(command):
    """Return every spelling of a command's options."""
    return {text for parameter in command.params for text in (*parameter.opts, *parameter.secondary_opts)}


def parse(words):
    """Take a command line apart as the command line does, without running it; return the command's name."""
    command, rest = command_of(words)
    if hasattr(command, "commands"):  # a group's options, such as --help, act while they are parsed
        assert set(rest) <= options_of(command), words
    else:
        command.make_context(command.name, list(rest))
    return " ".join(words[: len(words) - len(rest)])

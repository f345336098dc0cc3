"""What the README and docs/ say can be done: commands, targets, modules, keys, links, code."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

import pipeline.cli
from pipeline.recipe import Recipe, known_keys

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
ROOMS = ("pipeline", "features", "training", "serving", "telemetry", "infra", "tests", "docs")
KNOWN_HOSTS = {"127.0.0.1", "localhost"}
"""Packages come from wherever their user says: no page, target or lock file names a place."""


@dataclass(frozen=True)
class Code:
    """A piece of code in a page: a line of a block, or what stands between backticks."""

    page: str
    text: str
    block: bool


def pieces() -> Iterator[Code]:
    for page, name in zip(PAGES, IDS, strict=True):
        fenced = False
        for line in page.read_text().splitlines():
            if line.startswith("```"):
                fenced = not fenced
            elif fenced or re.match(r" {4}\S", line):
                yield Code(name, line.strip().removeprefix("$ ").partition("  #")[0].strip(), True)
            else:
                yield from (Code(name, one, False) for one in re.findall(r"`([^`]+)`", line))


PIECES = list(pieces())


def starting_with(word: str) -> list[Code]:
    return [one for one in PIECES if one.text.split()[:1] == [word]]


def ids(found: list[Code]) -> list[str]:
    return [f"{one.page}: {one.text}" for one in found]


COMMANDS = starting_with("stagescope")
TARGETS = starting_with("make")


def test_the_pages_tell_of_commands_at_all() -> None:
    assert len(COMMANDS) > 10
    assert {one.text for one in TARGETS if one.page == "README.md"} >= {"make run", "make test"}


@pytest.mark.parametrize("code", COMMANDS, ids=ids(COMMANDS))
def test_a_command_line_is_one_that_stagescope_takes(code: Code) -> None:
    words = shlex.split(re.sub(r"[\[\]]", "", code.text))[1:]
    command: click.Command = pipeline.cli.main
    context = click.Context(command, info_name="stagescope", **command.context_settings)
    while isinstance(command, click.Group) and words and words[0][0] != "-":
        name = words.pop(0)
        found = command.get_command(context, name)
        default = getattr(command, "default", None)
        if found is None and default is not None:
            words.insert(0, name)
            found = command.get_command(context, default)
        assert found is not None, f"no command {name!r}"
        command = found
        context = click.Context(command, info_name=name, parent=context)
    # The parser knows options and counts arguments; it does not look at values, nor run anything.
    given, left, _ = command.make_parser(context).parse_args(list(words))
    assert isinstance(command, click.Group) or not left, f"{left} is too much"
    for one in command.params:
        if code.block and one.required and isinstance(one, click.Argument):
            assert given.get(one.name or ""), f"{one.name} is missing"


@pytest.mark.parametrize("code", TARGETS, ids=ids(TARGETS))
def test_a_make_line_names_a_target_and_known_variables(code: Code) -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", text, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) *\?=", text, re.MULTILINE))
    words = re.sub(r"<[^>]*>", "VALUE", code.text).split()[1:]
    assert words
    for word in words:
        name, equals, _ = word.partition("=")
        assert name in (variables if equals else targets)


@pytest.mark.parametrize("target", ["run", "test", "study", "bench", "check", "format", "clean"])
def test_every_target_is_phony_and_can_be_made(target: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", target, "VENV=.venv-that-is-not-there"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    phony = re.search(r"^\.PHONY:(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert target in phony[1].split()


def test_modules_that_are_run_are_there() -> None:
    named = {
        module for one in PIECES for module in re.findall(r"\bpython3? -m ([\w.]+)", one.text)
    } - {"venv"}
    assert named
    for module in named:
        assert importlib.util.find_spec(module), module


def test_files_and_folders_that_are_named_are_there() -> None:
    pattern = re.compile(rf"(?:{'|'.join(ROOMS)})/[\w./-]*")
    named = [one for one in PIECES if not one.block and pattern.fullmatch(one.text)]
    assert len(named) > 20
    missing = [f"{one.page}: {one.text}" for one in named if not (ROOT / one.text).exists()]
    assert not missing


def test_keys_of_a_recipe_that_are_named_are_known() -> None:
    sections = "|".join(Recipe.model_fields)
    pattern = re.compile(rf"(?:.*--set )?((?:{sections})(?:\.\w+)+)\b(?! ?\()(?: ?=.*)?")
    named = [(one, match[1]) for one in PIECES if (match := pattern.fullmatch(one.text))]
    named = [(one, key) for one, key in named if not _is_module(key) and not key.endswith(".json")]
    assert len(named) >= 3
    for one, key in named:
        *place, last = key.split(".")
        assert last in known_keys(place), f"{one.page}: {one.text}"


def _is_module(dotted: str) -> bool:
    """``telemetry.span`` is Python, ``telemetry.page_cache`` a key; rooms share two names."""
    room, _, rest = dotted.partition(".")
    first = rest.partition(".")[0]
    return room in {"telemetry", "features", "serving"} and (
        (ROOT / room / f"{first}.py").exists() or first == "span"
    )


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target} leads nowhere"
        assert there.is_relative_to(ROOT), f"{target} leads out of the project"
        if anchor:
            assert anchor in headings(there), f"{target}: no such heading"


def headings(page: Path) -> set[str]:
    """Anchors as Git hosting services make them."""
    titles = re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_page_is_reached_from_the_readme(page: Path) -> None:
    seen: set[Path] = set()
    open_pages = [PAGES[0]]
    while open_pages:
        here = open_pages.pop()
        if here in seen or not here.is_file():
            continue
        seen.add(here)
        links = re.findall(r"\]\(([^)\s#]+)", here.read_text())
        open_pages += [(here.parent / link).resolve() for link in links if link.endswith(".md")]
    assert page in seen


PLACES = [*PAGES, ROOT / "Makefile", ROOT / "requirements.lock", ROOT / "pyproject.toml"]


@pytest.mark.parametrize("path", PLACES, ids=lambda path: path.name)
def test_no_place_to_install_from_is_named(path: Path) -> None:
    hosts = re.findall(r"\bhttps?://([\w.-]+)", path.read_text())
    # .example is nobody's (RFC 2606)
    assert {host for host in hosts if not host.endswith(".example")} <= KNOWN_HOSTS
    assert "--extra-index-url" not in path.read_text()


def snippets() -> list[tuple[str, str]]:
    return [
        (name, code)
        for page, name in zip(PAGES, IDS, strict=True)
        for code in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    ]


@pytest.mark.parametrize(("page", "code"), snippets(), ids=lambda text: text.split("\n")[0])
def test_a_python_snippet_compiles_and_its_imports_are_there(page: str, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        for name in names:
            assert importlib.util.find_spec(name), f"{page}: {name}"


def test_the_readmes_snippet_profiles_what_stands_in_it(tmp_path: Path) -> None:
    (code,) = (code for page, code in snippets() if page == "README.md")
    prelude = "def fit(model):\n    sum(x * x for x in range(3_000_000))\nmodel = None\n"
    subprocess.run(
        [sys.executable, "-W", "error", "-c", prelude + code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        timeout=60,
    )
    latest = tmp_path / "runs/latest"
    assert '"name": "train"' in (latest / "profile.json").read_text()
    assert (latest / "report.html").is_file()


def test_the_readme_tells_the_exit_codes_of_the_command_line() -> None:
    told = " ".join((ROOT / "README.md").read_text().split())
    found = re.search(r"Exit codes: (.+?)\.", told)
    assert found
    codes = set(map(int, re.findall(r"\b(\d+) ", found[1])))
    cli = pipeline.cli
    assert codes == {0, cli.FAILED, cli.USAGE, cli.INTERRUPTED, cli.CUT_OFF}


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    for name, command in pipeline.cli.main.commands.items():
        assert f"stagescope {name}" in text or f"`{name} " in text, name
        for inner in command.commands if isinstance(command, click.Group) else ():
            assert f"{name} {inner}" in text, f"{name} {inner}"


def test_nothing_is_left_to_fill_in() -> None:
    for page in PAGES:
        assert "@@" not in page.read_text(), page

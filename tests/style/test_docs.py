"""The docs say what the code does: trees, settings, commands and links are checked against it."""

import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import lushan
from lushan.catalog import names_in
from lushan.cli.main import build_app, command_names
from lushan.settings import build, parse_assignments
from lushan.workflows.recipe import TuneRecipe
from tests.contract.snapshots import command_options
from tests.style.generated import READMES, ROOT, SETTINGS_PAGE, settings_page, with_tree

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
COMMANDS_PAGE = ROOT / "docs" / "commands.md"
EVERYWHERE = {"--json", "--seed"}


def command_lines() -> Iterator[str]:
    """Give every `lushan ...` line of the shell blocks, without its remark."""
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            lines = (line.partition(" #")[0].strip() for line in block.splitlines())
            yield from (line for line in lines if line.startswith("lushan "))


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_tree_in_the_readme_is_that_of_the_package(readme: Path) -> None:
    page = readme.read_text(encoding="utf-8")
    assert page == with_tree(page), "Run `python tests/style/generated.py`."


def test_settings_page_is_that_of_the_code() -> None:
    assert SETTINGS_PAGE.read_text(encoding="utf-8") == settings_page(), (
        "Run `python tests/style/generated.py`."
    )


@pytest.mark.parametrize("line", sorted(set(command_lines())))
def test_command_line_in_the_docs_is_one_that_exists(line: str) -> None:
    words = shlex.split(line)[1:]
    command = typer.main.get_command(build_app(command_names()))
    while inner := getattr(command, "commands", None):
        assert words[0] in inner
        command = inner[words.pop(0)]
    context = command.make_context("lushan", list(words))
    assert context.params.get("task") in {None, *names_in("lushan.tasks")}
    settings = [words[at + 1] for at, word in enumerate(words) if word == "--set"]
    build(TuneRecipe, parse_assignments(settings), source="--set")


@pytest.mark.parametrize(("command", "options"), command_options().items())
def test_every_option_of_a_command_stands_in_its_section(command: str, options: list[str]) -> None:
    page = COMMANDS_PAGE.read_text(encoding="utf-8")
    sections = {section.partition("\n")[0]: section for section in page.split("\n## ")[1:]}
    section = sections[f"lushan {command.partition(' ')[0]}"]
    told = set(re.findall(r"--[a-z-]+", section)) | EVERYWHERE
    assert {option for option in options if option.startswith("--")} - told == set()


def test_python_names_in_the_docs_are_public() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    names = set(re.findall(r"(?<![\w./-])lushan\.(\w+)", pages)) - {"json", "sqlite3"}  # files
    modules = {each.name for each in pkgutil.iter_modules(lushan.__path__)}
    assert names - modules <= set(lushan.__all__)
    assert all(hasattr(lushan, name) for name in lushan.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    inside = [link for link in links if "://" not in link]
    assert [link for link in inside if not (page.parent / link).exists()] == []


def test_both_readmes_have_the_same_content() -> None:
    english, chinese = (page.read_text(encoding="utf-8") for page in READMES)
    for pattern in (r"```.*?```", r"<!-- .*? -->", r"^#+", r"^- ", r"--[a-z-]+"):
        counted = [
            re.findall(pattern, page, re.DOTALL | re.MULTILINE) for page in (english, chinese)
        ]
        assert counted[0] == counted[1], pattern


def test_both_readmes_have_the_same_links() -> None:
    english, chinese = (
        {
            link.replace(".zh.", ".")
            for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8"))
        }
        for page in READMES
    )
    assert english == chinese


def test_changelog_starts_with_unreleased_or_the_version() -> None:
    page = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = page.partition("\n## ")[2].partition("\n")[0]
    assert first in {"Unreleased", lushan.__version__}

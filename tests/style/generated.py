"""The parts of the docs that come from the code. After a change: `python tests/style/generated.py`."""

import ast
import json
from pathlib import Path

from lushan.settings import Settings
from lushan.workflows.recipe import TuneRecipe

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "lushan"
WIDTH = 18
READMES = (ROOT / "README.md", ROOT / "README.zh.md")
SETTINGS_PAGE = ROOT / "docs" / "settings.md"


def sign_of(file: Path) -> str:
    """Give the first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def tree() -> str:
    """Draw the package: files at its root, then folders, each with its sign."""
    files = [file for file in sorted(PACKAGE.glob("*.py")) if not file.name.startswith("__")]
    folders = [file.parent for file in sorted(PACKAGE.glob("*/__init__.py"))]
    lines = [f"{'src/lushan/':{WIDTH}} {sign_of(PACKAGE / '__init__.py')}"]
    lines += [f"  {file.name:{WIDTH - 2}} {sign_of(file)}" for file in files]
    lines += [
        f"  {folder.name + '/':{WIDTH - 2}} {sign_of(folder / '__init__.py')}" for folder in folders
    ]
    return "\n".join(["```text", *lines, "```"])


def with_tree(page: str) -> str:
    """Put the tree between its two marks."""
    start, end = "<!-- tree: start -->", "<!-- tree: end -->"
    before, _, rest = page.partition(start)
    return f"{before}{start}\n{tree()}\n{end}{rest.partition(end)[2]}"


def settings_page() -> str:
    """Write the page of all settings from their documentation lines."""
    lines = [
        "# Settings",
        "",
        "Each can be given as `--set part.name=value` or in a recipe file (`--recipe`). An unknown name or",
        "a value of the wrong type or range stops the run before it starts. The resolved recipe of a run, with",
        "everything that was left open decided, stands in its `recipe.yaml`.",
        "",
        "This page is made from the code by `tests/style/generated.py`.",
    ]
    parts: dict[str, type[Settings]] = {"": TuneRecipe}
    for name, field in TuneRecipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            parts[name] = field.annotation
    for name, part in parts.items():
        lines += ["", f"## {name or 'The recipe itself'}", "", part.__doc__ or "", ""]
        lines += ["| setting | default | meaning |", "|---|---|---|"]
        lines += [
            _row(name, setting, part) for setting in part.model_fields if setting not in parts
        ]
    return "\n".join(lines) + "\n"


def _row(part_name: str, name: str, part: type[Settings]) -> str:
    field = part.model_fields[name]
    default = field.get_default(call_default_factory=True, validated_data={})
    full_name = f"{part_name}.{name}" if part_name else name
    meaning = (field.description or "").replace("\n", " ").replace("|", r"\|")
    shown = default if isinstance(default, str) else json.dumps(default)
    return f"| `{full_name}` | `{shown}` | {meaning} |"


if __name__ == "__main__":
    for readme in READMES:
        readme.write_text(with_tree(readme.read_text(encoding="utf-8")), encoding="utf-8")
    SETTINGS_PAGE.write_text(settings_page(), encoding="utf-8")

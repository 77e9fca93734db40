"""The tree of unit tests mirrors the tree of the package, file by file, both ways."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "lushan"
UNIT_TESTS = ROOT / "tests" / "unit"


def expected_test(source: Path) -> Path:
    inside = source.relative_to(PACKAGE)
    return UNIT_TESTS / inside.parent / f"test_{inside.name}"


def test_every_file_of_the_package_has_a_test_file() -> None:
    sources = [file for file in PACKAGE.rglob("*.py") if not file.name.startswith("__")]
    missing = {
        str(file.relative_to(PACKAGE)) for file in sources if not expected_test(file).is_file()
    }
    assert missing == set()


def test_every_unit_test_file_tests_a_file_or_folder_of_the_package() -> None:
    orphans: list[str] = []
    for test in UNIT_TESTS.rglob("test_*.py"):
        inside = test.relative_to(UNIT_TESTS)
        name = inside.stem.removeprefix("test_")
        tested = PACKAGE / inside.parent / name
        if not (tested.with_suffix(".py").is_file() or tested.is_dir()):
            orphans.append(str(inside))
    assert orphans == []

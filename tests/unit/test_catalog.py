"""Names to code."""

import subprocess
import sys

import pytest

from lushan.catalog import load_baseline, load_task, names_in
from lushan.errors import SettingError


def test_names_are_the_files_of_the_folder() -> None:
    assert "classification" in names_in("lushan.tasks")


def test_listing_names_imports_none_of_them() -> None:
    code = (
        "import sys; from lushan.catalog import names_in; names_in('lushan.cli'); "
        "print([name for name in sys.modules if name.startswith('lushan.cli.')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]"


def test_task_is_loaded_by_the_name_of_its_file() -> None:
    assert type(load_task("classification")).__module__ == "lushan.tasks.classification"


def test_unknown_task_is_refused_and_the_known_are_listed() -> None:
    with pytest.raises(
        SettingError, match=r"Unknown task `clasification`\. Known: .*classification"
    ):
        load_task("clasification")


def test_baseline_is_loaded_by_the_name_of_its_file() -> None:
    assert load_baseline("majority").TITLE == "Most frequent label"

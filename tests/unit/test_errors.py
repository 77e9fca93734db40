"""Errors: optional packages, and who acts."""

import copy
import importlib
import re
import sys

import pytest

from lushan import errors
from lushan.errors import LushanError, MissingExtraError, TooLongError, UserError, need


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("serve", "`pip install -c constraints.txt '.[serve]'`."),
        ("vllm", "`pip install '.[vllm]'`."),
    ],
)
def test_need_names_purpose_package_and_how_to_install_the_extra(extra: str, command: str) -> None:
    message = (
        f"Serving needs `no_such_package`. Install it in the folder of Lushan's source: {command}"
    )
    with pytest.raises(MissingExtraError, match=f"^{re.escape(message)}$"):
        need("no_such_package", extra=extra, purpose="Serving")


def test_need_leaves_importing_to_whoever_uses_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("packages")
    (folder / "broken_package.py").write_text("import no_such_part\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    need("broken_package", extra="serve", purpose="Serving")
    assert "broken_package" not in sys.modules
    with pytest.raises(ModuleNotFoundError, match="no_such_part"):
        importlib.import_module("broken_package")


def test_all_but_certificates_are_for_the_user_to_mend() -> None:
    found = [each for each in vars(errors).values() if isinstance(each, type)]
    ours = {
        each for each in found if issubclass(each, LushanError) and not issubclass(each, UserError)
    }
    assert ours == {LushanError, errors.CertificateError}


def test_rows_that_are_too_long_are_told_together() -> None:
    lengths = [("a.csv, row 2", 11), ("a.csv, row 2", 12), ("a.csv, row 7", 1090), ("b", 1090)]
    refused: TooLongError | None = None
    for place, num_tokens in lengths:
        refused = TooLongError(f"{place}: {num_tokens} tokens.", place, num_tokens).behind(refused)
        if place == "a.csv, row 2":
            assert str(refused) == "a.csv, row 2: 11 tokens."
    told = "In all, 3 rows are too long; the longest, a.csv, row 7, has 1,090 tokens."
    assert str(refused) == f"a.csv, row 2: 11 tokens. {told}"
    assert str(copy.copy(refused)) == str(refused)


def test_refusals_of_several_rows_are_joined() -> None:
    def refuse(*places: str) -> TooLongError | None:
        found: TooLongError | None = None
        for place in places:
            found = TooLongError(f"{place}.", place, len(place)).behind(found)
        return found

    later = refuse("ccc", "d")
    assert later is not None
    told = "In all, 4 rows are too long; the longest, ccc, has 3 tokens."
    assert str(later.behind(refuse("a", "bb"))) == f"a. {told}"

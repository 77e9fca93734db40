"""Errors: optional packages, and who acts."""

import importlib
import sys

import pytest

from lushan import errors
from lushan.errors import LushanError, MissingExtraError, UserError, need


def test_need_names_purpose_package_and_extra() -> None:
    message = r"Serving needs `no_such_package`\. Install it with `pip install 'lushan\[serve\]'`\."
    with pytest.raises(MissingExtraError, match=message):
        need("no_such_package", extra="serve", purpose="Serving")


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

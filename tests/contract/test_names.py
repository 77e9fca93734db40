"""Names that others rely on change only together with a reviewed line in a snapshot."""

from tests.contract.snapshots import public_names, setting_names, stored

HOW = "If this change is wanted, run `python tests/contract/snapshots.py` and commit its result."


def test_public_names_are_those_of_the_snapshot() -> None:
    assert public_names() == stored("names.json"), HOW


def test_settings_are_those_of_the_snapshot() -> None:
    assert setting_names() == stored("settings.json"), HOW

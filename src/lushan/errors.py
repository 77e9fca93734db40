"""The tree of what can go wrong, split by who acts.

LushanError
|-- UserError               the person running Lushan can fix this (exit code 2, no traceback)
|   |-- DataError           a file, row, column or label does not fit
|   |-- ModelError          a model is missing or cannot do what was asked
|   |-- SettingError        a setting is unknown, has a wrong value, or has no effect
|   |-- RunError            a run folder is in the way, missing, unfinished or broken
|   |-- StoreError          the database of feedback and keys cannot be opened, read or written
|   |   `-- ConflictError   an id or a name stands for something else already
|   |-- MissingExtraError   an optional package is not installed
|   `-- DivergedError       the loss is not finite; names the step and the rows
`-- CertificateError        what was saved does not answer like what was trained: our bug (exit code 1)
"""

from importlib.util import find_spec


class LushanError(Exception):
    """Root of every error that Lushan raises on purpose."""


class UserError(LushanError):
    """The person running Lushan can fix this."""


class DataError(UserError, ValueError):
    """A file, row, column or label does not fit the task."""


class ModelError(UserError):
    """A model is missing or cannot do what was asked."""


class SettingError(UserError, ValueError):
    """A setting is unknown, has a wrong value, or would have no effect."""


class RunError(UserError):
    """A run folder is in the way, missing, unfinished or broken."""


class StoreError(UserError):
    """The database of feedback and keys cannot be opened, read or written."""


class ConflictError(StoreError):
    """An id or a name stands for something else already."""


class MissingExtraError(UserError):
    """An optional package is not installed."""


class DivergedError(UserError):
    """The loss is not finite."""


class CertificateError(LushanError):
    """A saved model does not answer like the model that was trained."""


def need(package: str, *, extra: str, purpose: str) -> None:
    """Say which extra brings `package` if it is not there; it is imported where it is used.

    Raises:
        MissingExtraError: If the package is not installed.
    """
    if find_spec(package) is None:
        raise MissingExtraError(
            f"{purpose} needs `{package}`. Install it with `pip install 'lushan[{extra}]'`."
        )

"""The tree of what can go wrong, split by who acts.

LushanError
|-- UserError               the person running Lushan can fix this (exit code 2, no traceback)
|   |-- DataError           a file, row, column or label does not fit
|   |   `-- TooLongError    rows have more tokens than fit; says how many do
|   |-- ModelError          a model is missing or cannot do what was asked
|   |-- SettingError        a setting is unknown, has a wrong value, or has no effect
|   |-- RunError            a run folder is in the way, missing, unfinished or broken
|   |   `-- FullDiskError   a disk has no room left for a file
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


class TooLongError(DataError):
    """Rows have more tokens than fit: what is wrong with the first, how many there are, and the longest."""

    def __init__(self, first: str, place: str = "", num_tokens: int = 0) -> None:
        """Refuse one row.

        Args:
            first: What is wrong with it.
            place: Where it stands.
            num_tokens: How long it is.
        """
        super().__init__(first)
        self._num_rows, self._last_place = 1, place
        self._longest = num_tokens, place

    def behind(self, earlier: "TooLongError | None") -> "TooLongError":
        """Join it to the refusal of earlier rows, if there is one."""
        if earlier is None:
            return self
        # A row can have several documents.
        is_same_row = self._last_place == earlier._last_place
        earlier._num_rows += self._num_rows - is_same_row
        earlier._longest = max(earlier._longest, self._longest, key=lambda each: each[0])
        earlier._last_place = self._last_place
        return earlier

    def __str__(self) -> str:
        first = super().__str__()
        if self._num_rows == 1:
            return first
        num_tokens, place = self._longest
        told = f"In all, {self._num_rows:,} rows are too long; the longest, {place}, has {num_tokens:,} tokens."
        return f"{first} {told}"


class ModelError(UserError):
    """A model is missing or cannot do what was asked."""


class SettingError(UserError, ValueError):
    """A setting is unknown, has a wrong value, or would have no effect."""


class RunError(UserError):
    """A run folder is in the way, missing, unfinished or broken."""


class FullDiskError(RunError, OSError):
    """A disk has no room left; whoever can do without the file takes it as the failure of the system that it is."""


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


_UNCONSTRAINED = {"vllm"}
"""Extras that want other versions than those in `constraints.txt`."""


def need(package: str, *, extra: str, purpose: str) -> None:
    """Say which extra brings `package` if it is not there; it is imported where it is used.

    Raises:
        MissingExtraError: If the package is not installed.
    """
    if find_spec(package) is None:
        tested = "" if extra in _UNCONSTRAINED else "-c constraints.txt "
        raise MissingExtraError(
            f"{purpose} needs `{package}`. Install it in the folder of Lushan's source: `pip install {tested}'.[{extra}]'`."
        )

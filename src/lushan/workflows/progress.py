"""Say how far something has come that may take minutes, so that nobody has to wonder."""

import time
from collections.abc import Callable

Tell = Callable[[str], None]

EVERY_SECONDS = 10.0
"""What is done sooner is not told of."""


def say_nothing(_: str) -> None:
    """Tell nobody, such as where another process speaks for all."""


class Progress:
    """Counts what is done, and tells it now and then."""

    def __init__(self, tell: Tell, what: str) -> None:
        """Start the clock.

        Args:
            tell: Takes one line for a person.
            what: What is done, with `{}` where the number of rows belongs.
        """
        self._tell, self._what = tell, what
        self._num_done = 0
        self._told_at = time.monotonic()

    def advance(self, num_rows: int = 1) -> None:
        """Count rows."""
        self._num_done += num_rows
        if time.monotonic() - self._told_at >= EVERY_SECONDS:
            self._told_at = time.monotonic()
            self._tell(self._what.format(f"{self._num_done:,}"))

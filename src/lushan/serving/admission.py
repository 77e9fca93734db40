"""Which requests were let in: so many may wait, and one that is in is finished, however many parts it has."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lushan.serving.errors import ServerBusyError


class Admitted:
    """A request that was let in; whatever it asks of the models counts as one."""

    def __init__(self) -> None:
        self._parts: list[Callable[[], bool]] = []
        self._was_started = False

    @property
    def has_started(self) -> bool:
        """Whether anything of it is computed."""
        return self._was_started or any(has_started() for has_started in self._parts)

    @contextmanager
    def part(self, has_started: Callable[[], bool]) -> Iterator[None]:
        """Ask for a part of it; `has_started` tells whether anything of that part is computed."""
        self._parts.append(has_started)
        try:
            yield
        finally:
            self._parts.remove(has_started)
            self._was_started = True


class Admissions:
    """All requests that are not answered yet."""

    def __init__(self, max_waiting: int) -> None:
        """Begin without any; of those that come, `max_waiting` may wait."""
        self._max_waiting = max_waiting
        self._open: set[Admitted] = set()

    @property
    def num_waiting(self) -> int:
        """Requests of which nothing is computed yet."""
        return sum(not each.has_started for each in self._open)

    @property
    def num_running(self) -> int:
        """Requests that are being answered."""
        return len(self._open) - self.num_waiting

    @contextmanager
    def admit(self, within: Admitted | None = None) -> Iterator[Admitted]:
        """Let a request in until it is answered.

        Args:
            within: The request that it is a part of, where that is in already: it is not refused half-way.

        Raises:
            ServerBusyError: If too many wait.
        """
        if within is not None:
            yield within
            return
        if self.num_waiting >= self._max_waiting:
            raise ServerBusyError
        admitted = Admitted()
        self._open.add(admitted)
        try:
            yield admitted
        finally:
            self._open.remove(admitted)

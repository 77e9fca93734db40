"""What writes answers to many requests together, step by step: our own engine, or one that is put in its place."""

from collections.abc import Sequence
from typing import Protocol

from lushan.backbones.many_adapters import Adapter
from lushan.errors import UserError
from lushan.inference.draft import TokenEvent
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.grammar import Constraint


class Engine(Protocol):
    """Requests by number; new ones may come between any two steps."""

    @property
    def is_busy(self) -> bool:
        """Whether any request is not answered yet."""
        ...

    @property
    def open_indices(self) -> set[int]:
        """The requests that are not answered yet."""
        ...

    def add(
        self,
        prompt_ids: Sequence[int],
        settings: GenerationSettings,
        *,
        index: int,
        constraint: Constraint | None = None,
        adapter: Adapter | None = None,
        num_alternatives: int = 0,
    ) -> None:
        """Take a request.

        Args:
            prompt_ids: What the model reads.
            settings: How its answers are written.
            index: Number by which events name it.
            constraint: A form that its answers must have.
            adapter: Which of the models that share the backbone answers; None for the base itself. It is held until the
                request is answered.
            num_alternatives: How many of the most likely tokens events tell at each place; none in beam search.

        Raises:
            DataError: If the prompt is empty or leaves no room for `max_new_tokens`.
            ModelError: If the engine cannot answer with this adapter.
            SettingError: If settings do not go together, or the constraint is no valid one.
        """
        ...

    def cancel(self, index: int) -> None:
        """Forget a request; its rows are free at once. Nothing happens when it is answered already."""
        ...

    def step(self) -> list[TokenEvent]:
        """Continue all answers by one token, and read on what is asked, as far as there is room for it."""
        ...

    def take_failures(self) -> dict[int, UserError]:
        """Give what went wrong with requests since the last call; they have ended, the others go on."""
        ...

"""How answers are written: the settings, and which of them go together."""

from typing import Literal

from pydantic import Field

from lushan.errors import SettingError
from lushan.settings import Settings


class GenerationSettings(Settings):
    """How answers are written; the names and meanings are those of `transformers`."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Most tokens of an answer, its stop token included. Where it is not given, 256 does not count: a run takes a quarter more than
    its longest training answer has, at most half of the context; an untuned model in `chat` and `serve` 1,024, at most half of
    its context."""

    temperature: float = Field(default=0.0, ge=0)
    """Flattens (above 1) or sharpens (below 1) the draw; 0 always takes the most likely token."""

    top_k: int | None = Field(default=None, ge=1)
    """Draw from this many most likely tokens only."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the most likely tokens that make up this probability."""

    min_p: float = Field(default=0.0, ge=0, le=1)
    """Draw from tokens with at least this share of the most likely token's probability."""

    repetition_penalty: float = Field(default=1.0, gt=0)
    """Above 1, tokens of the prompt and the answer become less likely."""

    num_beams: int = Field(default=1, ge=1)
    """Drafts that are followed at once; 1 follows a single one."""

    length_penalty: float = 1.0
    """Beam search: a draft's log-probability is divided by its length to this power; above 0 favours long ones."""

    early_stopping: bool | Literal["never"] = False
    """Beam search ends: true, with `num_beams` finished drafts; false, when longer ones hardly help; `never`, cannot."""

    num_return_sequences: int = Field(default=1, ge=1)
    """Answers to each prompt."""

    stop_strings: tuple[str, ...] = Field(default=(), strict=False)
    """Texts that end an answer; they are cut from it."""

    seed: int = Field(default=0, ge=0)
    """Seed of the draws. An answer depends on it and its prompt, not on what runs beside it."""

    def seed_of(self, number: int) -> int:
        """Give the seed of one of the answers to a prompt."""
        return (self.seed * 1_000_003 + number) % _NUM_SEEDS


_NUM_SEEDS = 2**63
"""As many as torch takes."""
_DRAWING = ("top_k", "top_p", "min_p")
_BEAMS = ("length_penalty", "early_stopping")


def check_settings(settings: GenerationSettings) -> None:
    """Refuse settings that have no effect or cannot go together.

    Raises:
        SettingError: If there is one; names it.
    """
    changed = {
        name
        for name, field in GenerationSettings.model_fields.items()
        if getattr(settings, name) != field.default
    }
    greedy, beams = settings.temperature == 0, settings.num_beams > 1
    if greedy and (unread := [name for name in _DRAWING if name in changed]):
        raise SettingError(f"`{unread[0]}` has no effect at `temperature` 0. Raise `temperature`.")
    if not beams and (unread := [name for name in _BEAMS if name in changed]):
        raise SettingError(f"`{unread[0]}` has no effect with `num_beams` 1. Raise `num_beams`.")
    if beams and not greedy:
        raise SettingError(
            f"Beam search takes no draws: `num_beams` {settings.num_beams} needs `temperature` 0, "
            f"got {settings.temperature}."
        )
    num_answers = settings.num_return_sequences
    if greedy and num_answers > settings.num_beams:
        raise SettingError(
            f"`num_return_sequences` {num_answers} needs `temperature` above 0, or `num_beams` of at least as many; "
            f"got {settings.num_beams}."
        )
    if not all(settings.stop_strings):
        raise SettingError("`stop_strings` must not hold an empty text.")


def check_room(settings: GenerationSettings, *, context_tokens: int) -> None:
    """Refuse answers that leave no token of the model's context to what is asked.

    Raises:
        SettingError: If they may become too long.
    """
    if settings.max_new_tokens >= context_tokens:
        raise SettingError(
            f"Setting `generation.max_new_tokens` is {settings.max_new_tokens}, but the model's context is "
            f"{context_tokens} tokens, prompt and answer together. Choose less, or leave it out."
        )

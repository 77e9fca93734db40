"""How answers are explained."""

from typing import Literal

from pydantic import Field

from lushan.settings import Settings

BaselineName = Literal["padding", "mean", "zero"]


class ExplainSettings(Settings):
    """How answers are explained."""

    baseline: BaselineName = "padding"
    """What stands for "no word": the padding token's embedding, the mean of all tokens', or zeros."""

    most_gap: float = Field(default=0.02, gt=0, lt=1)
    """Steps are cut until the completeness gap is at most this share of all weight."""

    most_steps: int = Field(default=256, ge=16)
    """Steps at which cutting ends; the gap that is left is told."""

    top_fraction: float = Field(default=0.2, gt=0, le=1)
    """Share of the words, at least one, that the faithfulness check takes out."""

    num_draws: int = Field(default=5, ge=1)
    """How often as many random words are taken out, to compare."""

    seed: int = Field(default=0, ge=0)
    """Seed of these draws."""

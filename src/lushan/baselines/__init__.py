"""What a user would otherwise pick, without a GPT: one file is one baseline, with `answer` and its `TITLE`.

The folder is the table: a task names its baselines by their files.
"""

from dataclasses import dataclass

from lushan.records import Prediction


@dataclass(frozen=True, slots=True)
class Baseline:
    """The answers of one baseline and how it came to them."""

    predictions: list[Prediction]
    """One per test example, in order."""
    description: str
    """One sentence for the report: what was counted and which settings were chosen."""
    learns: bool = True
    """Whether the training rows say anything to it."""

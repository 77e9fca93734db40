"""What is timed: one table of works, each with the systems that do it and the ratio that we want to reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Measure = Literal[
    "tokens_per_second",
    "train_seconds",
    "peak_rss_bytes",
    "texts_per_second",
    "validation_loss",
    "target_seconds",
    "gemm_fraction",
    "first_step_seconds",
]
LAYER_WEIGHTS = 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
"""Of SmolLM2-135M: the products of its layers; its norms and attention come on top."""
VOCABULARY_WEIGHTS = 49_152 * 576
ADAPTER_WEIGHTS = 30 * 16 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))
"""Of rank 16, at every product of the layers."""
TOKENS_PER_SCORED_TEXT = 9.33
"""The 10,000 texts of CLINC150 under its tokenizer."""
VALIDATION_SHARE = 0.44
"""Tokens of the 872 validation rows to those of 2,000 training rows."""
ANSWERED_SHARE = 0.863
"""Tokens in answers of the 64 conversations, each of which needs the whole vocabulary."""
ATTENTION_SHARE = 2 * 179 * 576 * 30 / LAYER_WEIGHTS
"""Of the same conversations: a token sees 179 on the mean, itself included, and is multiplied with their keys and values."""
FROZEN_SHARE = 26 / 30
"""Of the layers, in the work `top4`."""

System = Literal["lushan", "trainer", "textbook", "pipeline", "trl", "litgpt", "llamafactory"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A ratio that the table shows beside the one that was measured."""

    measure: Measure
    rival: System | None = None
    """Nobody where the machine itself is the limit."""
    ratio: float
    """Rival's time (or memory, or loss) to ours, or our speed to the rival's: more is better for us.

    Without a rival, the figure itself.
    """


@dataclass(frozen=True, kw_only=True)
class Work:
    """One job that every system does on the same rows, with the same rows per optimizer step."""

    name: str
    title: str
    kind: Literal["tune", "scoring", "sft", "gemm", "first-step"] = "tune"
    adapter: str = "full"
    precision: Literal["bf16", "fp32"] = "bf16"
    """In which the share of a product rate is measured."""
    rows_per_step: int = 16
    epochs: int = 1
    num_train_rows: int = 640
    num_textbook_rows: int = 96
    """The textbook loop is so slow that it gets fewer; its speed is per token all the same."""
    trainer_rows_at_once: int | None = None
    """Rows of one pass of the Trainer, several of which make a step; None takes those of the step."""
    num_validation_rows: int = 20
    """Few where training alone is timed; whole runs ask all after every epoch."""
    operations_per_weight: float | None = None
    """What any program must compute for a real token and weight of the layers: 2 forward, 2 back to the inputs, 2 for the
    weight's gradient; what is frozen once, whatever the epochs; adapters and the vocabulary of answers on top. None where no
    speeds are compared."""
    targets: tuple[Target, ...]

    @property
    def systems(self) -> list[System]:
        """Who does this work, Lushan first."""
        rivals = [target.rival for target in self.targets if target.rival]
        return ["lushan", *dict.fromkeys(rivals)]


WORKS = (
    Work(
        name="full-16",
        title="full tuning, 16 rows a step",
        operations_per_weight=6,
        targets=(
            Target(rival="textbook", measure="tokens_per_second", ratio=20),
            Target(rival="trainer", measure="tokens_per_second", ratio=5),
            Target(rival="trainer", measure="peak_rss_bytes", ratio=1 / 0.6),
        ),
    ),
    Work(
        name="full-64",
        title="full tuning, 64 rows a step",
        rows_per_step=64,
        num_textbook_rows=192,
        trainer_rows_at_once=16,
        operations_per_weight=6,
        targets=(
            Target(rival="textbook", measure="tokens_per_second", ratio=20),
            Target(rival="trainer", measure="tokens_per_second", ratio=5),
        ),
    ),
    Work(
        name="lora-16",
        title="LoRA of rank 16, 16 rows a step",
        adapter="lora",
        operations_per_weight=4 + 6 * ADAPTER_WEIGHTS / LAYER_WEIGHTS,
        targets=(Target(rival="trainer", measure="tokens_per_second", ratio=6),),
    ),
    Work(
        name="top4",
        title="last 4 layers, 5 epochs, validation after each",
        adapter="top:4",
        epochs=5,
        num_train_rows=2_000,
        num_validation_rows=872,
        operations_per_weight=(
            2 * FROZEN_SHARE * (1 + VALIDATION_SHARE) / 5
            + (1 - FROZEN_SHARE) * (6 + 2 * VALIDATION_SHARE)
        ),
        targets=(
            Target(rival="trainer", measure="train_seconds", ratio=12),
            Target(rival="trainer", measure="target_seconds", ratio=12),
            Target(rival="trainer", measure="validation_loss", ratio=1),
        ),
    ),
    Work(
        name="head",
        title="head alone, 10 epochs, validation after each",
        adapter="head",
        epochs=10,
        num_train_rows=2_000,
        num_validation_rows=872,
        operations_per_weight=2 * (1 + VALIDATION_SHARE) / 10,
        targets=(
            Target(rival="trainer", measure="train_seconds", ratio=30),
            Target(rival="trainer", measure="target_seconds", ratio=30),
            Target(rival="trainer", measure="validation_loss", ratio=1),
        ),
    ),
    Work(
        name="scoring",
        kind="scoring",
        title="scoring 10,000 short texts with a tuned classifier",
        operations_per_weight=2,
        targets=(Target(rival="pipeline", measure="texts_per_second", ratio=6),),
    ),
    Work(
        name="sft",
        title="conversations of 200 to 1,000 tokens, loss on the answers",
        kind="sft",
        num_train_rows=64,
        num_validation_rows=16,
        operations_per_weight=(
            6 * (1 + ATTENTION_SHARE + ANSWERED_SHARE * VOCABULARY_WEIGHTS / LAYER_WEIGHTS)
        ),
        targets=(
            Target(rival="trl", measure="tokens_per_second", ratio=3),
            Target(rival="trl", measure="validation_loss", ratio=1),
            Target(rival="litgpt", measure="tokens_per_second", ratio=3),
            Target(rival="llamafactory", measure="tokens_per_second", ratio=3),
            Target(rival="llamafactory", measure="validation_loss", ratio=1),
        ),
    ),
    Work(
        name="gemm",
        title="full tuning, steps of 2,048 tokens: share of the best bf16 product rate",
        kind="gemm",
        num_train_rows=2_000,
        targets=(Target(measure="gemm_fraction", ratio=0.55),),
    ),
    Work(
        name="gemm-fp32",
        title="the same of the best fp32 rate, in fp32",
        kind="gemm",
        precision="fp32",
        num_train_rows=2_000,
        targets=(Target(measure="gemm_fraction", ratio=0.55),),
    ),
    Work(
        name="first-step",
        title="from the command to the first optimizer step, warm caches",
        kind="first-step",
        targets=(Target(measure="first_step_seconds", ratio=6),),
    ),
)


def work_named(name: str) -> Work:
    """Find a work; a wrong name ends the program with the known ones."""
    found = {work.name: work for work in WORKS}
    if name not in found:
        raise SystemExit(f"Unknown work `{name}`. Known: {', '.join(found)}.")
    return found[name]

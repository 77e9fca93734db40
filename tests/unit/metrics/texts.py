"""Random texts for the tests of metrics: words that come again, in English and in Chinese."""

import random

ENGLISH = (
    "the",
    "dog",
    "dogs",
    "runs",
    "running",
    "on",
    "grass,",
    "42",
    "in",
    "a",
    "green",
    "field.",
    "it's",
)
CHINESE = (
    "\u72d7",
    "\u5728",
    "\u8349\u5730",
    "\u4e0a",
    "\u8dd1",
    "\uff0c",
    "42",
    "GPT",
    "\u3002",
    "\u4e00\u53ea",
    " ",
)


def pairs(draw: random.Random, *, chinese: bool) -> tuple[list[str], list[str]]:
    """Give one to five texts, and answers that share words with them; an answer may be empty."""
    words, joint = (CHINESE, "") if chinese else (ENGLISH, " ")
    truth = [
        joint.join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(draw.randint(1, 5))
    ]
    truth = [each if each.strip() else words[0] for each in truth]
    answers = [_changed(each, words, joint, draw) for each in truth]
    return truth, answers


def _changed(text: str, words: tuple[str, ...], joint: str, draw: random.Random) -> str:
    parts = list(text) if not joint else text.split(joint)
    kept = [part if draw.random() < 0.7 else draw.choice(words) for part in parts]
    return joint.join(kept[: draw.randint(0, len(kept))] if draw.random() < 0.3 else kept)

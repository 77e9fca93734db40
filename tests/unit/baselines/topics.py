"""Rows with a label or several, whose words tell it."""

import random

from lushan.records import Example

TOPICS = {
    "food": "apple bread soup cook taste dinner",
    "sport": "match goal team race ball win",
    "work": "office meeting boss mail deadline desk",
}
CHINESE = {"negative": "很差 不好 失望 太慢 难吃", "positive": "很好 喜欢 满意 好吃 推荐"}


def examples(
    words: dict[str, str], num_rows: int, *, joiner: str = " ", seed: int = 0
) -> list[Example]:
    dice = random.Random(seed)
    rows = []
    for number in range(num_rows):
        label = dice.choice(sorted(words))
        text = joiner.join(dice.choices(words[label].split(), k=3))
        rows.append(Example(f"{seed}-{number}", text, label))
    return rows


def several(num_rows: int, *, seed: int = 0) -> list[Example]:
    dice = random.Random(seed)
    rows = []
    for number in range(num_rows):
        labels = tuple(label for label in TOPICS if dice.random() < 0.5)
        text = " ".join(word for label in labels for word in dice.sample(TOPICS[label].split(), 3))
        rows.append(Example(f"{seed}-{number}", text or "nothing", labels))
    return rows

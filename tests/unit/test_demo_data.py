"""The rows that ship with Lushan: complete, apart from each other, licensed, and not too easy."""

import json
from collections import Counter
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import lushan

FOLDER = Path(lushan.__file__).parent / "demo_data"


def rows_of(split: str) -> list[dict[str, str]]:
    lines = (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def texts_of(split: str) -> set[str]:
    return {" ".join(row["text"].casefold().split()) for row in rows_of(split)}


@pytest.mark.parametrize(("split", "per_intent"), [("train", 15), ("validation", 10), ("test", 15)])
def test_demo_split_has_30_intents_with_equally_many_rows(split: str, per_intent: int) -> None:
    counts = Counter(row["label"] for row in rows_of(split))
    assert len(counts) == 30
    assert set(counts.values()) == {per_intent}
    assert all(set(row) == {"text", "label"} and row["text"].strip() for row in rows_of(split))


def test_demo_splits_share_no_text() -> None:
    train, validation, test = (texts_of(split) for split in ("train", "validation", "test"))
    assert not (train & validation) | (train & test) | (validation & test)
    assert len(train) == len(rows_of("train"))


def test_demo_data_names_its_licence_and_its_authors() -> None:
    licence = (FOLDER / "LICENSE.md").read_text(encoding="utf-8")
    assert "https://creativecommons.org/licenses/by/3.0/" in licence
    assert "Larson" in licence
    assert "What was changed" in licence


def test_demo_leaves_room_above_tf_idf() -> None:
    train, validation = rows_of("train"), rows_of("validation")
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=30.0)
    )
    model.fit([row["text"] for row in train], [row["label"] for row in train])
    accuracy = model.score(
        [row["text"] for row in validation], [row["label"] for row in validation]
    )
    assert 0.6 < accuracy < 0.85

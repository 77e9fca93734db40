"""The rows of `real_rows.py`, drawn from public sets: the same ones every time.

Train, validation and test rows come from the files of that name; where a set is split by article, so are the rows made of it.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from as_triples import triples_of

from lushan.metrics.pieces import pieces

Row = dict[str, Any]
Make = Callable[[Path, Path], None]

NUM_TRIPLE_ROWS = {"train": 800, "validation": 100, "test": 300}
NUM_QUESTIONS = {"train": 600, "validation": 150, "test": 240}
NUM_SUMMARIES = {"train": 400, "validation": 50, "test": 60}
NUM_COMPLETIONS = {"train": 300, "validation": 30, "test": 80}
NUM_UNLABELLED = 1500
NO_ANSWER_SHARE = 1 / 3
LONGEST_CONTEXT, LONGEST_DOCUMENT = 600, 300
"""Characters, so that a run takes minutes."""
SHORTEST_KEYWORD = 5


def read(place: Path) -> list[Row]:
    """Read a file of JSON Lines, packed or not, named without its extension."""
    plain = place.with_name(f"{place.name}.jsonl")
    if plain.exists():
        lines = plain.read_text(encoding="utf-8")
    else:
        lines = gzip.decompress(plain.with_name(f"{plain.name}.gz").read_bytes()).decode("utf-8")
    return [json.loads(line) for line in lines.split("\n") if line]


def write(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON Lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")


def drawn(rows: Sequence[Row], num_rows: int, *, salt: str) -> list[Row]:
    """Draw rows, in the order of the set."""
    places = random.Random(f"lushan:{salt}").sample(range(len(rows)), min(num_rows, len(rows)))
    return [rows[place] for place in sorted(places)]


def triples(data: Path, out: Path) -> None:
    """One triple a text of SemEval-2010 Task 8, none where its label is `Other`."""
    for split, num_rows in NUM_TRIPLE_ROWS.items():
        by_text: dict[str, list[Row]] = {}
        for row in read(data / "relation" / "semeval2010_task8" / split):
            by_text.setdefault(row["text"], []).extend(triples_of(row))
        rows = [{"text": text, "triples": found} for text, found in by_text.items()]
        write(out / f"{split}.jsonl", drawn(rows, num_rows, salt=f"triples:{split}"))


def questions(data: Path, out: Path) -> None:
    """Questions of SQuAD, a third of them put to another paragraph of their article, in which no right answer stands.

    Of such paragraphs it is the one that shares most words with the question. Nobody has read them: a few may answer in
    other words.
    """
    for split, num_rows in NUM_QUESTIONS.items():
        rows = read(data / "qa" / "squad11_dev_articles" / split)
        short = [row for row in rows if len(row["context"]) <= LONGEST_CONTEXT]
        contexts: dict[str, set[str]] = defaultdict(set)
        for row in short:
            contexts[row["title"]].add(row["context"])
        draw = random.Random(f"lushan:questions:{split}")
        draw.shuffle(short)
        num_without = round(num_rows * NO_ANSWER_SHARE)
        without: list[Row] = []
        with_answer: list[Row] = []
        for row in short:
            moved = _moved(row, contexts[row["title"]]) if len(without) < num_without else None
            if moved is not None:
                without.append(moved)
            elif len(with_answer) < num_rows - num_without:
                with_answer.append(_asked(row, row["context"], row["answers"]))
        found = without + with_answer
        draw.shuffle(found)
        write(out / f"{split}.jsonl", found)


def _moved(row: Row, contexts: Iterable[str]) -> Row | None:
    """Put a question to the paragraph that is most like it and holds no right answer; None where there is none."""
    answers = [text.casefold() for text in row["answers"]["text"]]
    fitting = sorted(
        each
        for each in contexts
        if each != row["context"] and not any(text in each.casefold() for text in answers)
    )
    if not fitting:
        return None
    words = _words(row["question"])
    likest = max(fitting, key=lambda context: len(words & _words(context)))
    return _asked(row, likest, {"text": [], "answer_start": []})


def _asked(row: Row, context: str, answers: Row) -> Row:
    return {"context": context, "question": row["question"], "answers": answers}


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def summaries(data: Path, out: Path) -> None:
    """Short descriptions of Debian packages, of long ones that are not too long."""
    for split, num_rows in NUM_SUMMARIES.items():
        rows = read(data / "summarization" / "debian_descriptions" / split)
        short = [
            {"document": row["document"], "summary": row["summary"]}
            for row in rows
            if len(row["document"]) <= LONGEST_DOCUMENT
        ]
        write(out / f"{split}.jsonl", drawn(short, num_rows, salt=f"summaries:{split}"))


def completions(data: Path, out: Path) -> None:
    """Short descriptions of Debian packages by name, section (topic), words (length), and a word that is in them."""
    for split, num_rows in NUM_COMPLETIONS.items():
        rows = read(data / "summarization" / "debian_descriptions" / split)
        draw = random.Random(f"lushan:completions:{split}")
        found: list[Row] = []
        for row in rows:
            package = row["package"].casefold()
            words = sorted(
                word
                for word in set(re.findall(r"[^\W\d_]+", row["summary"]))
                if len(word) >= SHORTEST_KEYWORD and word.casefold() not in package
            )
            if words:
                found.append({
                    "prompt": f"Package: {row['package']}\nDescription:",
                    "completion": f" {row['summary']}",
                    "topic": row["section"],
                    "length": len(pieces(row["summary"])),
                    "keywords": [draw.choice(words)],
                })
        write(out / f"{split}.jsonl", drawn(found, num_rows, salt=f"completions:{split}"))


def few_labels(name: str, num_rows: int, *, with_others: bool) -> Make:
    """Some rows of each label, and others of the training file, whose labels are read to count wrong ones alone."""

    def make(data: Path, out: Path) -> None:
        train = read(data / name / "train")
        places = list(range(len(train)))
        random.Random(f"lushan:few:{name}:{num_rows}").shuffle(places)
        by_label: dict[str, list[int]] = defaultdict(list)
        for place in places:
            by_label[train[place]["label"]].append(place)
        few = {place for members in by_label.values() for place in members[:num_rows]}
        for split in ("validation", "test"):
            write(out / f"{split}.jsonl", map(_labelled, read(data / name / split)))
        write(out / "train.jsonl", (_labelled(train[place]) for place in sorted(few)))
        if not with_others:
            return
        rest = [_labelled(row) for place, row in enumerate(train) if place not in few]
        rest = drawn(rest, NUM_UNLABELLED, salt=f"unlabelled:{name}:{num_rows}")
        write(out.with_name("data-unlabelled.jsonl"), rest)

    return make


def _labelled(row: Row) -> Row:
    return {"text": row["text"], "label": row["label"]}

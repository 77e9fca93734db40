"""Data that must be refused: what it is, how it is made, and what the one message says about it."""

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

Rows = Sequence[dict[str, Any]]

TOPICS = {
    "sea": ("wave", "harbour", "anchor", "tide", "sailor", "lighthouse", "gull", "reef"),
    "hill": ("ridge", "valley", "summit", "boulder", "shepherd", "meadow", "cairn", "gorge"),
}
DEEDS = ("sleeps under a pale moon", "remembers the long winter", "waits for someone to come home")


@dataclass(frozen=True, slots=True)
class BadInput:
    """One kind of bad data."""

    name: str
    build: Callable[[Path], Path]
    """Writes it into an empty folder; gives what stands for DATA on the command line."""
    message: str
    """Regular expression that the message matches."""
    settings: tuple[str, ...] = ()
    """Values of `--set`."""
    task: str = "classification"


def good_rows(*, start: int = 0, step: int = 1) -> list[dict[str, Any]]:
    """Give up to 48 short rows of two labels; no two texts are near."""
    rows = [
        {"text": f"The {noun} {deed}.", "label": label}
        for deed in DEEDS
        for label, nouns in TOPICS.items()
        for noun in nouns
    ]
    return rows[start::step]


def write_lines(file: Path, rows: Rows) -> Path:
    """Write a JSON Lines file."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_splits(folder: Path, *, train: Rows, validation: Rows, test: Rows) -> Path:
    """Write a folder with three JSON Lines files."""
    for name, rows in (("train", train), ("validation", validation), ("test", test)):
        write_lines(folder / f"{name}.jsonl", rows)
    return folder


def _file(name: str, content: bytes | str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        file = folder / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return build


def _files(*names: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        for name in names:
            write_lines(folder / name, good_rows())
        return folder

    return build


def _lines(*rows: dict[str, Any]) -> Callable[[Path], Path]:
    return lambda folder: write_lines(folder / "data.jsonl", rows)


def _changed(**change: object) -> Callable[[Path], Path]:
    """Good rows, of which the third has other values."""

    def build(folder: Path) -> Path:
        rows = good_rows()
        rows[2] |= change
        return write_lines(folder / "data.jsonl", rows)

    return build


def _splits(
    train: Rows | None = None, validation: Rows | None = None, test: Rows | None = None
) -> Callable[[Path], Path]:
    """Good splits, of which some are replaced."""

    def build(folder: Path) -> Path:
        return write_splits(
            folder,
            train=good_rows(step=3) if train is None else train,
            validation=good_rows(start=1, step=3) if validation is None else validation,
            test=good_rows(start=2, step=3) if test is None else test,
        )

    return build


def _cut_gzip(folder: Path) -> Path:
    content = gzip.compress("".join(json.dumps(row) + "\n" for row in good_rows()).encode())
    return _file("data.jsonl.gz", content[:-20])(folder)


def _bytes_in_parquet(folder: Path) -> Path:
    parquet.write_table(
        pa.table({"text": [b"a", b"b"], "label": ["x", "y"]}), folder / "data.parquet"
    )
    return folder / "data.parquet"


def _tagged(**change: object) -> Callable[[Path], Path]:
    """Good rows of tokens and tags, of which the third has other values; None takes a column away."""

    def build(folder: Path) -> Path:
        rows: list[dict[str, Any]] = [
            {"tokens": row["text"].split(), "tags": ["O", "B-thing", "O", "O", "O", "O", "O"]}
            for row in good_rows()
        ]
        for row in rows:
            row["tags"] = row["tags"][: len(row["tokens"])]
            row["tags"] += ["O"] * (len(row["tokens"]) - len(row["tags"]))
        rows[2] |= change
        return write_lines(folder / "data.jsonl", rows)

    return build


def _marked(*entities: object, **change: object) -> Callable[[Path], Path]:
    """Good rows of texts, of which the third has these entities and other values."""

    def build(folder: Path) -> Path:
        rows = [{"text": row["text"], "entities": [[4, 7, "thing"]]} for row in good_rows()]
        rows[2] |= {"entities": list(entities), **change}
        return write_lines(folder / "data.jsonl", rows)

    return build


def _marked_splits(folder: Path, *, train: object, test: object) -> Path:
    parts = [
        [{"text": row["text"], "entities": entities} for row in good_rows(start=start, step=3)]
        for start, entities in ((0, train), (1, train), (2, train))
    ]
    parts[2][0]["entities"] = test
    return write_splits(folder, train=parts[0], validation=parts[1], test=parts[2])


def _unknown_type(folder: Path) -> Path:
    return _marked_splits(folder, train=[[0, 3, "thing"]], test=[[0, 3, "planet"]])


def _questions(**change: object) -> list[dict[str, Any]]:
    rows = [
        {
            "context": row["text"],
            "question": "What does what?",
            "answers": {"text": [row["text"][4:8]], "answer_start": [4]},
        }
        for row in good_rows()
    ]
    return [{**row, **change} for row in rows]


def _asked(**change: object) -> Callable[[Path], Path]:
    """Good questions, of which the third has other values."""

    def build(folder: Path) -> Path:
        rows = _questions()
        rows[2] |= change
        return write_lines(folder / "data.jsonl", rows)

    return build


def _answered(texts: list[object], starts: list[object]) -> Callable[[Path], Path]:
    return _asked(context="The wave.", answers={"text": texts, "answer_start": starts})


def _no_entity(folder: Path) -> Path:
    return _marked_splits(folder, train=[], test=[])


def _paired(**change: object) -> Callable[[Path], Path]:
    """Good rows of two spans, of which the third has other values."""

    def build(folder: Path) -> Path:
        rows = [{**row, "head": [0, 3], "tail": [4, 7]} for row in good_rows()]
        rows[2] |= change
        return write_lines(folder / "data.jsonl", rows)

    return build


def _choice(**change: object) -> Callable[[Path], Path]:
    """Good questions, of which the third has other values."""

    def build(folder: Path) -> Path:
        rows: list[dict[str, Any]] = [
            {"question": row["text"], "choices": ["yes", "no", "maybe"], "answer": number % 3}
            for number, row in enumerate(good_rows())
        ]
        rows[2] |= change
        return write_lines(folder / "data.jsonl", rows)

    return build


CSV = "text,label\nfine day,good\nrainy day,bad\n"
BAD_INPUTS = (
    BadInput("no such path", lambda folder: folder / "nowhere", "nowhere` does not exist.*Give"),
    BadInput(
        "unknown kind of file",
        _file("data.xlsx", b"PK\x03\x04"),
        r"data\.xlsx`: unknown kind of file\. Known: \.csv, \.tsv, \.jsonl, \.json, \.parquet",
    ),
    BadInput("empty folder", lambda folder: folder, "no train, validation or test file.*nothing"),
    BadInput("folder without splits", _files("reviews.jsonl"), r"no train.*Found: reviews\.jsonl"),
    BadInput(
        "two files for one split",
        _files("train.jsonl", "training.json"),
        r"two files for train: `train\.jsonl` and `training\.json`\. Take one away",
    ),
    BadInput("folder without train", _files("test.jsonl"), "no train file, only test"),
    BadInput("empty file", _file("data.csv", ""), r"data\.csv has no rows"),
    BadInput("header alone", _file("data.csv", "text,label\n"), r"data\.csv has no rows"),
    BadInput("blank texts alone", _lines({"text": " ", "label": "a"}), "no row with a `text`"),
    BadInput(
        "no text column",
        _file("data.csv", "words,label\na,b\n"),
        r"no column `text`\. Found: `words`, `label`\. .*--set data\.columns\.text=NAME",
    ),
    BadInput("no label column", _file("data.tsv", "text\nhello\n"), "no column `label`"),
    BadInput(
        "two columns could be meant",
        _file("data.csv", "review,body,label\na,b,c\n"),
        r"both `review`, `body` could be the column `text`",
    ),
    BadInput(
        "mapped to a column that is not there",
        _file("data.csv", CSV),
        r"`data\.columns\.text` says `body`, but there is no such column\. Found: `text`, `label`",
        settings=("data.columns.text=body",),
    ),
    BadInput(
        "mapped a column that the task does not have",
        _file("data.csv", CSV),
        "task has no column `txet`. Its columns: `text`, `label`",
        settings=("data.columns.txet=text",),
    ),
    BadInput("two columns of one name", _file("data.csv", "text,text,label\na,b,c\n"), "Rename"),
    BadInput(
        "separated by semicolons",
        _file("data.csv", "text;label\na;b\n"),
        "not separated by commas: `text;label`",
    ),
    BadInput(
        "too many fields",
        _file("data.csv", CSV + "wet, cold day,bad\n"),
        r"data\.csv, row 4: expected 2 fields \(text, label\), found 3",
    ),
    BadInput(
        "a quote that never ends",
        _file("data.csv", CSV + '"wet day,bad\n'),
        r"data\.csv, row 4: the quotes do not fit",
    ),
    BadInput(
        "not UTF-8",
        _file("data.csv", b"text,label\nfine,good\ncaf\xe9,bad\n"),
        r"data\.csv, line 3: not UTF-8: byte 0xe9 at byte 24\. Save",
    ),
    BadInput("UTF-16", _file("data.csv", CSV.encode("utf-16")), r"data\.csv is UTF-16\. Save"),
    BadInput("a NUL byte", _file("data.csv", CSV + "a\0b,bad\n"), "line 4: a NUL byte at byte 40"),
    BadInput(
        "broken JSON",
        _file("data.jsonl", '{"text": "a", "label": "b"}\n{"text": "a"\n'),
        r"data\.jsonl, row 2: not JSON: Expecting ',' delimiter",
    ),
    BadInput(
        "no object on a line",
        _file("data.jsonl", '["a", "b"]\n'),
        r"data\.jsonl, row 1: expected an object.*found list\. .*\.json file",
    ),
    BadInput(
        "a list that is cut off",
        _file("data.json", '[{"text": "a", "label": "b"},\n'),
        r"data\.json: the list is cut off at row 1",
    ),
    BadInput("a list of texts", _file("data.json", '["a", "b"]'), "expected an object.*found str"),
    BadInput("a gzip file that is cut off", _cut_gzip, r"data\.jsonl\.gz: the gzip file is broken"),
    BadInput("no gzip file", _file("data.csv.gz", CSV), r"data\.csv\.gz: the gzip file is broken"),
    BadInput(
        "a gzip file without .gz",
        _file("data.csv", gzip.compress(CSV.encode())),
        r"data\.csv is a gzip file\. Rename it to `data\.csv\.gz`",
    ),
    BadInput("a broken Parquet file", _file("data.parquet", "PAR1"), "not a Parquet file"),
    BadInput("bytes for a text", _bytes_in_parquet, "row 1: `text` holds bytes, not text"),
    BadInput(
        "half a character",
        _changed(text="a \ud83d b"),
        r"row 3: `text` has half a character \(a lone surrogate\) at position 2",
    ),
    BadInput(
        "a missing label", _changed(label=None), r"1 row\(s\) have no `label`.*: row 3\. Fill it in"
    ),
    BadInput(
        "an empty label in a list",
        _changed(label=["sea", ""]),
        "row 3: `label` has an empty label in its list. Take it out",
    ),
    BadInput(
        "a list where one label is asked for",
        _changed(label=["sea", "hill"]),
        "row 3: column `label` holds a list.*multi_label=true",
        settings=("task_settings.multi_label=false",),
    ),
    BadInput("an object for a label", _changed(label={"a": 1}), "row 3: `label` must be a label"),
    BadInput(
        "one label only",
        _splits(
            *(
                [row for row in good_rows(start=n, step=3) if row["label"] == "sea"]
                for n in range(3)
            )
        ),
        "All 8 training rows have the same label, 'sea'",
    ),
    BadInput(
        "a label that only the test split knows",
        _splits(test=[*good_rows(start=2, step=3), {"text": "a dune at noon", "label": "sand"}]),
        r"test split has 1 label\(s\) that training never sees: `sand` \(1\); first in test\.jsonl, row 17",
    ),
    BadInput(
        "too few rows of a label to split",
        _lines(*good_rows(), {"text": "a dune at noon", "label": "sand"}),
        r"1 label\(s\) have fewer than 3 different texts: `sand`",
    ),
    BadInput(
        "too many test rows in train",
        _splits(test=good_rows(step=3)[:2] + good_rows(start=2, step=3)),
        "2 of 18 test rows are also in train or validation.*more than 5%.*--overlap keep",
    ),
    BadInput(
        "overlap where none is allowed",
        _splits(validation=[*good_rows(start=1, step=3), good_rows()[0]]),
        r"1 row\(s\) of train are also in validation \(1 exactly, 0 nearly\).*train\.jsonl, row 1",
        settings=("data.overlap=error",),
    ),
    BadInput(
        "nothing left to train on",
        _splits(train=good_rows(start=1, step=3)),
        "The train split has no rows left",
    ),
    *(
        BadInput(name, build, message, task="tagging")
        for name, build, message in (
            (
                "neither texts nor tokens",
                _lines({"words_": "a", "marks": "b"}),
                r"no column `text` \(nor `tokens`\)\. Found: `words_`, `marks`",
            ),
            ("no tags", _lines({"tokens": ["a"]}), "no column `tags`. Found: `tokens`"),
            ("a row without tags", _tagged(tags=None), r"1 row\(s\) have no `tags`.*: row 3"),
            ("too few tags", _tagged(tags=["O"]), r"row 3: column `tags` has 1 tag\(s\) for"),
            (
                "an inside without its beginning",
                _tagged(tokens=["a", "b"], tags=["O", "I-thing"]),
                "row 3: column `tags`, tag 2: `I-thing` does not follow `B-thing`",
            ),
            (
                "numbers for tags",
                _tagged(tokens=["a", "b"], tags=[0, 1]),
                "row 3: column `tags`, tag 1: 0 is no tag. Expected `O`, or `B-`",
            ),
            ("an empty token", _tagged(tokens=["a", ""]), "row 3: column `tokens`, token 2"),
            (
                "a span outside of its text",
                _marked([4, 999, "thing"]),
                r"row 3: column `entities`, entity 1: \[4, 999\) is not inside its text of \d+ char",
            ),
            (
                "two spans that overlap",
                _marked([4, 9, "thing"], {"start": 0, "end": 7, "label": "x"}),
                r"row 3: column `entities`: \[0, 7\) `x` and \[4, \d+\) `thing` overlap",
            ),
            ("no list of spans", _marked(entities="none"), "row 3: column `entities` must hold a"),
            (
                "a type that only the test split knows",
                _unknown_type,
                r"test split has 1 label\(s\) that training never sees: `planet` \(1\)",
            ),
            ("no entity at all", _no_entity, "All .* training rows have the same label"),
        )
    ),
    *(
        BadInput(name, build, message, task="relations")
        for name, build, message in (
            (
                "neither spans nor marks",
                _lines(*good_rows()),
                "row 1: column `text` has the mark `<e1>` 0 times, and there is no `head` and `tail`",
            ),
            ("a head without its tail", _paired(tail=None), "row 3: column `tail` is empty"),
            ("an empty span", _paired(head=[2, 2]), r"row 3: column `head`: \[2, 2\) is empty"),
            (
                "a span outside",
                _paired(tail=[4, 999]),
                r"row 3: .* \[4, 999\) is not inside its text",
            ),
            (
                "an overlap",
                _paired(tail=[2, 7]),
                r"row 3: `head` \[0, 3\) and `tail` \[2, 7\) over",
            ),
            ("a word for a span", _paired(head="wave"), "row 3: column `head`: expected .* 'wave'"),
            (
                "a span of another text",
                _paired(head={"start": 0, "end": 3, "text": "wave"}),
                "row 3: column `head`: its `text` is 'wave', but",
            ),
            ("several relations", _paired(label=["a", "b"]), "row 3: column `label` holds a list"),
        )
    ),
    *(
        BadInput(name, build, message, task="choice")
        for name, build, message in (
            (
                "an answer that is no choice",
                _choice(answer="never"),
                "row 3: column `answer`: `never` is none of the 3 choices. Give its text, its number",
            ),
            ("a number behind the last choice", _choice(answer=3), "`3` is none of the 3 choices"),
            ("one choice", _choice(choices=["yes"], answer=0), r"two texts, got \['yes'\]"),
            (
                "a choice twice",
                _choice(choices=["yes", "no", " yes"]),
                "row 3: column `choices` has 'yes' twice.*Take one out",
            ),
            ("an empty choice", _choice(choices=["yes", " "]), "row 3: column `choices` must hold"),
            ("choices in one text", _choice(choices="yes|no"), "row 3: column `choices` must hold"),
            ("no choices", _lines({"question": "a", "answer": 0}), "no column `choices`"),
            ("no name", _choice(choices={"text": ["a", "b"], "label": ["A"]}), "1 different"),
        )
    ),
    *(
        BadInput(name, build, message, task="answering")
        for name, build, message in (
            ("no question", _lines({"context": "a", "answers": []}), "no column `question`"),
            ("an empty question", _asked(question=" "), r"1 row\(s\) have no `question`.*: row 3"),
            ("no answers", _asked(answers=None), r"1 row\(s\) have no `answers`.*: row 3"),
            ("a text for answers", _asked(answers="Ada"), "row 3: column `answers` must hold"),
            (
                "an answer beside its place",
                _answered(["wave"], [5]),
                "row 3: column `answers`, answer 1: 'wave' is not at character 5 .* It first stands at character 4",
            ),
            (
                "an answer that is not in the context",
                _answered(["Wave"], [4]),
                "row 3: column `answers`, answer 1: 'Wave' is not at .* stands nowhere in it",
            ),
            ("an empty answer", _answered([""], [4]), "row 3: .* answer 1: expected a text"),
            ("a start that is no number", _answered(["wave"], ["4"]), "`answer_start` must be"),
            ("a start below zero", _answered(["."], [-1]), "`answer_start` must be a number"),
            ("fewer starts than answers", _answered(["wave"], []), r"has 1 text\(s\), but 0"),
            (
                "only empty contexts",
                _lines({"context": " ", "question": "a", "answers": []}),
                "no row with a `context`",
            ),
            (
                "no answer at all",
                _lines(*_questions(answers={"text": [], "answer_start": []})),
                "All .* training rows have the same label",
            ),
            (
                "an article without paragraphs that are a list",
                _file("data.json", '{"data": [{"paragraphs": 1}]}'),
                "article 1: expected an object with a list `paragraphs`",
            ),
            (
                "a paragraph without questions",
                _file("data.json", '{"data": [{"paragraphs": [{"context": "a"}]}]}'),
                "article 1, paragraph 1: expected an object with a list `qas`",
            ),
        )
    ),
)

"""Say why a tuned model answers as it does: for one text, or for the rows of a file."""

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lushan.data.formats import EXTENSIONS
from lushan.errors import DataError
from lushan.explain.explanation import Explanation, explain
from lushan.explain.page import page_parts
from lushan.explain.settings import ExplainSettings
from lushan.workflows.predict import Opened, Tell, ignore, open_rows, open_run, read_texts


def file_of(source: str) -> Path | None:
    """Tell a file from a text: what exists, or is one word with the extension of a table, is a file."""
    has_extension = source.casefold().removesuffix(".gz").endswith(EXTENSIONS)
    is_name = has_extension and not any(each.isspace() for each in source)
    try:
        return Path(source) if is_name or Path(source).exists() else None
    except (OSError, ValueError):  # longer than a name may be, or with a zero in it
        return None


def explain_text(
    run: Path,
    text: str,
    *,
    label: str | None = None,
    how: ExplainSettings | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Explanation:
    """Explain the answer to one text.

    Args:
        run: The folder that `lushan tune --out` wrote.
        text: A text, or a JSON object with the task's columns.
        label: Explain this label and not the one that was answered.
        how: Baseline, steps and checks.
        settings: As for `open_run`.

    Raises:
        UserError: If the run or the text does not fit, or there is no such label.
    """
    opened = open_run(run, settings)
    examples = read_texts(opened.predictor, [_row_or_text(text, opened)], caller="explain")
    (explanation,) = explain(opened.predictor, examples, label=label, settings=how)
    return explanation


def _row_or_text(text: str, opened: Opened) -> str | Mapping[str, Any]:
    columns = opened.predictor.task.columns
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and found.keys() <= set(columns.all_names):
        return found
    if columns.asked_with:
        names = ", ".join(f'"{name}": ...' for name in columns.asked.required)
        raise DataError(
            f"The task `{opened.task_name}` reads several columns, got {text[:60]!r}. "
            f"Give a JSON object, '{{{names}}}', or a file."
        )
    return text


def explain_rows(
    run: Path,
    data: Path,
    *,
    write: Callable[[Iterator[tuple[int, Explanation]]], None],
    label: str | None = None,
    how: ExplainSettings | None = None,
    settings: Mapping[str, Any] | None = None,
    tell: Tell = ignore,
) -> dict[str, Any]:
    """Explain the answers to the rows of one file, in its order; memory does not grow with it.

    Every row is read and checked before the first is explained.

    Args:
        run: The folder that `lushan tune --out` wrote.
        data: A file, or a folder with a test file.
        write: Takes each row's number and explanation while they are made.
        label: Explain this label and not the ones that were answered.
        how: Baseline, steps and checks.
        settings: As for `open_run`.
        tell: Takes one line for a person.

    Returns:
        What was done: run, data, task, model version, number of rows, seconds.

    Raises:
        UserError: If the run or the data does not fit, or there is no such label.
    """
    opened = open_run(run, settings)
    rows = open_rows(opened, data, needs_target=False)
    guessed = rows.notes
    num_examples = 0
    for _, example in rows:
        # A text that is too long must be found before any is explained.
        opened.predictor.encode([example])
        num_examples += 1
    for note in dict.fromkeys((*guessed, *rows.notes)):
        tell(note)
    started = time.perf_counter()
    numbers, examples = itertools.tee(rows)
    explained = explain(
        opened.predictor, (example for _, example in examples), label=label, settings=how
    )
    write((number, each) for (number, _), each in zip(numbers, explained, strict=True))
    return {
        "run": str(run),
        "data": str(rows.file),
        "task": opened.task_name,
        "model_version": opened.version,
        "num_examples": num_examples,
        "seconds": time.perf_counter() - started,
    }


def as_lines(explained: Iterable[tuple[int, Explanation]]) -> Iterator[str]:
    """Write one JSON object a line, each with the number of its row."""
    for number, explanation in explained:
        yield json.dumps({"row": number, **asdict(explanation)}, ensure_ascii=False) + "\n"


def as_page(explained: Iterable[tuple[int, Explanation]], *, run: Path) -> Iterator[str]:
    """Write one HTML page."""
    return page_parts(
        (explanation for _, explanation in explained),
        title="Why the model answers so",
        facts=f"Answers of {run}",
    )

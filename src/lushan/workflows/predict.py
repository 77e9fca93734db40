"""Ask a tuned model: about the rows of a file, or about texts in memory."""

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from lushan.atomic import write_parts
from lushan.backbones.encoding import LengthLimit
from lushan.backbones.packed import describe_weights
from lushan.data.columns import Columns, Notes
from lushan.data.readers import check_mapping, find_files, read_rows
from lushan.errors import DataError, RunError, SettingError
from lushan.explain.explanation import Explanation, explain
from lushan.explain.settings import ExplainSettings
from lushan.inference.generation_settings import check_room, check_settings
from lushan.inference.grammar import check_forms
from lushan.inference.predict import Advance, Predictor, cut_tokens
from lushan.model_store.run_folder import check_can_be_folder
from lushan.model_store.tuned_model import load_predictor, model_folder, read_meaning
from lushan.records import Example, Prediction, Row, plain_prediction
from lushan.settings import build, read_yaml
from lushan.workflows.prepare import columns_for
from lushan.workflows.progress import Tell
from lushan.workflows.recipe import TuneRecipe

CHUNK_ROWS = 4096
"""Rows that are answered together: enough to sort by length, few enough to keep."""
CHUNK_WRITTEN_ROWS = 256
"""The same where answers are written, which takes long: what is not finished is lost with its process."""
READ_SETTINGS = ("columns", "over_length")
"""What of `data` counts when a model is asked."""
RUN_CODE = ("task_settings", "run_code")
"""Allows `evaluate` to run what a model writes."""


def ignore(_: object) -> None:
    """Tell nobody."""


def start_anew(_: Mapping[str, Any]) -> int:
    """No line is there yet."""
    return 0


@dataclass(frozen=True, slots=True)
class Opened:
    """A tuned model, and how rows for it are read."""

    run: Path | None
    """Where it is; None for an untuned model."""
    predictor: Predictor
    task_name: str
    columns: Mapping[str, str]
    """The task's column name to the file's, as the user said for this call."""
    run_columns: Mapping[str, str]
    """The same, as it was said when the model was tuned."""

    def predict(self, texts: Sequence[str | Mapping[str, Any]]) -> list[Prediction]:
        """Answer texts, or rows by the task's columns where an answer needs more than a text; in order.

        Args:
            texts: Texts, or rows with the task's columns where it reads several, such as a context and a question.

        Raises:
            DataError: If one is empty, or too long under the `error` policy; `text 3` is the third.
        """
        return self.predictor.predict(read_texts(self.predictor, texts, caller="predict"))

    def explain(
        self,
        texts: Sequence[str | Mapping[str, Any]],
        *,
        label: str | None = None,
        **settings: Any,  # noqa: ANN401 - plain values, which `ExplainSettings` checks
    ) -> list[Explanation]:
        """Answer texts, or rows, and say which of their words made it so; in order.

        Args:
            texts: As for `predict`.
            label: Explain this label and not the one that was answered; of entities, only those of this label.
            settings: Those of `ExplainSettings`, such as `baseline="zero"`.

        Raises:
            DataError: As for `predict`, or if there is no such label.
            SettingError: If a setting is unknown or wrong.
        """
        how = build(ExplainSettings, settings, source="explain")
        examples = read_texts(self.predictor, texts, caller="explain")
        return list(explain(self.predictor, examples, label=label, settings=how))

    @property
    def weight_form(self) -> str:
        """How weights are held."""
        return self.predictor.backbone.weight_form or "fp32"

    @property
    def labels(self) -> tuple[str, ...]:
        """What the model can answer, in the order of the class numbers."""
        return self.predictor.state.labels

    @property
    def version(self) -> str:
        """Digest of the weights and their meaning."""
        return self.predictor.version


def read_texts(
    predictor: Predictor, texts: Sequence[str | Mapping[str, Any]], *, caller: str
) -> list[Example]:
    """Check texts, or rows by the task's columns, that are asked about.

    Args:
        predictor: Who is asked.
        texts: As for `Opened.predict`.
        caller: The method that was called, for messages.

    Raises:
        DataError: If one does not fit; `text 3` is the third.
    """
    if isinstance(texts, str):
        raise DataError(f"Expected a list of texts, got one text. Write `{caller}([{texts!r}])`.")
    column = predictor.task.columns.required[0]
    rows = (
        Row(each if isinstance(each, Mapping) else {column: each}, "text", number)
        for number, each in enumerate(texts, start=1)
    )
    several = predictor.state.multi_label
    return [predictor.task.read(row, multi_label=several, needs_target=False) for row in rows]


@dataclass(slots=True)
class Rows:
    """The rows of one file, read as often as they are asked for."""

    file: Path
    read: Callable[[Row], Example]
    columns: Mapping[str, str]
    wanted: Columns
    notes: list[str] = field(default_factory=list[str])
    """What was guessed or left out, once the rows were read to the end."""

    def __iter__(self) -> Iterator[tuple[int, Example]]:
        """Stream the rows with their number in the file; memory does not grow with it.

        Raises:
            DataError: If the file or a row does not fit.
        """
        found = Notes(self.file.name)
        for row in read_rows(self.file, columns=self.columns, wanted=self.wanted, notes=found):
            yield row.number, self.read(row)
        self.notes = found.lines()


def open_run(
    run: Path,
    settings: Mapping[str, Any] | None = None,
    *,
    weights: str = "auto",
    seed: int | None = None,
    tell: Tell = ignore,
) -> Opened:
    """Load a tuned model.

    Args:
        run: The folder that `lushan tune --out` wrote, or its `model` folder.
        settings: `data.columns` and `data.over_length`, nested; else those of the run.
        weights: How weights are held, one of `WeightsSetting`.
        seed: Of written answers that are drawn, where `settings` names none; else that of the run.
        tell: Takes one line for a person.

    Raises:
        RunError: If there is no whole tuned model.
        SettingError: If a setting is given that has no effect here.
    """
    recipe = _read_settings(settings or {})
    given = recipe.data
    folder = model_folder(run)
    task_name = read_meaning(folder).task
    predictor = load_predictor(run, weights=weights)
    if weights != "auto":
        tell(describe_weights(predictor.backbone))
    if "over_length" in given.model_fields_set:
        limit = LengthLimit(predictor.limit.max_tokens, given.over_length)
        predictor = replace(predictor, limit=limit)
    written = recipe.generation.model_dump(exclude_unset=True)
    if seed is not None and predictor.writes:
        written = {"seed": seed, **written}
    if written:
        predictor = with_generation(predictor, written, task_name)
    recipe_file = folder.parent / "recipe.yaml"
    is_of_run = folder.name == "model" and recipe_file.is_file()
    values = read_yaml(recipe_file) if is_of_run else {}
    data = values.get("data")
    run_columns = data.get("columns", {}) if isinstance(data, Mapping) else {}
    return Opened(run, predictor, task_name, given.columns, run_columns)


def with_generation(predictor: Predictor, given: Mapping[str, Any], task_name: str) -> Predictor:
    """Have a model that writes do so in another way.

    Raises:
        SettingError: If it writes nothing, or the settings do not go together.
    """
    if not predictor.writes:
        raise SettingError(
            f"Setting `generation.{next(iter(given))}` has no effect here: this model of the task `{task_name}` writes "
            "no free text. Remove it."
        )
    settings = predictor.generation.model_copy(update=dict(given))
    check_settings(settings)
    check_room(settings, context_tokens=predictor.backbone.facts.context_tokens)
    return replace(predictor, generation=settings)


def _read_settings(settings: Mapping[str, Any]) -> TuneRecipe:
    known = ", ".join([*(f"`data.{name}`" for name in READ_SETTINGS), "`generation`"])
    for part, values in settings.items():
        names = list(values) if isinstance(values, Mapping) else [""]
        for name in names:
            is_read = part == "data" and name in READ_SETTINGS
            if not is_read and part != "generation" and (part, name) != RUN_CODE:
                full_name = f"{part}.{name}".rstrip(".")
                raise SettingError(
                    f"Setting `{full_name}` has no effect here. What counts: {known}."
                )
    return build(TuneRecipe, settings, source="--set")


def open_rows(opened: Opened, data: Path, *, needs_target: bool) -> Rows:
    """Find the rows to ask about: those of a file, or of the test file of a folder.

    Raises:
        DataError: If there is no such file.
    """
    files, notes = find_files(data)
    if data.is_dir() and "test" not in files:
        raise DataError(
            f"`{data}` has no test file, only {', '.join(file.name for file in files.values())}. "
            "Name the file to read."
        )
    file = files["test"] if data.is_dir() else data
    predictor = opened.predictor
    state = predictor.state
    wanted = columns_for(
        predictor.task, multi_label=state.multi_label, length_control=bool(state.lengths)
    )
    check_mapping(opened.columns, wanted)
    if not needs_target:
        wanted = wanted.asked
    # A file that is only asked about need not have every column that the run was tuned on.
    names = {**opened.run_columns, **opened.columns}
    columns = {name: column for name, column in names.items() if name in wanted.all_names}
    read = partial(predictor.task.read, multi_label=state.multi_label, needs_target=needs_target)
    return Rows(file, read, columns, wanted, notes)


def predict(
    opened: Opened,
    data: Path,
    *,
    write: Callable[[Iterable[str]], None],
    num_written: Callable[[Mapping[str, Any]], int] = start_anew,
    tell: Tell = ignore,
    begin: Callable[[int], None] = ignore,
    advance: Advance = ignore,
) -> dict[str, Any]:
    """Answer the rows of one file: one JSON line a row, in the order of the file.

    Every row is read and checked before the first is answered.

    Args:
        opened: What `open_run` gave.
        data: A file, or a folder with a test file.
        write: Takes the lines, each with its line end, while they are made.
        num_written: Told what the lines depend on, says how many of them are there from an earlier call; see
            `AnswerFile`.
        tell: Takes one line for a person.
        begin: Called with the number of texts to answer.
        advance: Called with the number of texts that were answered since the last call.

    Returns:
        What was done: run, data, model version, number of rows, how many of them were cut and how many were there
        already, seconds.

    Raises:
        UserError: If the run or the data does not fit; nothing is written then.
    """
    rows = open_rows(opened, data, needs_target=False)
    for note in rows.notes:
        tell(note)
    predictor, digest = opened.predictor, hashlib.sha256()
    num_examples = num_cut = 0
    chunk_rows = CHUNK_WRITTEN_ROWS if predictor.writes else CHUNK_ROWS
    for chunk in _chunks(rows, chunk_rows):
        # A text that is too long, or a form that cannot be held, must be found before any is answered.
        examples = [example for _, example in chunk]
        num_cut += len(cut_tokens(predictor.encode(examples)))
        check_forms(examples, most_tokens=predictor.generation.max_new_tokens)
        num_examples += len(chunk)
        for number, example in chunk:
            digest.update(f"{number} {example.id}\n".encode())
    for note in rows.notes:
        tell(note)
    if num_cut:
        tell(told_cut(predictor, num_cut, num_examples))
    num_resumed = num_written({
        "model_version": opened.version,
        "weights": opened.weight_form,
        "rows": f"of SHA-256 {digest.hexdigest()[:16]}",
        "num_examples": num_examples,
        "chunk_rows": chunk_rows,
        "length_limit": asdict(predictor.limit),
        "generation": predictor.generation.model_dump() if predictor.writes else None,
    })
    begin(num_examples)
    advance(num_resumed)
    started = time.perf_counter()
    open_chunks = _chunks(rows, chunk_rows, num_skipped=num_resumed)
    write(_lines(predictor, open_chunks, advance=advance))
    return {
        "run": str(opened.run),
        "data": str(rows.file),
        "task": opened.task_name,
        "model_version": opened.version,
        "weights": opened.weight_form,
        "num_examples": num_examples,
        "num_cut_examples": num_cut,
        "num_resumed": num_resumed,
        "seconds": time.perf_counter() - started,
    }


def told_cut(predictor: Predictor, num_cut: int, num_examples: int) -> str:
    """Say for people that not all of some rows was read."""
    return (
        f"{num_cut:,} of {num_examples:,} rows were longer than {predictor.asked_limit.max_tokens:,} tokens and were cut "
        "(`data.over_length=truncate`): the model answers from what is left of them."
    )


def _lines(
    predictor: Predictor, chunks: Iterable[list[tuple[int, Example]]], *, advance: Advance
) -> Iterator[str]:
    for chunk in chunks:
        predictions = predictor.predict([example for _, example in chunk], advance=advance)
        for (number, _), prediction in zip(chunk, predictions, strict=True):
            line = {"row": number, **plain_prediction(prediction)}
            yield json.dumps(line, ensure_ascii=False) + "\n"


def _chunks(
    rows: Rows, chunk_rows: int, *, num_skipped: int = 0
) -> Iterator[list[tuple[int, Example]]]:
    stream = itertools.islice(rows, num_skipped, None)
    while chunk := list(itertools.islice(stream, chunk_rows)):
        yield chunk


def write_file(path: Path, lines: Iterable[str]) -> None:
    """Put lines into a file, which appears when the last is written; the folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_parts(path, lines)


def check_output(path: Path | None, *, overwrite: bool) -> None:
    """Refuse a file that is there already.

    Raises:
        RunError: If it is, and `overwrite` is not set; or if it is a folder, or below a file.
    """
    if path is None:
        return
    check_can_be_folder(path.parent, out=path)
    if path.is_dir():
        raise RunError(f"`--out {path}` is a folder. Name a file.")
    if path.exists() and not path.is_file():
        raise RunError(
            f"`--out {path}` is a device or a pipe, which cannot be replaced. Name a file, or leave `--out` out "
            "to have the answers on stdout."
        )
    if path.exists() and not overwrite:
        raise RunError(f"`--out {path}` is there already. Name another file, or add `--overwrite`.")


def check_input_stays(path: Path | None, *, run: Path, data: Path | None) -> None:
    """Refuse a file to write that is read here, if any is, or belongs to the run.

    Raises:
        RunError: If it would be replaced.
        DataError: If there is no data.
    """
    if path is None or not path.exists():
        return
    if data and any(path.samefile(file) for file in find_files(data)[0].values()):
        raise RunError(f"`--out {path}` is the input itself. Name another file.")
    if run.resolve() in path.resolve().parents:
        raise RunError(
            f"`--out {path}` is a file of the run in `{run}`. Name one outside of its folder."
        )

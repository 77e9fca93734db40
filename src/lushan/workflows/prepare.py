"""The first step of every run: files to checked examples in three parts, with a ledger of the rows."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lushan.data.checks import Findings, OverlapCounts, check_parts, remove_overlap
from lushan.data.columns import Columns, Notes, looks_like_list, unpacked
from lushan.data.example_store import ExampleStore
from lushan.data.ledger import Ledger, count_rows
from lushan.data.readers import Dataset, find_files, read_dataset, read_rows
from lushan.data.splits import Parts, split, subsample
from lushan.errors import DataError, SettingError
from lushan.records import SPLIT_NAMES, Example, Row, SplitName
from lushan.tasks import Task
from lushan.workflows.added_rows import NONE_ADDED, Added, count_added, read_added, with_added
from lushan.workflows.progress import Progress, Tell, say_nothing
from lushan.workflows.recipe import DataSettings, TuneRecipe

EMPTY = "empty"
EXACT = "exact overlap"
NEAR = "near overlap"
NOT_DRAWN = "not drawn"
MULTI_LABEL_SEPARATOR = "|"
NUM_PEEKED_ROWS = 1000
_FAR_BELOW = 0.5
"""A part with less of its share than this is told of."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The data of a run, checked."""

    parts: Parts
    multi_label: bool
    """Whether targets are tuples of labels."""
    ledger: Ledger
    """Rows so far; tokens are counted once there is a tokenizer."""
    findings: Findings
    overlap: OverlapCounts
    notes: list[str]
    """What was guessed, changed, taken out or is worth a look, for a person."""
    fingerprint: str
    """Hash of the files' content."""
    digests: Mapping[str, str] = field(default_factory=dict[str, str])
    """SHA-256 of each file: that of each split, and `added`."""
    weighs_classes: bool = True
    """Whether the task can give rare classes more weight."""
    whole: "Prepared | None" = None
    """The same before rows were drawn; None where none were."""


def prepare(path: Path, *, task: Task, recipe: TuneRecipe, tell: Tell = say_nothing) -> Prepared:
    """Read, split where needed, take out overlap, draw, and check.

    Args:
        path: A file, or a folder with train, validation and test files.
        task: What gives the rows their meaning.
        recipe: `data`, `task_settings.multi_label` and `seed` count here.
        tell: Hears how far it has come, where it takes long.

    Raises:
        DataError: If the data does not fit; says where and what to do.
        SettingError: If a share of rows leaves none, or was given for a split that is there.
    """
    columns = recipe.data.columns
    multi_label = recipe.task_settings.multi_label
    if multi_label is None:
        multi_label = "multi_label" in task.settings and holds_lists(
            path, task=task, columns=columns
        )
    progress = Progress(tell, "Read {} rows so far.")

    def read(row: Row) -> Example:
        progress.advance()
        return task.read(row, multi_label=multi_label)

    wanted = columns_for(
        task, multi_label=multi_label, length_control=recipe.task_settings.length_control
    )
    dataset = read_dataset(
        path,
        columns=columns,
        wanted=wanted,
        read=read,
        collect=ExampleStore.collect,
    )
    added = NONE_ADDED
    if recipe.data.added is not None:
        file = Path(recipe.data.added)
        added = read_added(file, task=task, wanted=wanted, multi_label=multi_label)
        fingerprint = hashlib.sha256(f"{dataset.fingerprint} {added.digest}".encode()).hexdigest()
        dataset = replace(dataset, fingerprint=fingerprint[:16])
    weighs = "class_weights" in task.settings
    return arrange(
        dataset,
        recipe,
        multi_label=multi_label,
        weighs_classes=weighs,
        added=added,
        tell=tell,
    )


def arrange(
    dataset: Dataset[Example],
    recipe: TuneRecipe,
    *,
    multi_label: bool,
    needs_test: bool = True,
    weighs_classes: bool = True,
    added: Added = NONE_ADDED,
    tell: Tell = say_nothing,
) -> Prepared:
    """Split examples where needed, take out overlap, draw, and check.

    Args:
        dataset: Examples of one split or more.
        recipe: `data` and `seed` count here.
        multi_label: Whether targets are tuples of labels.
        needs_test: Whether there must be test rows; else none are cut off.
        weighs_classes: Whether the task can give rare classes more weight.
        added: Rows to train on that a model wrote or labelled; they come in behind the split.
        tell: Hears how far it has come, where it takes long.

    Raises:
        DataError: If the data does not fit; says where and what to do.
        SettingError: If a share of rows leaves none, or was given for a split that is there.
    """
    data, seed = recipe.data, recipe.seed
    notes = list(dataset.notes)
    if multi_label:
        notes.append("A text can have several labels (`task_settings.multi_label=true`).")
    splits = dict(dataset.splits)
    if not needs_test:
        splits["test"] = []
    parts, split_notes = _complete(splits, data, seed=seed)
    parts = with_added(parts, added.examples)
    progress = Progress(tell, "Looked for {} rows in the later splits so far.")
    parts, overlap = remove_overlap(
        parts, data.overlap, are_given="test" in splits, advance=progress.advance
    )
    notes += [*split_notes, *added.notes, *overlap.lines()]
    try:
        findings = check_parts(parts, needs_test=needs_test, weighs_classes=weighs_classes)
    except DataError as error:
        exact, near = (
            each["train"] for each in (overlap.num_exact_removed, overlap.num_near_removed)
        )
        if not exact + near:
            raise
        # What was taken out may be why.
        shown = overlap.shown[0]
        raise DataError(
            f"{error} Before that, {exact + near:,} training row(s) were taken out, as validation or test has them too "
            f"({exact:,} exactly, {near:,} nearly), such as {shown.earlier_place} and {shown.later_place}."
        ) from None
    notes += findings.warnings
    dropped: dict[SplitName, dict[str, int]] = {
        name: {
            EMPTY: dataset.num_empty.get(name, 0),
            EXACT: overlap.num_exact_removed[name],
            NEAR: overlap.num_near_removed[name],
        }
        for name in SPLIT_NAMES
    }
    prepared = Prepared(
        parts,
        multi_label=multi_label,
        ledger=count_rows(
            parts,
            dropped,
            overlap=overlap.pairs,
            num_added=count_added(parts.train) if added.examples else 0,
        ),
        findings=findings,
        overlap=overlap,
        notes=notes,
        fingerprint=dataset.fingerprint,
        digests={**dataset.digests, **({"added": added.digest} if added.digest else {})},
        weighs_classes=weighs_classes,
    )
    if data.max_train_rows is None:
        return prepared
    return draw(prepared, data.max_train_rows, seed=seed, why="`data.max_train_rows`")


def draw(prepared: Prepared, num_rows: int, *, seed: int, why: str) -> Prepared:
    """Keep at most `num_rows` training rows, drawn per label; told, counted and checked as all were.

    They are drawn of the rows as they were before any draw, so that the same are drawn again at once.

    Raises:
        DataError: If the rows that are left cannot be trained on, as they have one label only, or not all.
    """
    whole = prepared.whole or prepared
    train = subsample(whole.parts.train, num_rows, seed=seed)
    num_gone = len(whole.parts.train) - len(train)
    if not num_gone:
        return whole
    parts = replace(whole.parts, train=train)
    try:
        findings = check_parts(
            parts, needs_test=bool(parts.test), weighs_classes=whole.weighs_classes
        )
    except DataError as error:
        raise DataError(
            f"{len(train):,} of {len(train) + num_gone:,} training rows were to be drawn ({why}): too few. "
            f"Allow more. With them alone: {error}"
        ) from None
    dropped: dict[SplitName, dict[str, int]] = {
        name: dict(each.num_dropped) for name, each in whole.ledger.splits.items()
    }
    dropped["train"][NOT_DRAWN] = num_gone
    num_added = count_added(train) if whole.ledger.splits["train"].num_added else 0
    note = f"{len(train):,} of {len(train) + num_gone:,} training rows were drawn ({why})."
    kept = [each for each in whole.notes if each not in whole.findings.warnings]
    return replace(
        whole,
        parts=parts,
        ledger=count_rows(parts, dropped, overlap=whole.ledger.overlap, num_added=num_added),
        findings=findings,
        notes=[*kept, note, *findings.warnings],
        whole=whole,
    )


def columns_for(task: Task, *, multi_label: bool, length_control: bool = False) -> Columns:
    """Give the columns that are read of files.

    Args:
        task: Whose columns.
        multi_label: Whether a text can have several labels, so that labels are lists.
        length_control: Whether the model learns, or has learned, to keep to a length that is wanted.
    """
    columns = task.columns if length_control else task.columns.without_lengths()
    return replace(columns, lists=columns.lists if multi_label else ())


def holds_lists(path: Path, *, task: Task, columns: Mapping[str, str]) -> bool:
    """Say whether the labels of the first rows are lists, or texts cut by `|`.

    Raises:
        DataError: If they cannot be read.
    """
    file = next(iter(find_files(path)[0].values()))
    wanted = columns_for(task, multi_label=False)
    rows = read_rows(file, columns=columns, wanted=wanted, notes=Notes(file.name))
    peeked = list(itertools.islice(rows, NUM_PEEKED_ROWS))
    labels = [row.values.get(name) for row in peeked for name in task.columns.lists]
    return any(
        isinstance(unpacked(each), list | tuple)
        or looks_like_list(each)  # if it is no JSON, its row is refused later
        or (isinstance(each, str) and MULTI_LABEL_SEPARATOR in each)
        for each in labels
    )


def _complete(
    splits: Mapping[SplitName, Sequence[Example]], data: DataSettings, *, seed: int
) -> tuple[Parts, list[str]]:
    """Cut what is missing off the training rows.

    Raises:
        DataError: If there are no training rows, or too few.
        SettingError: If the shares leave none, or one was given for a split that is there.
    """
    if "train" not in splits:
        raise DataError(
            f"There is no train file, only {', '.join(splits)}. Call the file with the training rows "
            "`train`, or give one file, which is then split."
        )
    fractions: dict[SplitName, float] = {
        "validation": data.validation_fraction,
        "test": data.test_fraction,
    }
    missing: list[SplitName] = [name for name in fractions if name not in splits]
    for name, fraction in fractions.items():
        # The usual value is no mistake: the recipe of a run says every setting, and may be given again.
        usual = DataSettings.model_fields[f"{name}_fraction"].default
        if name in splits and fraction != usual:
            raise SettingError(
                f"Setting `data.{name}_fraction` has no effect here: the data has a {name} file. Remove one of the two."
            )
    if not missing:
        return Parts(splits["train"], splits["validation"], splits["test"]), []
    if sum(fractions[name] for name in missing) >= 1:
        raise SettingError(
            f"`data.validation_fraction={data.validation_fraction:g}` and `data.test_fraction="
            f"{data.test_fraction:g}` leave no rows to train on: together they must be below 1. Lower one."
        )
    cut = split(
        splits["train"],
        validation_fraction=fractions["validation"] if "validation" in missing else 0.0,
        test_fraction=fractions["test"] if "test" in missing else 0.0,
        seed=seed,
    )
    parts = Parts(
        cut.train,
        validation=splits.get("validation", cut.validation),
        test=splits.get("test", cut.test),
    )
    notes = [
        f"No {name} split: {len(parts.of(name)):,} of {len(splits['train']):,} rows were cut off for it "
        f"(`data.{name}_fraction={fractions[name]:g}`), per label, equal texts together."
        for name in missing
    ]
    for name in missing:
        num_rows, share = len(parts.of(name)), fractions[name] * len(splits["train"])
        if num_rows < _FAR_BELOW * share:
            notes.append(
                f"The {name} split has {num_rows:,} rows in place of some {share:,.0f}: rows that belong together (equal texts, "
                "conversations that begin alike), or have a rare label, were not dealt out. Give it a file of its own."
            )
    return parts, notes

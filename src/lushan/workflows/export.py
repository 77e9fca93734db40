"""Store a tuned model in a form that other programs load, ask the program itself, and tell what quality it costs."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lushan
from lushan.atomic import LOCK, is_abandoned, kept_folder, write_json
from lushan.catalog import load_task
from lushan.errors import CertificateError, DataError, ModelError, RunError, SettingError, need
from lushan.model_store.certificate import read_probes
from lushan.model_store.export_certificate import EXPORT_FILE, EXPORTS
from lushan.model_store.exports import SCRATCH, load_form
from lushan.model_store.merged import load_merged
from lushan.model_store.run_folder import check_can_be_folder, check_can_be_told, check_keeps
from lushan.model_store.tuned_model import model_folder
from lushan.records import Example
from lushan.settings import build, read_yaml
from lushan.workflows.evaluate import check_labels
from lushan.workflows.export_check import ExportCheck, Rows, ask
from lushan.workflows.predict import RUN_CODE, Opened, Tell, ignore, open_rows, open_run
from lushan.workflows.prepare import prepare
from lushan.workflows.recipe import TuneRecipe
from lushan.workflows.seen_rows import SEEN, is_tuned_on

SCHEMA_VERSION = 1
_NEW, _OLD = "new", "old"
"""The export that is being made, and the one that is being replaced, while the new one takes its place."""


def export(
    run: Path,
    *,
    to: str,
    out: Path | None = None,
    quantise: str | None = None,
    data: Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    tell: Tell = ignore,
) -> dict[str, Any]:
    """Write a run's model in another form; it appears when it has answered as the run does.

    Args:
        run: The folder that `lushan tune --out` wrote.
        to: Name of the form: `hf`, `gguf`, `onnx`, `openvino`.
        out: The folder to write; None takes one in `exports` of the run.
        quantise: How weights are stored; None takes the form's usual way.
        data: Labelled rows that both are asked about; None takes the run's own test rows.
        overwrite: Replace `out`, if it holds an export.
        seed: Of the bootstrap intervals.
        tell: Takes one line for a person.

    Returns:
        The content of `export.json`.

    Raises:
        UserError: If there is no such form, the model has none, or it costs more quality than the form may.
        CertificateError: If the program that is to load it cannot, or computes something else.
    """
    form = load_form(to)
    quantise = quantise or next(iter(form.tolerances))
    if quantise not in form.tolerances:
        raise SettingError(
            f"`--quantise {quantise}` is none of `--to {to}`. Known: {', '.join(form.tolerances)}."
        )
    out = out or run / EXPORTS / (to if quantise == "none" else f"{to}-{quantise}")
    needed = [run, *([data] if data else [])]
    check_can_be_told(out, *needed)
    place = out.resolve()  # a link stays, and `.` has a name
    is_here = place.is_dir() and place.samefile(".")
    _clear_abandoned(place)
    _check_place(out, needed=needed, overwrite=overwrite)
    opened = open_run(run)
    predictor = opened.predictor
    layer = predictor.task.layer(predictor.state, answer=predictor.answer)
    form.check(predictor, layer.purpose)
    for package in form.packages:
        need(package, extra="export", purpose=f"`--to {to}`")
    rows = _rows(run, opened, data, tell=tell)
    tell(f"Asking the run about {len(rows.examples):,} rows: {rows.source}.")
    own = ask(predictor, rows)
    version = predictor.version
    del opened, predictor  # run and export are not in memory together
    merged = load_merged(run)
    with _beside(place) as folder:
        tell(f"Writing {to}, {quantise}.")
        notes = [*merged.notes, *form.write(merged, folder, quantise=quantise)]
        with _refused(folder, place, tell=tell):
            check = ExportCheck(form, to, quantise, folder=folder, merged=merged, rows=rows)
            told = check.run(own, seed=seed, tell=tell)
        for note in notes:
            tell(note)
        content = {
            "schema_version": SCHEMA_VERSION,
            "lushan": lushan.__version__,
            "form": to,
            "quantise": quantise,
            "run": str(run),
            "model_version": version,
            "task": merged.meaning.task,
            **told,
            "notes": notes,
            "files": _files(folder),
        }
        write_json(folder / EXPORT_FILE, content)
    if is_here:
        tell(f"The folder that you are in was replaced: `cd {place}` shows what is in the new one.")
    return {**content, "out": str(out)}


def _check_place(out: Path, *, needed: Sequence[Path], overwrite: bool) -> None:
    """Refuse a folder that cannot be written; changes nothing.

    Raises:
        RunError: If it is a file, holds something else than an export, or an export that is not to be replaced.
    """
    check_can_be_folder(out, out=out)
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (out / EXPORT_FILE).is_file():
        raise RunError(
            f"`--out {out}` holds files that are no export. Name an empty or a new folder."
        )
    if not overwrite:
        raise RunError(
            f"`--out {out}` holds an export already. Name another folder, or add `--overwrite`."
        )
    check_keeps(out, needed=needed)


def _clear_abandoned(out: Path) -> None:
    """Remove what killed exports left beside `out`; the older export that one of them had put aside comes back first."""
    if not out.parent.is_dir():
        return
    ours = re.compile(rf"\.{re.escape(out.name)}\.[^.]+\.part")
    for place in list(out.parent.glob(".*.part")):
        if not ours.fullmatch(place.name) or not is_abandoned(place):
            continue
        left = {each.name for each in place.iterdir()}
        if not left <= {_NEW, _OLD, SCRATCH, LOCK}:
            continue
        if _OLD in left and not out.exists():
            (place / _OLD).rename(out)
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """Give a folder that takes the place of `out` when the block is done."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with kept_folder(out.parent, name=out.name) as place:
        folder = place / _NEW
        folder.mkdir()
        yield folder
        for file in folder.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        if out.is_dir():
            out.rename(place / _OLD)
        folder.rename(out)


@contextmanager
def _refused(folder: Path, out: Path, *, tell: Tell) -> Iterator[None]:
    """Put files that fail their check where nobody takes them for good ones."""
    try:
        yield
    except (CertificateError, ModelError):
        refused = out.with_name(f"{out.name}-refused")
        shutil.rmtree(refused, ignore_errors=True)
        shutil.copytree(folder, refused)
        tell(f"What was refused is in `{refused}`.")
        raise


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and digest of every file, by which a copy that is not whole is found."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(each for each in folder.rglob("*") if each.is_file()):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        found[str(file.relative_to(folder))] = {"bytes": file.stat().st_size, "sha256": digest}
    return found


def _rows(run: Path, opened: Opened, data: Path | None, *, tell: Tell) -> Rows:
    """Give the rows of a file, else the run's own test rows, else the texts of its certificate, which have no truth.

    Raises:
        UserError: If there are none.
    """
    # Else the task would run what the model writes.
    is_scored = RUN_CODE[1] not in opened.predictor.task.settings
    if data is not None:
        rows = open_rows(opened, data, needs_target=True)
        examples = [example for _, example in rows]
        for note in rows.notes:
            tell(note)
        check_labels(opened.predictor, examples)
        is_seen = is_tuned_on(run, rows.file)
        if is_seen:
            tell(SEEN.format(rows.file))
        return Rows(str(rows.file), examples, is_scored=is_scored, seen_in_training=is_seen)
    examples = _own_test_rows(run, opened.task_name, tell=tell)
    if examples is not None:
        return Rows("the run's test rows", examples, is_scored=is_scored)
    tell("The data of the run is gone or changed, so nothing is scored; `--data DATA` names rows.")
    try:
        probes = read_probes(model_folder(run).parent)
    except RunError:
        raise RunError(
            f"`{run}` has neither its data nor texts to compare answers on. Name rows: `--data DATA`."
        ) from None
    return Rows("the texts of the certificate", probes, has_truth=False, is_scored=False)


def _own_test_rows(run: Path, task_name: str, *, tell: Tell) -> list[Example] | None:
    """Cut the test rows off the data of a run as it did; None where that is not there any more."""
    status_file, recipe_file = run / "run.json", run / "recipe.yaml"
    if not status_file.is_file() or not recipe_file.is_file():
        return None
    status = json.loads(status_file.read_text(encoding="utf-8"))
    data = Path(status.get("data") or "")
    if not data.is_absolute() or not data.exists():
        return None
    recipe = build(TuneRecipe, read_yaml(recipe_file), source=str(recipe_file))
    try:
        prepared = prepare(data, task=load_task(task_name), recipe=recipe)
    except (DataError, SettingError) as error:
        tell(f"The data of the run no longer gives its test rows: {error}")
        return None
    return list(prepared.parts.test) if prepared.fingerprint == status["fingerprint"] else None

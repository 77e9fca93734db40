"""Proof that an export answers like the run it was written from, through the program that is to load it; and replayed later.

Its certificate stands among its files and is read and compared as that of a run. What it expects is what the program said in
a fresh process, once that was held against Lushan; so a replay allows only what the program itself differs by.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np

from lushan.atomic import write_json
from lushan.backbones.load import Backbone
from lushan.backbones.tokenizer import PROBES
from lushan.catalog import load_task
from lushan.errors import CertificateError, RunError, need
from lushan.inference.predict import Predictor
from lushan.model_store.certificate import (
    CERTIFICATE,
    SCHEMA_VERSION,
    check_files,
    is_export,
    read_certificate,
    read_probes,
    tolerances,
    write_probes,
)
from lushan.model_store.digests import digests_of, files_of_model
from lushan.model_store.export_program import (
    Questions,
    ask_program,
    check_labels,
    check_tokens,
    first_tokens,
)
from lushan.model_store.exports import Form, Likeliest, TextRules, form_names, load_form
from lushan.model_store.probes import (
    NUM_PROBES,
    RENDERER,
    SAME_ARITHMETIC,
    IsTie,
    Tolerance,
    compare,
    describe_chosen,
    describe_renderer,
    describe_written,
    never,
    prompts_of,
)
from lushan.model_store.tuned_model import read_meaning
from lushan.records import Example, Features

EXPORTS = "exports"
"""The folder of a run that its exports are written into."""
EXPORT_FILE = "export.json"
"""In the folder of an export: what it was held against, and what quality it costs."""


class Described(NamedTuple):
    """What a program said of the probes."""

    program: str
    answers: dict[str, Any]
    """As `describe_answers` tells them of a run's model."""
    is_tie: IsTie


def certify_export(
    name: str,
    folder: Path,
    *,
    quantise: str,
    run: Predictor,
    reads: Predictor,
    probes: Sequence[Example],
) -> dict[str, Any]:
    """Have the program answer the probes in a fresh process, and write `certificate.json` beside the files.

    Args:
        name: The form.
        folder: The export, whose scores were held against those of the run.
        quantise: How its weights are stored.
        run: The model that it was written from; asked how it reads texts, and not what it answers.
        reads: What Lushan makes of the files.
        probes: Texts to ask about; the first 32 are used.

    Raises:
        CertificateError: If the files have other labels, another threshold, chat template or length limit than the run, or
            cut a text into other tokens.
    """
    form = load_form(name)
    write_probes(folder, probes[:NUM_PROBES])
    asked = read_probes(folder)
    rules = describe_renderer(run, run.encode(asked))
    written: Sequence[Sequence[int]] = ()
    if _follows(form, run):
        reading = _reader(form, folder)
        features = reading.encode(asked)
        prompts = [Features(tuple(each), "probe", 0) for each in _prompts(form, features)]
        written = describe_written(reads, prompts)["written_ids"]
    found = _describe(name, folder, asked, written=written)
    compare(
        {x: rules[x] for x in (*RENDERER, "token_ids") if x not in form.own_rules}, found.answers
    )
    certificate = {
        "schema_version": SCHEMA_VERSION,
        "model_version": run.version,
        "form": name,
        "quantise": quantise,
        "program": found.program,
        "precision": read_meaning(folder).precision,
        "num_probes": len(asked),
        "largest_difference": 0.0,
        "tolerances": tolerances() | {x: each._asdict() for x, each in form.arithmetic.items()},
        "files": digests_of(folder, files_of_model(folder)),
        "base_files": {},
        "answers": found.answers,
    }
    write_json(folder / CERTIFICATE, certificate)
    return certificate


def is_export_folder(folder: Path) -> bool:
    """Whether a folder is an export, by what it says about itself.

    Raises:
        RunError: If its certificate is broken or of a newer version.
    """
    if (folder / EXPORT_FILE).is_file():
        return True
    return (folder / CERTIFICATE).is_file() and is_export(read_certificate(folder))


def replay_export(folder: Path) -> dict[str, Any]:
    """Have the program answer in a fresh process what the certificate was made with, and hold it and the files to it.

    Returns:
        `form`, `model_version` of the run, `program` and `largest_difference`.

    Raises:
        CertificateError: If a file, a label, a token or an answer differs; names it, and what was expected.
        UserError: If the certificate cannot be read, or the program is not installed.
    """
    if not (folder / CERTIFICATE).is_file():
        raise RunError(
            f"`{folder}` has no `{CERTIFICATE}`: nothing proves that this export answers as it did. Write it again with "
            "`lushan export RUN --to FORM --overwrite`, or copy the whole folder."
        )
    certificate = read_certificate(folder)
    name = certificate["form"]
    if name not in form_names():
        raise RunError(
            f"`{folder / CERTIFICATE}` is about the form `{name}`. Known: {', '.join(form_names())}. Update Lushan."
        )
    form = load_form(name)
    need(form.program, extra="export", purpose=f"An export as `{name}`")
    _check_run(folder, certificate["model_version"])
    check_files(folder, certificate)
    expected = certificate["answers"]
    quantise = certificate.get("quantise")
    arithmetic = quantise if quantise in form.arithmetic else "fp32"
    tolerance = Tolerance(**certificate["tolerances"][arithmetic])
    found = _describe(
        name,
        folder,
        read_probes(folder),
        written=expected.get("written_ids", ()),
        tolerance=tolerance,
    )
    difference = compare(expected, found.answers, tolerance=tolerance, is_tie=found.is_tie)
    return {
        "form": name,
        "model_version": certificate["model_version"],
        "program": found.program,
        "largest_difference": difference,
    }


def _check_run(folder: Path, version: str) -> None:
    """Refuse an export among those of a run that has another model by now.

    Raises:
        CertificateError: If so.
    """
    run = folder.resolve().parent.parent
    if folder.resolve().parent.name != EXPORTS or not (run / CERTIFICATE).is_file():
        return
    of_run = read_certificate(run)["model_version"]
    if of_run != version:
        raise CertificateError(
            f"It was written from version {version}, and `{run}` has version {of_run}: it is an export of another model. "
            "Write it again with `lushan export --overwrite`."
        )


def _follows(form: Form, predictor: Predictor) -> bool:
    """Whether the program is asked what it writes, and not for scores."""
    layer = predictor.task.layer(predictor.state, answer=predictor.answer)
    return layer.purpose == "language" and not form.scores_vocabulary


class _Rules:
    """Stands where a predictor expects a backbone that it only asks how texts are read."""

    def __init__(self, rules: TextRules) -> None:
        self.tokenizer = rules.tokenizer
        self.facts = SimpleNamespace(context_tokens=rules.context_tokens)
        generation = SimpleNamespace(eos_token_id=list(rules.stop_ids))
        self.plain_model = SimpleNamespace(generation_config=generation)


def _reader(form: Form, folder: Path) -> Predictor:
    """Give a predictor that reads texts as the files say; it has no weights."""
    meaning = read_meaning(folder)
    return Predictor(
        cast("Backbone", _Rules(form.read_rules(folder))),
        load_task(meaning.task),
        meaning.state,
        meaning.answer,
        meaning.limit,
        generation=meaning.generation,
    )


def _prompts(form: Form, features: Sequence[Features]) -> list[list[int]]:
    most = form.most_prompt_tokens
    return [each if most is None else each[-most:] for each in prompts_of(features)]


def _describe(
    name: str,
    folder: Path,
    probes: Sequence[Example],
    *,
    written: Sequence[Sequence[int]],
    tolerance: Tolerance = SAME_ARITHMETIC,
) -> Described:
    """Ask the program about the probes.

    Args:
        name: The form.
        folder: The export.
        probes: What is asked.
        written: What the program is thought to write, of one that writes.
        tolerance: By how much two tokens may differ that are taken for equally likely.
    """
    form = load_form(name)
    reader = _reader(form, folder)
    task, state = reader.task, reader.state
    layer = task.layer(state, answer=reader.answer)
    features = reader.encode(probes)
    questions = Questions(name, str(folder), read_meaning(folder).task, len(layer.labels))
    rules = describe_renderer(reader, features)
    if not _follows(form, reader):
        found = ask_program(replace(questions, documents=features))
        check_labels(layer.labels, found)
        chosen = describe_chosen(reader.decode(found.outputs, features, probes))
        return Described(found.program, {**rules, **chosen}, never)
    prompts = _prompts(form, features)
    texts = [*PROBES, *(each.shown for each in probes[: len(prompts)])]
    found = ask_program(
        replace(questions, prompts=prompts, answers=written, texts=texts, writes=True)
    )
    check_tokens(reader.backbone.tokenizer, texts, found)
    told = {
        "written_ids": [first_tokens(each) for each in found.followed],
        "log_likelihoods": [[place[0][1] for place in each] for each in found.followed],
    }
    return Described(found.program, {**rules, **told}, _ties_of(found.followed, tolerance))


def _ties_of(followed: Sequence[Sequence[Likeliest]], tolerance: Tolerance) -> IsTie:
    """Make the judge of two tokens: does the program take them for as likely as each other?"""

    def is_tie(number: int, written: Sequence[int], found: int, expected: int) -> bool:
        likeliest = dict(followed[number][len(written)])
        return likeliest[found] - likeliest.get(expected, -np.inf) <= tolerance.log_likelihood

    return is_tie

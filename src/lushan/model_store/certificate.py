"""Proof that a saved model answers like the one that was trained: reloaded in a fresh process, asked the same.

`certify` makes it; `replay` holds a model that is about to be served to it, in its own process.
`python -m lushan.model_store.certificate RUN` is the fresh process; it prints its answers as one JSON line.
That of an export is made in `export_certificate.py`, of the same parts.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lushan.atomic import write_json
from lushan.backbones import native
from lushan.backbones.sources import locate
from lushan.errors import CertificateError, RunError
from lushan.inference.generate import Generated
from lushan.inference.predict import Predictor
from lushan.model_store.digests import (
    BASE_FILES,
    WEIGHTS,
    check_digests,
    digests_of,
    files_of_model,
)
from lushan.model_store.probes import (
    NUM_PROBES,
    TOLERANCES,
    Tolerance,
    compare,
    describe_answers,
    describe_generated,
    describe_renderer,
    ties_of,
)
from lushan.model_store.tuned_model import load_predictor, model_version, read_meaning
from lushan.records import Example

SCHEMA_VERSION = 3
"""Of the certificate. Version 1 knew no files, stop tokens, chat template or log-likelihoods; up to 2, what ends a turn of the
chat template was no stop token."""
_PROBES = "probes.json"
CERTIFICATE = "certificate.json"
RUN_FORMS = ("whole", "adapter")
"""What `form` says of the model of a run; of an export it is the name of its form."""
_NEEDED = ("model_version", "precision", "tolerances", "answers")


def certify(run: Path, predictor: Predictor, examples: Sequence[Example]) -> dict[str, Any]:
    """Reload the run's model in a fresh process, compare its answers with `predictor`'s, write `certificate.json`.

    Args:
        run: The run folder, with a whole `model` folder.
        predictor: The model as it was trained, still in memory.
        examples: Texts to ask about; the first 32 are used.

    Raises:
        CertificateError: If renderer, labels or answers differ, or the model cannot be loaded. Then the model
            is in `model-refused`, where nobody takes it for a good one.
    """
    probes = list(examples[:NUM_PROBES])
    model = run / "model"
    write_probes(model, probes)
    expected = describe_answers(predictor, probes)
    try:
        difference = compare(expected, _answers_of_fresh_process(run))
    except CertificateError as error:
        shutil.rmtree(run / "model-refused", ignore_errors=True)
        model.rename(run / "model-refused")
        raise CertificateError(f"The saved model was not certified. {error}") from None
    base = _base_of_adapter(model)
    certificate = {
        "schema_version": SCHEMA_VERSION,
        "model_version": model_version(model),
        "form": "whole" if base is None else "adapter",
        "precision": read_meaning(model).precision,
        "num_probes": len(probes),
        "largest_difference": difference,
        "tolerances": tolerances(),
        "files": digests_of(model, files_of_model(model)),
        "base_files": {} if base is None else digests_of(base, BASE_FILES),
        "answers": expected,
    }
    write_json(run / CERTIFICATE, certificate)
    return certificate


def replay(run: Path, predictor: Predictor, *, written: Sequence[Generated] | None = None) -> float:
    """Ask a loaded model what its certificate was made with, and hold its answers and its files to it.

    Args:
        run: The run folder, or its `model` folder.
        predictor: The model as `load_predictor` gave it, in the form that is to be served; that decides what may differ.
        written: What another program wrote when it was asked `written_questions`; None asks the model.

    Returns:
        The largest difference of a probability or log-likelihood.

    Raises:
        CertificateError: If a file, the renderer, the labels or an answer differs; names it, and what was expected.
        RunError: If there is no certificate, or it is broken or of a newer version.
    """
    model = _model_folder(run)
    certificate = read_certificate(run)
    _check_files(model, certificate, loaded_version=predictor.version)
    probes = read_probes(model)
    arithmetic = predictor.backbone.weight_form or certificate["precision"]
    if written is not None and arithmetic in ("int8", "int4"):
        arithmetic = "bf16"  # another program does not know how weights are packed here
    tolerance = Tolerance(**certificate["tolerances"][arithmetic])
    expected = certificate["answers"]
    if predictor.writes and "written_ids" not in expected:  # version 1 kept whole texts
        expected = {name: expected[name] for name in ("labels", "token_ids")}
    if written is None:
        found = describe_answers(predictor, probes, writes="written_ids" in expected)
    else:
        rules = describe_renderer(predictor, predictor.encode(probes))
        found = rules | describe_generated(written)
    is_tie = ties_of(predictor, found["token_ids"], tolerance=tolerance)
    return compare(expected, found, tolerance=tolerance, is_tie=is_tie)


def read_certificate(run: Path) -> dict[str, Any]:
    """Read the certificate of a run or an export; one of an older version says less.

    Args:
        run: The run folder, or its `model` folder, or that of an export.

    Raises:
        RunError: If there is none, or it is broken or of a newer version.
    """
    file = certificate_file(run)
    if not file.is_file():
        raise RunError(
            f"`{file}` is missing: nothing proves that this model answers as it was trained to. Finish the run with "
            "`lushan tune ... --resume`, or copy the whole run folder."
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        version = found["schema_version"]
        if version > SCHEMA_VERSION:
            raise RunError(
                f"`{file}` has schema version {version}; this Lushan reads up to {SCHEMA_VERSION}. Update Lushan."
            )
        if version == 1:
            found["tolerances"] = tolerances()
            found["precision"] = read_meaning(_model_folder(run)).precision
        if version < 3:  # files, tokenizer and template, which decide it, are compared all the same
            found["answers"].pop("stop_tokens", None)
        needed = _NEEDED if version == 1 else (*_NEEDED, "files", "base_files")
        return found | {name: found[name] for name in needed}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"`{file}` is broken: {error!r}. Restore it, or tune again.") from None


def certificate_file(run: Path) -> Path:
    """Say where the certificate is: beside the `model` folder of a run, in the folder of an export."""
    model = _model_folder(run)
    inside = model / CERTIFICATE
    return inside if inside.is_file() else model.parent / CERTIFICATE


def tolerances() -> dict[str, Any]:
    """Give what a certificate allows each arithmetic, as JSON has it."""
    return {name: each._asdict() for name, each in TOLERANCES.items()}


def _check_files(model: Path, certificate: Mapping[str, Any], *, loaded_version: str) -> None:
    """Refuse files that are not those of the certificate.

    Weights that were read a moment ago to tell the version of the loaded model are not read again.
    """
    if is_export(certificate):
        check_files(model, certificate)
        return
    if "files" in certificate:
        names, expected = files_of_model(model), certificate["files"]
        if loaded_version == certificate["model_version"]:
            names = [name for name in names if not name.endswith(WEIGHTS)]
            expected = {n: each for n, each in expected.items() if not n.endswith(WEIGHTS)}
        check_digests(model, expected, digests_of(model, names))
        base = _base_of_adapter(model)
        if base is not None:
            check_digests(base, certificate["base_files"], digests_of(base, BASE_FILES))
    if loaded_version != certificate["model_version"]:
        raise CertificateError(
            f"`{model}` was certified as version {certificate['model_version']}, but version {loaded_version or 'unknown'} "
            "was loaded: its weights or `lushan.json` are others."
        )


def is_export(certificate: Mapping[str, Any]) -> bool:
    """Whether a certificate is that of an export; those of version 1 name no form."""
    return certificate.get("form", RUN_FORMS[0]) not in RUN_FORMS


def check_files(folder: Path, certificate: Mapping[str, Any]) -> None:
    """Read all files of a folder that decide its answers, and refuse others than those that were certified.

    Raises:
        CertificateError: If one is missing, was changed or was not there.
    """
    check_digests(folder, certificate["files"], digests_of(folder, files_of_model(folder)))


def _model_folder(run: Path) -> Path:
    return run / "model" if (run / "model").is_dir() else run


def _base_of_adapter(model: Path) -> Path | None:
    """The folder of the pretrained model that an adapter stands on."""
    is_adapter = (model / "adapter_config.json").is_file()
    return locate(read_meaning(model).base_model) if is_adapter else None


def write_probes(folder: Path, probes: Sequence[Example]) -> None:
    """Write what a certificate is about, without the truth."""
    written = {
        "texts": [each.text for each in probes],
        "extras": [dict(each.extra) for each in probes],
    }
    write_json(folder / _PROBES, written)


def read_probes(run: Path) -> list[Example]:
    """Give the examples that the certificate of a run, or of its `model` folder, is about.

    Raises:
        RunError: If they cannot be read.
    """
    file = _model_folder(run) / _PROBES
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
        texts = written["texts"]
        extras = written.get("extras") or [{} for _ in texts]  # the first ones had none
        pairs = zip(texts, extras, strict=True)
        return [
            Example(str(number), text, None, extra=extra)
            for number, (text, extra) in enumerate(pairs)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"`{file}` is broken: {error!r}. Restore it, or tune again.") from None


def _answers_of_fresh_process(run: Path) -> dict[str, Any]:
    # `-P`: else files of the folder in which the user is, such as a `random.py`, would be imported.
    command = [sys.executable, "-P", "-m", "lushan.model_store.certificate", str(run)]
    # It computes as this process does, whatever else could be had by now.
    alike = {"OMP_NUM_THREADS": str(torch.get_num_threads()), **native.environment()}
    done = subprocess.run(  # noqa: S603 - our own module
        command, capture_output=True, text=True, check=False, env={**os.environ, **alike}
    )
    if done.returncode:
        raise CertificateError(f"The saved model cannot be loaded again:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Answer the probes of the run named on the command line."""
    run = Path(sys.argv[1])
    answers = describe_answers(load_predictor(run), read_probes(run))
    sys.stdout.write(json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()

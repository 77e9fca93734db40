"""Proof that a saved model answers like the one that was trained: reloaded in a fresh process, asked the same.

`python -m lushan.model_store.certificate RUN` is that process; it prints its answers as one JSON line.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lushan.atomic import write_json
from lushan.errors import CertificateError
from lushan.inference.predict import Predictor
from lushan.model_store.tuned_model import SCHEMA_VERSION, load_predictor, model_version
from lushan.records import Answer, Example, Span, plain_answer

NUM_PROBES = 32
TOLERANCE = 1e-5
"""Largest difference of a probability; on the same machine it is zero."""

_PROBES = "probes.json"


def certify(run: Path, predictor: Predictor, examples: Sequence[Example]) -> dict[str, Any]:
    """Reload the run's model in a fresh process, compare its answers with `predictor`'s, write `certificate.json`.

    Args:
        run: The run folder, with a whole `model` folder.
        predictor: The model as it was trained, still in memory.
        examples: Texts to ask about; the first 32 are used.

    Raises:
        CertificateError: If labels, token ids or answers differ, or the model cannot be loaded. Then the model
            is in `model-refused`, where nobody takes it for a good one.
    """
    probes = list(examples[:NUM_PROBES])
    written = {
        "texts": [each.text for each in probes],
        "extras": [dict(each.extra) for each in probes],
    }
    write_json(run / "model" / _PROBES, written)
    expected = describe_answers(predictor, probes)
    try:
        difference = compare(expected, _answers_of_fresh_process(run))
    except CertificateError:
        shutil.rmtree(run / "model-refused", ignore_errors=True)
        (run / "model").rename(run / "model-refused")
        raise
    certificate = {
        "schema_version": SCHEMA_VERSION,
        "model_version": model_version(run / "model"),
        "form": "adapter" if (run / "model" / "adapter_config.json").is_file() else "whole",
        "num_probes": len(probes),
        "largest_difference": difference,
        "tolerance": TOLERANCE,
        "labels": list(predictor.state.labels),
        "stop_token": predictor.backbone.tokenizer.stop_id,
        "tokenizer_fingerprint": predictor.backbone.tokenizer.fingerprint,
        "answers": expected,
    }
    write_json(run / "certificate.json", certificate)
    return certificate


def describe_answers(predictor: Predictor, probes: Sequence[Example]) -> dict[str, Any]:
    """Everything that must be equal: token ids, label names, answers and probabilities."""
    features = predictor.encode(probes)
    predictions = predictor.predict(probes)
    parts = [() if isinstance(each.answer, str) else each.answer for each in predictions]
    return {
        "labels": list(predictor.state.labels),
        "token_ids": [list(each.token_ids) for each in features],
        "answers": [_without_numbers(each.answer) for each in predictions],
        "probabilities": [
            [*each.probabilities.values(), *(x.probability for x in spans if isinstance(x, Span))]
            for each, spans in zip(predictions, parts, strict=True)
        ],
    }


def _without_numbers(answer: Answer) -> Any:  # noqa: ANN401 - any JSON value
    """The answer as JSON has it; how sure the model is of its parts is compared as a number."""
    if isinstance(answer, str):
        return answer
    bare = [x if isinstance(x, str) else replace(x, probability=None) for x in answer]
    return plain_answer(tuple(bare))  # pyright: ignore[reportArgumentType] - all are of one kind


def read_probes(run: Path) -> list[Example]:
    """Give the examples that a run's certificate is about."""
    written = json.loads((run / "model" / _PROBES).read_text(encoding="utf-8"))
    pairs = zip(written["texts"], written["extras"], strict=True)
    return [
        Example(str(number), text, None, extra=extra) for number, (text, extra) in enumerate(pairs)
    ]


def compare(expected: dict[str, Any], found: dict[str, Any]) -> float:
    """Largest difference of a probability.

    Raises:
        CertificateError: If anything else differs, or the difference is above `TOLERANCE`.
    """
    for what in ("labels", "token_ids", "answers"):
        if expected[what] != found[what]:
            raise CertificateError(
                f"The saved model differs from the trained one in its {what.replace('_', ' ')}. It was not certified."
            )
    ours, theirs = (
        np.array([value for row in each["probabilities"] for value in row])
        for each in (expected, found)
    )
    difference = float(np.abs(ours - theirs).max(initial=0.0))
    if not difference <= TOLERANCE:  # so that what is no number is refused
        raise CertificateError(
            f"The saved model's probabilities differ by up to {difference:.2g} from the trained one's "
            f"(at most {TOLERANCE} is allowed). It was not certified."
        )
    return difference


def _answers_of_fresh_process(run: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "lushan.model_store.certificate", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own module
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

"""The certificate: what is asked, what must be equal, and what is refused."""

import copy
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lushan.errors import CertificateError
from lushan.inference.predict import Predictor
from lushan.model_store import certificate
from lushan.model_store.certificate import (
    NUM_PROBES,
    TOLERANCE,
    certify,
    compare,
    describe_answers,
    read_probes,
)
from lushan.model_store.tuned_model import model_version
from lushan.records import Example, Prediction, Span, TaskState
from tests.conftest import MakeTiny
from tests.runs import answers_of_this_process, read
from tests.saved import EXAMPLES, LABELS, TEXTS, save_tuned

Certified = tuple[Path, Predictor]


@pytest.fixture(scope="module")
def original(tiny_folder: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Certified:
    run = tmp_path_factory.mktemp("certificate") / "run"
    return run, save_tuned(run, tiny_folder("llama"))


@pytest.fixture
def saved(original: Certified, tmp_path: Path) -> Certified:
    """Give a copy that a test may spoil."""
    shutil.copytree(original[0], tmp_path / "run")
    return tmp_path / "run", original[1]


@pytest.fixture
def _asked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask in this process, which takes no seconds to start."""
    monkeypatch.setattr(certificate, "_answers_of_fresh_process", answers_of_this_process)


ASKED_HERE = pytest.mark.usefixtures("_asked_here")


def test_model_that_answers_the_same_in_a_fresh_process_is_certified(
    saved: Certified,
) -> None:
    run, predictor = saved
    certify(run, predictor, EXAMPLES)
    found = read(run / "certificate.json")
    tokenizer = predictor.backbone.tokenizer
    assert found["largest_difference"] == 0.0
    assert found["model_version"] == model_version(run / "model")
    assert found["labels"] == list(LABELS)
    assert (found["form"], found["num_probes"], found["stop_token"]) == ("whole", len(TEXTS), 2)
    assert found["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert found["answers"]["token_ids"] == [each.ids for each in tokenizer.encode(TEXTS)]


@ASKED_HERE
@ASKED_HERE
def test_probes_keep_what_their_examples_have_beyond_the_text(saved: Certified) -> None:
    run, predictor = saved
    words = {"words": [[0, 1], [2, 5]]}
    certify(run, predictor, [Example("1", "a fox", None, extra=words), *EXAMPLES])
    probes = read_probes(run)
    assert [each.text for each in probes] == ["a fox", *TEXTS]
    assert [each.extra for each in probes[:2]] == [words, {}]


def test_parts_of_an_answer_are_compared_as_text_and_their_probabilities_as_numbers(
    saved: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = (Span(0, 1, "x", "a", 0.25), Span(2, 5, "y", "fox", 0.5))
    answered = [Prediction("1", spans), Prediction("2", ())]
    monkeypatch.setattr(type(saved[1]), "predict", lambda *_: answered)
    found = describe_answers(saved[1], EXAMPLES[:2])
    assert found["probabilities"] == [[0.25, 0.5], []]
    assert found["answers"][0][0] == {"start": 0, "end": 1, "label": "x", "text": "a", "probability": None}  # fmt: skip
    other = {**found, "probabilities": [[0.25, 0.5 + 1e-3], []]}
    with pytest.raises(CertificateError, match=r"differ by up to 0\.001"):
        certificate.compare(found, other)


def test_form_of_an_adapter_is_told(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    predictor = save_tuned(tmp_path, tiny_folder("llama"), answer="generate", method="lora")
    assert certify(tmp_path, predictor, EXAMPLES)["form"] == "adapter"


@ASKED_HERE
def test_no_more_than_32_texts_are_asked_about(saved: Certified) -> None:
    run, predictor = saved
    many = [Example(str(number), f"text {number}", None) for number in range(40)]
    assert certify(run, predictor, many)["num_probes"] == NUM_PROBES == 32
    assert read(run / "model" / "probes.json")["texts"] == [each.text for each in many[:32]]


@ASKED_HERE
def test_model_whose_weights_on_disk_were_changed_is_not_certified(saved: Certified) -> None:
    run, predictor = saved
    file = run / "model" / "model.safetensors"
    weights = load_file(file)
    weights["score.weight"][3] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(CertificateError, match=r"differ by up to .* It was not certified"):
        certify(run, predictor, EXAMPLES)
    assert not (run / "certificate.json").exists()


@ASKED_HERE
def test_model_whose_labels_on_disk_are_in_another_order_is_not_certified(saved: Certified) -> None:
    run, predictor = saved
    file = run / "model" / "lushan.json"
    meaning = json.loads(file.read_text(encoding="utf-8"))
    meaning["state"]["labels"].sort(key=int)
    file.write_text(json.dumps(meaning), encoding="utf-8")
    with pytest.raises(CertificateError, match="in its labels"):
        certify(run, predictor, EXAMPLES)
    assert not (run / "certificate.json").exists()
    assert not (run / "model").exists()
    assert (run / "model-refused" / "lushan.json").is_file()


def test_model_that_cannot_be_loaded_again_is_not_certified_and_the_reason_is_told(
    saved: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, predictor = saved
    # The program stands for Python: it says why and fails.
    program = run / "python"
    program.write_text("#!/bin/sh\necho 'no weights' >&2\nexit 1\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(CertificateError, match=r"cannot be loaded again:\nno weights"):
        certify(run, predictor, EXAMPLES)
    assert not (run / "certificate.json").exists()


def test_fresh_process_prints_the_answers_on_its_last_line(
    saved: Certified, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, predictor = saved
    probes = {"texts": TEXTS, "extras": [{} for _ in TEXTS]}
    (run / "model" / "probes.json").write_text(json.dumps(probes), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["certificate", str(run)])
    certificate.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == describe_answers(predictor, EXAMPLES)


def test_answers_are_described_by_ids_labels_answers_and_probabilities(saved: Certified) -> None:
    predictor = saved[1]
    found = describe_answers(predictor, EXAMPLES)
    predictions = predictor.predict(EXAMPLES)
    assert found["labels"] == list(LABELS)
    assert found["answers"] == [each.answer for each in predictions]
    by_label = [dict(zip(LABELS, row, strict=True)) for row in found["probabilities"]]
    assert by_label == [each.probabilities for each in predictions]
    assert json.loads(json.dumps(found)) == found


def test_several_labels_of_a_text_are_described_as_a_list(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    state = TaskState(labels=LABELS, multi_label=True)
    predictor = save_tuned(tmp_path, tiny_folder("llama"), state=state)
    found = describe_answers(predictor, EXAMPLES)
    assert json.loads(json.dumps(found)) == found
    assert any(len(each) > 1 for each in found["answers"])


# What must be equal

ANSWERS: dict[str, Any] = {
    "labels": ["a", "b"],
    "token_ids": [[1, 2], [3]],
    "answers": ["a", "b"],
    "probabilities": [[0.75, 0.25], [0.4, 0.6]],
}


def changed(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    found = copy.deepcopy(ANSWERS)
    change(found)
    return found


@pytest.mark.parametrize(
    ("what", "name"), [("labels", "labels"), ("token_ids", "token ids"), ("answers", "answers")]
)
def test_whatever_is_no_number_must_be_equal(what: str, name: str) -> None:
    with pytest.raises(CertificateError, match=f"in its {name}. It was not certified"):
        compare(ANSWERS, changed(lambda found: found[what].reverse()))


@pytest.mark.parametrize("sign", [1, -1])
def test_probabilities_may_differ_by_the_tolerance_and_the_largest_difference_is_told(
    sign: int,
) -> None:
    def change(found: dict[str, Any]) -> None:
        found["probabilities"][1][0] += sign * 0.9 * TOLERANCE

    assert compare(ANSWERS, changed(change)) == pytest.approx(9e-6)


@pytest.mark.parametrize("value", [0.4 + 1.1e-5, 0.4 - 1.1e-5, math.nan])
def test_probabilities_that_differ_by_more_are_refused(value: float) -> None:
    def change(found: dict[str, Any]) -> None:
        found["probabilities"][1][0] = value

    with pytest.raises(CertificateError, match="probabilities differ by up to"):
        compare(ANSWERS, changed(change))


def test_probabilities_that_are_no_numbers_on_both_sides_are_refused() -> None:
    def change(found: dict[str, Any]) -> None:
        found["probabilities"][1] = [math.nan, math.nan]

    with pytest.raises(CertificateError, match="probabilities differ by up to nan"):
        compare(changed(change), changed(change))

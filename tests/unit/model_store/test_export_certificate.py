"""The certificate of an export: what it tells, and which faults are found by it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lushan.errors import CertificateError, LushanError, MissingExtraError, RunError
from lushan.model_store.certificate import replay
from lushan.model_store.digests import digests_of, files_of_model
from lushan.model_store.export_certificate import (
    _prompts,
    _ties_of,
    certify_export,
    is_export_folder,
    replay_export,
)
from lushan.model_store.exports import hf, load_form
from lushan.model_store.probes import Tolerance, describe_answers
from lushan.model_store.tuned_model import load_predictor
from lushan.records import AnswerMode, Features
from tests.conftest import MakeTiny
from tests.exported import ask_here, certify_form, examples_of, merged_of, write_form
from tests.runs import read
from tests.unit.model_store.conftest import Written
from tests.unit.model_store.exports.test_gguf import wide_base

Plant = Callable[[Path], object]
HERE = pytest.mark.usefixtures("_asked_here")
LANGUAGE: tuple[tuple[str, AnswerMode], ...] = (
    ("summarization", "generate"),
    ("classification", "generate"),
    ("choice", "generate"),
)


@pytest.fixture
def _asked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    ask_here(monkeypatch)


def certified(
    base: Path, folder: Path, task: str = "classification", mode: AnswerMode = "head"
) -> Path:
    merged = merged_of(base, task, mode)
    write_form(merged, "hf", folder)
    certify_form(merged, "hf", folder)
    return folder


@pytest.fixture(scope="module")
def original(tiny_folder: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        ask_here(patch)
        return certified(tiny_folder("llama"), tmp_path_factory.mktemp("head") / "hf")


@pytest.fixture
def export(original: Path, tmp_path: Path) -> Path:
    """Give a copy of a certified export of a class model, which a test may spoil."""
    return shutil.copytree(original, tmp_path / "hf")


def change_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = read(file)
    change(values)
    file.write_text(json.dumps(values), encoding="utf-8")


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def digest_anew(folder: Path) -> None:
    """Make the digests fit the files again, so that only the answers tell."""
    digests = digests_of(folder, files_of_model(folder))
    change_json(folder / "certificate.json", lambda values: values.update(files=digests))


@HERE
def test_certificate_tells_form_tolerances_files_and_what_was_answered(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    merged = merged_of(tiny_folder("llama"), "classification", "head")
    write_form(merged, "hf", tmp_path / "hf")
    certify_form(merged, "hf", tmp_path / "hf")
    found = read(tmp_path / "hf" / "certificate.json")
    own = describe_answers(merged.predictor, examples_of("classification"))
    for name in ("labels", "stop_tokens", "chat_template", "tokenizer", "token_ids", "answers"):
        assert found["answers"][name] == own[name]
    np.testing.assert_allclose(found["answers"]["probabilities"], own["probabilities"], atol=1e-5)
    assert (found["schema_version"], found["form"], found["quantise"]) == (3, "hf", "none")
    assert found["program"].startswith("transformers 5.")
    assert {"fp32", "bf16", "int8"} <= found["tolerances"].keys()
    expected = {"config.json", "lushan.json", "model.safetensors", "probes.json", "tokenizer.json"}
    assert expected <= found["files"].keys()
    assert "certificate.json" not in found["files"]


@HERE
def test_export_that_was_not_touched_is_the_certified_one(export: Path) -> None:
    assert is_export_folder(export)
    found = replay_export(export)
    assert (found["form"], found["largest_difference"]) == ("hf", 0.0)


# Faults in the files


def cut_weights_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def swap_labels(folder: Path) -> None:
    names = read(folder / "config.json")["id2label"]
    swapped = names | {"0": names["1"], "1": names["0"]}
    change_json(folder / "config.json", lambda values: values.update(id2label=swapped))


def double_bos(folder: Path) -> None:
    settings = folder / "tokenizer_config.json"
    change_json(settings, lambda values: values.update(add_bos_token=True))


def write_another_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")


def train_on(folder: Path) -> None:
    change_weights(folder, lambda weights: weights["score.weight"].mul_(1.01))


def take_the_head_away(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.pop("score.weight"))


def cut_texts_off(folder: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["limit"]["max_tokens"] = 6

    change_json(folder / "lushan.json", change)


def take_probes_away(folder: Path) -> None:
    (folder / "probes.json").unlink()


FAULTS: list[tuple[Plant, str, str]] = [
    (cut_weights_off, "model.safetensors", "is cut off"),
    (swap_labels, "config.json", r"names its labels \['pos"),
    (double_bos, "tokenizer_config.json", r"Tokenizer: expected '\w{64}', got '\w{64}'"),
    (write_another_template, "chat_template.jinja", "Chat template: expected"),
    (train_on, "model.safetensors", r"Probe \d+, probabilities: differ by up to"),
    (take_the_head_away, "model.safetensors", r"hf` lacks weights, such as `score\.weight`"),
    (cut_texts_off, "lushan.json", r"Length limit: expected \[128, 'truncate'\], got \[6"),
    (take_probes_away, "probes.json", r"probes\.json` is broken"),
]


@HERE
@pytest.mark.parametrize(("plant", "file", "told"), FAULTS)
def test_fault_is_found_by_the_name_of_its_file(
    plant: Plant, file: str, told: str, export: Path
) -> None:
    plant(export)
    with pytest.raises(CertificateError, match=rf"hf/{file}` (was changed|was not there|is miss)"):
        replay_export(export)
    assert isinstance(told, str)


@HERE
@pytest.mark.parametrize(("plant", "file", "told"), FAULTS)
def test_fault_is_found_by_the_answers_alone(
    plant: Plant, file: str, told: str, export: Path
) -> None:
    plant(export)
    digest_anew(export)
    with pytest.raises(LushanError, match=told):
        replay_export(export)
    assert file


def test_program_that_cannot_load_the_files_is_told_with_its_last_words(export: Path) -> None:
    change_json(export / "config.json", lambda values: values.update(architectures=["Nothing"]))
    digest_anew(export)
    with pytest.raises(CertificateError, match=r"(?s)cannot be used: its program failed.*StopIt"):
        replay_export(export)


@HERE
def test_untied_matrix_is_found(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    folder = certified(tiny_folder("gpt2"), tmp_path / "hf", "completion", "generate")
    assert replay_export(folder)["largest_difference"] == 0.0

    def untie(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights["transformer.wte.weight"] * 0.9

    change_weights(folder, untie)
    change_json(folder / "config.json", lambda values: values.update(tie_word_embeddings=False))
    digest_anew(folder)
    with pytest.raises(CertificateError, match=r"Probe \d, (log likelihoods|written tokens)"):
        replay_export(folder)


@HERE
def test_stop_token_that_was_added_is_found(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    folder = certified(tiny_folder("llama"), tmp_path / "hf", "completion", "generate")
    settings = folder / "generation_config.json"
    change_json(settings, lambda values: values.update(eos_token_id=[2, 9]))
    digest_anew(folder)
    with pytest.raises(CertificateError, match=r"Stop tokens: expected \[2\], got \[2, 9\]"):
        replay_export(folder)


@HERE
def test_export_among_those_of_another_run_is_found(export: Path, tmp_path: Path) -> None:
    place = tmp_path / "run" / "exports" / "hf"
    shutil.copytree(export, place)
    change = {"form": "whole", "model_version": read(export / "certificate.json")["model_version"]}
    run_certificate = tmp_path / "run" / "certificate.json"
    shutil.copy(export / "certificate.json", run_certificate)
    change_json(run_certificate, lambda values: values.update(change))
    assert replay_export(place)["largest_difference"] == 0.0
    change_json(run_certificate, lambda values: values.update(model_version="0123"))
    with pytest.raises(CertificateError, match=r"run` has version 0123: it is an export of anoth"):
        replay_export(place)


# What keeps an export from being certified


@HERE
@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (write_another_template, "Chat template: expected"),
        (swap_labels, "names its labels"),
        (cut_texts_off, "Length limit: expected"),
        (double_bos, "Tokenizer: expected"),
    ],
)
def test_export_that_reads_otherwise_than_the_run_is_not_certified(
    plant: Plant, told: str, *, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    merged = merged_of(tiny_folder("llama"), "classification", "head")
    write_form(merged, "hf", tmp_path / "hf")
    plant(tmp_path / "hf")
    with pytest.raises(CertificateError, match=told):
        certify_export(
            "hf",
            tmp_path / "hf",
            quantise="none",
            run=merged.predictor,
            reads=merged.predictor,
            probes=examples_of("classification"),
        )
    assert not (tmp_path / "hf" / "certificate.json").exists()


# Certificates that cannot be used


def test_folders_that_say_nothing_about_themselves_are_no_exports(
    export: Path, tiny_run: Path
) -> None:
    assert not is_export_folder(tiny_run)
    assert not is_export_folder(tiny_run / "model")
    (export / "certificate.json").unlink()
    assert not is_export_folder(export)


def test_form_that_is_not_known_is_refused_with_those_that_are(export: Path) -> None:
    change_json(export / "certificate.json", lambda values: values.update(form="coreml"))
    with pytest.raises(RunError, match=r"the form `coreml`\. Known: gguf, hf, onnx, openvino"):
        replay_export(export)


def test_missing_program_is_named_with_its_extra(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf.Form, "program", "no_such_program")
    with pytest.raises(MissingExtraError, match=r"`hf` needs `no_such_program`.*'\.\[export\]'"):
        replay_export(export)


# Models that write, and other programs


@HERE
@pytest.mark.parametrize(("task", "mode"), [("tagging", "head"), *LANGUAGE])
def test_lushan_holds_an_hf_export_to_the_same_certificate(
    task: str, mode: AnswerMode, *, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = certified(tiny_folder("llama"), tmp_path / "hf", task, mode)
    assert replay_export(folder)["largest_difference"] == 0.0
    assert replay(folder, load_predictor(folder)) < 1e-4
    assert ("written_ids" in read(folder / "certificate.json")["answers"]) is (mode != "head")
    change_weights(folder, lambda weights: [each.mul_(1.3) for each in weights.values()])
    with pytest.raises(CertificateError, match=r"model\.safetensors` was changed"):
        replay(folder, load_predictor(folder))
    digest_anew(folder)
    with pytest.raises(CertificateError, match=r"Probe \d+, (prob|log|written)"):
        replay(folder, load_predictor(folder))


def test_tokens_are_taken_for_each_other_only_where_the_program_does() -> None:
    followed = [[[(5, -0.1), (6, -4.0)], [(7, -1.0), (8, -1.2), (9, -1.6)]]]
    is_tie = _ties_of(followed, Tolerance(0, 0.5, "a test"))
    assert is_tie(0, [5], 7, 8)
    assert not is_tie(0, [5], 7, 9)
    assert not is_tie(0, [5], 7, 4)  # not among the likeliest
    assert not is_tie(0, [], 5, 6)


def test_prompts_end_where_the_model_writes_and_are_cut_at_their_beginning_for_llama_cpp() -> None:
    document = Features(tuple(range(3_000)), "", 0)
    with_branches = Features((1, 2, 3, 4), "", 0, branches=((2, 1), (3, 1)))
    assert _prompts(load_form("hf"), [document, with_branches]) == [list(range(3_000)), [1, 2]]
    (cut,) = _prompts(load_form("gguf"), [document])
    assert (cut[-1], len(cut)) == (2_999, 2_048 - 32)


@HERE
def test_faults_in_onnx_are_found(class_onnx: Written, tmp_path: Path) -> None:
    import onnx

    folder = shutil.copytree(class_onnx.folder, tmp_path / "onnx")
    certify_form(class_onnx.merged, "onnx", folder)
    assert replay_export(folder)["largest_difference"] == 0.0
    found = read(folder / "certificate.json")
    assert {"model.onnx", "labels.json", "config.json", "tokenizer.json"} <= found["files"].keys()
    labels: Any = read(folder / "labels.json")
    (folder / "labels.json").write_text(json.dumps(labels[::-1]), encoding="utf-8")
    with pytest.raises(CertificateError, match=r"labels\.json` was changed"):
        replay_export(folder)
    digest_anew(folder)
    with pytest.raises(CertificateError, match="names its labels"):
        replay_export(folder)
    (folder / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    model = onnx.load(folder / "model.onnx")
    head = next(x for x in model.graph.initializer if tuple(x.dims)[-2:] in {(2, 16), (16, 2)})
    head.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(head), head.name))
    onnx.save(model, folder / "model.onnx")
    digest_anew(folder)
    with pytest.raises(CertificateError, match=r"Probe \d+, probabilities: differ by up to"):
        replay_export(folder)


def test_faults_in_gguf_are_found_by_llama_cpp(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    merged = merged_of(wide_base(tiny_folder, tmp_path / "base"), "completion", "generate")
    folder = tmp_path / "gguf"
    write_form(merged, "gguf", folder, "q8_0")
    certify_form(merged, "gguf", folder, "q8_0")
    assert replay_export(folder)["largest_difference"] == 0.0
    file = folder / "model.gguf"
    whole = file.read_bytes()
    with torch.no_grad():
        merged.predictor.backbone.plain_model.lm_head.weight.mul_(1.5)
    load_form("gguf").write(merged, folder, quantise="q8_0")
    with pytest.raises(CertificateError, match=r"model\.gguf` was changed"):
        replay_export(folder)
    digest_anew(folder)
    with pytest.raises(CertificateError, match=r"Probe \d, (log likelihoods: differ|written)"):
        replay_export(folder)
    file.write_bytes(whole[: len(whole) // 2])
    digest_anew(folder)
    with pytest.raises(LushanError, match=r"cannot be (used|read)"):
        replay_export(folder)

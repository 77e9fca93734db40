"""The certificate: who gets one, and which faults a server finds by it."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lushan.backbones import packed_linear
from lushan.backbones.tokenizer import Encoded, Tokenizer
from lushan.errors import CertificateError, LushanError, RunError
from lushan.inference.predict import Predictor
from lushan.model_store import certificate, probes
from lushan.model_store.certificate import certify, read_probes, replay
from lushan.model_store.probes import NUM_PROBES, TOLERANCES, describe_answers
from lushan.model_store.tuned_model import load_predictor, model_version
from lushan.records import Example, TaskState
from tests.conftest import MakeTiny
from tests.runs import answers_of_this_process, read
from tests.saved import EXAMPLES, LABELS, STATE, TEXTS, save_tuned
from tests.tiny import write_turns


@dataclass(frozen=True)
class Certified:
    """A run whose model has its certificate, and that model in memory."""

    run: Path
    base: Path
    predictor: Predictor

    @property
    def model(self) -> Path:
        return self.run / "model"

    @property
    def weights_file(self) -> Path:
        (file,) = self.model.glob("*.safetensors")
        return file


def save(folder: Path, base: Path, **options: Any) -> Certified:  # noqa: ANN401
    shutil.copytree(base, folder / "base")
    predictor = save_tuned(folder / "run", folder / "base", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate, "_answers_of_fresh_process", answers_of_this_process)
        certify(folder / "run", predictor, EXAMPLES)
    return Certified(folder / "run", folder / "base", predictor)


@pytest.fixture(scope="module")
def original(tiny_folder: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Certified:
    return save(tmp_path_factory.mktemp("whole"), tiny_folder("llama"))


@pytest.fixture
def whole(original: Certified, tmp_path: Path) -> Certified:
    """Give a copy that a test may spoil; a whole model needs its base no more."""
    shutil.copytree(original.run, tmp_path / "run")
    return replace(original, run=tmp_path / "run")


@pytest.fixture
def adapter(tiny_folder: MakeTiny, tmp_path: Path) -> Certified:
    return save(tmp_path, tiny_folder("llama"), answer="generate", method="lora")


@pytest.fixture
def _asked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask in this process, which takes no seconds to start."""
    monkeypatch.setattr(certificate, "_answers_of_fresh_process", answers_of_this_process)


ASKED_HERE = pytest.mark.usefixtures("_asked_here")


def test_model_that_answers_the_same_in_a_fresh_process_is_certified(whole: Certified) -> None:
    run, tokenizer = whole.run, whole.predictor.backbone.tokenizer
    certify(run, whole.predictor, EXAMPLES)
    found = read(run / "certificate.json")
    assert found["largest_difference"] == 0.0
    assert found["model_version"] == model_version(run / "model")
    assert (found["form"], found["precision"]) == ("whole", "fp32")
    assert (found["schema_version"], found["num_probes"]) == (3, len(TEXTS))
    answers = found["answers"]
    assert (answers["labels"], answers["stop_tokens"]) == (list(LABELS), [2])
    assert answers["tokenizer"] == tokenizer.fingerprint
    assert answers["token_ids"] == [each.ids for each in tokenizer.encode(TEXTS)]
    assert {"model.safetensors", "lushan.json", "tokenizer.json"} < found["files"].keys()
    assert all(each["reason"] for each in found["tolerances"].values())


@ASKED_HERE
def test_certificate_is_the_same_when_it_is_made_again(whole: Certified) -> None:
    first = (whole.run / "certificate.json").read_bytes()
    certify(whole.run, whole.predictor, EXAMPLES)
    assert (whole.run / "certificate.json").read_bytes() == first


@ASKED_HERE
def test_probes_keep_what_their_examples_have_beyond_the_text(whole: Certified) -> None:
    words = {"words": [[0, 1], [2, 5]]}
    certify(whole.run, whole.predictor, [Example("1", "a fox", None, extra=words), *EXAMPLES])
    found = read_probes(whole.run)
    assert [each.text for each in found] == ["a fox", *TEXTS]
    assert [each.extra for each in found[:2]] == [words, {}]


def test_form_of_an_adapter_is_told_with_what_it_takes_from_its_base(adapter: Certified) -> None:
    found = read(adapter.run / "certificate.json")
    assert found["form"] == "adapter"
    assert {"tokenizer.json", "config.json"} <= found["base_files"].keys()
    assert not [name for name in found["base_files"] if name.endswith(".safetensors")]


@ASKED_HERE
def test_no_more_than_32_texts_are_asked_about(whole: Certified) -> None:
    many = [Example(str(number), f"text {number}", None) for number in range(40)]
    assert certify(whole.run, whole.predictor, many)["num_probes"] == NUM_PROBES == 32
    assert read(whole.model / "probes.json")["texts"] == [each.text for each in many[:32]]


def test_model_that_cannot_be_loaded_again_is_not_certified_and_the_reason_is_told(
    whole: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole.run / "certificate.json").unlink()
    # The program stands for Python: it says why and fails.
    program = whole.run / "python"
    program.write_text("#!/bin/sh\necho 'no weights' >&2\nexit 1\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    told = r"was not certified.*cannot be loaded again:\nno weights"
    with pytest.raises(CertificateError, match=told):
        certify(whole.run, whole.predictor, EXAMPLES)
    assert not (whole.run / "certificate.json").exists()
    assert not whole.model.exists()
    assert (whole.run / "model-refused" / "lushan.json").is_file()


def test_fresh_process_computes_with_the_functions_of_this_one(
    whole: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = whole.run / "python"
    program.write_text('#!/bin/sh\necho "made by $CXX" >&2\nexit 1\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(certificate.native, "environment", lambda: {"CXX": "clang++ -O1"})
    with pytest.raises(CertificateError, match=r"made by clang\+\+ -O1"):
        certify(whole.run, whole.predictor, EXAMPLES)


def test_fresh_process_prints_the_answers_on_its_last_line(
    whole: Certified, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["certificate", str(whole.run)])
    certificate.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == describe_answers(whole.predictor, EXAMPLES)


# Faults in the files


def change_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(file.read_text(encoding="utf-8"))
    change(values)
    file.write_text(json.dumps(values), encoding="utf-8")


def change_weights(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def sort_labels(saved: Certified) -> None:
    change_json(saved.model / "lushan.json", lambda values: values["state"]["labels"].sort(key=int))


def change_one_weight(saved: Certified) -> None:
    change_weights(saved.weights_file, lambda weights: weights["score.weight"][3].add_(1e-3))


def take_the_head_away(saved: Certified) -> None:
    change_weights(saved.weights_file, lambda weights: weights.pop("score.weight"))


def cut_the_weights_off(saved: Certified) -> None:
    saved.weights_file.write_bytes(saved.weights_file.read_bytes()[:-100])


def take_the_weights_away(saved: Certified) -> None:
    saved.weights_file.unlink()


def double_bos(saved: Certified) -> None:
    settings = saved.model / "tokenizer_config.json"
    change_json(settings, lambda values: values.update(add_bos_token=True))


def write_another_template(saved: Certified) -> None:
    (saved.model / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")


def stop_at_another_token(saved: Certified) -> None:
    settings = saved.model / "config.json"
    change_json(settings, lambda values: values.update(eos_token_id=[2, 7]))


def ask_something_else(saved: Certified) -> None:
    change_json(saved.model / "probes.json", lambda values: values["texts"].reverse())


def load_and_replay(run: Path) -> float:
    """Do what a server does at its start."""
    return replay(run, load_predictor(run))


@pytest.mark.parametrize("place", ["run", "run/model"])
def test_model_that_was_not_touched_is_served(place: str, whole: Certified) -> None:
    assert load_and_replay(whole.run.parent / place) == 0.0


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (sort_labels, r"model/lushan\.json` was changed: expected SHA-256 \w{12}, got \w{12}"),
        (change_one_weight, r"model/model\.safetensors` was changed"),
        (take_the_head_away, r"run/model` lacks weights, such as `score\.weight`"),
        (cut_the_weights_off, r"run/model.*(is cut off|cannot be loaded)"),
        (take_the_weights_away, r"run/model.*(no weights|cannot be loaded)"),
        (double_bos, r"The tokenizer in .*run/model` is not the one"),
        (write_another_template, r"chat_template\.jinja` was not there when the model was certif"),
        (stop_at_another_token, r"model/config\.json` was changed"),
        (ask_something_else, r"model/probes\.json` was changed"),
    ],
)
def test_fault_in_a_file_is_found_before_the_model_is_served(
    plant: Callable[[Certified], None], told: str, whole: Certified
) -> None:
    plant(whole)
    with pytest.raises(LushanError, match=told):
        load_and_replay(whole.run)


def test_untied_matrix_is_found(tiny_folder: MakeTiny, tmp_path: Path) -> None:
    tied = save(tmp_path, tiny_folder("gpt2"), answer="generate")

    def untie(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights["transformer.wte.weight"] * 0.9

    assert load_and_replay(tied.run) == 0.0
    change_weights(tied.weights_file, untie)
    settings = tied.model / "config.json"
    change_json(settings, lambda values: values.update(tie_word_embeddings=False))
    with pytest.raises(LushanError, match=r"model/config\.json` was changed"):
        load_and_replay(tied.run)
    with pytest.raises(CertificateError, match=r"Probe 1, probabilities: differ by"):
        probes.compare(
            read(tied.run / "certificate.json")["answers"],
            describe_answers(load_predictor(tied.run), EXAMPLES),
            tolerance=probes.TOLERANCES["fp32"],
        )


def test_adapter_of_an_earlier_run_is_found(adapter: Certified, tmp_path: Path) -> None:
    assert load_and_replay(adapter.run) == 0.0
    earlier = tmp_path / "earlier.safetensors"
    shutil.copy(adapter.weights_file, earlier)
    change_weights(earlier, lambda weights: [each.mul_(0.5) for each in weights.values()])
    shutil.copy(earlier, adapter.weights_file)
    with pytest.raises(CertificateError, match=r"adapter_model\.safetensors` was changed"):
        load_and_replay(adapter.run)


def test_adapter_on_a_changed_base_is_found(adapter: Certified) -> None:
    file = adapter.base / "model.safetensors"
    change_weights(file, lambda weights: weights["model.norm.weight"].add_(1e-3))
    with pytest.raises(
        LushanError, match=r"is an adapter of .*base`, but the weights in .* others"
    ):
        load_and_replay(adapter.run)


def test_renderer_of_the_base_counts_for_an_adapter(adapter: Certified) -> None:
    (adapter.base / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    with pytest.raises(CertificateError, match=r"base/chat_template\.jinja` was not there when"):
        load_and_replay(adapter.run)


def test_file_that_decides_nothing_may_change(whole: Certified) -> None:
    (whole.model / "README.md").write_text("# A model", encoding="utf-8")
    assert load_and_replay(whole.run) == 0.0


# The same faults in the model that is served, under files that nobody touched


def with_sorted_labels(predictor: Predictor, _: pytest.MonkeyPatch) -> Predictor:
    labels = tuple(sorted(predictor.state.labels, key=int))
    return replace(predictor, state=replace(predictor.state, labels=labels))


def with_doubled_bos(predictor: Predictor, patch: pytest.MonkeyPatch) -> Predictor:
    encode = Tokenizer.encode

    def doubled(self: Tokenizer, texts: list[str]) -> list[Encoded]:
        return [Encoded([1, *ids], [(0, 0), *places]) for ids, places in encode(self, texts)]

    patch.setattr(Tokenizer, "encode", doubled)
    return predictor


def with_another_template(predictor: Predictor, _: pytest.MonkeyPatch) -> Predictor:
    vars(predictor.backbone.tokenizer.chat)["text"] = "{{ messages }}"
    return predictor


def with_another_stop_token(predictor: Predictor, _: pytest.MonkeyPatch) -> Predictor:
    tokenizer = predictor.backbone.tokenizer
    tokenizer._special = replace(tokenizer._special, stop_id=7)
    return predictor


def with_a_head_drawn_anew(predictor: Predictor, _: pytest.MonkeyPatch) -> Predictor:
    predictor.backbone.plain_model.score.reset_parameters()
    return predictor


def with_a_stop_string(predictor: Predictor, _: pytest.MonkeyPatch) -> Predictor:
    return replace(predictor, state=replace(predictor.state, stop_strings=("\n",)))


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (with_sorted_labels, r"Labels: expected \['0', '1', '10', .*got \['0', '1', '2'"),
        (with_doubled_bos, r"Probe 1, token ids: expected \[\d+, .*, got \[1, "),
        (with_another_template, r"Chat template: expected '\w{64}', got '\w{64}'"),
        (with_another_stop_token, r"Stop tokens: expected \[2\], got \[7\]"),
        (
            with_a_head_drawn_anew,
            r"Probe 1, probabilities: differ by up to 0\.\d+ \(at most 0\.0001",
        ),
        (with_a_stop_string, r"Stop strings: expected \[\], got \['\\n'\]"),
    ],
)
def test_fault_in_the_loaded_model_is_found_by_its_answers(
    plant: Callable[[Predictor, pytest.MonkeyPatch], Predictor],
    told: str,
    whole: Certified,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = plant(load_predictor(whole.run), monkeypatch)
    with pytest.raises(CertificateError, match=told):
        replay(whole.run, served)


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("lushan.model_store.probes", r"Threshold: expected 0\.5, got 0\.9"),
        ("lushan.label_answers", r"Probe \d, log likelihoods: differ|Probe \d, answer, from the"),
    ],
    ids=["told", "used"],
)
def test_changed_threshold_is_found(
    module: str,
    told: str,
    *,
    tiny_folder: MakeTiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = TaskState(labels=LABELS, multi_label=True)
    saved = save(tmp_path, tiny_folder("llama"), state=state)
    monkeypatch.setattr(f"{module}.THRESHOLD", 0.9)
    with pytest.raises(CertificateError, match=told):
        load_and_replay(saved.run)


@ASKED_HERE
@pytest.mark.parametrize("plant", [sort_labels, change_one_weight, double_bos])
def test_model_that_was_spoiled_while_it_was_saved_is_not_certified(
    plant: Callable[[Certified], None], whole: Certified
) -> None:
    (whole.run / "certificate.json").unlink()
    plant(whole)
    with pytest.raises(LushanError):
        certify(whole.run, whole.predictor, EXAMPLES)
    assert not (whole.run / "certificate.json").exists()


# Forms whose weights are rounded


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_a_form_is_held_to_its_own_tolerance(
    weights: str, whole: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = load_predictor(whole.run, weights=weights)
    tolerance = TOLERANCES[weights]
    difference = replay(whole.run, served)
    assert TOLERANCES["fp32"].probability < difference < tolerance.probability
    monkeypatch.setattr(served.backbone, "weight_form", None)
    with pytest.raises(CertificateError, match=r"at most 0\.0001 is allowed"):
        replay(whole.run, served)


def test_a_form_beyond_its_tolerance_is_refused(
    whole: Certified, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = packed_linear._rounded_to_8_bits

    def too_coarse(groups_OGI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        numbers, scales = exact(groups_OGI)
        return numbers, scales * 30

    monkeypatch.setattr(packed_linear, "_rounded_to_8_bits", too_coarse)
    with pytest.raises(CertificateError, match=r"differ by up to .*at most 0\.[15] is"):
        replay(whole.run, load_predictor(whole.run, weights="int8"))


# Certificates of other versions


def test_certificate_of_version_1_is_held_to_what_it_knew(whole: Certified) -> None:
    def to_version_1(values: dict[str, Any]) -> None:
        answers = values["answers"]
        kept = {n: answers[n] for n in ("labels", "token_ids", "answers", "probabilities")}
        version = values["model_version"]
        values.clear()
        values |= {"schema_version": 1, "model_version": version, "answers": kept}

    change_json(whole.run / "certificate.json", to_version_1)
    assert load_and_replay(whole.run) == 0.0
    served = replace(load_predictor(whole.run), state=replace(STATE, labels=LABELS[::-1]))
    with pytest.raises(CertificateError, match="Labels: expected"):
        replay(whole.run, served)
    change_one_weight(whole)
    with pytest.raises(CertificateError, match=r"certified as version \w{12}, but version \w{12}"):
        load_and_replay(whole.run)


def test_certificate_of_version_2_knew_no_end_of_a_turn(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    saved = save(tmp_path / "saved", write_turns(tiny_folder("llama"), tmp_path / "turns"))
    file = saved.run / "certificate.json"
    assert read(file)["answers"]["stop_tokens"] == [0, 2]
    change_json(file, lambda values: values["answers"].update(stop_tokens=[2]))
    with pytest.raises(CertificateError, match=r"Stop tokens: expected \[2\], got \[0, 2\]"):
        load_and_replay(saved.run)
    change_json(file, lambda values: values.update(schema_version=2))
    assert load_and_replay(saved.run) == 0.0


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"schema_version": 4}', "version 4; this Lushan reads up to 3. Update Lushan"),
        ('{"schema_version": 2}', "is broken: KeyError"),
        ("[", "is broken: JSONDecodeError"),
    ],
)
def test_certificate_that_cannot_be_read_is_refused(
    content: str, told: str, whole: Certified
) -> None:
    (whole.run / "certificate.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=rf"certificate\.json` .*{told}"):
        load_and_replay(whole.run)


def test_probes_that_cannot_be_read_are_refused_and_the_first_ones_had_texts_alone(
    whole: Certified,
) -> None:
    file = whole.run / "model" / "probes.json"
    texts = json.loads(file.read_text(encoding="utf-8"))["texts"]
    file.write_text(json.dumps({"texts": texts}), encoding="utf-8")
    assert [each.text for each in read_probes(whole.run)] == texts
    for content in ("[]", "{}", '{"texts": 3}', '{"texts": ["a"], "extras": [{}, {}]}', "?"):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(RunError, match=r"probes\.json` is broken"):
            read_probes(whole.run)


def test_run_without_a_certificate_is_refused(whole: Certified) -> None:
    (whole.run / "certificate.json").unlink()
    with pytest.raises(RunError, match=r"certificate\.json` is missing.*--resume"):
        load_and_replay(whole.run)

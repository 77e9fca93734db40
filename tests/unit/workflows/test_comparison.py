"""What the tuned model is measured against; answers compared with plain transformers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from lushan.model_store.run_folder import RunFolder
from lushan.records import Prediction
from lushan.workflows import comparison
from lushan.workflows.comparison import (
    answer_untuned,
    run_baselines,
    shots_that_fit,
    what_is_asked,
)
from lushan.workflows.setup import Setup
from tests.bad_inputs import good_rows
from tests.tiny import write_class_model
from tests.unit.workflows.conftest import BuildSetup

INSTRUCTION = "Classify the text as one of: hill, sea.\n\n"


@torch.inference_mode()
def written_probability(setup: Setup, prompt: str) -> float:
    """Probability of `sea` if the next token begins one of the two labels."""
    tokenizer = AutoTokenizer.from_pretrained(setup.base)
    model = AutoModelForCausalLM.from_pretrained(setup.base, dtype=torch.float32)
    first = [tokenizer(f"{prompt} {label}").input_ids for label in ("hill", "sea")]
    length = len(tokenizer(prompt).input_ids)
    logits_V = model(torch.tensor([first[0][:length]])).logits[0, -1]
    return float(logits_V[[ids[length] for ids in first]].softmax(0)[1])


@torch.inference_mode()
def similar_probability(setup: Setup, text: str) -> float:
    """Probability of `sea` by cosines of mean hidden states, sharpened 20 times."""
    tokenizer = AutoTokenizer.from_pretrained(setup.base)
    model = AutoModel.from_pretrained(setup.base).eval()
    means = [
        model(**tokenizer(each, return_tensors="pt")).last_hidden_state[0].mean(0)
        for each in (text, "hill", "sea")
    ]
    cosines = [float(torch.cosine_similarity(means[0], mean, dim=0)) for mean in means[1:]]
    return float(np.exp(20 * cosines[1]) / np.exp(20 * np.array(cosines)).sum())


def sea(predictions: list[Prediction]) -> list[float]:
    return [each.probabilities["sea"] for each in predictions]


def test_untouched_decoder_writes_a_label_after_the_bare_prompt(build_setup: BuildSetup) -> None:
    setup = build_setup("llama")
    examples = setup.parts.test[:3]
    found = answer_untuned(setup, examples)
    expected = [
        written_probability(setup, f"{INSTRUCTION}Text: {each.text}\nLabel:") for each in examples
    ]
    assert sea(found) == pytest.approx(expected, abs=1e-5)
    assert [each.id for each in found] == [each.id for each in examples]


def test_nothing_stands_for_a_model_that_cannot_be_asked(
    build_setup: BuildSetup, tmp_path: Path
) -> None:
    rows = [{"text": row["text"], "entities": [[4, 7, "x"]]} for row in good_rows()]
    encoder, decoder = (build_setup(x, rows=rows, task="tagging") for x in ("bert", "llama"))
    silent = write_class_model(decoder.base, tmp_path / "silent", ("a", "b"))
    for setup in (encoder, replace(decoder, base=silent)):
        found = answer_untuned(setup, setup.parts.test)
        assert [(each.id, each.answer) for each in found] == [(x.id, ()) for x in setup.parts.test]
        assert what_is_asked(setup).startswith("an untouched model cannot be asked for `tagging`")
    assert what_is_asked(build_setup("llama")) == "asking the untouched model"


def test_worked_examples_stand_before_the_question(build_setup: BuildSetup) -> None:
    setup = build_setup("llama")
    example, shot = setup.parts.test[0], setup.parts.train[0]
    found = answer_untuned(setup, [example], shots=[shot])
    prompt = f"{INSTRUCTION}Text: {shot.text}\nLabel: {shot.target}\n\nText: {example.text}\nLabel:"
    assert sea(found) == pytest.approx([written_probability(setup, prompt)], abs=1e-5)


def test_untouched_encoder_takes_the_most_similar_label(build_setup: BuildSetup) -> None:
    setup = build_setup("bert")
    examples = setup.parts.test[:3]
    expected = [similar_probability(setup, each.text) for each in examples]
    assert sea(answer_untuned(setup, examples)) == pytest.approx(expected, abs=1e-4)


def test_prompt_longer_than_the_limit_of_texts_stops_nothing(build_setup: BuildSetup) -> None:
    setup = build_setup("llama", model={"max_length": 48})
    assert prompt_tokens(setup, 0) + 20 > 48
    assert len(answer_untuned(setup, setup.parts.test)) == len(setup.parts.test)


def prompt_tokens(setup: Setup, num_shots: int) -> int:
    """Count the tokens of a prompt with worked examples and no text."""
    shots = setup.state.shots[:num_shots]
    worked = "".join(f"Text: {shot.text}\nLabel: {shot.target}\n\n" for shot in shots)
    tokenizer = AutoTokenizer.from_pretrained(setup.base)
    return len(tokenizer(f"{INSTRUCTION}{worked}Text: \nLabel:").input_ids)


def with_context(setup: Setup, num_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the model's configuration say another context."""
    facts = replace(comparison.describe(setup.base), context_tokens=num_tokens)
    monkeypatch.setattr(comparison, "describe", lambda _: facts)


def test_as_many_worked_examples_as_leave_half_of_the_context(
    build_setup: BuildSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = build_setup("llama", task_settings={"num_shots": 4})
    with_context(setup, 2 * prompt_tokens(setup, 3), monkeypatch)
    assert shots_that_fit(setup) == setup.state.shots[:3]
    with_context(setup, 2 * prompt_tokens(setup, 3) - 2, monkeypatch)
    assert shots_that_fit(setup) == setup.state.shots[:2]


def test_short_context_leaves_no_worked_examples(
    build_setup: BuildSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = build_setup("llama")
    with_context(setup, prompt_tokens(setup, 0), monkeypatch)
    assert shots_that_fit(setup) == ()


def make_run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", recipe={}, status={}, overwrite=False)


def test_baselines_answer_the_test_rows_once_and_are_described(
    build_setup: BuildSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, run, told = build_setup("llama"), make_run(tmp_path), list[str]()
    run_baselines(run, setup, tell=told.append)
    assert set(run.get("baselines")) == {"majority", "tf_idf", "few_shot"}
    assert len(told) == 3
    for name in ("majority", "tf_idf", "few_shot"):
        found = run.predictions(name)
        assert found is not None
        assert [each.id for each in found] == [each.id for each in setup.parts.test]
    monkeypatch.setattr(comparison, "answer_untuned", None)  # would fail if it was called
    run_baselines(run, setup, tell=told.append)
    assert len(told) == 3


def test_baselines_that_learn_say_from_how_many_rows_where_not_all_were_drawn(
    build_setup: BuildSetup, tmp_path: Path
) -> None:
    setup, run = build_setup("bert", data={"max_train_rows": 20}), make_run(tmp_path)
    run_baselines(run, setup, tell=lambda _: None)
    told: dict[str, str] = run.get("baselines")
    assert told.keys() == {"majority", "tf_idf"}
    for description in told.values():
        assert description.endswith(". Learned from the 20 drawn of 34 training rows.")
    copied = comparison._classical(setup, "copied_source")
    assert copied.description == "Every text is its own answer, not a character changed."
    whole = comparison._classical(build_setup("bert"), "majority")
    assert "Learned" not in whole.description


def test_texts_that_are_cut_for_the_untouched_model_are_told(
    build_setup: BuildSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, told = build_setup("llama"), list[str]()
    test = setup.parts.test
    prompts = [f"{INSTRUCTION}Text: {each.text}\nLabel:" for each in test]
    lengths = [len(each.ids) for each in setup.tokenizer.encode(prompts)]
    with_context(setup, max(lengths), monkeypatch)
    answer_untuned(setup, test, tell=told.append)
    assert told == []
    most = sorted({*lengths})[-2]
    with_context(setup, most, monkeypatch)
    answer_untuned(setup, test, tell=told.append)
    num_cut = sum(each > most for each in lengths)
    line = f"{num_cut} of {len(test)} texts were too long for the untouched model and were cut."
    assert told == [line]
    run_baselines(make_run(tmp_path), setup, tell=told.append)
    assert told[-1].startswith("Baseline few_shot: ")
    assert told[-1].endswith(line)


def test_baselines_go_on_where_a_kill_stopped_them(
    build_setup: BuildSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, run, told = build_setup("llama"), make_run(tmp_path), list[str]()
    monkeypatch.setattr(comparison, "answer_untuned", None)
    with pytest.raises(TypeError):
        run_baselines(run, setup, tell=told.append)
    monkeypatch.undo()
    run.close()
    run_baselines(RunFolder.open(tmp_path / "run"), setup, tell=told.append)
    assert [line.split(":")[0] for line in told] == [
        "Baseline majority",
        "Baseline tf_idf",
        "Baseline few_shot",
    ]
    stored = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert set(stored["baselines"]) == {"majority", "tf_idf", "few_shot"}


def test_encoder_has_no_few_shot_baseline(build_setup: BuildSetup, tmp_path: Path) -> None:
    run, told = make_run(tmp_path), list[str]()
    run_baselines(run, build_setup("bert"), tell=told.append)
    assert set(run.get("baselines")) == {"majority", "tf_idf"}
    assert told[0] == "No few-shot baseline: an encoder cannot be prompted."


def test_decoder_that_lost_its_output_weights_is_asked_as_an_encoder(
    build_setup: BuildSetup, tmp_path: Path
) -> None:
    setup = build_setup("llama")
    base = write_class_model(setup.base, tmp_path / "tuned", ("a", "b"))
    setup, run, told = replace(setup, base=base), make_run(tmp_path), list[str]()
    examples = setup.parts.test[:3]
    expected = [similar_probability(setup, each.text) for each in examples]
    assert sea(answer_untuned(setup, examples)) == pytest.approx(expected, abs=1e-4)
    run_baselines(run, setup, tell=told.append)
    assert set(run.get("baselines")) == {"majority", "tf_idf"}
    reason = "No few-shot baseline: the model has no weights that score the next token"
    assert told[0].startswith(reason)

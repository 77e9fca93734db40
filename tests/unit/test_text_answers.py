"""What tasks that write share; the tasks' own tests compare their scores with others."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import load_backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.batching import pack
from lushan.errors import DataError, SettingError
from lushan.records import Example, Features, Prediction, Rendered, Row, TaskState, Written
from lushan.tasks import Preparation
from lushan.tasks.translation import Task
from lushan.text_answers import (
    answer_loss,
    decode_written,
    details,
    encode_text,
    learn_to_write,
    likelihoods,
    read_text,
    render_prompt,
    truth_likelihoods,
)
from tests.conftest import MakeTiny
from tests.generation import plain_model


def test_prompt_keeps_the_limits_of_its_text_and_supervises_the_answer() -> None:
    text = Rendered("far near", cuttable=(0, 3), cuts_start=True, uncut="The rest")
    parts = {"opening": "Say.\n\n", "shots": [("s", " x")], "question": "So:"}
    asked = render_prompt(text, **parts, answer=None)
    told = render_prompt(text, **parts, answer=" y")
    assert told.text == "Say.\n\nText: s\nSo: x\n\nText: far near\nSo: y"
    assert [each.text[slice(*each.cuttable)] for each in (asked, told)] == ["far", "far"]
    assert [(each.cuts_start, each.uncut) for each in (asked, told)] == [(True, "The rest")] * 2
    assert [told.text[start:end] for start, end in told.supervised] == [" y"]
    assert (asked.supervised, asked.ends_with_stop, told.ends_with_stop) == ((), False, True)


def examples(*targets: str) -> list[Example]:
    return [
        Example(str(n), f"text {n}", target, f"a.csv, row {n}") for n, target in enumerate(targets)
    ]


@pytest.mark.parametrize(
    ("targets", "stop"),
    [
        (("a", "b c"), "\n"),
        (("a", "b\nc"), "\n\n"),
        (("a\n\nb",), "\n\nText:"),
        (("\n\nText:",), None),
    ],
)
def test_answer_ends_at_the_tightest_break_that_no_training_answer_holds(
    targets: tuple[str, ...], stop: str | None
) -> None:
    state = learn_to_write(examples(*targets), Preparation())
    assert state.stop_strings == (() if stop is None else (stop,))


def test_worked_examples_are_drawn_by_the_seed_alone() -> None:
    rows = examples(*"abcdefgh")
    drawn = learn_to_write(rows, Preparation(num_shots=3)).shots
    assert len(drawn) == 3
    again = learn_to_write(rows[::-1], Preparation(num_shots=3)).shots
    assert [each.id for each in again] == [each.id for each in drawn]
    assert drawn != learn_to_write(rows, Preparation(num_shots=3, seed=1)).shots


def plain_likelihood(model: Any, features: Features) -> tuple[float, int]:  # noqa: ANN401
    ids = torch.tensor([features.token_ids])
    logs_TV = model(ids).logits.detach()[0, :-1].log_softmax(-1)
    logs_T = logs_TV.gather(1, ids[0, 1:, None])[features.targets_from - 1 :]
    return float(logs_T.sum()), len(logs_T)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text"])
def test_likelihood_of_the_truth_and_loss_are_those_of_transformers(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    backbone = load_backbone(tiny_folder(model_type), purpose="language")
    rows = examples("soup", "a brave fox")
    rendered = [
        Rendered(f"{each.text}: {each.target}", supervised=((8, 9 + len(str(each.target))),), ends_with_stop=True)
        for each in rows
    ]  # fmt: skip
    features = encode_text(rendered, rows, backbone.tokenizer, limit=LengthLimit(99))
    batch = pack(features)
    expected = [plain_likelihood(plain_model(tiny_folder(model_type)), each) for each in features]
    assert {each.token_ids[-1] for each in features} == {backbone.tokenizer.stop_id}
    found = {
        f.example_index: pair.tolist()
        for f, pair in zip(batch.features, truth_likelihoods(backbone, batch), strict=True)
    }
    for index, (total, size) in enumerate(expected):
        assert found[index] == pytest.approx([total, size], abs=1e-4)
    loss = answer_loss(backbone, backbone.hidden_states(batch), batch)
    assert float(loss.total.detach()) == pytest.approx(
        -sum(total for total, _ in expected), abs=1e-3
    )
    assert loss.count == sum(size for _, size in expected)


def test_validation_loss_is_per_token_and_not_known_without_the_truth() -> None:
    one = Prediction("1", "a", truth_log_likelihood=-3.0, num_truth_tokens=1)
    other = replace(one, truth_log_likelihood=-1.0, num_truth_tokens=3)
    assert details([one, other])["log_loss"] == 1.0
    assert likelihoods([one, other], seed=0)["answer_log_likelihood"].value == -1.0
    assert "log_loss" not in details([one, Prediction("2", "b")])
    assert likelihoods([Prediction("2", "b")], seed=0) == {}


def test_answer_is_what_was_written_without_the_space_around_it() -> None:
    (found,) = decode_written([Written(" Ein Hund. ", -2.5)], examples("x"))
    assert (found.answer, found.log_likelihood) == ("Ein Hund.", -2.5)


def test_head_and_windows_are_refused_where_answers_are_written(tiny_folder: MakeTiny) -> None:
    with pytest.raises(SettingError, match="`translation` writes its answers"):
        Task().layer(TaskState(), answer="head")
    tokenizer = Tokenizer.load(tiny_folder("llama"))
    with pytest.raises(SettingError, match=r"`data\.over_length=window`"):
        encode_text([Rendered("a")], examples("x"), tokenizer, limit=LengthLimit(9, "window"))


@pytest.mark.parametrize("value", [None, "", "  ", 7, ["a"]])
def test_column_without_a_text_is_refused(value: object) -> None:
    with pytest.raises(DataError, match=r"a\.csv, row 3: column `source` must hold a text"):
        read_text(Row({"source": value}, "a.csv", 3), "source")

"""Dialogue: forms of conversations, what is learned of them, calls of tools, and scores."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from lushan.backbones.adapters import attach
from lushan.backbones.chat import PLAIN_CHAT
from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.batching import pack
from lushan.data.columns import Notes, find_columns, form_of
from lushan.data.splits import split
from lushan.errors import DataError
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor
from lushan.records import GOES_ON, Row, Written
from lushan.tasks.dialogue import Task
from tests.chats import (
    ALTERNATING,
    CALLING,
    KNOWING,
    LIMIT,
    STATE,
    TASK,
    TOOLS,
    TURNS,
    encode,
    learned,
    read,
    with_template,
)
from tests.conftest import MakeTiny
from tests.generation import plain_model
from tests.served import TOOL_TEMPLATE

LIKELY: Any = {"truth_log_likelihood": -1.0, "num_truth_tokens": 1}


@pytest.fixture
def tokenizer(tiny_folder: MakeTiny) -> Tokenizer:
    return Tokenizer.load(tiny_folder("llama"))


@pytest.fixture
def backbone(tiny_folder: MakeTiny) -> Backbone:
    return load_backbone(tiny_folder("llama"), purpose="language")


@pytest.mark.parametrize(
    "values",
    [
        {"messages": TURNS},
        {
            "system": "Be brave.",
            "conversations": [
                {"from": "human", "value": "Where is the fox?"},
                {"from": "gpt", "value": "In the forest."},
                {"from": "user", "value": "And the soup?"},
                {"from": "assistant", "value": "Cold again."},
            ],
        },
    ],
)
def test_forms_of_a_conversation_are_read_alike(values: dict[str, Any]) -> None:
    found = TASK.read(Row(values, "a.jsonl", 7))
    assert (found.id, found.target, found.extra) == (
        read().id,
        "Cold again.",
        {"messages": TURNS[:-1]},
    )


def test_rows_that_are_compared_leave_the_system_out_and_begin_alike() -> None:
    told = [{"role": "system", "content": "Be brave. " * 50}, *TURNS[1:]]
    short, long = read(told[:3]), read(told)
    assert short.group == long.group.split(GOES_ON)[0] == TURNS[1]["content"]
    assert "Be brave" not in long.group + long.text
    assert read(TURNS).id != long.id


@pytest.mark.parametrize("opening", [TURNS[1:3], [{**TURNS[1], "content": "Hello!"}, TURNS[2]]])
def test_rows_of_a_conversation_that_was_cut_come_into_one_split(opening: list[Any]) -> None:
    talks = [
        [*opening, {**TURNS[1], "content": f"How much soup is left in pot {n}?"}, *TURNS[2:]]
        for n in range(20)
    ]
    rows = [read(talk[:end]) for talk in talks for end in (2, 4, 6)]
    parts = split(rows, validation_fraction=0.1, test_fraction=0.2, seed=0)
    assert [len(part) for part in parts.as_dict().values()] == [20 + 28, 4, 8]
    for part in (parts.validation, parts.test):
        asked = [each.text for each in rows if any(x.group == each.group for x in part)]
        assert sorted(each.text for each in part) == sorted(asked)


def test_functions_of_openais_old_form_are_tools() -> None:
    for form in ("messages", "conversations"):
        wanted = form_of((form, "functions"), mapping={}, wanted=Task.columns)
        found = find_columns((form, "functions"), mapping={}, wanted=wanted, notes=Notes("a"))
        assert found == {form: form, "tools": "functions"}
    assert read(tools=[TOOLS[0]["function"]]).extra["tools"] == TOOLS


def test_instruction_and_input_are_one_question() -> None:
    row = Row({"instruction": "Say it in German.", "input": "a fox", "output": "ein Fuchs"}, "a", 1)
    assert TASK.read(row).extra["messages"] == [
        {"role": "user", "content": "Say it in German.\n\na fox"}
    ]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "must hold a list of messages"),
        ("hello", "must hold a list of messages"),
        ([{"role": "robot", "content": "x"}], "message 1 must be an object with a `role`"),
        ([*TURNS[:3], "x"], "message 4 must be an object"),
        ([{"role": "user", "content": " "}, TURNS[-1]], "message 1 has no text"),
        (TURNS[:2], "the last message must be the assistant's, got `user`"),
        ([TURNS[0], TURNS[-1]], "nobody has said anything"),
        ([*TURNS[:-1], {**TURNS[-1], "weight": 0}], "the last message has `weight` 0"),
        ([*TURNS[:-1], {**TURNS[-1], "weight": "0"}], "message 5 has `weight` '0'"),
        ([{**TURNS[1], "weight": 0.5}, TURNS[-1]], "message 1 has `weight` 0.5"),
    ],
)
def test_conversation_that_cannot_be_learned_is_refused(messages: Any, message: str) -> None:  # noqa: ANN401
    with pytest.raises(DataError, match=rf"a\.jsonl, row 7: .*{message}"):
        TASK.read(Row({"messages": messages}, "a.jsonl", 7))


def test_loss_is_that_of_transformers_on_the_same_tokens(
    backbone: Backbone, tiny_folder: MakeTiny
) -> None:
    features = [encode(backbone.tokenizer, read()), encode(backbone.tokenizer, read(TURNS[1:3]))]
    found = TASK.loss(backbone, pack(features), STATE, dropout=0.0)
    expected, count = 0.0, 0
    for each in features:
        ids = torch.tensor([each.token_ids])
        labels = torch.full_like(ids, -100)
        places = torch.tensor(each.positions) + 1
        labels[0, places] = ids[0, places]
        expected += float(
            plain_model(tiny_folder("llama"))(ids, labels=labels).loss.detach()
        ) * len(places)
        count += len(places)
    assert found.count == count
    assert float(found.total.detach()) == pytest.approx(expected, rel=1e-5)


def test_field_without_a_value_is_no_field() -> None:
    filled = [{**each, "weight": None, "tool_calls": None} for each in TURNS]
    assert read(filled) == read()


def test_answer_that_calls_is_written_once_where_its_form_is_looked_for(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    counted = ALTERNATING.replace("not m.tool_calls and ", "")
    strict = with_template(tokenizer, tmp_path, counted + KNOWING)
    for with_target in (True, False):
        with pytest.raises(
            DataError, match=r"row 7: the last message calls tools, but .* not read"
        ):
            encode(strict, read(CALLING, tools=TOOLS), with_target=with_target)


def test_call_is_learned_as_the_template_writes_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for folder, template in (("own", TOOL_TEMPLATE), ("plain", PLAIN_CHAT)):
        knowing = with_template(tokenizer, tmp_path / folder, template)
        features = encode(knowing, read(CALLING, tools=TOOLS), limit=LengthLimit(4096))
        theirs = AutoTokenizer.from_pretrained(tmp_path / folder)
        options: Any = {"tools": TOOLS, "tokenize": False}
        asked = theirs.apply_chat_template(CALLING[:1], add_generation_prompt=True, **options)
        whole = theirs.apply_chat_template([CALLING[0], {**CALLING[1], "content": ""}], **options)
        stop = knowing._token(knowing.stop_id)
        assert learned(knowing, features) == whole.removeprefix(asked).rstrip()
        assert learned(knowing, features).endswith(stop)
        assert "find_fox" in learned(knowing, features)


def test_call_that_could_not_be_read_back_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    template = TOOL_TEMPLATE.replace('{"name":', '{"name":: ')
    pythonic = with_template(tokenizer, tmp_path, template)
    with pytest.raises(DataError, match=r"row 7: the last message calls tools, but .* not read"):
        encode(pythonic, read(CALLING, tools=TOOLS), limit=LengthLimit(4096))
    earlier = [*CALLING, {"role": "tool", "content": "Here."}, TURNS[-1]]
    told = encode(pythonic, read(earlier, tools=TOOLS), limit=LengthLimit(4096))
    assert "find_fox" in learned(pythonic, told)


@pytest.mark.parametrize("with_tools", [True, False])
def test_calls_in_an_answer_are_found_and_scored(with_tools: bool, tokenizer: Tokenizer) -> None:
    tools = {"tools": TOOLS} if with_tools else {}
    example = read(CALLING, **tools)
    features = encode(tokenizer, example, with_target=False, limit=LengthLimit(4096))
    shown = '<tool_call>\n{"name": "find_fox", "arguments": {}}\n</tool_call>'
    for text, right in ((shown, 1.0), ("In the forest.", 0.0), (shown.replace("fox", "x"), 0.0)):
        (found,) = TASK.decode(
            [Written(text, -1.0)], [features], [example], STATE, answer="generate"
        )
        assert found.answer == text
        scores = TASK.score([replace(found, **LIKELY)], [example], STATE)
        assert scores.metrics["call_accuracy"].value == right
    without = read([TURNS[1], TURNS[2]])
    assert encode(tokenizer, without, with_target=False).tool_form is None


def test_worked_example_that_calls_is_shown_with_its_call(tokenizer: Tokenizer) -> None:
    shot = read(CALLING, tools=TOOLS)
    told = encode(tokenizer, read(tools=TOOLS), shots=[shot], limit=LengthLimit(4096))
    written = tokenizer._raw.decode(list(told.token_ids), skip_special_tokens=False)
    stop = tokenizer._token(tokenizer.stop_id)
    assert f'{{"name": "find_fox", "arguments": {{}}}}\n</tool_call>{stop}' in written
    assert "find_fox" not in learned(tokenizer, told)


def test_how_likely_the_answers_are_is_told_of_examples_and_scored(backbone: Backbone) -> None:
    predictor = Predictor(
        backbone, TASK, STATE, "generate", LIMIT, generation=GenerationSettings(max_new_tokens=5)
    )
    examples = [read(), read(TURNS[1:3])]
    found = predictor.examine(examples)
    loss = TASK.loss(
        backbone, pack([encode(backbone.tokenizer, each) for each in examples]), STATE, dropout=0.0
    )
    assert sum(each.truth_log_likelihood or 0 for each in found) == pytest.approx(
        -float(loss.total.detach()), rel=1e-4
    )
    scores = TASK.score(found, examples, STATE)
    assert scores.metrics["answer_log_likelihood"].value == pytest.approx(
        -float(loss.total.detach()) / loss.count, rel=1e-4
    )
    assert scores.details["log_loss"] == pytest.approx(
        -scores.metrics["answer_log_likelihood"].value
    )
    (blank,) = predictor.predict([replace(examples[0], target=None)])
    assert (blank.answer, blank.truth_log_likelihood) == (found[0].answer, None)


def test_truth_is_as_likely_while_others_are_trained_with_dropout(backbone: Backbone) -> None:
    attach(backbone, method="lora", dropout=0.5)
    for name, weight in backbone.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    settings = GenerationSettings(max_new_tokens=2)
    predictor = Predictor(backbone, TASK, STATE, "generate", LIMIT, generation=settings)
    backbone.model.eval()
    (expected,) = predictor.examine([read()])
    backbone.model.train()
    assert [predictor.examine([read()]) for _ in range(3)] == [[expected]] * 3
    assert backbone.model.training

"""What a model is asked: the tokens of `transformers`' chat template, and the settings of the run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lushan.backbones.chat import PLAIN_CHAT
from lushan.backbones.encoding import LengthLimit, LengthPolicy
from lushan.catalog import load_task
from lushan.errors import DataError
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.grammar import Constraint
from lushan.model_store.resident import Resident
from lushan.records import Example, TaskState
from lushan.serving.errors import RequestError
from lushan.serving.hosted import HostedModel, host
from lushan.serving.prompts import ask_chat, ask_completion, ask_label, make_settings
from lushan.serving.request_bodies import ChatRequest, CompletionRequest, Sampled
from tests.conftest import MakeTiny
from tests.saved import save_tuned

MESSAGES = [
    {"role": "system", "content": "Be  brief."},
    {"role": "user", "content": " the fox "},
    {"role": "assistant", "content": "lived"},
    {"role": "user", "content": "where?"},
]


def chat(**fields: object) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": MESSAGES, **fields})


def test_chat_has_the_tokens_of_the_models_own_template(
    chatter: HostedModel, chat_folder: Path
) -> None:
    (prompted,) = ask_chat(chatter, chat()).prompted
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    expected = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert list(prompted.prompt_ids) == expected


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2"])
def test_chat_of_a_base_model_has_the_tokens_of_the_plain_template(
    model_type: str, tiny_folder: MakeTiny
) -> None:
    folder = tiny_folder(model_type)
    model = host(str(folder), Resident(weights="fp32"))
    (prompted,) = ask_chat(model, chat()).prompted
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        MESSAGES, chat_template=PLAIN_CHAT, add_generation_prompt=True, tokenize=False
    )
    assert list(prompted.prompt_ids) == tokenizer(text)["input_ids"]


def test_developer_speaks_as_system(chatter: HostedModel) -> None:
    developer = [{**MESSAGES[0], "role": "developer"}, *MESSAGES[1:]]
    asked = [ask_chat(chatter, chat(messages=each)) for each in (MESSAGES, developer)]
    assert asked[0].prompted == asked[1].prompted


def test_turn_without_a_word_is_told_and_a_system_message_without_one_is_not(
    chatter: HostedModel, chat_folder: Path
) -> None:
    silent = [MESSAGES[1], {"role": "assistant", "content": ""}, MESSAGES[3]]
    (prompted,) = ask_chat(chatter, chat(messages=silent)).prompted
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    expected = tokenizer.apply_chat_template(silent, add_generation_prompt=True)["input_ids"]
    assert list(prompted.prompt_ids) == expected
    for role in ("system", "developer"):
        asked = ask_chat(chatter, chat(messages=[{"role": role, "content": " \n"}, *silent]))
        assert asked.prompted == [prompted]
    with pytest.raises(DataError, match="message 1 has no text"):
        ask_chat(chatter, chat(messages=[{"role": "user", "content": ""}]))


def test_system_message_of_a_client_stands_in_the_place_of_the_instruction(
    chatter: HostedModel,
) -> None:
    state = replace(chatter.predictor.state, instruction="Answer in verse.")
    model = replace(chatter, predictor=replace(chatter.predictor, state=state))
    assert ask_chat(model, chat()).prompted == ask_chat(chatter, chat()).prompted
    verse = [{"role": "system", "content": "Answer in verse."}, *MESSAGES[1:]]
    expected = ask_chat(chatter, chat(messages=verse)).prompted
    blank = [{"role": "system", "content": ""}, *MESSAGES[1:]]
    for messages in (MESSAGES[1:], blank):
        assert ask_chat(model, chat(messages=messages)).prompted == expected


@pytest.mark.parametrize("policy", ["error", "truncate"])
def test_conversation_that_is_longer_than_the_run_reads_is_refused_and_never_cut(
    policy: LengthPolicy, chatter: HostedModel
) -> None:
    predictor = replace(chatter.predictor, limit=LengthLimit(100, policy))
    model = replace(chatter, predictor=predictor)
    messages = [{**MESSAGES[1], "content": "the fox " * 99}, *MESSAGES[2:]]
    told = (
        r"has \d+ tokens, and `max_tokens` is 9; the model reads 100 of a prompt, and 4096 together"
    )
    with pytest.raises(RequestError, match=told) as refused:
        ask_chat(model, chat(messages=messages, max_tokens=9))
    assert (refused.value.param, refused.value.code) == ("messages", "context_length_exceeded")
    texts = replace(predictor, task=load_task("summarization"), state=TaskState())
    if policy == "truncate":
        asked = ask_chat(replace(model, predictor=texts), chat(messages=messages[:1]))
        assert len(asked.prompted[0].prompt_ids) == 100
        assert asked.num_cut_tokens > 0


def test_answer_whose_length_is_not_told_gets_what_the_context_leaves(chatter: HostedModel) -> None:
    own = GenerationSettings(max_new_tokens=4000)
    model = replace(chatter, predictor=replace(chatter.predictor, generation=own))
    messages = [{"role": "user", "content": "the fox " * 100}]
    (found,) = ask_chat(model, chat(messages=messages)).prompted
    assert found.settings.max_new_tokens == 4096 - len(found.prompt_ids) < 4000
    with pytest.raises(RequestError, match=r"`max_tokens` is 4000; .* or lower `max_tokens`"):
        ask_chat(model, chat(messages=messages, max_completion_tokens=4000))
    messages[0]["content"] *= 50
    with pytest.raises(RequestError, match=r"tokens, and an answer needs 1; .* shorten them\.$"):
        ask_chat(model, chat(messages=messages))


def test_what_is_left_out_is_as_the_model_was_measured(chatter: HostedModel) -> None:
    own = GenerationSettings(temperature=0.7, top_k=5, max_new_tokens=9, stop_strings=("END",))
    state = replace(chatter.predictor.state, stop_strings=("\n",))
    model = replace(chatter, predictor=replace(chatter.predictor, generation=own, state=state))
    found = ask_chat(model, chat(seed=3, stop="x")).prompted[0].settings
    assert found == own.model_copy(update={"stop_strings": ("END", "\n", "x"), "seed": 3})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"temperature": 0.0}),
        ({"top_p": 0.9}, {"temperature": 1.0, "top_p": 0.9}),
        ({"n": 2}, {"temperature": 1.0, "num_return_sequences": 2}),
        ({"temperature": 0, "top_p": 0.9, "top_k": 3}, {"temperature": 0.0, "top_p": 1.0}),
        ({"temperature": 1e-300}, {"temperature": 0.0}),
        ({"temperature": 0.5, "seed": -1}, {"temperature": 0.5, "seed": 2**40 - 1}),
    ],
)
def test_request_says_how_an_answer_is_drawn(
    fields: dict[str, Any], expected: dict[str, Any], chatter: HostedModel
) -> None:
    body = Sampled.model_validate({"model": "m", **fields})
    found = make_settings(chatter.predictor, body, most_tokens=5)
    assert {name: getattr(found, name) for name in expected} == expected


def test_draws_without_a_seed_differ(chatter: HostedModel) -> None:
    body = Sampled(model="m", temperature=1.0)
    found = [make_settings(chatter.predictor, body, most_tokens=5).seed for _ in range(2)]
    assert found[0] != found[1]


def test_beams_of_a_run_give_way_to_draws(chatter: HostedModel) -> None:
    own = GenerationSettings(num_beams=4, length_penalty=2.0)
    predictor = replace(chatter.predictor, generation=own)
    kept = make_settings(predictor, Sampled(model="m"), most_tokens=5)
    drawn = make_settings(predictor, Sampled(model="m", temperature=1.0), most_tokens=5)
    assert (kept.num_beams, drawn.num_beams, drawn.length_penalty) == (4, 1, 1.0)


def test_likeliest_tokens_are_refused_where_a_run_writes_by_beam_search(
    chatter: HostedModel,
) -> None:
    own = GenerationSettings(num_beams=4, max_new_tokens=5)
    model = replace(chatter, predictor=replace(chatter.predictor, generation=own))
    told = r"`chatter` writes by beam search \(`num_beams` 4\).* got 3\. Ask for 0, or send"
    with pytest.raises(RequestError, match=rf"`top_logprobs`: {told}") as of_chat:
        ask_chat(model, chat(logprobs=True, top_logprobs=3))
    with pytest.raises(RequestError, match=rf"`logprobs`: {told}") as of_completion:
        ask_completion(model, CompletionRequest(model="m", prompt="the fox", logprobs=3))
    assert (of_chat.value.param, of_completion.value.param) == ("top_logprobs", "logprobs")
    assert ask_chat(model, chat(logprobs=True, top_logprobs=0)).num_alternatives == 0
    drawn = ask_chat(model, chat(logprobs=True, top_logprobs=3, temperature=0.5))
    assert drawn.num_alternatives == 3


@pytest.mark.parametrize(
    ("name", "value"), [("logprobs", True), ("top_k", 1), ("min_p", 1.0), ("n", 2), ("stop", "a")]
)
def test_field_that_only_matters_to_what_is_written_is_refused_elsewhere(
    name: str, value: object, classifier: HostedModel
) -> None:
    messages = [{"role": "user", "content": "the fox"}]
    with pytest.raises(RequestError, match=rf"`{name}` has no effect here: `run`") as refused:
        ask_label(classifier, chat(messages=messages, **{name: value}))
    assert refused.value.param == name
    asks_nothing = {"logprobs": False, "n": 1, "min_p": 0.0, "repetition_penalty": 1.0}
    asked, _ = ask_label(classifier, chat(messages=messages, **asks_nothing))
    assert asked.num_cut_tokens == 0


def test_list_of_names_is_held_to_its_text_unless_another_form_is_asked_for(
    chatter: HostedModel,
) -> None:
    state = TaskState(labels=("has",), most_items=2)
    predictor = replace(chatter.predictor, task=load_task("triples"), state=state)
    model = replace(chatter, predictor=predictor)
    message = [{"role": "user", "content": "Ada has a fox."}]
    asked = ask_chat(model, chat(messages=message))
    (held,) = asked.prompted
    (triple,) = json.loads(asked.clean("Ada | has | fox"))
    assert asked.is_list
    assert (triple["head"]["text"], triple["tail"]["start"]) == ("Ada", 10)
    (features,) = predictor.encode([Example("", "Ada has a fox.", None)])
    assert held.constraint == Constraint.lark(features.grammar)
    form = {"type": "json_object"}
    as_told = ask_chat(model, chat(messages=message, response_format=form))
    (other,) = as_told.prompted
    assert (as_told.is_list, as_told.clean('{"a": 1}')) == (False, '{"a": 1}')
    assert other.constraint == Constraint.json_schema({"type": "object"})


def test_completion_is_not_given_a_template(chatter: HostedModel) -> None:
    asked = ask_completion(chatter, CompletionRequest(model="m", prompt="the fox"))
    tokenizer = chatter.predictor.backbone.tokenizer
    assert list(asked.prompted[0].prompt_ids) == tokenizer.encode(["the fox"])[0].ids
    assert asked.prompted[0].settings.max_new_tokens == 16


def test_completion_of_a_model_that_answers_by_a_head_is_refused_where_its_base_could_write(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    save_tuned(tmp_path / "topics", tiny_folder("llama"), method="lora")
    model = host(str(tmp_path / "topics"), Resident(weights="fp32"))
    assert model.writes_with[0].plain_model.get_output_embeddings() is not None
    with pytest.raises(
        RequestError, match=r"`topics` was loaded without its vocabulary layer"
    ) as x:
        ask_completion(model, CompletionRequest(model="topics", prompt="the fox"))
    assert x.value.param == "model"


def test_task_with_several_columns_is_sent_to_its_own_route(chatter: HostedModel) -> None:
    from lushan.catalog import load_task

    predictor = replace(chatter.predictor, task=load_task("answering"))
    model = replace(chatter, name="qa", predictor=predictor)
    with pytest.raises(
        RequestError, match=r"`qa` is asked with `context`, `question`.*/predict/qa"
    ):
        ask_chat(model, chat())

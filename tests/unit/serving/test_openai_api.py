"""OpenAI's API, asked by OpenAI's own client, unmodified."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
import torch
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel
from transformers import AutoTokenizer

from lushan.backbones.encoding import LengthLimit
from lushan.inference.draft import TokenEvent
from lushan.serving.hosted import HostedModel
from lushan.serving.worker import PROMPTS_AT_ONCE, Worker
from tests.generation import plain_answers, plain_model
from tests.served import Served, serving

MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "Answer in verse."},
    {"role": "user", "content": "Where did the fox live?"},
    {"role": "assistant", "content": "In the forest."},
    {"role": "user", "content": "And the children?"},
]
ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "the soup was cold"}]


def prompt_of(folder: Path, messages: list[ChatCompletionMessageParam]) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain: list[Any] = list(messages)
    return tokenizer.apply_chat_template(plain, add_generation_prompt=True)["input_ids"]


def test_chat_answers_as_transformers_does_after_its_chat_template(
    client: openai.OpenAI, chat_folder: Path
) -> None:
    found = client.chat.completions.create(model="chatter", messages=MESSAGES, max_tokens=24)
    prompt_ids = prompt_of(chat_folder, MESSAGES)
    (expected,) = plain_answers(chat_folder, prompt_ids, max_new_tokens=24)
    text = AutoTokenizer.from_pretrained(chat_folder).decode(expected, skip_special_tokens=True)
    assert found.choices[0].message.content == text.strip()
    assert found.choices[0].finish_reason == "length"
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(prompt_ids)
    assert found.usage.completion_tokens == len(expected) == 24


def test_stream_gives_the_same_text_in_pieces_and_usage_at_the_end(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "chatter", "messages": MESSAGES, "max_tokens": 24}
    whole = client.chat.completions.create(**options)
    chunks = list(
        client.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert "".join(each.content or "" for each in deltas) == whole.choices[0].message.content
    assert [each.role for each in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons == [None] * (len(deltas) - 1) + ["length"]
    told, expected = chunks[-1].usage, whole.usage
    assert told is not None
    assert told.prompt_tokens_details is not None
    assert expected is not None
    assert told.prompt_tokens_details.cached_tokens == told.prompt_tokens - 1
    assert chunks[-1].choices == []
    assert told.model_copy(update={"prompt_tokens_details": None}) == expected.model_copy(
        update={"prompt_tokens_details": None}
    )


def test_next_turn_of_a_chat_reads_only_what_is_new(
    client: openai.OpenAI, served: Served, chat_folder: Path
) -> None:
    def reused() -> float:
        lines = served.get("/metrics").text.splitlines()
        told = [
            each for each in lines if each.startswith('lushan_reused_tokens_total{model="chatter"}')
        ]
        return float(told[0].split()[-1]) if told else 0.0

    asked: dict[str, Any] = {"model": "chatter", "max_tokens": 24}
    messages: list[Any] = [{"role": "user", "content": "Which river did they cross at night?"}]
    first = client.chat.completions.create(messages=messages, **asked)
    before = reused()
    messages.append({"role": "assistant", "content": first.choices[0].message.content})
    messages.append({"role": "user", "content": "And then?"})
    found = client.chat.completions.create(messages=messages, **asked)
    assert found.usage is not None
    assert found.usage.prompt_tokens_details is not None
    assert first.usage is not None
    cached = found.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert first.usage.prompt_tokens <= cached < found.usage.prompt_tokens
    assert reused() == before + cached
    (expected,) = plain_answers(chat_folder, prompt_of(chat_folder, messages), max_new_tokens=24)
    text = AutoTokenizer.from_pretrained(chat_folder).decode(expected, skip_special_tokens=True)
    assert found.choices[0].message.content == text.strip()


def test_async_requests_together_are_answered_as_one_by_one(served: Served) -> None:
    texts = ["the fox", "soup", "a great film, never again", "home along the river"] * 4

    async def ask(client: openai.AsyncOpenAI, text: str, seed: int) -> str | None:
        found = await client.chat.completions.create(
            model="chatter",
            messages=[{"role": "user", "content": text}],
            temperature=0.8,
            seed=seed,
            max_tokens=20,
        )
        return found.choices[0].message.content

    async def ask_all() -> tuple[list[str | None], list[str | None]]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            together = await asyncio.gather(*(ask(client, x, n) for n, x in enumerate(texts)))
            return together, [await ask(client, text, n) for n, text in enumerate(texts)]

    together, apart = asyncio.run(ask_all())
    assert together == apart
    assert len(set(together)) > len(texts) / 2  # seeds count


class Review(BaseModel):
    """The form of an answer."""

    verdict: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


def test_structured_output_is_parsed(client: openai.OpenAI) -> None:
    found = client.chat.completions.parse(
        model="chatter", messages=ASKED, response_format=Review, temperature=1, seed=1
    )
    assert isinstance(found.choices[0].message.parsed, Review)
    assert found.choices[0].finish_reason == "stop"


def test_json_object_is_one(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="chatter",
        messages=ASKED,
        response_format={"type": "json_object"},
        temperature=2,
        seed=1,
        max_tokens=3000,
    )
    assert found.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(found.choices[0].message.content or ""), dict)


def test_log_probabilities_are_those_of_transformers(
    client: openai.OpenAI, chat_folder: Path
) -> None:
    found = client.chat.completions.create(
        model="chatter", messages=ASKED, max_tokens=5, logprobs=True, top_logprobs=3
    )
    ids = prompt_of(chat_folder, ASKED)
    (answer,) = plain_answers(chat_folder, ids, max_new_tokens=5)
    with torch.inference_mode():
        logits_TV = plain_model(chat_folder)(torch.tensor([ids + answer])).logits[0]
    logs_KV = logits_TV[len(ids) - 1 : -1].log_softmax(dim=-1)
    assert found.choices[0].logprobs is not None
    told = found.choices[0].logprobs.content or []
    expected = [float(logs_V[token]) for logs_V, token in zip(logs_KV, answer, strict=True)]
    assert [each.logprob for each in told] == pytest.approx(expected, abs=1e-4)
    tops = [[top.logprob for top in each.top_logprobs] for each in told]
    assert tops == [pytest.approx(logs_V.topk(3).values.tolist(), abs=1e-4) for logs_V in logs_KV]
    assert [each.top_logprobs[0].token for each in told] == [each.token for each in told]


def test_several_answers_differ_and_come_again_with_their_seed(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"messages": ASKED, "n": 3, "seed": 7, "max_tokens": 12}
    first, again = (client.chat.completions.create(model="chatter", **options) for _ in range(2))
    texts = [each.message.content for each in first.choices]
    assert [each.index for each in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert [each.message.content for each in again.choices] == texts
    assert first.usage is not None
    assert first.usage.completion_tokens > 12


def test_stop_string_ends_the_answer_and_is_cut(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "chatter", "messages": ASKED, "max_tokens": 12}
    whole = client.chat.completions.create(**options).choices[0].message.content or ""
    stop = whole[4:6]
    found = client.chat.completions.create(**options, stop=[stop]).choices[0]
    assert found.message.content == whole[: whole.index(stop)].strip()
    assert found.finish_reason == "stop"


def test_conversation_goes_on_behind_an_answer_without_a_word(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "chatter", "max_tokens": 12}
    whole = client.chat.completions.create(messages=ASKED, **options).choices[0].message.content
    stop = (whole or "")[0]
    silent = client.chat.completions.create(messages=ASKED, stop=stop, **options)
    assert silent.choices[0].message.content == ""
    messages: list[Any] = [*ASKED, silent.choices[0].message, *ASKED]
    found = client.chat.completions.create(messages=messages, **options)
    assert found.choices[0].message.content


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frequency_penalty": 0.5}, "`frequency_penalty`.*Got 0.5"),
        ({"tools": [{"type": "function"}]}, "`tools.0.function`: Field required"),
        ({"reasoning_effort": "low"}, "`reasoning_effort` is not supported here"),
        ({"temperature": 3}, "`temperature`.*less than or equal to 2.*Got 3"),
        ({"temperature": 0, "n": 2}, "`n` above 1 needs a `temperature` above 0"),
        ({"max_tokens": 5000}, "5000 tokens leaves no room.*reads 4096"),
        ({"stop": ""}, "`stop` must not hold an empty text"),
        ({"stop": "a" * 1001}, "`stop`: String should have at most 1000 characters"),
        ({"stop": ["b", "a" * 1001]}, r"`stop\.1`: String should have at most 1000 characters"),
        ({"top_logprobs": 2}, "`top_logprobs` has no effect without `logprobs`"),
        ({"messages": [{"role": "user", "content": "a <eos> b"}]}, "holds `<eos>`"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "a"}]}, "must be the user's"),
        ({"messages": []}, "`messages`"),
        (
            {"messages": [{"role": "user", "content": "a " * 5000}]},
            "The prompt has .* tokens, and `max_tokens` is 4; .*4096 together with the answer",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "nothing"}},
                }
            },
            "JSON Schema .* cannot be used",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(
    fields: Mapping[str, Any], message: str, client: openai.OpenAI
) -> None:
    body = {"model": "chatter", "messages": ASKED, "max_tokens": 4, **fields}
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        client.post("/chat/completions", body=body, cast_to=object)
    assert refused.value.type == "invalid_request_error"


def test_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"no model `gpt-9`.*chatter, run") as refused:
        client.chat.completions.create(model="gpt-9", messages=ASKED)
    assert refused.value.code == "model_not_found"
    assert refused.value.request_id


@pytest.mark.parametrize("stream", [False, True])
def test_classifier_answers_chat_with_its_label(
    stream: bool, client: openai.OpenAI, served: Served
) -> None:
    text = "The gull sleeps under a pale moon."
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": text}]
    found: Any = client.chat.completions.create(model="run", messages=messages, stream=stream)
    answer = (
        "".join(chunk.choices[0].delta.content for chunk in found)
        if stream
        else found.choices[0].message.content
    )
    assert answer == served.post("/v1/predict/run", text).json()["answer"]


def test_classifier_is_not_told_how_to_write(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="`n` has no effect here: `run`"):
        client.chat.completions.create(model="run", messages=ASKED, n=2)
    with pytest.raises(openai.BadRequestError, match=r"answers about one text.*got 4 messages"):
        client.chat.completions.create(model="run", messages=MESSAGES)


@pytest.mark.parametrize("stream", [False, True])
def test_text_that_was_cut_is_told_beside_the_answer(stream: bool, classifier: HostedModel) -> None:
    limit = LengthLimit(16, "truncate")
    short = replace(classifier, predictor=replace(classifier.predictor, limit=limit))
    asked: list[list[Any]] = [
        [{"role": "user", "content": "The gull. " * number}] for number in (20, 1)
    ]
    with (
        serving([short]) as served,
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client,
    ):
        found: list[Any] = [
            client.chat.completions.create(model="run", messages=each, stream=stream)
            for each in asked
        ]
        answers = [next(iter(each)) if stream else each for each in found]
    assert answers[0].num_cut_tokens > 0
    assert answers[1].num_cut_tokens == 0


def test_completions_continue_texts_and_tokens_alike(
    client: openai.OpenAI, chatter: HostedModel, chat_folder: Path
) -> None:
    texts = ["the fox", "a great film"]
    ids = [each.ids for each in chatter.predictor.backbone.tokenizer.encode(texts)]
    found = client.completions.create(model="chatter", prompt=texts, max_tokens=8)
    same = client.completions.create(model="chatter", prompt=ids, max_tokens=8)
    answers = [plain_answers(chat_folder, each, max_new_tokens=8)[0] for each in ids]
    expected = [chatter.predictor.backbone.tokenizer.decode(each) for each in answers]
    assert [each.text.strip() for each in found.choices] == [each.strip() for each in expected]
    assert [each.text for each in same.choices] == [each.text for each in found.choices]


def test_completions_tell_log_probabilities_in_their_own_form(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"prompt": "the fox", "max_tokens": 6, "logprobs": 2}
    found = client.completions.create(model="chatter", **options).choices[0]
    assert found.logprobs is not None
    tokens = found.logprobs.tokens or []
    assert "".join(tokens) == found.text
    assert found.logprobs.text_offset == [len("".join(tokens[:n])) for n in range(len(tokens))]
    chunks = client.completions.create(model="chatter", stream=True, **options)
    told = [chunk.choices[0].logprobs for chunk in chunks]
    assert [each.tokens for each in told if each] == [[token] for token in tokens]
    assert [each.text_offset for each in told if each] == [[n] for n in found.logprobs.text_offset]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "`prompt` must hold 1 to 128 texts, got 0"),
        ("", "Text 1 of `prompt` has 0 tokens"),
        ([[5], [99999]], "Text 2 of `prompt` has the token 99999; the model knows 0 to 319"),
        ([5] * 4097, "Text 1 of `prompt` has 4097 tokens; the model reads 1 to 4096"),
        ([[5], [5] * 4090], "Text 2 of `prompt` has 4090 tokens; with `max_tokens` 16 .* the 4096"),
    ],
)
def test_prompt_that_cannot_be_read_is_refused(
    prompt: Any,  # noqa: ANN401
    message: str,
    client: openai.OpenAI,
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        client.completions.create(model="chatter", prompt=prompt)
    assert refused.value.param == "prompt"


def test_stream_of_many_prompts_past_the_deadline_tells_so_at_its_end(
    chatter: HostedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def write_slowly(*_: object, **__: object) -> AsyncGenerator[TokenEvent]:
        await asyncio.sleep(0.3)
        yield TokenEvent(0, 0, 5, 0.0, "a", "length")

    monkeypatch.setattr(Worker, "generate", write_slowly)
    body = {"model": "chatter", "prompt": ["a"] * 4 * PROMPTS_AT_ONCE, "stream": True}
    with serving([chatter], deadline_seconds=0.8) as served:
        *_, error, done = served.post("/v1/completions", body).text.strip().split("\n\n")
    assert done == "data: [DONE]"
    assert "deadline_exceeded" in error


def test_models_are_listed_with_what_they_are(client: openai.OpenAI) -> None:
    found = {each.id: each.model_dump() for each in client.models.list()}
    assert found.keys() == {"chatter", "run"}
    assert found["run"]["labels"] == ["hill", "sea"]
    assert (found["run"]["tuned"], found["run"]["certified"]) == (True, True)
    assert client.models.retrieve("chatter").model_dump() == found["chatter"]

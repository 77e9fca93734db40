"""OpenAI's API for models that write: models, chat and completions, for clients that know nothing of Lushan."""

from functools import partial
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request, Response

from lushan.inference.draft import TokenEvent
from lushan.records import Example
from lushan.serving.answer_bodies import ChatCompletion, Completion, ModelCard, ModelList
from lushan.serving.answers import (
    Events,
    Piece,
    TokenPlaces,
    chat_choice,
    completion_choice,
    completion_logprobs,
    token_logprobs,
)
from lushan.serving.call import Call
from lushan.serving.hosted import HostedModel, find_model
from lushan.serving.prompts import (
    NO_TOKEN,
    Asked,
    ask_chat,
    ask_completion,
    ask_label,
    told_answer,
)
from lushan.serving.request_bodies import ChatRequest, CompletionRequest
from lushan.serving.worker import Worker

router = APIRouter()

STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, server-sent events.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.get("/v1/models", summary="The models of this server")
async def list_models(request: Request) -> ModelList:
    """List what can be asked."""
    return ModelList(data=[_card(each) for each in request.app.state.models.values()])


@router.get("/v1/models/{model}", summary="One model of this server")
async def get_model(request: Request, model: str) -> ModelCard:
    """Tell about one model."""
    return _card(find_model(request.app.state.models, model))


def _card(model: HostedModel) -> ModelCard:
    predictor = model.predictor
    return ModelCard(
        id=model.name,
        created=model.loaded_at,
        version=predictor.version,
        task=type(predictor.task).__module__.rpartition(".")[2],
        tuned=model.is_tuned,
        certified=model.certified,
        labels=list(predictor.state.labels),
    )


@router.post(
    "/v1/chat/completions",
    summary="The next turn of a conversation",
    response_model=ChatCompletion,
    responses=STREAMED,
)
async def chat(request: Request, body: ChatRequest) -> Response | ChatCompletion:
    """Answer a conversation; a model that does not write answers about the one message."""
    model = find_model(request.app.state.models, body.model)
    worker: Worker = request.app.state.worker
    if model.predictor.writes:
        asked = await anyio.to_thread.run_sync(partial(ask_chat, model, body))
        events = _written(worker, model, asked)
    else:
        asked, example = await anyio.to_thread.run_sync(partial(ask_label, model, body))
        events = _chosen(worker, model, example)
    tokenizer = model.predictor.backbone.tokenizer

    def delta(piece: Piece) -> dict[str, Any]:
        role = {"role": "assistant"} if piece.is_first else {}
        logprobs = None
        if body.logprobs and piece.event.ended != "stop":
            content = token_logprobs(iter([piece.event]), tokenizer)
            logprobs = {"content": [each.model_dump() for each in content], "refusal": None}
        calls = [{"index": n, **each.model_dump()} for n, each in enumerate(piece.tool_calls)]
        said = {"content": piece.text, **({"tool_calls": calls} if calls else {})}
        return {"delta": {**role, **said}, "logprobs": logprobs}

    call = Call(request, body, model, asked)
    head = {**call.head("chatcmpl"), "num_cut_tokens": asked.num_cut_tokens}
    if body.stream:
        return await call.stream(events, head | {"object": "chat.completion.chunk"}, delta)
    answers = await call.collect(events)
    return ChatCompletion(
        **head,
        choices=[
            chat_choice(each, tokenizer, with_logprobs=bool(body.logprobs))
            for each in answers.in_order
        ],
        usage=answers.usage,
    )


@router.post(
    "/v1/completions",
    summary="Texts, continued as they are",
    response_model=Completion,
    responses=STREAMED,
)
async def complete(request: Request, body: CompletionRequest) -> Response | Completion:
    """Continue texts, without a template."""
    model = find_model(request.app.state.models, body.model)
    asked = await anyio.to_thread.run_sync(partial(ask_completion, model, body))
    tokenizer = model.predictor.backbone.tokenizer
    with_logprobs = body.logprobs is not None
    all_places: dict[int, TokenPlaces] = {}

    def places_in(choice: int) -> TokenPlaces:
        if choice not in all_places:
            all_places[choice] = TokenPlaces(tokenizer, asked.prompt_of(choice).prompt_ids)
        return all_places[choice]

    def part(piece: Piece) -> dict[str, Any]:
        logprobs = None
        if with_logprobs and piece.event.ended != "stop":
            events = iter([piece.event])
            logprobs = completion_logprobs(events, tokenizer, places_in(piece.choice)).model_dump()
        return {"text": piece.text, "logprobs": logprobs}

    call = Call(request, body, model, asked)
    events = _written(request.app.state.worker, model, asked)
    if body.stream:
        return await call.stream(events, call.head("cmpl") | {"object": "text_completion"}, part)
    answers = await call.collect(events)
    return Completion(
        **call.head("cmpl"),
        choices=[
            completion_choice(
                each, tokenizer, places=places_in(each.choice) if with_logprobs else None
            )
            for each in answers.in_order
        ],
        usage=answers.usage,
    )


def _written(worker: Worker, model: HostedModel, asked: Asked) -> Events:
    return worker.generate_all(
        model, asked.prompted, num_alternatives=asked.num_alternatives, has_deadline=True
    )


async def _chosen(worker: Worker, model: HostedModel, example: Example) -> Events:
    """Give what a model chose or marked as if it had been written in one go."""
    (found,) = await worker.predict(model, [example])
    yield TokenEvent(0, 0, NO_TOKEN, found.log_likelihood, told_answer(found.answer), "stop")

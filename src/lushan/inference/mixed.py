"""Examples of several models that share their layers, answered together.

All tasks that read a text take one pass, all that write one engine; which rows are whose is all that is kept apart.

Shapes: T tokens of a batch, D width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch

from lushan.backbones.frozen import FrozenStates
from lushan.backbones.load import Backbone
from lushan.backbones.many_adapters import ManyAdapters, SharingBackbone
from lushan.data.batching import MAX_BATCH_TOKENS, pack, split_lengths
from lushan.inference.generate import GenerationEngine, collect, run
from lushan.inference.predict import Predictor, weighed, written_answers
from lushan.inference.prefix_store import PrefixStore
from lushan.records import Example, Features, Prediction
from lushan.tasks import Outputs


class SharedLayers(NamedTuple):
    """A base whose layers several models use."""

    backbone: Backbone
    """The base as it was pretrained."""
    many: ManyAdapters


class Question(NamedTuple):
    """What one model is asked."""

    predictor: Predictor
    layers: SharedLayers | None
    """What the model shares with others; None where it has layers of its own."""
    examples: Sequence[Example]

    @property
    def holder(self) -> int:
        """Tells models apart that cannot be asked together."""
        return id(self.predictor if self.layers is None else self.layers.many)


@dataclass(slots=True)
class _Asked:
    """What one model is asked."""

    predictor: Predictor
    backbone: SharingBackbone
    examples: Sequence[Example]
    features: list[Features]
    outputs: list[Any] = field(default_factory=list[Any])


class _Document(NamedTuple):
    """One document of a mixed batch."""

    num_tokens: int
    asked: int
    """Number of the model that is asked."""
    place: int
    """Number among the documents of that model."""


def predict_together(questions: Sequence[Question]) -> list[list[Prediction]]:
    """Answer each question, in order; those to models that share their layers in the same passes.

    Raises:
        DataError: If a text is too long and the policy is `error`.
    """
    places: dict[int, dict[int, list[int]]] = {}
    for place, each in enumerate(questions):
        of_model = places.setdefault(each.holder, {})
        of_model.setdefault(id(each.predictor), []).append(place)
    answers: list[list[Prediction]] = [[] for _ in questions]
    for of_model in places.values():
        asked = [
            (
                questions[own[0]].predictor,
                [example for place in own for example in questions[place].examples],
            )
            for own in of_model.values()
        ]
        layers = questions[next(iter(of_model.values()))[0]].layers
        if layers is None or len(asked) == 1:
            found = [predictor.predict(examples) for predictor, examples in asked]
        else:
            found = predict_mixed(layers, asked)
        for own, predictions in zip(of_model.values(), found, strict=True):
            rest = iter(predictions)
            for place in own:
                answers[place] = [next(rest) for _ in questions[place].examples]
    return answers


def predict_mixed(
    shared: SharedLayers, questions: Sequence[tuple[Predictor, Sequence[Example]]]
) -> list[list[Prediction]]:
    """Answer the examples of each model, in order.

    Answers that are chosen from a closed list of texts take passes of their own, model by model.

    Args:
        shared: What the models have in common.
        questions: Models with a `SharingBackbone` over it, and what each is asked.

    Raises:
        DataError: If a text is too long and the policy is `error`.
    """
    asked = [
        _Asked(predictor, predictor.backbone, examples, predictor.encode(examples))
        for predictor, examples in questions
        if isinstance(predictor.backbone, SharingBackbone)
    ]
    with torch.inference_mode():
        _write([each for each in asked if each.predictor.writes], shared)
        reading = [each for each in asked if not (each.predictor.writes or each.predictor.chooses)]
        _read(reading, shared)
    for each in asked:
        if each.predictor.chooses:
            each.outputs = list(each.predictor.outputs(each.features, each.examples))
    return [each.predictor.decode(each.outputs, each.features, each.examples) for each in asked]


def _read(asked: Sequence[_Asked], shared: SharedLayers) -> None:
    """Run all documents through the layers together, then each model's through its head."""
    for each in asked:
        each.outputs = [None] * len(each.features)
    # Of equal length, those of one model stand together.
    documents = sorted(
        _Document(len(each.token_ids), number, place)
        for number, one in enumerate(asked)
        for place, each in enumerate(one.features)
    )
    depth = shared.backbone.facts.num_layers
    bounds = split_lengths([each.num_tokens for each in documents], MAX_BATCH_TOKENS)
    for start, end in bounds:
        part = documents[start:end]
        batch = pack(
            [asked[each.asked].features[each.place] for each in part],
            device=shared.backbone.device,
        )
        adapters = [asked[each.asked].backbone.adapter for each in part]
        with shared.many.apply(adapters, [each.num_tokens for each in part]):
            hidden_TD = shared.backbone.hidden_states(batch)
        firsts = dict(zip(part, batch.first_N.tolist(), strict=True))
        for number, members in groupby(sorted(part, key=_number), key=_number):
            own = list(members)
            first_rows = {asked[number].features[each.place].content: firsts[each] for each in own}
            states = FrozenStates(depth, "all", first_rows, hidden_TD)
            for each, found in zip(own, _outputs(asked[number], own, states), strict=True):
                asked[number].outputs[each.place] = found


def _number(document: _Document) -> int:
    return document.asked


def _outputs(asked: _Asked, documents: Sequence[_Document], states: FrozenStates) -> Outputs:
    """What a model's head says of documents whose hidden states are known."""
    backbone = asked.backbone
    batch = pack([asked.features[each.place] for each in documents], device=states.states_RD.device)
    backbone.frozen = states
    try:
        return asked.predictor.task.outputs(backbone, batch)
    finally:
        backbone.frozen = None


def _write(asked: Sequence[_Asked], shared: SharedLayers) -> None:
    if not asked:
        return
    prompts = [features.token_ids for each in asked for features in each.features]
    engine = GenerationEngine(
        shared.backbone, prefixes=PrefixStore.for_texts(prompts), many=shared.many
    )
    numbers = iter(range(sum(len(each.features) for each in asked)))
    for each in asked:
        for asked_for in each.predictor.prompted(each.features, each.examples):
            engine.add(
                asked_for.prompt_ids,
                asked_for.settings,
                index=next(numbers),
                constraint=asked_for.constraint,
                adapter=each.backbone.adapter,
            )
    written: Iterator[Any] = iter(written_answers(collect(run(engine))))
    for each in asked:
        own = [next(written) for _ in each.features]
        each.outputs = weighed(own, each.predictor.absences(each.examples))

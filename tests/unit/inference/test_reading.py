"""Prompts that are read a little at a time: what is read next, what is not read again, and who waits for whom."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.many_adapters import Adapter, own_adapter
from lushan.inference import reading
from lushan.inference.draft import TokenEvent
from lushan.inference.generate import Generated, GenerationEngine, collect, generate, run
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.grammar import Constraint
from lushan.inference.prefix_store import PrefixStore, TokenIds
from lushan.inference.reading import PromptReader, Reading, next_parts
from lushan.model_store.resident import Resident
from lushan.records import Batch, Features
from tests.generation import DECODER_TYPES
from tests.unit.inference.conftest import MakeSharp

START = tuple(range(200, 240))
SHORT = GenerationSettings(max_new_tokens=12)
HOW: dict[str, GenerationSettings] = {
    "greedy": SHORT,
    "drawn": SHORT.model_copy(update={"temperature": 1.0, "seed": 5, "num_return_sequences": 2}),
    "beams": SHORT.model_copy(update={"num_beams": 3}),
}


@pytest.fixture
def backbone(sharp_folder: MakeSharp) -> Backbone:
    return load(sharp_folder("llama"))


def load(folder: Path) -> Backbone:
    backbone = load_backbone(folder, purpose="language")
    backbone.plain_model.generation_config.eos_token_id = None
    return backbone


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Record how many tokens of each text every pass reads."""
    seen: list[list[int]] = []
    pack = reading.pack

    def counted(documents: Sequence[Features], **options: object) -> Batch:
        seen.append(sorted(len(each.token_ids) for each in documents))
        return pack(documents, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(reading, "pack", counted)
    return seen


def assert_alike(found: Sequence[Generated], expected: Sequence[Generated]) -> None:
    assert [each.token_ids for each in found] == [each.token_ids for each in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, atol=1e-4)


def reading_of(number: int, length: int) -> Reading:
    return Reading(number, tuple(range(length)), None)


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "expected"),
    [
        ([], 10, {}),
        ([30], 10, {0: 10}),
        ([4], 10, {0: 4}),
        ([30, 40], 10, {0: 5, 1: 5}),
        ([30, 40, 3], 10, {0: 5, 1: 2, 2: 3}),
        ([30, 2, 1], 10, {0: 7, 1: 2, 2: 1}),
        ([3, 40, 20], 10, {0: 3, 2: 7}),
        ([30, 40], 1, {0: 1}),
    ],
)
def test_oldest_text_gets_half_and_the_shortest_of_the_others_the_rest(
    lengths: list[int], max_tokens: int, expected: dict[int, int]
) -> None:
    readings = [reading_of(*each) for each in enumerate(lengths)]
    found = {each.number: size for each, size in next_parts(readings, max_tokens).items()}
    assert found == expected


@pytest.mark.parametrize("how", [*HOW, "form"])
@pytest.mark.parametrize("model_type", DECODER_TYPES)
def test_turns_of_a_chat_are_answered_as_if_each_was_read_from_its_start(
    model_type: str, how: str, sharp_folder: MakeSharp
) -> None:
    backbone = load(sharp_folder(model_type))
    settings = HOW.get(how, SHORT)
    form = Constraint.regex("[a-z ]+") if how == "form" else None
    engine = GenerationEngine(backbone, prefixes=PrefixStore(400))
    text: TokenIds = START[:10]
    for number in range(4):
        text = (*text, *range(50 * number, 50 * number + 9))
        engine.add(text, settings, index=number, constraint=form)
        events = list(run(engine))
        expected = generate(backbone, [text], settings, constraint=form)
        assert_alike(collect(events), [_as(number, each) for each in expected])
        last_turn = 10 if number == 0 else len(text) - 9
        reused = events[0].num_reused_tokens
        if model_type == "gpt_neo":
            assert reused == 0
        elif number:
            assert reused >= last_turn - (13 if how == "beams" else 8)
        text = (*text, *[each.token_id for each in events if each.answer_index == 0])


def _as(number: int, answer: Generated) -> Generated:
    answer.prompt_index = number
    return answer


def test_adapters_of_one_base_share_nothing_with_it_or_each_other(
    many_runs: Path, passes: list[list[int]]
) -> None:
    resident = Resident()
    for name in ("talks", "sums"):
        resident.load(many_runs / name)
    layers = resident.model("talks").layers
    assert layers is not None
    tuned = [own_adapter(each.predictor.backbone) for each in resident.models]

    def write(engine: GenerationEngine, *adapters: Adapter | None) -> list[TokenEvent]:
        for number, adapter in enumerate(adapters):
            engine.add(START, SHORT, index=number, adapter=adapter)
        return list(run(engine))

    alone: list[Generated] = []
    for number, adapter in enumerate([None, *tuned]):
        events = write(GenerationEngine(layers.backbone, many=layers.many), adapter)
        alone += [_as(number, each) for each in collect(events)]
    assert len({tuple(each.token_ids) for each in alone}) == 3
    engine = GenerationEngine(layers.backbone, many=layers.many, prefixes=PrefixStore(400))
    for num_reused in (0, 39):
        events = write(engine, None, *tuned)
        assert_alike(collect(events), alone)
        assert {each.num_reused_tokens for each in events} == {num_reused}
    assert passes[3:] == [[40] * 3, [1] * 3]  # none waits for another


def test_running_answer_goes_on_at_every_step_while_a_long_prompt_is_read(
    backbone: Backbone, passes: list[list[int]]
) -> None:
    (alone,) = generate(backbone, [START[:5]], SHORT)
    engine = GenerationEngine(backbone, max_read_tokens=16)
    engine.add(START[:5], SHORT, index=0)
    events = engine.step()
    engine.add(tuple(range(100)), SHORT, index=1)
    engine.add(START[:6], SHORT, index=2)
    by_step: list[list[int]] = []
    while engine.is_busy:
        found = engine.step()
        by_step.append([each.prompt_index for each in found])
        events += found
    assert all(each.count(0) == 1 for each in by_step[:11])
    assert max(sum(each) for each in passes) == 16
    firsts = [next(n for n, each in enumerate(by_step) if index in each) for index in (1, 2)]
    assert firsts == [6, 0]  # 94 of 16 and 10; the short one does not wait for the long one
    assert collect(events)[0].token_ids == alone.token_ids
    assert_alike(collect(events)[1:2], [_as(1, each) for each in generate(backbone, [tuple(range(100))], SHORT)])  # fmt: skip


def test_cancelled_prompt_is_read_no_further(backbone: Backbone, passes: list[list[int]]) -> None:
    engine = GenerationEngine(backbone, max_rows=2, max_read_tokens=16)
    engine.add(START[:5], SHORT, index=0)
    engine.step()
    engine.add(tuple(range(100)), SHORT, index=1)
    engine.step()
    assert engine.open_indices == {0, 1}
    engine.cancel(1)
    assert engine.open_indices == {0}
    engine.add(START[:6], SHORT, index=2)  # takes the row
    assert {each.prompt_index for each in engine.step()} == {0, 2}
    assert passes == [[5], [16], [6]]


Read = Callable[[PrefixStore | None, Sequence[TokenIds]], list[int]]


@pytest.fixture
def read(backbone: Backbone) -> Read:
    """Give a function that reads texts to their ends, and tells their numbers in that order."""

    def read_all(prefixes: PrefixStore | None, texts: Sequence[TokenIds]) -> list[int]:
        reader = PromptReader(backbone, prefixes=prefixes, many=None)
        for each in enumerate(texts):
            reader.add(Reading(*each, None))
        found: list[int] = []
        with torch.inference_mode():
            while len(found) < len(texts):
                found += [each.number for each, _, _ in reader.read(60)]
        return found

    return read_all


def test_start_that_texts_share_is_read_once_where_that_is_worth_a_pass(
    read: Read, passes: list[list[int]]
) -> None:
    texts = [(*START, *range(10 * number, 10 * number + 5)) for number in range(3)]
    assert read(PrefixStore(500), texts) == [0, 1, 2]
    assert passes == [[45], [5, 5]]
    passes.clear()
    read(PrefixStore(500), texts[:2])
    assert passes[0] == [30, 30]
    passes.clear()
    read(None, texts[:1] * 2)
    assert sum(map(sum, passes)) == 90


def test_texts_whose_known_starts_differ_by_a_few_tokens_go_on_from_the_shorter(
    read: Read, passes: list[list[int]]
) -> None:
    store = PrefixStore(500)
    read(store, [(*START, *range(30))])
    passes.clear()
    texts = [(*START, *range(number), 99, 98) for number in (0, 3, 29)]
    read(store, texts)
    assert passes == [[2, 5, 31]]
    passes.clear()
    read(store, [(*START[:8], 99), (*START, 97)])
    assert passes == [[1, 1]]  # from 8 and from 40: another 32 are not read again


def test_events_tell_what_was_reused_for_each_prompt(backbone: Backbone) -> None:
    engine = GenerationEngine(backbone, prefixes=PrefixStore(500))
    events: list[TokenEvent] = []
    for number, text in enumerate([START, (*START, 1, 2), (*START[:20], 1)]):
        engine.add(text, SHORT, index=number)
        events += run(engine)
    assert {(each.prompt_index, each.num_reused_tokens) for each in events} == {(0, 0), (1, 40), (2, 20)}  # fmt: skip

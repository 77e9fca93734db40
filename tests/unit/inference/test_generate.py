"""Generation, compared token by token with `transformers.generate`."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.many_adapters import Adapter, ManyAdapters, own_adapter
from lushan.errors import DataError, ModelError, SettingError
from lushan.inference import reading
from lushan.inference.constrained import num_shared_tokens
from lushan.inference.generate import (
    GenerationEngine,
    collect,
    encode_prompts,
    generate,
    run,
    stop_ids,
    stream,
)
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.grammar import Constraint
from lushan.model_store.resident import Resident
from lushan.model_store.tuned_model import load_predictor
from lushan.records import Batch, Features
from tests.conftest import MakeTiny
from tests.generation import DECODER_TYPES, PROMPTS, STOP_IDS, plain_answers, plain_model
from tests.unit.inference.conftest import MakeSharp

NUM_TOKENS = 24


def settings(**values: object) -> GenerationSettings:
    return GenerationSettings.model_validate({"max_new_tokens": NUM_TOKENS, **values})


def load(folder: Path, stops: Sequence[int] = STOP_IDS) -> Backbone:
    backbone = load_backbone(folder, purpose="language")
    backbone.plain_model.generation_config.eos_token_id = list(stops)
    return backbone


@pytest.fixture
def backbone(sharp_folder: MakeSharp) -> Backbone:
    return load(sharp_folder("llama"))


@pytest.mark.parametrize("max_rows", [1, 3, 32])
@pytest.mark.parametrize("model_type", DECODER_TYPES)
def test_greedy_answers_equal_those_of_transformers(
    model_type: str, max_rows: int, sharp_folder: MakeSharp
) -> None:
    backbone = load(sharp_folder(model_type))
    found = generate(backbone, PROMPTS, settings(), max_rows=max_rows)
    expected = [
        plain_answers(sharp_folder(model_type), ids, max_new_tokens=NUM_TOKENS, stop_ids=STOP_IDS)[
            0
        ]
        for ids in encode_prompts(backbone, PROMPTS)
    ]
    assert [each.token_ids for each in found] == expected
    assert len({len(each) for each in expected}) > 1  # they do not end together


@pytest.mark.parametrize("model_type", DECODER_TYPES)
def test_long_greedy_answers_with_a_penalty_equal_those_of_transformers(
    model_type: str, sharp_folder: MakeSharp
) -> None:
    options = {"max_new_tokens": 80, "repetition_penalty": 1.3}
    backbone = load(sharp_folder(model_type), stops=[2])
    found = generate(backbone, PROMPTS, GenerationSettings(**options), max_rows=2)
    expected = [
        plain_answers(sharp_folder(model_type), ids, **options)[0]
        for ids in encode_prompts(backbone, PROMPTS)
    ]
    assert [each.token_ids for each in found] == expected
    assert max(len(each) for each in expected) == 80


def test_log_probabilities_are_those_of_the_whole_text_read_at_once(
    backbone: Backbone, sharp_folder: MakeSharp
) -> None:
    prompt = encode_prompts(backbone, PROMPTS)[1]
    answer = generate(backbone, [prompt], settings(temperature=1.5, repetition_penalty=1.2))[0]
    ids = [*prompt, *answer.token_ids]
    with torch.inference_mode():
        logits_TV = plain_model(sharp_folder("llama"))(torch.tensor([ids])).logits[0]
    logs_TV = logits_TV.log_softmax(dim=-1)
    places = range(len(prompt) - 1, len(ids) - 1)
    expected = [float(logs_TV[place, ids[place + 1]]) for place in places]
    np.testing.assert_allclose(answer.log_probabilities, expected, atol=1e-4)
    assert answer.log_likelihood == pytest.approx(sum(expected), abs=1e-3)


def test_prefix_that_all_prompts_share_changes_no_answer(backbone: Backbone) -> None:
    prompts = [f"The children ran home along the river. Text: {text}" for text in PROMPTS]
    assert len(prompts[0]) > 8
    together = generate(backbone, prompts, settings())
    alone = [generate(backbone, [each], settings())[0] for each in prompts]
    assert [each.token_ids for each in together] == [each.token_ids for each in alone]


@pytest.mark.parametrize("max_rows", [1, 4])
def test_shared_prefix_is_read_once(
    max_rows: int, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    pack = reading.pack

    def counted(documents: list[Features], **options: object) -> Batch:
        read.append(sum(len(each.token_ids) for each in documents))
        return pack(documents, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(reading, "pack", counted)
    start = "The children ran home along the river. Text:"
    prompts = [f"{start} {text}" for text in PROMPTS]
    generate(backbone, prompts, settings(), max_rows=max_rows)
    lengths = [len(ids) for ids in encode_prompts(backbone, prompts)]
    num_shared = num_shared_tokens(encode_prompts(backbone, prompts))
    assert num_shared >= 8
    assert sum(read) == sum(lengths) - (len(prompts) - 1) * num_shared


@pytest.mark.parametrize("model_type", ["llama", "gpt_neo"])
def test_drawn_answer_depends_on_nothing_that_runs_beside_it(
    model_type: str, sharp_folder: MakeSharp
) -> None:
    backbone = load(sharp_folder(model_type))
    drawn = settings(temperature=1.0, top_p=0.95, seed=7, num_return_sequences=2)
    alone = generate(backbone, PROMPTS[1:2], drawn)
    among = generate(backbone, PROMPTS, drawn, max_rows=5)[2:4]
    assert [each.token_ids for each in among] == [each.token_ids for each in alone]
    assert alone[0].token_ids != alone[1].token_ids
    other = generate(backbone, PROMPTS[1:2], settings(temperature=1.0, top_p=0.95, seed=8))
    assert other[0].token_ids != alone[0].token_ids


def test_answers_stand_in_the_order_of_their_prompts(backbone: Backbone) -> None:
    found = generate(
        backbone, PROMPTS, settings(temperature=1.0, num_return_sequences=2), max_rows=2
    )
    assert [(each.prompt_index, each.answer_index) for each in found] == [
        (prompt, answer) for prompt in range(4) for answer in range(2)
    ]


def test_stream_tells_the_answers_of_the_list_token_by_token(backbone: Backbone) -> None:
    events = list(stream(backbone, PROMPTS, settings(), max_rows=2))
    for answer in generate(backbone, PROMPTS, settings(), max_rows=2):
        own = [each for each in events if each.prompt_index == answer.prompt_index]
        assert [each.token_id for each in own] == answer.token_ids
        assert "".join(each.text for each in own) == answer.text
        assert [each.ended for each in own] == [None] * (len(own) - 1) + [answer.ended]


def test_first_token_is_told_before_the_last_prompt_is_read(backbone: Backbone) -> None:
    events = stream(backbone, PROMPTS, settings(), max_rows=1)
    assert next(events).prompt_index == 0


def test_place_of_a_finished_answer_is_taken_in_the_same_step(sharp_folder: MakeSharp) -> None:
    backbone = load(sharp_folder("llama"), stops=[2])
    engine = GenerationEngine(backbone, max_rows=2)
    for index, ids in enumerate(encode_prompts(backbone, PROMPTS)):
        engine.add(ids, settings(max_new_tokens=3 if index == 0 else 6), index=index)
    by_step: list[list[int]] = []
    while engine.is_busy:
        by_step.append([event.prompt_index for event in engine.step()])
    both, then, last = [[0, 1], [0, 1], [0, 1, 2]], [[1, 2], [1, 2], [1, 2, 3]], [[2, 3], [2, 3]]
    assert [sorted(each) for each in by_step] == [*both, *then, *last, [3], [3], [3]]


def test_request_that_comes_later_is_answered_like_alone(backbone: Backbone) -> None:
    first, second = encode_prompts(backbone, PROMPTS[:2])
    engine = GenerationEngine(backbone)
    engine.add(first, settings(), index=0)
    events = engine.step()
    engine.add(second, settings(num_beams=3), index=1)
    while engine.is_busy:
        events += engine.step()
    found = [[each.token_id for each in events if each.prompt_index == n] for n in (0, 1)]
    expected = [
        generate(backbone, [ids], given)[0].token_ids
        for ids, given in ((first, settings()), (second, settings(num_beams=3)))
    ]
    assert found == expected


def test_request_of_more_rows_than_there_are_runs_alone(backbone: Backbone) -> None:
    few = generate(backbone, PROMPTS, settings(num_beams=4), max_rows=2)
    many = generate(backbone, PROMPTS, settings(num_beams=4))
    assert [each.token_ids for each in few] == [each.token_ids for each in many]


def test_progress_counts_every_prompt_once(backbone: Backbone) -> None:
    told: list[int] = []
    drawn = settings(temperature=1.0, num_return_sequences=3)
    generate(backbone, PROMPTS, drawn, advance=told.append)
    assert told == [1, 1, 1, 1]


def test_answer_ends_with_a_stop_token_or_at_its_length(backbone: Backbone) -> None:
    found = generate(backbone, PROMPTS, settings(max_new_tokens=6))
    assert {each.ended for each in found} == {"stop", "length"}
    for each in found:
        assert (each.token_ids[-1] in STOP_IDS) is (each.ended == "stop")
        assert len(each.token_ids) == 6 or each.ended == "stop"


def test_stop_string_across_tokens_is_cut_from_the_text(backbone: Backbone) -> None:
    backbone.plain_model.generation_config.eos_token_id = 2
    whole = generate(backbone, PROMPTS[:1], settings())[0]
    middle = len(whole.text) // 2
    stop = whole.text[middle - 2 : middle + 3]
    found = generate(backbone, PROMPTS[:1], settings(stop_strings=[stop]))[0]
    assert found.text == whole.text[: whole.text.index(stop)]
    assert found.ended == "stop_string"
    assert found.token_ids == whole.token_ids[: len(found.token_ids)]
    assert len(found.token_ids) < len(whole.token_ids)


def test_stop_tokens_are_those_of_the_tokenizer_and_of_the_generation_settings(
    backbone: Backbone,
) -> None:
    assert stop_ids(backbone) == set(STOP_IDS)
    backbone.plain_model.generation_config.eos_token_id = 5
    assert stop_ids(backbone) == {2, 5}
    backbone.plain_model.generation_config.eos_token_id = None
    assert stop_ids(backbone) == {2}


def test_end_of_a_turn_of_the_tokenizer_ends_an_answer(backbone: Backbone) -> None:
    backbone.plain_model.generation_config.eos_token_id = None
    whole = generate(backbone, PROMPTS[:1], settings())[0]
    end = whole.token_ids[len(whole.token_ids) // 2]
    vars(backbone.tokenizer)["stop_ids"] = frozenset({2, end})
    found = generate(backbone, PROMPTS[:1], settings())[0]
    assert stop_ids(backbone) == {2, end}
    assert found.token_ids == whole.token_ids[: whole.token_ids.index(end) + 1]
    assert found.ended == "stop"


def test_model_in_training_writes_without_dropout_and_goes_back(sharp_folder: MakeSharp) -> None:
    backbone = load(sharp_folder("gpt2"))  # has dropout
    expected = generate(backbone, PROMPTS, settings())
    backbone.model.train()
    assert generate(backbone, PROMPTS, settings()) == expected
    assert backbone.model.training


def test_bf16_answers_are_finite_and_probable(sharp_folder: MakeSharp) -> None:
    backbone = load_backbone(sharp_folder("llama"), purpose="language", precision="bf16")
    found = generate(backbone, PROMPTS, settings())
    assert all(len(each.token_ids) == NUM_TOKENS for each in found)
    assert all(value < 0 for each in found for value in each.log_probabilities)


def test_json_answers_are_valid_in_a_batch(sharp_folder: MakeSharp) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
    found = generate(
        load(sharp_folder("llama"), stops=[2]),
        PROMPTS,
        settings(max_new_tokens=30, temperature=1.0, num_return_sequences=2),
        constraint=Constraint.json_schema(schema),
    )
    assert {each.ended for each in found} == {"stop"}
    answers = [json.loads(each.text) for each in found]
    assert all(each in ({"a": True}, {"a": False}) for each in answers)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("stops", [[2], [1, 2]])
def test_choice_is_always_one_of_the_texts(
    stops: list[int], num_beams: int, sharp_folder: MakeSharp
) -> None:
    texts = [" good", " good film", " bread and soup"]
    found = generate(
        load(sharp_folder("llama"), stops=stops),
        PROMPTS,
        settings(num_beams=num_beams),
        constraint=Constraint.choice(texts),
    )
    assert len(found) == len(PROMPTS)
    assert {each.text for each in found} <= set(texts)
    assert {each.ended for each in found} == {"stop"}


def test_prompt_that_leaves_no_room_is_refused_with_the_numbers(backbone: Backbone) -> None:
    with pytest.raises(DataError, match=r"Prompt 2 has 120 tokens; .* 24 .* more than the 128"):
        generate(backbone, [[5], [5] * 120], settings())
    assert len(generate(backbone, [[5] * 104], settings(), max_rows=1)) == 1


def test_empty_prompt_is_refused_before_any_token(backbone: Backbone) -> None:
    with pytest.raises(DataError, match="Prompt 2 is empty"):
        stream(backbone, ["soup", ""], settings())


def test_no_prompts_have_no_answers(backbone: Backbone) -> None:
    assert generate(backbone, [], settings()) == []


def test_encoder_cannot_write(tiny_folder: MakeTiny) -> None:
    backbone = load_backbone(tiny_folder("bert"), purpose="embed")
    with pytest.raises(ModelError, match="`bert` is an encoder"):
        generate(backbone, ["soup"], settings())


def test_model_without_vocabulary_layer_cannot_write(tiny_folder: MakeTiny) -> None:
    backbone = load_backbone(tiny_folder("llama"), purpose="embed")
    with pytest.raises(ModelError, match="without its vocabulary layer"):
        generate(backbone, ["soup"], settings())


def test_settings_that_have_no_effect_are_refused(backbone: Backbone) -> None:
    with pytest.raises(SettingError, match="`top_k` has no effect"):
        generate(backbone, ["soup"], settings(top_k=5))


def test_architecture_without_packed_attention_is_told(sharp_folder: MakeSharp) -> None:
    (note,) = GenerationEngine(load(sharp_folder("gpt_neo"))).notes
    assert "`gpt_neo` cannot use packed attention" in note
    assert GenerationEngine(load(sharp_folder("llama"))).notes == ()


@pytest.mark.parametrize("model_type", ["llama", "gpt_neo"])
def test_engine_for_one_model_takes_no_adapter(model_type: str, sharp_folder: MakeSharp) -> None:
    backbone = load(sharp_folder(model_type))
    many = None if model_type == "llama" else ManyAdapters(backbone.core)
    with pytest.raises(ModelError, match="writes with one model alone"):
        GenerationEngine(backbone, many=many).add([5], settings(), index=0, adapter=Adapter({}))


def test_beams_and_samples_of_many_adapters_are_written_together_as_alone(
    many_runs: Path,
) -> None:
    names = ["talks", "sums", "quiz"]
    resident = Resident()
    for name in names:
        resident.load(many_runs / name)
    layers = resident.model("talks").layers
    assert layers is not None
    engine = GenerationEngine(layers.backbone, max_rows=6, many=layers.many)
    alone = [load_predictor(many_runs / name).backbone for name in names]
    how = [settings(num_beams=3), settings(temperature=1.0, seed=3), settings()]
    prompts = encode_prompts(alone[0], PROMPTS)
    places = [(n, prompt) for prompt in prompts for n in range(3)]
    for index, (n, prompt) in enumerate(places):
        engine.add(
            prompt,
            how[n],
            index=index,
            adapter=own_adapter(resident.model(names[n]).predictor.backbone),
        )
    found = collect(run(engine))
    for each, (n, prompt) in zip(found, places, strict=True):
        expected = generate(alone[n], [prompt], how[n])[0]
        assert each.token_ids == expected.token_ids
        np.testing.assert_allclose(each.log_probabilities, expected.log_probabilities, atol=1e-4)


@pytest.fixture
def endless(sharp_folder: MakeSharp) -> Backbone:
    """Give a model whose answers end with their length."""
    return load(sharp_folder("llama"), stops=[2])


def test_cancelled_request_frees_its_row_at_once_and_changes_no_other(endless: Backbone) -> None:
    alone = [each.token_ids for each in generate(endless, PROMPTS, settings())]
    engine = GenerationEngine(endless, max_rows=2)
    for index, ids in enumerate(encode_prompts(endless, PROMPTS)):
        engine.add(ids, settings(), index=index)
    told: dict[int, list[int]] = {index: [] for index in range(len(PROMPTS))}
    for event in engine.step():
        told[event.prompt_index].append(event.token_id)
    engine.cancel(0)
    engine.cancel(3)
    assert engine.open_indices == {1, 2}
    found = engine.step()
    assert {event.prompt_index for event in found} == {1, 2}  # the third has the row of the first
    while found:
        for event in found:
            told[event.prompt_index].append(event.token_id)
        found = engine.step()
    assert [told[1], told[2]] == alone[1:3]
    assert (len(told[0]), told[3]) == (1, [])


def test_cancelled_answers_that_are_drawn_free_all_their_rows(endless: Backbone) -> None:
    engine = GenerationEngine(endless, max_rows=4)
    many = settings(temperature=1.0, num_return_sequences=4)
    engine.add((5, 60), many, index=0)
    engine.add((9, 17), settings(), index=1)
    engine.step()
    assert {event.prompt_index for event in engine.step()} == {0}
    engine.cancel(0)
    assert {event.prompt_index for event in engine.step()} == {1}


def test_form_that_fails_in_the_middle_ends_its_own_request_alone(
    endless: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise SettingError("too complex")

    (alone,) = generate(endless, PROMPTS[:1], settings())
    engine = GenerationEngine(endless)
    prompts = encode_prompts(endless, PROMPTS)
    engine.add(prompts[0], settings(), index=0)
    engine.add(prompts[1], settings(), index=1, constraint=Constraint.regex("[a-z ]+"))
    monkeypatch.setattr("lushan.inference.grammar.GrammarState.allowed", fail)
    events = engine.step()
    assert {index: str(error) for index, error in engine.take_failures().items()} == {
        1: "too complex"
    }
    while engine.is_busy:
        events += engine.step()
    assert [each.token_id for each in events] == alone.token_ids
    assert engine.take_failures() == {}


def test_alternatives_are_the_likeliest_tokens_with_their_log_probabilities(
    endless: Backbone, sharp_folder: MakeSharp
) -> None:
    engine = GenerationEngine(endless)
    engine.add((5, 60, 100), settings(), index=0, num_alternatives=3)
    (event,) = engine.step()
    with torch.inference_mode():
        logits_V = plain_model(sharp_folder("llama"))(torch.tensor([[5, 60, 100]])).logits[0, -1]
    expected = logits_V.log_softmax(dim=-1).topk(3)
    assert [token for token, _ in event.alternatives] == expected.indices.tolist()
    assert [x for _, x in event.alternatives] == pytest.approx(expected.values.tolist(), abs=1e-4)


def test_requests_that_could_remember_too_much_together_wait(endless: Backbone) -> None:
    engine = GenerationEngine(endless, max_tokens=60)
    for index, length in enumerate((10, 20, 30, 90)):
        engine.add((5, 60), settings(max_new_tokens=length - 2), index=index)
    started: list[set[int]] = []
    while engine.is_busy:
        started.append({each.prompt_index for each in engine.step() if not each.ended})
    assert started[1] == {0, 1}
    assert {tuple(sorted(each)) for each in started} >= {(0, 1), (1, 2), (3,)}
    assert max(len(each) for each in started) == 2  # what is too much by itself runs alone

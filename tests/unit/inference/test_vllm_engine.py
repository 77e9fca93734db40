"""Answers that vLLM writes: told as ours are, and ended where ours would end. vLLM is a stand-in here."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.many_adapters import Adapter
from lushan.errors import DataError, ModelError, SettingError
from lushan.inference.draft import TokenEvent
from lushan.inference.generate import Generated, collect, encode_prompts, generate, run
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.grammar import Constraint
from lushan.inference.vllm_engine import VllmEngine
from tests.generation import PROMPTS, STOP_IDS
from tests.stand_in_vllm import StandIn, installed
from tests.unit.inference.conftest import MakeSharp

FOLDER = Path("some/folder")


def settings(**values: object) -> GenerationSettings:
    return GenerationSettings.model_validate({"max_new_tokens": 24, **values})


@pytest.fixture
def backbone(sharp_folder: MakeSharp) -> Backbone:
    backbone = load_backbone(sharp_folder("llama"), purpose="language")
    backbone.plain_model.generation_config.eos_token_id = list(STOP_IDS)
    return backbone


@pytest.fixture
def vllm(backbone: Backbone) -> Iterator[StandIn]:
    with installed(StandIn(backbone)) as stand_in:
        yield stand_in


@pytest.fixture
def engine(vllm: StandIn) -> VllmEngine:
    return started(vllm.backbone)


def started(backbone: Backbone, *, takes_adapters: bool = True) -> VllmEngine:
    return VllmEngine(
        backbone,
        FOLDER,
        precision="float32",
        max_rows=4,
        max_tokens=100,
        takes_adapters=takes_adapters,
    )


def answers(
    engine: VllmEngine, prompts: Sequence[Sequence[int]], how: GenerationSettings
) -> list[Generated]:
    for index, prompt in enumerate(prompts):
        engine.add(prompt, how, index=index)
    return collect(run(engine))


def test_answers_are_told_as_our_own_are(backbone: Backbone, engine: VllmEngine) -> None:
    how = settings(max_new_tokens=10)
    found = answers(engine, encode_prompts(backbone, PROMPTS), how)
    expected = generate(backbone, PROMPTS, how)
    assert [(each.token_ids, each.text, each.ended) for each in found] == [
        (each.token_ids, each.text, each.ended) for each in expected
    ]
    assert {each.ended for each in found} == {"stop", "length"}
    assert not engine.is_busy
    assert engine.open_indices == set()


def test_every_token_has_its_probability_and_the_likeliest_beside_it(engine: VllmEngine) -> None:
    engine.add((5, 60, 100), settings(max_new_tokens=1), index=7, num_alternatives=2)
    (event,) = engine.step()
    assert (event.prompt_index, event.answer_index, event.ended) == (7, 0, "length")
    assert event.alternatives[0] == (event.token_id, event.log_probability)
    assert len(event.alternatives) == 2
    assert event.num_reused_tokens == 3


def test_stop_string_ends_the_answer_and_the_request(
    backbone: Backbone, vllm: StandIn, engine: VllmEngine
) -> None:
    (prompt,) = encode_prompts(backbone, PROMPTS[:1])
    (whole,) = generate(backbone, [prompt], settings())
    stop = whole.text[3:5]
    (found,) = answers(engine, [prompt], settings(stop_strings=(stop,)))
    assert (found.text, found.ended) == (whole.text[: whole.text.index(stop)], "stop_string")
    assert vllm.aborted == ["0-0"]
    assert not engine.is_busy


def test_several_answers_have_seeds_of_their_own(vllm: StandIn, engine: VllmEngine) -> None:
    how = settings(temperature=1.0, seed=4, num_return_sequences=2, max_new_tokens=8)
    found = answers(engine, [(5, 60, 100)], how)
    assert [(each.prompt_index, each.answer_index) for each in found] == [(0, 0), (0, 1)]
    assert [each.seed for each in vllm.parameters.values()] == [how.seed_of(0), how.seed_of(1)]
    assert found[0].token_ids != found[1].token_ids


def test_cancelled_request_is_told_nothing_more(vllm: StandIn) -> None:
    vllm.backbone.plain_model.generation_config.eos_token_id = None
    engine = started(vllm.backbone)
    for index in (3, 30):
        engine.add((5, 60, 100), settings(num_return_sequences=2, temperature=1.0), index=index)
    engine.step()
    engine.cancel(3)
    engine.cancel(99)
    assert vllm.aborted == ["3-0", "3-1"]
    assert {each.prompt_index for each in run(engine)} == {30}


def test_settings_are_said_in_the_words_of_vllm(vllm: StandIn, engine: VllmEngine) -> None:
    how = settings(temperature=0.5, top_k=7, top_p=0.9, min_p=0.1, repetition_penalty=1.2, seed=2)
    engine.add((5,), how, index=0, num_alternatives=3)
    engine.add((5,), settings(), index=1)
    said, greedy = vllm.parameters.values()
    assert (said.temperature, said.top_k, said.top_p, said.min_p) == (0.5, 7, 0.9, 0.1)
    assert (said.repetition_penalty, said.max_tokens, said.logprobs) == (1.2, 24, 3)
    assert said.stop_token_ids == sorted({*STOP_IDS, 2})
    assert (greedy.temperature, greedy.top_k, greedy.seed) == (0.0, 0, None)
    assert greedy.structured_outputs is None


@pytest.mark.parametrize(
    ("constraint", "grammar"),
    [
        (Constraint.choice(["ja", "nein"]), 'start: "ja" | "nein"'),
        (Constraint.regex("a+b"), "start: /a+b/"),
        (Constraint.json_schema({"type": "object"}), 'start: %json {"type": "object"}'),
    ],
)
def test_form_is_said_as_a_grammar(
    constraint: Constraint, grammar: str, vllm: StandIn, engine: VllmEngine
) -> None:
    engine.add((5,), settings(), index=0, constraint=constraint)
    assert vllm.parameters["0-0"].structured_outputs.grammar == grammar
    assert not Constraint.lark(grammar).check()


def test_adapter_is_taken_once(vllm: StandIn, engine: VllmEngine) -> None:
    one, other = (Adapter({}, Path(name)) for name in ("one", "other"))
    for index, adapter in enumerate((one, None, other, one)):
        engine.add((5,), settings(), index=index, adapter=adapter)
    first, second = ("one", 1, "one"), ("other", 2, "other")
    assert vllm.adapters == [first, second]
    assert vllm.lora_requests == [first, None, second, first]


def test_what_cannot_be_asked_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(SettingError, match=r"no beam search: `num_beams` is 3.*--backend lushan"):
        engine.add((5,), settings(num_beams=3), index=0)
    with pytest.raises(DataError, match="empty"):
        engine.add((), settings(), index=0)
    with pytest.raises(DataError, match=r"77 tokens.*100"):
        engine.add([5] * 77, settings(), index=0)
    with pytest.raises(SettingError, match="regular expression"):
        engine.add((5,), settings(), index=0, constraint=Constraint.regex("("))
    with pytest.raises(ModelError, match="stored in a folder"):
        engine.add((5,), settings(), index=0, adapter=Adapter({}))
    assert not engine.is_busy


def test_start_and_adapters_that_fail_say_why(
    backbone: Backbone, vllm: StandIn, engine: VllmEngine
) -> None:
    vllm.failure = ValueError("no such kernel")
    with pytest.raises(
        ModelError, match=r"cannot load the adapter in `one`: no such kernel.*--backend"
    ):
        engine.add((5,), settings(), index=0, adapter=Adapter({}, Path("one")))
    with pytest.raises(ModelError, match=r"cannot load `some.folder`: no such kernel.*--backend"):
        started(backbone)


def test_answer_that_vllm_ends_too_early_is_a_failure(vllm: StandIn) -> None:
    vllm.backbone.plain_model.generation_config.eos_token_id = None
    vllm.most_tokens = 2
    engine = started(vllm.backbone)
    engine.add((5, 60, 100), settings(temperature=1.0, num_return_sequences=2), index=4)
    events: list[TokenEvent] = []
    while engine.is_busy:
        events += engine.step()
    assert [(each.answer_index, each.ended) for each in events[:2]] == [(0, None), (1, None)]
    assert len(events) == 3
    assert [*engine.take_failures()] == [4]
    assert vllm.aborted == ["4-1"]
    assert engine.take_failures() == {}


def test_start_is_bounded_and_asks_no_network(
    backbone: Backbone, vllm: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    started(backbone, takes_adapters=False)
    assert vllm.arguments["model"] == str(FOLDER)
    assert (vllm.arguments["dtype"], vllm.arguments["max_num_seqs"]) == ("float32", 4)
    assert vllm.arguments["max_model_len"] == 100
    config = backbone.plain_model.config
    of_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert vllm.arguments["kv_cache_memory_bytes"] == (100 + 512) * of_token
    assert "enable_lora" not in vllm.arguments
    assert (os.environ["VLLM_NO_USAGE_STATS"], os.environ["HF_HUB_OFFLINE"]) == ("1", "1")
    assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert "vllm" in sys.modules

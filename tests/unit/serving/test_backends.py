"""What writes for a model: from which weights, with which adapter."""

import re
from dataclasses import replace

import pytest

from lushan.backbones.many_adapters import own_adapter
from lushan.errors import ModelError
from lushan.inference.engine import Engine
from lushan.inference.generate import Generated, collect, run
from lushan.inference.generation_settings import GenerationSettings
from lushan.serving import backends
from lushan.serving.backends import (
    BACKENDS,
    LEAST_TOKENS,
    MOST_TOKENS,
    own_engine,
    room_for,
    vllm_engine,
)
from lushan.serving.hosted import HostedModel
from tests.conftest import MakeTiny
from tests.stand_in_vllm import StandIn, installed

SETTINGS = GenerationSettings(max_new_tokens=6)


def answer(engine: Engine, model: HostedModel) -> Generated:
    adapter = own_adapter(model.predictor.backbone)
    engine.add((5, 60, 100), SETTINGS, index=0, adapter=adapter)
    (found,) = collect(run(engine))
    return found


def test_own_engine_writes_with_the_adapter_of_who_is_asked(writer: HostedModel) -> None:
    engine = own_engine(writer, max_rows=2, max_tokens=1000)
    predictor = replace(writer.predictor, backbone=writer.writes_with[0])
    base = replace(writer, predictor=predictor)
    assert answer(engine, writer).token_ids != answer(engine, base).token_ids


def test_vllm_gets_the_base_and_the_adapter_on_it(
    writer: HostedModel, tiny_folder: MakeTiny
) -> None:
    with installed(StandIn(writer.writes_with[0])) as vllm:
        engine = vllm_engine(writer, max_rows=2, max_tokens=1000)
        assert len(answer(engine, writer).token_ids) == 6
    assert vllm.arguments["model"] == str(tiny_folder("llama"))
    assert vllm.arguments["dtype"] == "float32"
    assert (vllm.arguments["max_num_seqs"], vllm.arguments["enable_lora"]) == (2, True)
    assert [each[2] for each in vllm.adapters] == [str(writer.folder)]


def test_vllm_gets_a_whole_model_as_it_is(chatter: HostedModel) -> None:
    alone = replace(chatter, layers=None)
    with installed(StandIn(chatter.writes_with[0])) as vllm:
        vllm_engine(alone, max_rows=2, max_tokens=1000)
    assert vllm.arguments["model"] == str(chatter.folder)
    assert "enable_lora" not in vllm.arguments


def test_adapter_that_shares_no_layers_is_refused(writer: HostedModel) -> None:
    told = re.escape("lushan export --to hf")
    with pytest.raises(ModelError, match=f"adapter of `writer`.*{told}"):
        vllm_engine(replace(writer, layers=None), max_rows=2, max_tokens=1000)


def test_every_backend_has_its_name() -> None:
    assert (BACKENDS["lushan"], BACKENDS["vllm"]) == (own_engine, vllm_engine)


@pytest.mark.parametrize(
    ("said", "num_free", "share", "expected"),
    [
        (None, 40_000, 0.25, 10_000),
        (None, 10**9, 0.25, MOST_TOKENS),
        (None, 100, 0.5, LEAST_TOKENS),
        (7, 0, 0.5, 7),
    ],
)
def test_model_remembers_what_its_share_of_the_free_memory_holds(
    chatter: HostedModel,
    monkeypatch: pytest.MonkeyPatch,
    *,
    said: int | None,
    num_free: int,
    share: float,
    expected: int,
) -> None:
    config = chatter.predictor.backbone.plain_model.config
    of_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    monkeypatch.setattr(backends, "free_memory_bytes", lambda: num_free * of_token)
    found = room_for(chatter, said, share=share)
    assert (found.num_tokens, found.num_bytes) == (expected, expected * of_token)


def test_keys_of_weights_in_fewer_bits_are_rounded_too(chatter: HostedModel) -> None:
    backbone = replace(chatter.writes_with[0], weight_form="int8")
    packed = replace(chatter, layers=None, predictor=replace(chatter.predictor, backbone=backbone))
    found = [room_for(each, 100, share=0.5).num_bytes for each in (chatter, packed)]
    assert found[0] == 2 * found[1]

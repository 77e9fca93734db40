"""What writes for a model: from which weights, with which adapter."""

import re
from dataclasses import replace

import pytest

from lushan.backbones.many_adapters import own_adapter
from lushan.errors import ModelError
from lushan.inference.engine import Engine
from lushan.inference.generate import Generated, collect, run
from lushan.inference.generation_settings import GenerationSettings
from lushan.serving.backends import BACKENDS, own_engine, vllm_engine
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

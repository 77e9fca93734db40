"""Both engines keep to one protocol: the same requests have the same end."""

from collections.abc import Iterator

import pytest

from lushan.backbones.load import Backbone, load_backbone
from lushan.inference.engine import Engine
from lushan.inference.generate import GenerationEngine, run
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.vllm_engine import VllmEngine
from tests.stand_in_vllm import StandIn, installed
from tests.unit.inference.conftest import MakeSharp

SETTINGS = GenerationSettings(max_new_tokens=4)


@pytest.fixture(params=["lushan", "vllm"])
def engine(request: pytest.FixtureRequest, sharp_folder: MakeSharp) -> Iterator[Engine]:
    folder = sharp_folder("llama")
    backbone: Backbone = load_backbone(folder, purpose="language")
    backbone.plain_model.generation_config.eos_token_id = None
    if request.param == "lushan":
        yield GenerationEngine(backbone)
        return
    with installed(StandIn(backbone)):
        yield VllmEngine(
            backbone,
            folder,
            precision="float32",
            max_rows=4,
            max_tokens=100,
            takes_adapters=False,
        )


def test_requests_are_open_until_they_are_answered_or_cancelled(engine: Engine) -> None:
    assert not engine.is_busy
    for index in (8, 9):
        engine.add((5, 60, 100), SETTINGS, index=index)
    assert (engine.is_busy, engine.open_indices) == (True, {8, 9})
    engine.step()
    engine.cancel(8)
    assert engine.open_indices == {9}
    events = list(run(engine))
    assert [each.prompt_index for each in events] == [9] * 3
    assert (engine.is_busy, engine.open_indices, engine.take_failures()) == (False, set(), {})
    assert engine.step() == []

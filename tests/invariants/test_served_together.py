"""Models that a server has of one base answer together what each of them answers alone."""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lushan.backbones.many_adapters import Adapter, ManyAdapters
from lushan.errors import RunError
from lushan.inference import mixed
from lushan.inference.generate import generate
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.mixed import predict_mixed
from lushan.model_store.resident import Resident
from lushan.model_store.tuned_model import load_predictor
from lushan.records import Prediction
from lushan.serving.hosted import HostedModel, host
from lushan.serving.serve_settings import ServeSettings
from lushan.serving.worker import Worker
from tests.conftest import MakeTiny
from tests.generation import plain_answers
from tests.many_runs import KINDS, assert_same, examples_of

NAMES = ("topics", "names", "stars", "links", "talks", "sums", "tells")
PROMPT = (5, 60, 100)
NUM_TOKENS = 10
SHORT = GenerationSettings(max_new_tokens=NUM_TOKENS)


@pytest.fixture(scope="module")
def hosted(many_runs: Path) -> dict[str, HostedModel]:
    resident = Resident()
    return {name: host(str(many_runs / name), resident) for name in NAMES}


async def write_at_once(*models: HostedModel) -> list[list[int]]:
    """Have the prompt wait until all are asked, and then be answered."""
    worker = Worker({each.name: each for each in models}, ServeSettings())

    async def write(model: HostedModel) -> list[int]:
        return [each.token_id async for each in worker.generate(model, PROMPT, SHORT)]

    asked = [asyncio.create_task(write(each)) for each in models]
    await asyncio.sleep(0)
    worker.start()
    try:
        return await asyncio.gather(*asked)
    finally:
        await asyncio.to_thread(worker.stop)


async def ask_all_at_once(models: dict[str, HostedModel]) -> list[list[Prediction]]:
    """Have the questions wait until all are there, and then answer them."""
    worker = Worker(models, ServeSettings())
    asked = [
        asyncio.create_task(worker.predict(models[name], examples_of(KINDS[name].task)))
        for name in NAMES
    ]
    await asyncio.sleep(0)
    worker.start()
    try:
        return await asyncio.gather(*asked)
    finally:
        await asyncio.to_thread(worker.stop)


def test_answers_are_those_of_each_model_alone(
    hosted: dict[str, HostedModel], many_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_models: list[int] = []

    def watched(*asked: object) -> list[list[Prediction]]:
        num_models.append(len(asked[1]))  # pyright: ignore[reportArgumentType]
        return predict_mixed(*asked)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(mixed, "predict_mixed", watched)
    found = asyncio.run(ask_all_at_once(hosted))
    assert max(num_models) >= 2
    for name, predictions in zip(NAMES, found, strict=True):
        alone = load_predictor(many_runs / name).predict(examples_of(KINDS[name].task))
        assert_same(predictions, alone, tolerance=1e-4)


def test_base_and_its_run_are_written_in_the_same_passes(
    many_runs: Path, tiny_folder: MakeTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = Resident(weights="fp32")
    targets = [tiny_folder("llama"), many_runs / "talks"]
    models = [host(str(each), resident) for each in targets]
    passes: list[list[bool]] = []
    apply = ManyAdapters.apply

    def watched(many: ManyAdapters, adapters: Sequence[Adapter | None], rows: Sequence[int]) -> Any:  # noqa: ANN401
        passes.append([each is None for each in adapters])
        return apply(many, adapters, rows)

    monkeypatch.setattr(ManyAdapters, "apply", watched)
    found = asyncio.run(write_at_once(*models))
    assert passes.count([True, False]) + passes.count([False, True]) >= NUM_TOKENS
    assert found[0] == plain_answers(targets[0], PROMPT, max_new_tokens=NUM_TOKENS)[0]
    alone = generate(load_predictor(targets[1]).backbone, [PROMPT], SHORT)
    assert found[1] == alone[0].token_ids != found[0]


def test_a_model_that_is_loaded_again_takes_the_place_of_the_first(many_runs: Path) -> None:
    resident = Resident()
    first = host(str(many_runs / "topics"), resident)
    again = host(str(many_runs / "topics"), resident)
    assert len(resident.models) == 1
    assert again.layers is not None
    assert first.layers is not None
    assert again.layers.backbone is first.layers.backbone


def test_a_model_that_is_not_what_its_certificate_says_leaves_the_first_in_its_place(
    many_runs: Path, tmp_path: Path
) -> None:
    resident, run = Resident(), shutil.copytree(many_runs / "topics", tmp_path / "topics")
    host(str(run), resident)
    (run / "certificate.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match=r"certificate.json` is broken"):
        host(str(run), resident)
    assert len(resident.models) == 1

"""A server without a network: its models answer at once, in this thread."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest
from fastapi import FastAPI

from lushan.inference.draft import TokenEvent
from lushan.inference.generate import stream
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor
from lushan.model_store.resident import Resident
from lushan.records import Example, Prediction
from lushan.serving.hosted import HostedModel
from lushan.serving.metrics import Metrics
from lushan.serving.page.studio import Studio
from lushan.serving.page.texts import Texts, texts_of

Result = TypeVar("Result")


class FakeWorker:
    backend = "lushan"

    def __init__(self) -> None:
        self.num_closed = self.num_admitted = 0
        self.seconds_per_token = 0.0
        self.forgot_replaced = False

    def forget_replaced(self) -> None:
        self.forgot_replaced = True

    @contextmanager
    def admit(self) -> Iterator[object]:
        self.num_admitted += 1
        yield self

    async def predict(
        self, model: HostedModel, examples: Sequence[Example], *, within: object = None
    ) -> list[Prediction]:
        del within
        return model.predictor.predict(examples)

    async def generate(
        self, model: HostedModel, prompt_ids: Sequence[int], settings: GenerationSettings
    ) -> AsyncGenerator[TokenEvent]:
        try:
            backbone = model.predictor.backbone
            for event in stream(backbone, [prompt_ids], settings):
                yield event
                await asyncio.sleep(self.seconds_per_token)
        finally:
            self.num_closed += 1

    async def run(self, function: Callable[[], Result], *, has_deadline: bool = True) -> Result:
        del has_deadline
        return function()


def make_server(models: Sequence[HostedModel], store: Path | None) -> FastAPI:
    app = FastAPI()
    app.state.models = {each.name: each for each in models}
    app.state.worker = FakeWorker()
    app.state.metrics = Metrics(
        num_waiting=lambda: 0, num_running=lambda: 0, weight_bytes=lambda: 0
    )
    app.state.resident = Resident()
    app.state.store = store
    app.state.settings = SimpleNamespace(max_body_bytes=4_000_000, is_on_loopback=True)
    app.state.keys = None
    app.state.on_stop = []
    return app


MakeStudio = Callable[..., Studio]


@pytest.fixture
def make_studio(tmp_path: Path) -> MakeStudio:
    """Give a function from models to what the page knows of their server; its store is the folder of the test."""

    def make(*models: HostedModel) -> Studio:
        return Studio(make_server(models, tmp_path))

    return make


@pytest.fixture
def english() -> Texts:
    """Give the texts of the page in English."""
    return texts_of("en")


@pytest.fixture(scope="session")
def tuned(tiny_run: Path) -> HostedModel:
    """Give a tiny classifier, as a server has it."""
    from lushan.model_store.tuned_model import load_predictor

    return HostedModel(
        "tiny",
        load_predictor(tiny_run),
        tiny_run / "model",
        tiny_run,
        is_tuned=True,
        certified=True,
    )


@pytest.fixture(scope="session")
def talker(tiny_folder: Callable[[str], Path]) -> HostedModel:
    """Give a tiny untouched model that writes, as a server has it."""
    from lushan.backbones.encoding import LengthLimit
    from lushan.backbones.load import load_backbone
    from lushan.catalog import load_task
    from lushan.records import TaskState

    backbone = load_backbone(tiny_folder("llama"), purpose="language", precision="fp32")
    predictor = Predictor(
        backbone,
        load_task("dialogue"),
        TaskState(),
        "generate",
        LengthLimit(128, "error"),
        generation=GenerationSettings(max_new_tokens=8),
    )
    return HostedModel(
        "talker", predictor, tiny_folder("llama"), None, is_tuned=False, certified=False
    )

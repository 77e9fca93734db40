"""Another program in place of our engine: it is asked what the certificate is about, and refused where it answers otherwise."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from lushan.errors import ModelError, RunError
from lushan.inference.engine import Engine
from lushan.serving import compute_thread
from lushan.serving.backends import MakeEngine, own_engine
from lushan.serving.hosted import HostedModel
from lushan.serving.proof import prove
from lushan.serving.serve_settings import ServeSettings
from lushan.serving.worker import Worker


@contextmanager
def writing_with(make: MakeEngine) -> Iterator[Worker]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute_thread, "BACKENDS", {"vllm": make})
        worker = Worker({}, ServeSettings(), "vllm")
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


def forgetful(model: HostedModel, *, max_rows: int, max_tokens: int) -> Engine:
    """Write with the base alone, as a program would that lost the adapter."""
    engine = own_engine(model, max_rows=max_rows, max_tokens=max_tokens)
    add = engine.add
    engine.add = lambda *asked, **options: add(*asked, **{**options, "adapter": None})
    return engine


def failing(*_: object, **__: object) -> Engine:
    raise ModelError("no GPU")


def test_program_that_writes_the_same_is_accepted(writer: HostedModel) -> None:
    with writing_with(own_engine) as worker:
        difference = asyncio.run(prove(writer, worker))
    assert difference is not None
    assert 0 <= difference < 1e-4


def test_program_that_lost_the_adapter_is_refused(writer: HostedModel) -> None:
    with (
        writing_with(forgetful) as worker,
        pytest.raises(RunError, match=r"What writes for `writer`.*Probe 1, .*It is not served"),
    ):
        asyncio.run(prove(writer, worker))


def test_program_is_started_for_a_model_without_a_certificate(
    chatter: HostedModel, writer: HostedModel
) -> None:
    with writing_with(own_engine) as worker:
        assert asyncio.run(prove(chatter, worker)) is None
        assert asyncio.run(prove(replace(writer, certified=False), worker)) is None
    with writing_with(failing) as worker, pytest.raises(ModelError, match="no GPU"):
        asyncio.run(prove(chatter, worker))


def test_model_that_writes_nothing_starts_no_program(classifier: HostedModel) -> None:
    with writing_with(failing) as worker:
        assert asyncio.run(prove(classifier, worker)) is None

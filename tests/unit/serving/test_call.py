"""One request for written answers, counted whichever way it ends."""

from collections.abc import AsyncGenerator
from typing import Any

import httpx
import pytest

from lushan.inference.draft import TokenEvent
from lushan.serving.errors import ServerBusyError
from lushan.serving.worker import Worker
from tests.served import Served, wait_until

BODY: dict[str, Any] = {"model": "chatter", "prompt": "the fox", "max_tokens": 4000}


def counted_tokens(served: Served, kind: str = "completion") -> float:
    page = served.get("/metrics").text
    name = f'lushan_tokens_total{{kind="{kind}",model="chatter"}}'
    return sum(float(x.rpartition(" ")[2]) for x in page.splitlines() if x.startswith(name))


def test_tokens_of_an_answer_that_was_left_are_counted(served: Served) -> None:
    before = counted_tokens(served)
    with httpx.stream("POST", f"{served.url}/v1/completions", json=BODY | {"stream": True}) as x:
        lines = x.iter_lines()
        next(lines)
    wait_until(lambda: counted_tokens(served) > before)
    assert counted_tokens(served) < before + 4000


def test_prompt_of_a_request_that_was_sent_away_is_not_counted(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> AsyncGenerator[TokenEvent]:
        raise ServerBusyError
        yield

    monkeypatch.setattr(Worker, "generate_all", refuse)
    before = counted_tokens(served, "prompt")
    assert served.post("/v1/completions", BODY).status_code == 503
    assert counted_tokens(served, "prompt") == before


def test_every_answer_has_an_id_of_its_kind_and_its_models_version(served: Served) -> None:
    body = BODY | {"max_tokens": 1}
    found = [served.post("/v1/completions", body).json() for _ in range(2)]
    assert all(each["id"].startswith("cmpl-") for each in found)
    assert found[0]["id"] != found[1]["id"]
    version = served.app.state.models["chatter"].predictor.version
    assert {each["system_fingerprint"] for each in found} == {version}

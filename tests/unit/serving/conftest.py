"""One server with an untuned model that chats and a tuned classifier, for all tests that leave it as it is."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from lushan.model_store.resident import Resident
from lushan.serving.hosted import HostedModel, host
from tests.conftest import MakeTiny
from tests.saved import save_writer
from tests.served import TOOL_TEMPLATE, Served, serving, write_chat_model


@pytest.fixture(scope="session")
def chat_folder(tiny_folder: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a tiny model with a chat template."""
    return write_chat_model(tiny_folder("llama"), tmp_path_factory.mktemp("chat") / "chatter")


@pytest.fixture(scope="session")
def caller_folder(tiny_folder: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a tiny model whose chat template writes tools and calls."""
    folder = tmp_path_factory.mktemp("calls") / "caller"
    return write_chat_model(tiny_folder("llama"), folder, TOOL_TEMPLATE)


@pytest.fixture(scope="session")
def caller(caller_folder: Path) -> HostedModel:
    """Give that model, loaded."""
    return host(str(caller_folder), Resident(weights="fp32"))


@pytest.fixture(scope="session")
def chatter(chat_folder: Path) -> HostedModel:
    """Give that model, loaded."""
    return host(str(chat_folder), Resident(weights="fp32"))


@pytest.fixture(scope="session")
def classifier(tiny_run: Path) -> HostedModel:
    """Give the tuned classifier of `tiny_run`, certified and loaded."""
    return host(str(tiny_run), Resident())


@pytest.fixture(scope="session")
def served(chatter: HostedModel, classifier: HostedModel) -> Iterator[Served]:
    """Give a server with both."""
    with serving([chatter, classifier]) as found:
        yield found


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    """Give OpenAI's own client, pointed at the server."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="session")
def writer(tiny_folder: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> HostedModel:
    """Give a certified adapter that writes, loaded."""
    run = save_writer(tmp_path_factory.mktemp("writer") / "writer", tiny_folder("llama"))
    return host(str(run), Resident(weights="fp32"))

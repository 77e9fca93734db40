"""The page knows the models of the server as they are now."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from lushan.errors import RunError
from lushan.serving.errors import UnknownModelError
from lushan.serving.hosted import HostedModel
from lushan.serving.page.texts import Texts
from tests.unit.serving.page.conftest import MakeStudio


def test_choices_have_tuned_models_first(
    make_studio: MakeStudio, tuned: HostedModel, talker: HostedModel, english: Texts
) -> None:
    studio = make_studio(talker, tuned)
    expected = [("tiny (tuned)", "tiny"), ("talker (untouched)", "talker")]
    assert studio.choices(english) == expected
    assert studio.choices(english, lambda each: each.reads_conversations) == expected[1:]


def test_unknown_model_is_refused_with_the_known_ones(
    make_studio: MakeStudio, tuned: HostedModel
) -> None:
    with pytest.raises(UnknownModelError, match=r"no model `other` here\. Served: tiny"):
        make_studio(tuned).model("other")


def test_server_without_a_store_says_so(make_studio: MakeStudio) -> None:
    studio = make_studio()
    studio.app.state.store = None
    with pytest.raises(RunError, match="no store folder"):
        studio.needed_store()


def test_loaded_run_is_served_under_the_name_of_its_folder(
    make_studio: MakeStudio, tiny_run: Path
) -> None:
    studio = make_studio()
    name = asyncio.run(studio.load(tiny_run))
    assert name == tiny_run.name
    assert studio.model(name).is_tuned
    assert studio.worker.forgot_replaced  # pyright: ignore[reportAttributeAccessIssue] - a stand-in


def test_run_is_not_loaded_in_the_place_of_a_model_of_another_folder(
    make_studio: MakeStudio, tuned: HostedModel, tiny_run: Path, tmp_path: Path
) -> None:
    served = replace(tuned, name=tiny_run.name, run=tmp_path / tiny_run.name)
    studio = make_studio(served)
    with pytest.raises(RunError, match=f"`{tiny_run.name}` is served already, from another folder"):
        asyncio.run(studio.load(tiny_run))
    assert studio.model(tiny_run.name) is served
    assert studio.app.state.resident.models == ()


def test_run_that_is_served_can_be_loaded_again(
    make_studio: MakeStudio, tuned: HostedModel, tiny_run: Path
) -> None:
    served = replace(tuned, name=tiny_run.name)
    studio = make_studio(served)
    asyncio.run(studio.load(tiny_run))
    assert studio.model(tiny_run.name) is not served

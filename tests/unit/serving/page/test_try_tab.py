"""What is asked in the form is answered by the models that were chosen."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lushan.backbones.encoding import LengthLimit
from lushan.errors import DataError
from lushan.records import Example, Prediction
from lushan.serving.errors import UnknownModelError
from lushan.serving.hosted import HostedModel
from lushan.serving.page.form import fields_of
from lushan.serving.page.texts import Texts
from lushan.serving.page.try_tab import answers_html, list_others, read_form
from tests.unit.serving.page.conftest import MakeStudio


def test_answer_is_that_of_the_model_with_its_labels(
    make_studio: MakeStudio, tuned: HostedModel, english: Texts
) -> None:
    asked = answers_html(make_studio(tuned), english, ["tiny", ""], {"text": "What a great film!"})
    page = asyncio.run(asked)
    predictor = tuned.predictor
    for label in predictor.state.labels:
        assert label in page
    assert page.count("<section") == 1


def test_untouched_model_answers_beside_the_tuned_one_with_its_labels(
    make_studio: MakeStudio, tuned: HostedModel, talker: HostedModel, english: Texts
) -> None:
    studio = make_studio(tuned, talker)
    page = asyncio.run(answers_html(studio, english, ["tiny", "talker"], {"text": "Great!"}))
    first, second = page.split("</section>")[:2]
    assert "talker" in second
    for label in tuned.predictor.state.labels:
        assert label in first
        assert label in second


def test_text_that_was_cut_is_told_with_the_answer(
    make_studio: MakeStudio, tuned: HostedModel, english: Texts
) -> None:
    limit = LengthLimit(60, "truncate")
    model = replace(tuned, predictor=replace(tuned.predictor, limit=limit))
    asked = answers_html(make_studio(model), english, ["tiny", ""], {"text": "ran home " * 100})
    assert "Tokens left out: " in asyncio.run(asked)


def test_both_models_are_asked_at_once(
    make_studio: MakeStudio, tuned: HostedModel, talker: HostedModel, english: Texts
) -> None:
    studio, asked = make_studio(tuned, talker), list[HostedModel]()

    async def answer_once_both_are_asked(
        model: HostedModel, examples: Sequence[Example]
    ) -> list[Prediction]:
        asked.append(model)
        async with asyncio.timeout(20):
            while len(asked) < 2:
                await asyncio.sleep(0.001)
        return model.predictor.predict(examples)

    studio.app.state.worker = SimpleNamespace(predict=answer_once_both_are_asked)
    page = asyncio.run(answers_html(studio, english, ["tiny", "talker"], {"text": "Great!"}))
    assert page.count("<section") == 2
    # The untouched model keeps its layers, and with them what it shares.
    assert [each.predictor.backbone for each in asked] == [
        each.predictor.backbone for each in (tuned, talker)
    ]


def test_others_are_models_that_can_answer_the_same_form(
    make_studio: MakeStudio, tuned: HostedModel, talker: HostedModel, english: Texts
) -> None:
    studio = make_studio(tuned, talker)
    assert [name for _, name in list_others(studio, "tiny", english)] == ["", "talker"]
    assert [name for _, name in list_others(studio, "talker", english)] == [""]
    assert list_others(studio, "gone", english) == [("None", "")]


def test_field_that_was_left_out_is_named(english: Texts) -> None:
    from lushan.catalog import load_task

    fields = fields_of(load_task("answering"))
    with pytest.raises(DataError, match=r"Fill in: Question\."):
        read_form(fields, ["A text", " "], english)


def test_model_that_is_gone_is_refused(make_studio: MakeStudio, english: Texts) -> None:
    values: dict[str, Any] = {"text": "a"}
    with pytest.raises(UnknownModelError, match="There is no model `gone`"):
        asyncio.run(answers_html(make_studio(), english, ["gone"], values))

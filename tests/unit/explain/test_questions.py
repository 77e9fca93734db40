"""What is asked about an answer, and which characters each token stands for."""

from dataclasses import replace
from typing import Any

import pytest

from lushan.backbones.encoding import LengthLimit
from lushan.errors import DataError
from lushan.explain.questions import Piece, Question, questions_of
from lushan.records import AnswerMode, Prediction, Row, Span
from tests.unit.explain.conftest import Asked, AskModel

EMOJI = "ok \U0001f469\u200d\U0001f4bb 很好看。cafe\u0301 \U0001f44d\U0001f3fd!"


def ask(
    asked: Asked, prediction: Prediction, label: str | None = None, number: int = 0
) -> list[Question]:
    return questions_of(asked.predictor, asked.examples[number], prediction, label)


def told(asked: Asked, answer: Any, **more: Any) -> Prediction:  # noqa: ANN401
    """Give a prediction as a model that knows everything would make it."""
    return Prediction(asked.examples[0].id, answer, **more)


def labelled(asked: Asked, answer: Any) -> Prediction:  # noqa: ANN401
    return told(asked, answer, probabilities=dict.fromkeys(asked.predictor.state.labels, 0.5))


def text_of(piece: Piece, question: Question) -> str:
    """Put the characters of the text's tokens together, each once."""
    places = [place for place in piece.places if place is not None]
    characters = {index for start, end in places for index in range(start, end)}
    return "".join(question.text[index] for index in sorted(characters))


@pytest.mark.parametrize("answer", ["head", "generate"])
def test_every_character_of_the_text_has_a_token_and_no_other_has(
    answer: AnswerMode, ask_model: AskModel
) -> None:
    asked = ask_model(answer=answer)
    example = replace(asked.examples[0], text=EMOJI)
    prediction = labelled(asked, "positive")
    (question,) = questions_of(asked.predictor, example, prediction, None)
    (piece,) = question.pieces
    assert question.text == EMOJI
    assert text_of(piece, question).replace(" ", "") == EMOJI.replace(" ", "")
    for place, shown in zip(piece.places, piece.shown, strict=True):
        assert (
            place is None
            or EMOJI[slice(*place)] == shown.removeprefix(" ")
            or EMOJI[slice(*place)] == shown
        )


def test_template_and_answer_are_told_apart(ask_model: AskModel) -> None:
    asked = ask_model(answer="generate")
    (question,) = ask(asked, labelled(asked, "negative"))
    (piece,) = question.pieces
    template = "".join(
        shown
        for shown, place, moves in zip(piece.shown, piece.places, piece.moves_T, strict=True)
        if place is None and moves
    )
    answer = "".join(s for s, moves in zip(piece.shown, piece.moves_T, strict=True) if not moves)
    assert template.replace(" ", "") == "Classifythetextasoneof:negative,positive.\n\nText:\nLabel:"
    assert answer == " negative"


def test_a_label_is_the_target_and_another_can_be_named(ask_model: AskModel) -> None:
    asked = ask_model()
    (question,) = ask(asked, labelled(asked, "negative"))
    assert (question.target, question.pieces[0].features.target) == ("negative", 0)
    (question,) = ask(asked, labelled(asked, "negative"), "positive")
    assert (question.target, question.pieces[0].features.target) == ("positive", 1)


@pytest.mark.parametrize("answer", ["head", "generate"])
def test_each_of_several_labels_is_asked_about(answer: AnswerMode, ask_model: AskModel) -> None:
    asked = ask_model(answer=answer, multi_label=True)
    both = ask(asked, labelled(asked, ("negative", "positive")))
    assert [each.target for each in both] == ["negative", "positive"]
    assert [len(each.pieces) for each in both] == [1, 1]
    assert ask(asked, labelled(asked, ())) == []
    (named,) = ask(asked, labelled(asked, ()), "positive")
    assert named.target == "positive"


@pytest.mark.parametrize("task", ["classification", "tagging"])
def test_unknown_label_is_refused_and_the_known_are_listed(task: str, ask_model: AskModel) -> None:
    asked = ask_model(task)
    answer = labelled(asked, "positive") if task == "classification" else told(asked, ())
    with pytest.raises(
        DataError, match=r"The label 'green' is not one of the 2 there are: '\w+', '\w+'\."
    ):
        ask(asked, answer, "green")


def test_label_of_a_model_that_writes_is_refused(ask_model: AskModel) -> None:
    asked = ask_model("translation", "generate")
    with pytest.raises(DataError, match=r"this model writes its answers\. Leave the label out"):
        ask(asked, told(asked, "Ja."), "positive")


def test_each_entity_is_asked_about_by_its_own_tags(ask_model: AskModel) -> None:
    asked = ask_model("tagging")  # Ada Lovelace left London.
    spans = (Span(0, 12, "person", "Ada Lovelace"), Span(18, 24, "place", "London"))
    person, place = ask(asked, told(asked, spans))
    assert (person.target, person.span) == ("Ada Lovelace", spans[0])
    assert person.pieces[0].features.target == (1, 2)  # B-person, I-person
    assert place.pieces[0].features.target == (3,)
    (only,) = ask(asked, told(asked, spans), "place")
    assert only.target == "London"
    assert ask(asked, told(asked, ())) == []


def test_answer_in_a_passage_counts_from_the_start_of_what_the_user_wrote(
    ask_model: AskModel,
) -> None:
    asked = ask_model("answering")  # Ada left London in May.
    (question,) = ask(asked, told(asked, (Span(19, 22, "answer", "May"),)))
    assert question.text == "When did Ada leave?\nAda left London in May."
    assert question.span is not None
    assert question.text[question.span.start : question.span.end] == question.target == "May"


def test_no_answer_is_asked_about_too(ask_model: AskModel) -> None:
    asked = ask_model("answering")
    (question,) = ask(asked, told(asked, ()))
    assert (question.target, question.span) == ("no answer", None)


def test_only_windows_that_hold_the_answer_are_asked(ask_model: AskModel) -> None:
    limit = LengthLimit(70, "window")
    asked = ask_model("answering", limit=limit)
    context = "The fox slept. " * 8 + "Ada came."
    row = Row({"context": context, "question": "Who came?"}, "rows", 1)
    example = asked.predictor.task.read(row, needs_target=False)
    place = context.index("Ada")
    prediction = told(asked, (Span(place, place + 3, "answer", "Ada"),))
    (question,) = questions_of(asked.predictor, example, prediction, None)
    assert 0 < len(question.pieces) < len(asked.predictor.encode([example]))
    assert sum(each.share for each in question.pieces) == pytest.approx(1)
    assert all("Ada" in text_of(each, question) for each in question.pieces)


def test_windows_of_a_text_share_its_label(ask_model: AskModel) -> None:
    asked = ask_model(limit=LengthLimit(8, "window"))
    example = replace(asked.examples[0], text="a warm and funny film " * 3)
    (question,) = questions_of(asked.predictor, example, labelled(asked, "positive"), None)
    assert len(question.pieces) > 2
    assert {each.share for each in question.pieces} == {1 / len(question.pieces)}
    joined = "".join(text_of(each, question) for each in question.pieces)
    assert joined == question.text


def test_a_choice_is_read_behind_its_question_alone(ask_model: AskModel) -> None:
    asked = ask_model("choice", "generate")
    choices = asked.examples[0].extra["choices"]
    prediction = told(asked, choices[1], probabilities=dict.fromkeys(choices, 0.5))
    (question,) = ask(asked, prediction)
    (piece,) = question.pieces
    assert (question.target, question.text) == (
        "sandals",
        "To keep your feet dry in the rain, wear",
    )
    assert "".join(piece.shown) == "To keep your feet dry in the rain, wear sandals"
    assert text_of(piece, question) == question.text
    (other,) = ask(asked, prediction, choices[0])
    assert other.target == "rubber boots"


def test_of_a_conversation_the_last_turn_is_the_answer(ask_model: AskModel) -> None:
    asked = ask_model("dialogue", "generate")
    (question,) = ask(asked, told(asked, "At nine, every day."))
    (piece,) = question.pieces
    answer = "".join(s for s, moves in zip(piece.shown, piece.moves_T, strict=True) if not moves)
    assert answer.strip().startswith("At nine, every day.")
    assert question.text == "Hello!\nGood day.\nWhen do you open?"
    assert text_of(piece, question).replace("\n", "") == question.text.replace("\n", "")


def test_fields_that_steer_a_text_are_what_the_user_wrote(ask_model: AskModel) -> None:
    asked = ask_model("completion", "generate")
    (question,) = ask(asked, told(asked, "is open."))
    assert question.text == "Topic: hotel\nKeywords: Monday\nDear guests, the pool"

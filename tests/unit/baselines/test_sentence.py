"""The sentence with the most words of the question is found, and is a part of the text."""

from lushan.baselines.sentence import answer
from lushan.data.splits import Parts
from lushan.records import Example, Span, TaskState


def found(text: str, question: str) -> str:
    example = Example("id", text, None, extra={"question": question})
    (prediction,) = answer(Parts([], [], [example]), state=TaskState(("answer",))).predictions
    (span,) = prediction.answer
    assert isinstance(span, Span)
    assert text[span.start : span.end] == span.text
    return span.text


def test_sentence_shares_the_most_different_words_whatever_their_case() -> None:
    text = "It rained. It rained, rained and rained! The FOX slept in 3.5 hours.\nNo fox came"
    assert found(text, "Where slept the fox?") == "The FOX slept in 3.5 hours."
    assert found(text, "no fox?") == "No fox came"


def test_first_of_equal_sentences_is_taken_and_marks_count_nothing() -> None:
    assert found("What? Yes. No.", "Who was it?") == "What?"


def test_chinese_sentences_end_at_their_marks() -> None:
    text = "\u6211\u5728\u5317\u4eac\u3002\u4ed6\u5728\u4e0a\u6d77\uff01"
    assert found(text, "\u8c01\u5728\u4e0a\u6d77\uff1f") == "\u4ed6\u5728\u4e0a\u6d77\uff01"

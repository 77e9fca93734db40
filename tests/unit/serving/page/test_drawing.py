"""What is drawn holds what was given, and nothing in it can act."""

from html.parser import HTMLParser

import pytest

from lushan.records import Example, Mention, Prediction, Span, Triple
from lushan.serving.page import drawing
from lushan.serving.page.texts import Texts

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'"


class Seen(HTMLParser):
    """Reads a page as a browser does."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_is_inert(page: str) -> None:
    seen = Seen(page)
    assert {"script", "img"} & set(seen.tags) == set()
    assert [name for name, _ in seen.attributes if name.startswith("on")] == []


def answer_page(example: Example, prediction: Prediction, texts: Texts) -> str:
    return drawing.answers([drawing.answer_card(example, prediction, texts)], texts)


def test_entities_of_a_text_with_tags_are_inert_and_shown(english: Texts) -> None:
    text = f"Ada wrote {ATTACK} in Rome"
    spans = (Span(0, 3, ATTACK, "Ada", 0.9), Span(len(text) - 4, len(text), "place", "Rome"))
    page = answer_page(Example("1", text, None), Prediction("1", spans), english)
    assert_is_inert(page)
    assert ATTACK in Seen(page).text
    assert Seen(page).tags.count("mark") == 2


@pytest.mark.parametrize("shown", ["problem", "note", "heading"])
def test_message_with_tags_is_inert(shown: str, english: Texts) -> None:
    page = getattr(drawing, shown)(ATTACK, english)
    assert_is_inert(page)
    assert ATTACK in Seen(page).text


def test_labels_and_titles_with_tags_are_inert(english: Texts) -> None:
    prediction = Prediction("1", ATTACK, {ATTACK: 0.75, "other": 0.25})
    card = drawing.answer_card(Example("1", ATTACK, None), prediction, english, title=ATTACK)
    page = drawing.answers([card], english)
    assert_is_inert(page)
    assert "75.0" in page
    assert "width:75.0%" in page


def test_heat_map_with_tags_is_inert_and_scaled_to_the_strongest(english: Texts) -> None:
    page = drawing.heat(ATTACK, [(ATTACK, -0.5), ("word", 0.25)], english)
    assert_is_inert(page)
    assert "--heat:1.00;--hue:220" in page
    assert "--heat:0.50;--hue:20" in page


def test_report_stays_in_a_frame_that_may_do_nothing(english: Texts) -> None:
    page = drawing.report(f"<html>{ATTACK}</html>", english)
    assert_is_inert(page)
    assert dict(Seen(page).attributes)["sandbox"] == ""
    assert dict(Seen(page).attributes)["srcdoc"] == f"<html>{ATTACK}</html>"


def test_problem_sets_apart_what_stands_in_backticks_and_stays_inert(english: Texts) -> None:
    page = drawing.problem(f"No column `text`. Found: `{ATTACK}`.", english)
    assert_is_inert(page)
    assert "No column <code>text</code>. Found: <code>" in page
    assert ATTACK in Seen(page).text


def test_conversation_with_tags_is_inert_and_shown(english: Texts) -> None:
    page = drawing.chat([{"role": "assistant", "content": ATTACK}], english)
    assert_is_inert(page)
    assert ATTACK in Seen(page).text


def test_parts_of_a_text_put_together_are_the_text() -> None:
    text = "Ada met Bob in Rome."
    spans = [Span(15, 19, "place"), Span(0, 3, "person"), Span(8, 11, "person"), Span(9, 11, "x")]
    parts = drawing.cut_at_spans(text, spans)
    assert "".join(part.text for part in parts) == text
    assert [(part.text, part.label) for part in parts if part.label] == [
        ("Ada", "person"),
        ("Bob", "person"),
        ("Rome", "place"),
    ]
    assert parts[0].hue == parts[2].hue != parts[4].hue


def test_answer_in_a_passage_is_named_and_marked(english: Texts) -> None:
    example = Example("1", "The fox slept in the forest.", None)
    span = Span(14, 27, "answer", "in the forest", 0.5)
    card = drawing.answer_card(example, Prediction("1", (span,)), english)
    assert card["headline"] == "in the forest"
    assert [part.text for part in card["parts"] if part.label] == ["in the forest"]


def test_relation_is_drawn_between_its_two_parts_without_their_marks(english: Texts) -> None:
    example = Example("1", "<e2>Tea</e2> is what <e1>Bo</e1> sips.", None)
    card = drawing.answer_card(example, Prediction("1", "Has", {"Has": 1.0}), english)
    assert card["headline"] == "Bo \u2014 Has \u2192 Tea"
    assert "".join(part.text for part in card["parts"]) == "Tea is what Bo sips."
    assert [(part.text, part.label) for part in card["parts"] if part.label] == [
        ("Tea", "2"),
        ("Bo", "1"),
    ]


def test_triples_are_told_and_their_names_numbered_in_the_text(english: Texts) -> None:
    text = f"Ada {ATTACK} left Ulm for Rome."
    ada, ulm, rome = (
        Mention(name, text.index(name), text.index(name) + len(name))
        for name in ("Ada", "Ulm", "Rome")
    )
    triples = (Triple(ada, "left", ulm), Triple(ada, ATTACK, rome))
    card = drawing.answer_card(Example("1", text, None), Prediction("1", triples), english)
    assert card["headline"] == f"Ada \u2014 left \u2192 Ulm, Ada \u2014 {ATTACK} \u2192 Rome"
    assert "".join(part.text for part in card["parts"]) == text
    assert [(part.text, part.label) for part in card["parts"] if part.label] == [
        ("Ada", "1 \u2192, 2 \u2192"),
        ("Ulm", "\u2192 1"),
        ("Rome", "\u2192 2"),
    ]
    assert ATTACK not in drawing.answers([card], english)


def test_no_answer_says_so(english: Texts) -> None:
    card = drawing.answer_card(Example("1", "text", None), Prediction("1", ()), english)
    assert card["headline"] == "Nothing found"


def test_only_the_likeliest_labels_have_bars(english: Texts) -> None:
    shares = {f"label {number}": number / 66 for number in range(12)}
    card = drawing.answer_card(
        Example("1", "text", None), Prediction("1", "label 11", shares), english
    )
    assert [bar["label"] for bar in card["bars"]][:2] == ["label 11", "label 10"]
    assert card["num_hidden"] == 2


def test_answer_and_heat_map_of_a_text_that_was_cut_say_so(english: Texts) -> None:
    told = "longer than the model reads. Tokens left out: 1,234."
    example = Example("1", "text", None)
    for num_cut, is_told in ((1234, True), (0, False)):
        found = Prediction("1", "yes", num_cut_tokens=num_cut)
        heat = drawing.heat("yes", [("text", 1.0)], english, num_cut_tokens=num_cut)
        assert (told in answer_page(example, found, english)) is is_told
        assert (told in heat) is is_told


def test_curve_tells_the_last_loss_and_has_a_line(english: Texts) -> None:
    steps = [{"step": number, "loss": 1 / number} for number in range(1, 9)]
    page = drawing.curve(steps, english)
    assert 'aria-label="Training loss at step 8: 0.125"' in page
    assert page.count("<path") == 2


def test_curve_without_steps_says_so(english: Texts) -> None:
    assert "No training steps yet." in drawing.curve([], english)

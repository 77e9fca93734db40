"""The page of explanations."""

import re

from lushan.explain.explanation import Attribution, Explanation, TemplateWeight
from lushan.explain.faithfulness import Faithfulness
from lushan.explain.page import marks, page_parts, strongest
from lushan.explain.words import Weight, word_weights
from lushan.records import Span

CHECK = Faithfulness(1, 2.0, 0.25, -0.5, 1.5, 5)


def part_of(text: str, weights: list[float], span: Span | None = None) -> Attribution:
    words = tuple(
        Weight(each.start, each.end, each.text, weight)
        for each, weight in zip(word_weights(text, []), weights, strict=True)
    )
    template = (TemplateWeight("Text:", 0.1),)
    return Attribution(
        "good", span, -0.25, -2.5, words, words, template, 0.125, 3, 32, 0.004, CHECK
    )


def page_of(text: str, part: Attribution | None) -> str:
    parts = () if part is None else (part,)
    found = Explanation("id", text, "good", parts, "mean", "v1")
    return "".join(page_parts([found], title="Why", facts="runs/reviews"))


def test_text_stands_there_whole_with_its_marks() -> None:
    text = "A  fine film,\nbut long. "
    found = marks(text, part_of(text, [0.0, 2.0, 0.05, 0.0, 0.0, -1.0, 0.0]))
    assert "".join(each.text for each in found) == text
    marked = {each.text: (each.kind, each.level, each.hint) for each in found if each.kind}
    assert marked == {"fine": ("for", "1.00", "+2.00"), "long": ("against", "0.50", "\u22121.00")}


def test_words_of_the_answer_and_what_is_between_them_are_framed() -> None:
    text = "Ada Lovelace left"
    found = marks(text, part_of(text, [1.0, 1.0, 0.0], Span(0, 12, "person")))
    assert [each.text for each in found if each.is_target] == ["Ada", " ", "Lovelace"]


def test_page_shows_words_bars_and_checks() -> None:
    page = page_of("很好看", part_of("很好看", [0.5, 1.0, -0.25]))
    assert '<span class="word for" style="--level:1.00" title="+1.00">好</span>' in page
    assert '<span class="word against" style="--level:0.25"' in page
    lengths = re.findall(r'class="(\w+)" style="width:(\d+)%"', page)
    assert lengths == [("for", "100"), ("for", "50"), ("against", "25")]
    text = " ".join(page.split())
    assert "Without the strongest word it falls by 2.00 (without as many random ones 0.25)" in text
    assert "Completeness gap 0.4 % after 32 steps. 3 tokens were cut off" in text


def test_page_fetches_nothing_and_escapes_texts() -> None:
    text = "<script>alert(1)</script> & co"
    page = page_of(text, part_of(text, [1.0] * len(word_weights(text, []))))
    assert "<script" not in page
    assert "http" not in page
    assert "prefers-color-scheme: dark" in page


def test_answer_without_anything_to_explain_is_told() -> None:
    assert "Nothing was found" in page_of("It rained.", None)


def test_strongest_words_come_first() -> None:
    found = strongest(part_of("a b c d", [0.1, -0.4, 0.2, 0.001]).words)
    assert [(each.text, length) for each, length in found] == [
        ("b", "100"),
        ("c", "50"),
        ("a", "25"),
    ]

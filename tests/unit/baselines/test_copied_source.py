"""The source comes back as it is."""

from lushan.baselines.copied_source import answer
from lushan.data.splits import Parts
from lushan.records import Example, TaskState


def test_every_text_answers_itself_to_the_character() -> None:
    texts = [" Two  spaces \n", "\u5e90\u5c71", ""]
    test = [Example(f"id{n}", text, "truth") for n, text in enumerate(texts)]
    found = answer(Parts([], [], test), state=TaskState()).predictions
    assert [(each.id, each.answer) for each in found] == [
        (f"id{n}", text) for n, text in enumerate(texts)
    ]

"""Translation: what is read and how it is asked."""

import pytest

from lushan.data.near import comparable
from lushan.data.splits import split
from lushan.errors import DataError
from lushan.records import EITHER_WAY, Example, Prediction, Row, TaskState
from lushan.tasks import Preparation
from lushan.tasks.translation import Task

TASK = Task()
STATE = TaskState()


def read(**values: object) -> Example:
    return TASK.read(Row({"source": " A dog. ", "target": "Ein Hund.", **values}, "a.csv", 7))


def text(example: Example, *, shots: tuple[Example, ...] = (), with_target: bool = False) -> str:
    (found,) = TASK.render(example, STATE, answer="generate", with_target=with_target, shots=shots)
    return found.text


@pytest.mark.parametrize(
    ("languages", "instruction"),
    [
        ({"source_lang": "en", "target_lang": "de-AT"}, "Translate from English to German."),
        ({"target_lang": "zh_CN"}, "Translate to Chinese."),
        ({"source_lang": "Klingon", "target_lang": "en"}, "Translate from Klingon to English."),
        ({}, "Translate the text."),
    ],
)
def test_languages_are_told_by_their_names(languages: dict[str, str], instruction: str) -> None:
    assert text(read(**languages)) == f"{instruction}\n\nText: A dog.\nTranslation:"


def test_worked_examples_stand_before_the_question_and_the_answer_behind() -> None:
    shot = read(source="A cat.", target="Eine Katze.")
    expected = "Translate the text.\n\nText: A cat.\nTranslation: Eine Katze.\n\nText: A dog.\nTranslation: Ein Hund."
    assert text(read(), shots=(shot,), with_target=True) == expected
    assert TASK.render(
        read(), TaskState(instruction="Say it."), answer="generate", with_target=False
    )[0].text.startswith("Say it.\n\nText:")


def test_worked_examples_are_those_of_the_asked_languages() -> None:
    rows = [
        read(source=f"{code} {number}", source_lang="en", target_lang=code)
        for code in ("de", "zh")
        for number in range(20)
    ]
    state = TASK.prepare(rows, Preparation(num_shots=8), multi_label=False)
    alone = TASK.prepare(rows[:20], Preparation(num_shots=8), multi_label=False)
    assert [each for each in state.shots if each in rows[:20]] == list(alone.shots)
    for code, name in (("de", "German"), ("de-AT", "German"), ("zh", "Chinese")):
        written = text(read(source_lang="en", target_lang=code), shots=state.shots)
        assert written.startswith(f"Translate from English to {name}.\n\nText: {code[:2]} ")
        assert written.count("Translate") == 1
        assert written.count(f"\n\nText: {code[:2]} ") == 8
        assert written.count("\n\nText: ") == 9


def test_worked_examples_of_other_languages_stand_under_their_names() -> None:
    german = [read(source=f"{'long ' * n}cat", source_lang="en", target_lang="de") for n in (1, 0)]
    chinese = read(source="long long dog", target="\u72d7", source_lang="en", target_lang="zh")
    asked = read(source_lang="en", target_lang="fr")
    assert text(asked, shots=(*german, chinese)) == (
        "Translate from English to German.\n\nText: long cat\nTranslation: Ein Hund.\n\n"
        "Translate from English to Chinese.\n\nText: long long dog\nTranslation: \u72d7\n\n"
        "Translate from English to French.\n\nText: A dog.\nTranslation:"
    )
    plain = "Translate from English to German.\n\n"
    assert text(asked, shots=tuple(german)).count(plain) == 1


@pytest.mark.parametrize("value", [7, " ", ["de"]])
def test_language_that_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(
        DataError, match=r"a\.csv, row 7: column `target_lang` must name a language"
    ):
        read(target_lang=value)


def test_missing_language_is_told_once() -> None:
    assert TASK.notes([read(target_lang="de"), read()])[0].startswith("No column `target_lang`")
    assert TASK.notes([read(target_lang="de")]) == []


def test_codes_that_the_model_is_told_by_one_name_are_noted() -> None:
    codes = ("zh_CN", "zh-TW", "pt-BR", "pt_br")
    (note,) = TASK.notes([read(source_lang="en", target_lang=code) for code in codes])
    assert note.startswith("The model is told `Chinese` for 2 codes, zh-cn, zh-tw: ")


def test_chinese_is_scored_by_its_own_tokenizer() -> None:
    example = read(target="\u4e00\u53ea\u72d7", target_lang="zh")
    scores = TASK.score([Prediction(example.id, "\u4e00\u53ea\u732b")], [example], STATE)
    assert "tok:zh" in scores.details["signatures"]["bleu"]
    assert 0 < scores.correct[0] < 1


def test_row_and_its_reverse_have_one_group_and_other_rows_others() -> None:
    there = read(source="A dog.", target="Ein Hund.", source_lang="en", target_lang="de")
    back = read(source="ein hund", target="a dog", source_lang="de", target_lang="en")
    assert comparable(there.group) == comparable(back.group)
    assert {*there.group.split(EITHER_WAY)} == {"A dog.", "Ein Hund."}
    assert comparable(read(target="Der Hund.").group) != comparable(there.group)
    asked = Row({"source": "A dog."}, "a.csv", 7)
    assert TASK.read(asked, needs_target=False).group == ""


def test_pair_and_its_reverse_come_into_one_split() -> None:
    pairs = [(f"A dog, {number}.", f"Ein Hund, {number}.") for number in range(50)]
    rows = [read(source=one, target=other) for one, other in pairs]
    rows += [read(source=other, target=one) for one, other in pairs]
    parts = split(rows, validation_fraction=0.1, test_fraction=0.2, seed=0)
    numbers = [{each.text.split(", ")[1] for each in part} for part in parts.as_dict().values()]
    assert [len(each) for each in numbers] == [35, 5, 10]
    assert len(set().union(*numbers)) == 50

"""Triples: how they are asked, what may be written, and how they are scored."""

from dataclasses import replace

import pytest

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import load_backbone
from lushan.errors import DataError
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.predict import Predictor
from lushan.records import (
    Example,
    Features,
    Mention,
    Prediction,
    Row,
    TaskState,
    Triple,
    Written,
)
from lushan.tasks import Preparation
from lushan.tasks.triples import Task
from tests.conftest import MakeTiny

TASK = Task()
TEXT = "Ada was born in Ulm."
ROWS = ({"head": "Ada", "label": "born in", "tail": "Ulm"},)


def read(text: str = TEXT, triples: object = ROWS) -> Example:
    return TASK.read(Row({"text": text, "triples": triples}, "a.csv", 7))


def prepared(*examples: Example) -> TaskState:
    return TASK.prepare(list(examples), Preparation(num_shots=1), multi_label=False)


def test_ids_tell_the_triples_by_their_letters() -> None:
    by_place = {"head": [0, 3], "label": "born in", "tail": [16, 19]}
    assert read().id == read(triples=[by_place]).id != read(triples=[]).id
    assert read().classes == ("born in",)


def test_state_has_the_relations_in_order_and_the_bounds_of_an_answer() -> None:
    other = read(triples=[["Ulm", "at", "Ada"], ["Ada was born", "at", "Ulm"]])
    state = prepared(read(), other)
    assert state.labels == ("at", "born in")
    assert (state.most_items, state.longest_name) == (3, 16)
    assert state.stop_strings == ("\n",)
    with pytest.raises(DataError, match="None of the 1 training rows has a triple"):
        prepared(read(triples=[]))


def test_prompt_shows_relations_and_examples_and_what_is_written_is_read_back() -> None:
    state, shot = prepared(read()), read("Bo\nsaw her.", [["Bo", "born in", "her"]])
    (told,) = TASK.render(read(), state, answer="generate", with_target=True, shots=[shot])
    assert told.text == (
        "Name the relations, as head | relation | tail: born in.\n\n"
        "Text: Bo\nsaw her.\nRelations: Bo | born in | her\n\n"
        f"Text: {TEXT}\nRelations: Ada | born in | Ulm"
    )
    (place,) = told.supervised
    written = [Written(told.text[slice(*place)], -1.0)]
    (found,) = TASK.decode(written, [], [read()], state, answer="generate")
    assert found.answer == read().target
    assert found.log_likelihood == -1.0


def test_name_that_crosses_a_line_is_written_on_one_line_and_keeps_its_place() -> None:
    text = "New\nYork is in Ulm"
    example = read(text, [[[0, 8], "born in", "Ulm"]])
    state = prepared(example)
    (told,) = TASK.render(example, state, answer="generate", with_target=True)
    assert told.text.endswith("\nRelations: New York | born in | Ulm")
    written = [Written(" New York | born in | Ulm", 0.0)]
    (found,) = TASK.decode(written, [], [example], state, answer="generate")
    (one,) = found.answer
    assert isinstance(one, Triple)
    assert (one.head.start, one.head.end) == (0, 8)


def test_names_inside_of_words_are_told() -> None:
    assert TASK.notes([read()]) == []
    (note,) = TASK.notes([read(), read(triples=[["da", "at", "Ulm"]])])
    assert note.startswith("1 triples of the training rows have a head or a tail that begins or")


@pytest.mark.parametrize("num_shots", [0, 1])
def test_untouched_model_writes_only_names_of_the_text_and_known_relations(
    num_shots: int, tiny_folder: MakeTiny
) -> None:
    backbone = load_backbone(tiny_folder("gpt2"), purpose="language")
    texts = ("Ada ran home.", "\u5317\u4eac\u57ce", "cold soup; fresh bread", "film O'Hara (Ulm)")
    asked = [read(text, []) for text in texts]
    limit, short = LengthLimit(128, "truncate"), GenerationSettings(max_new_tokens=20)
    predictor = Predictor(backbone, TASK, prepared(read()), "generate", limit, generation=short)
    shots = [read("A dog", [["A", "born in", "dog"]])][:num_shots]
    for example, found in zip(asked, predictor.predict(asked, shots=shots), strict=True):
        for each in found.answer:
            assert isinstance(each, Triple)
            assert each.label == "born in"
            for part in (each.head, each.tail):
                assert example.text[part.start : part.end] == part.text


def test_untouched_model_is_held_to_the_grammar_of_each_text(tiny_folder: MakeTiny) -> None:
    backbone, limit = load_backbone(tiny_folder("llama"), purpose="language"), LengthLimit(128)
    short = GenerationSettings(max_new_tokens=20)
    predictor = Predictor(backbone, TASK, prepared(read()), "generate", limit, generation=short)
    asked = [read("fox", []), read("soup", [])]
    features = [
        replace(each, grammar=f'start: " {example.text}!"\n')
        for each, example in zip(predictor.encode(asked), asked, strict=True)
    ]
    found = predictor.outputs(features, asked)
    assert [each.text for each in found] == [" fox!", " soup!"]


def test_names_that_were_cut_off_cannot_be_written(tiny_folder: MakeTiny) -> None:
    tokenizer = load_backbone(tiny_folder("llama"), purpose="language").tokenizer

    def asked(limit: LengthLimit) -> Features:
        (found,) = TASK.encode(
            [read()], prepared(read()), tokenizer, answer="generate", limit=limit, with_target=False
        )
        return found

    whole = asked(LengthLimit(1000))
    num_cut = len(tokenizer.encode([" Ulm."])[0].ids)
    cut = asked(LengthLimit(len(whole.token_ids) - num_cut, "truncate"))
    assert [name in whole.grammar for name in ("Ada", "Ulm")] == [True, True]
    assert [name in cut.grammar for name in ("Ada", "Ulm")] == [True, False]


def test_wrong_direction_and_wrong_relation_are_wrong_and_places_are_not_asked() -> None:
    text = "Ada Ulm Ada"
    examples = [
        read(text, [[[0, 3], "a", "Ulm"]]),
        read(text, []),
        read(text, [["Ulm", "b", "Ada"]]),
    ]
    state = prepared(*examples)
    ada, again, ulm = Mention("Ada", 0, 3), Mention("Ada", 8, 11), Mention("Ulm", 4, 7)
    answers = [(Triple(again, "a", ulm),), (), (Triple(ada, "b", ulm), Triple(ulm, "a", ada))]
    predictions = [Prediction(each.id, x) for each, x in zip(examples, answers, strict=True)]
    scores = TASK.score(predictions, examples, state)
    assert scores.main_metric == "f1"
    assert scores.metrics["precision"].value == pytest.approx(1 / 3)
    assert scores.metrics["recall"].value == pytest.approx(1 / 2)
    assert scores.metrics["exact_match"].value == pytest.approx(2 / 3)
    assert list(scores.correct) == [True, True, False]
    assert [each["f1"] for each in scores.details["per_class"]] == pytest.approx([2 / 3, 0])

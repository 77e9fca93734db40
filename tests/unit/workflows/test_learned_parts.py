"""What is learned of texts whose end was cut off."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.tokenizer import Tokenizer
from lushan.catalog import load_task
from lushan.records import Example, Features, Mention, Span, TaskState, Triple
from lushan.workflows.learned_parts import Encode, count_cut_off, leave_out_cut_off
from tests.conftest import MakeTiny

NAMES = ("Ada", "Bob", "Cid", "Dan", "Eva", "Fay", "Gus", "Hal", "Ida", "Jim", "Kim", "Leo")
TEXT = " ".join(NAMES)
STATE = TaskState(labels=("x",))
WIDE = LengthLimit(1000)


@pytest.fixture
def tokenizer(tiny_folder: MakeTiny) -> Tokenizer:
    return Tokenizer.load(tiny_folder("llama"))


def people(num_names: int = len(NAMES)) -> Example:
    """A text of names alone, each an entity."""
    text = " ".join(NAMES[:num_names])
    spans = tuple(Span(text.index(x), text.index(x) + 3, "x") for x in NAMES[:num_names])
    return Example("id", text, spans, "a.csv, row 7")


def encoding(name: str, tokenizer: Tokenizer, limit: LengthLimit = WIDE) -> Encode:
    def encode(examples: Sequence[Example]) -> list[Features]:
        return load_task(name).encode(
            examples, STATE, tokenizer, answer="generate", limit=limit, with_target=True
        )

    return encode


def parts(features: Features, tokenizer: Tokenizer) -> tuple[str, str]:
    """Give the text that is read, and what is written of it."""
    prompt = tokenizer.decode(list(features.token_ids[: features.targets_from]))
    written = tokenizer.decode(list(features.token_ids[features.targets_from : -1]))
    return prompt.partition("\n\nText:")[2].rpartition("\n")[0].strip(), written.strip()


@pytest.mark.parametrize("num_fewer", [1, 10, 20, 30])
def test_entities_that_are_learned_are_those_of_the_text_that_is_read(
    num_fewer: int, tokenizer: Tokenizer
) -> None:
    encode = encoding("tagging", tokenizer)
    (whole,) = encode([people()])
    limit = LengthLimit(len(whole.token_ids) - num_fewer, "truncate")
    cut = encoding("tagging", tokenizer, limit)
    (found,) = leave_out_cut_off([people()], encode=cut, as_read=load_task("tagging").as_read)
    text, written = parts(found, tokenizer)
    num_names = len(text.split())
    assert text == people(num_names).text
    assert written == "; ".join(f"{name} (x)" for name in text.split())
    (more,) = encode([people(num_names + 2)])
    assert len(found.token_ids) <= limit.max_tokens < len(more.token_ids)
    assert found.num_cut_items == len(NAMES) - num_names > 0
    assert found.num_cut_tokens == whole.targets_from - found.targets_from
    assert found.weight == 1


def test_texts_that_fit_are_learned_as_they_are_and_keep_their_places(tokenizer: Tokenizer) -> None:
    encode = encoding("tagging", tokenizer)
    sparse = replace(people(), target=(Span(0, 3, "x"), Span(44, 47, "x")))
    rows = [people(2), sparse, people(3)]
    wholes = encode(rows)
    limit = LengthLimit(len(wholes[2].token_ids), "truncate")
    cut = encoding("tagging", tokenizer, limit)
    found = leave_out_cut_off(rows, encode=cut, as_read=load_task("tagging").as_read)
    assert (found[0], found[2]) == (wholes[0], wholes[2])
    assert [each.example_index for each in found] == [0, 1, 2]
    assert parts(found[1], tokenizer)[1] == "Ada (x)"
    assert found[1].num_cut_items == 1


def test_triples_are_learned_whose_names_are_both_read(tokenizer: Tokenizer) -> None:
    ada, bob, leo = (Mention(x, TEXT.index(x), TEXT.index(x) + 3) for x in ("Ada", "Bob", "Leo"))
    target = (Triple(ada, "x", bob), Triple(ada, "x", leo), Triple(leo, "x", bob))
    row = Example("id", TEXT, target, "a.csv, row 7")
    (whole,) = encoding("triples", tokenizer)([row])
    cut = encoding("triples", tokenizer, LengthLimit(len(whole.token_ids) - 2, "truncate"))
    (found,) = leave_out_cut_off([row], encode=cut, as_read=load_task("triples").as_read)
    assert parts(found, tokenizer)[1] == "Ada | x | Bob"
    assert found.num_cut_items == 2


def question(*answers: str) -> Example:
    spans = tuple(Span(TEXT.index(x), TEXT.index(x) + len(x), "answer") for x in answers)
    return Example("id", TEXT, spans, "a.csv, row 7", {"question": "Who?"})


def test_written_answer_that_was_cut_off_has_no_weight(tokenizer: Tokenizer) -> None:
    rows = [question("Leo"), question("Ada"), question("Leo", "Ada"), question()]
    whole = encoding("answering", tokenizer)(rows)
    most = min(len(each.token_ids) for each in whole) - 8
    cut = encoding("answering", tokenizer, LengthLimit(most, "truncate"))
    found = leave_out_cut_off(rows, encode=cut, as_read=load_task("answering").as_read)
    assert [each.weight for each in found] == [0, 1, 1, 1]
    assert [each.num_cut_items for each in found] == [1, 0, 0, 0]
    written = [tokenizer.decode(list(each.token_ids[each.targets_from : -1])) for each in found]
    assert [each.strip() for each in written[1:]] == ["Ada", "Ada", "no answer"]


def test_truth_that_is_only_counted_stays_whole(tokenizer: Tokenizer) -> None:
    (whole,) = encoding("tagging", tokenizer)([people()])
    limit = LengthLimit(len(whole.token_ids) - 10, "truncate")
    cut = encoding("tagging", tokenizer, limit)
    (found,) = count_cut_off([people()], encode=cut, as_read=load_task("tagging").as_read)
    assert parts(found, tokenizer)[1] == "; ".join(f"{name} (x)" for name in NAMES)
    assert found.num_cut_tokens == 10
    assert 0 < found.num_cut_items < len(NAMES)


def test_text_whose_last_character_has_several_tokens_comes_to_an_end(tokenizer: Tokenizer) -> None:
    row = Example("id", "Ada \U0001f680", (Span(0, 3, "x"), Span(4, 5, "x")), "a.csv, row 7")
    (whole,) = encoding("tagging", tokenizer)([row])
    cut = encoding("tagging", tokenizer, LengthLimit(len(whole.token_ids) - 1, "truncate"))
    (found,) = leave_out_cut_off([row], encode=cut, as_read=load_task("tagging").as_read)
    assert parts(found, tokenizer) == ("Ada", "Ada (x)")
    (counted,) = count_cut_off([row], encode=cut, as_read=load_task("tagging").as_read)
    assert counted.num_cut_items == 1

"""Tagging: what is read, supervised and answered; compared with transformers and with every path there is."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from lushan.backbones.encoding import LengthLimit, Window
from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.data.batching import pack
from lushan.errors import DataError
from lushan.inference.predict import Predictor, head_outputs
from lushan.model_store.tuned_model import save_model
from lushan.records import Example, Features, Row, Span, TaskState, Written
from lushan.tasks import Preparation
from lushan.tasks.tagging import Task, likeliest_tags
from tests.conftest import MakeTiny
from tests.saved import meaning_of

TASK = Task()
STATE = TaskState(labels=("person", "place"))
TAGS = ("O", "B-person", "I-person", "B-place", "I-place")
LIMIT = LengthLimit(128)
TEXT = "Ada Lovelace, in Paris\u5317\u4eac!"
TARGET = (Span(0, 12, "person"), Span(17, 22, "place"), Span(22, 24, "place"))


def example(text: str = TEXT, target: tuple[Span, ...] | None = TARGET, **extra: object) -> Example:
    return Example("id", text, target, "a.csv, row 7", extra)


@pytest.fixture
def backbone(tiny_folder: MakeTiny) -> Backbone:
    return load_backbone(tiny_folder("llama"), **TASK.layer(STATE, answer="head")._asdict())


def encode(
    tokenizer: Tokenizer, *examples: Example, limit: LengthLimit = LIMIT, with_target: bool = True
) -> list[Features]:
    return TASK.encode(
        examples, STATE, tokenizer, answer="head", limit=limit, with_target=with_target
    )


def tags_of(features: Features) -> list[str]:
    assert isinstance(features.target, tuple)
    return [TAGS[number] for number in features.target]


def test_layer_has_a_tag_for_the_beginning_and_the_inside_of_every_type() -> None:
    assert TASK.layer(STATE, answer="head") == ("tag", TAGS, False, False)


def test_both_forms_of_a_row_are_read_and_ids_tell_their_content() -> None:
    tagged = {"tokens": ["Ada", "left"], "tags": ["B-person", "O"]}
    one = TASK.read(Row(tagged, "a", 1))
    other = TASK.read(Row({"text": "Ada left", "entities": [[0, 3, "person"]]}, "a", 1))
    assert (one.text, one.target) == (other.text, other.target)
    assert one.id == other.id != TASK.read(Row({**tagged, "tags": ["O", "O"]}, "a", 1)).id
    assert (one.extra, other.extra) == ({"words": [[0, 3], [4, 8]]}, {})


def test_state_has_the_types_in_order_and_refuses_rows_without_any() -> None:
    assert TASK.prepare([example()], Preparation(), multi_label=False).labels == STATE.labels
    with pytest.raises(DataError, match="None of the 1 training rows has an entity"):
        TASK.prepare([example(target=())], Preparation(), multi_label=False)


def test_every_word_has_its_tag(backbone: Backbone) -> None:
    (features,) = encode(backbone.tokenizer, example())
    person, place = ["B-person", "I-person"], ["B-place", "B-place", "I-place"]
    assert tags_of(features) == [*person, "O", "O", *place, "O"]
    assert features.units == tuple((number, number) for number in range(8))
    assert features.num_supervised == 8


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "bert"])
def test_last_token_of_a_word_is_read(model_type: str, tiny_folder: MakeTiny) -> None:
    folder = tiny_folder(model_type)
    (features,) = encode(Tokenizer.load(folder), example())
    fast = AutoTokenizer.from_pretrained(folder)(TEXT, return_offsets_mapping=True)
    ends = [fast["offset_mapping"][position][1] for position in features.positions or ()]
    assert list(features.token_ids) == fast["input_ids"]
    assert ends == [3, 12, 13, 16, 22, 23, 24, 25]


def test_word_that_is_partly_in_an_entity_is_in_it_and_told(backbone: Backbone) -> None:
    inside = example("Newcastle upon Tyne", (Span(3, 14, "place"),))
    (features,) = encode(backbone.tokenizer, inside)
    assert tags_of(features) == ["B-place", "I-place", "O"]
    assert TASK.notes([inside, example()])[0].startswith("1 entities of the training rows begin")
    assert TASK.notes([example()]) == []


def test_tokens_that_a_row_gave_are_its_words(backbone: Backbone) -> None:
    given = example("U.S. is", (Span(0, 4, "place"),), words=[[0, 4], [5, 7]])
    (features,) = encode(backbone.tokenizer, given)
    assert tags_of(features) == ["B-place", "O"]


@pytest.fixture
def wide() -> list[Window]:
    """Windows of six characters whose tokens are `ab`, `cd`, `e` and `f`, cut before `e`."""
    return [Window((1, 2), -1, offsets=((0, 2), (2, 4))), Window((3, 4), -1, offsets=((4, 5), (5, 6)))]  # fmt: skip


def test_words_that_share_a_token_are_one_unit(
    wide: list[Window], monkeypatch: pytest.MonkeyPatch, backbone: Backbone
) -> None:
    monkeypatch.setattr("lushan.tasks.tagging.encode_rendered", lambda *_, **__: [wide])
    letters = [[number, number + 1] for number in range(6)]
    marked = example("abcdef", (Span(0, 5, "person"), Span(5, 6, "place")), words=letters)
    features = encode(backbone.tokenizer, marked)
    assert [each.units for each in features] == [((0, 1), (2, 3)), ((4, 4), (5, 5))]
    assert [tags_of(each) for each in features] == [["B-person", "I-person"], ["I-person", "B-place"]]  # fmt: skip
    scores = [np.eye(5)[list(each.target)] * 9 for each in features]  # pyright: ignore[reportArgumentType]
    (found,) = TASK.decode(scores, features, [marked], STATE, answer="head")
    assert found.answer == marked.target


def test_no_entity_spans_words_that_nobody_was_asked_about() -> None:
    features = Features((1,), "", 0, units=((0, 0), (2, 2)))
    scores = np.eye(5)[[1, 2]] * 9  # B-person, I-person
    three = example("a b c", None)
    (found,) = TASK.decode([scores], [features], [three], STATE, answer="head")
    assert all(isinstance(each, Span) and each.end - each.start == 1 for each in found.answer)


def test_strange_type_is_refused_by_its_row(backbone: Backbone) -> None:
    strange = example(target=(Span(0, 3, "thing"),))
    with pytest.raises(DataError, match=r"row 7: type `thing` is not one of the 2 .* Take such"):
        encode(backbone.tokenizer, strange)


def test_written_entities_are_asked_with_types_and_examples_and_read_back() -> None:
    state = TaskState(labels=("person", "place"))
    values = {"text": "Ada saw Paris.", "entities": [[0, 3, "person"], [8, 13, "place"]]}
    one = TASK.read(Row(values, "a.csv", 7))
    (asked,) = TASK.render(one, state, answer="generate", with_target=True, shots=[one])
    answer = " Ada (person); Paris (place)"
    assert asked.text == (
        f"Name the entities of the text: person, place.\n\nText: Ada saw Paris.\nEntities:{answer}\n\n"
        f"Text: Ada saw Paris.\nEntities:{answer}"
    )
    assert [asked.text[start:end] for start, end in asked.supervised] == [answer]
    (found,) = TASK.decode([Written(answer, -2.0)], [], [one], state, answer="generate")
    assert found.answer == one.target
    assert found.log_likelihood == -2.0


@pytest.mark.parametrize("max_tokens", [5, 9, 16])
def test_windows_hold_every_word_once(backbone: Backbone, max_tokens: int) -> None:
    whole = encode(backbone.tokenizer, example())
    windows = encode(backbone.tokenizer, example(), limit=LengthLimit(max_tokens, "window"))
    assert len(windows) > 1
    units = [unit for each in windows for unit in each.units]
    assert units == [(number, number) for number in range(8)]
    assert [tag for each in windows for tag in tags_of(each)] == tags_of(whole[0])


def test_words_that_were_cut_off_are_outside_of_entities(backbone: Backbone) -> None:
    limit = LengthLimit(4, "truncate")
    (features,) = encode(backbone.tokenizer, example(), limit=limit)
    predictor = Predictor(backbone, TASK, STATE, "head", limit)
    (prediction,) = predictor.predict([example()])
    last_character = max(TARGET[0].end, 0)
    assert features.num_cut_tokens > 0
    assert all(isinstance(x, Span) and x.end <= last_character for x in prediction.answer)


@pytest.mark.parametrize(("num_characters", "num_cut_off"), [(12, 2), (3, 2), (22, 1)])
def test_entities_of_which_no_word_is_read_are_counted(
    num_characters: int, num_cut_off: int, backbone: Backbone
) -> None:
    (encoded,) = backbone.tokenizer.encode([TEXT])
    limit = LengthLimit(sum(end <= num_characters for _, end in encoded.offsets), "truncate")
    (features,) = encode(backbone.tokenizer, example(), limit=limit)
    assert features.num_cut_items == num_cut_off
    (asked,) = encode(backbone.tokenizer, example(), limit=limit, with_target=False)
    assert asked.num_cut_items == 0


def test_names_that_were_cut_off_cannot_be_written(backbone: Backbone) -> None:
    def grammar(limit: LengthLimit) -> tuple[str, int]:
        (asked,) = TASK.encode(
            [example()],
            STATE,
            backbone.tokenizer,
            answer="generate",
            limit=limit,
            with_target=False,
        )
        return asked.grammar, len(asked.token_ids)

    whole, num_tokens = grammar(LengthLimit(1000))
    num_cut = len(backbone.tokenizer.encode([TEXT[TEXT.index("Paris") :]])[0].ids)
    cut, _ = grammar(LengthLimit(num_tokens - num_cut, "truncate"))
    assert [name in whole for name in ("Lovelace", "Paris")] == [True, True]
    assert [name in cut for name in ("Lovelace", "Paris")] == [True, False]


def test_loss_is_that_of_transformers(backbone: Backbone) -> None:
    (features,) = encode(backbone.tokenizer, example())
    found = TASK.loss(backbone, pack([features]), STATE, dropout=0.0)
    labels = torch.full((1, len(features.token_ids)), -100)
    labels[0, list(features.positions or ())] = torch.tensor(features.target)
    backbone.core.config._attn_implementation = "eager"
    model = backbone.plain_model
    expected = model(input_ids=torch.tensor([features.token_ids]), labels=labels).loss
    torch.testing.assert_close(found.total / found.count, expected)


def test_outputs_stand_by_document_whatever_else_is_in_the_batch(backbone: Backbone) -> None:
    features = encode(backbone.tokenizer, example(), example("Nobody", ()), example("a b c d", ()))
    with torch.inference_mode():
        together = head_outputs(TASK, backbone, features)
        alone = [TASK.outputs(backbone, pack([each]))[0] for each in features]
    assert [each.shape for each in together] == [(8, 5), (1, 5), (4, 5)]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_decoder_looks_both_ways_where_its_head_is_asked_to() -> None:
    asked = Preparation(attention="bidirectional")
    state = TASK.prepare([example()], asked, multi_label=False)
    assert TASK.layer(state, answer="head").both_ways
    assert not TASK.layer(state, answer="generate").both_ways
    assert not TASK.prepare([example()], Preparation(), multi_label=False).both_ways


@pytest.mark.parametrize(
    "model_type",
    [
        "llama",
        "gpt2",
        "gpt_neo",
        "qwen3",
        "bert",
        "modernbert",
        "llama both ways",
        "bert both ways",
    ],
)
def test_saved_model_gives_the_same_scores_in_transformers(
    model_type: str, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    name, _, both_ways = model_type.partition(" ")
    folder, state = tiny_folder(name), replace(STATE, both_ways=bool(both_ways))
    backbone = load_backbone(folder, **TASK.layer(state, answer="head")._asdict())
    save_model(tmp_path / "model", backbone, meaning_of(backbone, folder))
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "model").eval()
    assert model.config.id2label == dict(enumerate(TAGS))
    (features,) = encode(backbone.tokenizer, example())
    with torch.inference_mode():
        ours = TASK.outputs(backbone, pack([features]))[0]
        logits = model(input_ids=torch.tensor([features.token_ids])).logits[0]
    np.testing.assert_allclose(ours, logits[list(features.positions or ())], atol=1e-4)


def best_by_trying(logs_WC: np.ndarray) -> tuple[int, ...]:
    """The likeliest of all paths in which no `I-` stands behind another type or `O`."""
    allowed = [
        path
        for path in itertools.product(range(logs_WC.shape[1]), repeat=len(logs_WC))
        if all(
            tag == 0 or tag % 2 or before in (tag, tag - 1)
            for before, tag in zip((0, *path), path, strict=False)
        )
    ]
    return max(allowed, key=lambda path: sum(logs_WC[word, tag] for word, tag in enumerate(path)))


@pytest.mark.parametrize("seed", range(20))
def test_likeliest_tags_are_those_of_trying_all_paths(seed: int) -> None:
    logs_WC = np.random.default_rng(seed).normal(size=(5, 5)) * 2
    assert tuple(likeliest_tags(logs_WC)) == best_by_trying(logs_WC)


def decoded(*tags: str, example: Example) -> tuple[Span, ...]:
    scores = np.zeros((len(tags), len(TAGS)))
    scores[np.arange(len(tags)), [TAGS.index(tag) for tag in tags]] = 4.0
    units = tuple((number, number) for number in range(len(tags)))
    features = Features((1,), "", 0, units=units)
    (found,) = TASK.decode([scores], [features], [example], STATE, answer="head")
    assert all(isinstance(each, Span) for each in found.answer)
    return found.answer  # pyright: ignore[reportReturnType]


def test_tags_become_spans_with_text_and_probability() -> None:
    tags = ("B-person", "I-person", "O", "O", "B-place", "B-place", "I-place", "O")
    spans = decoded(*tags, example=example())
    assert spans == TARGET
    assert [each.text for each in spans] == ["Ada Lovelace", "Paris", "\u5317\u4eac"]
    sure = np.exp(4) / (np.exp(4) + 4)
    assert [each.probability for each in spans] == pytest.approx([sure**2, sure, sure**2])


def test_score_counts_entities_and_right_rows() -> None:
    examples = [example(), example(target=())]
    wrong = (*TARGET[:2], replace(TARGET[2], end=23))
    predictions = [TASK.decode([], [], [each], STATE, answer="head")[0] for each in examples]
    nothing = TASK.score(predictions, examples, STATE)
    partly = TASK.score([replace(predictions[0], answer=wrong), predictions[1]], examples, STATE)
    assert (nothing.metrics["f1"].value, list(nothing.correct)) == (0.0, [False, True])
    assert partly.metrics["f1"].value == pytest.approx(2 / 3)
    assert [each["support"] for each in partly.details["per_class"]] == [1, 2]

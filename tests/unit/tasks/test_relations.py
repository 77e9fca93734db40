"""Relations: what the model reads, what is never cut, how it is asked; and that transformers loads what is saved."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lushan.backbones.encoding import LengthLimit, LengthPolicy
from lushan.backbones.load import Backbone, load_backbone
from lushan.catalog import load_baseline
from lushan.data.batching import pack
from lushan.data.splits import Parts
from lushan.errors import DataError
from lushan.model_store.tuned_model import save_model
from lushan.records import AnswerMode, Example, Features, Prediction, Row, TaskState
from lushan.tasks import Preparation
from lushan.tasks.relations import Task
from tests.conftest import MakeTiny
from tests.saved import meaning_of

TASK = Task()
STATE = TaskState(labels=("Cause(e1,e2)", "Cause(e2,e1)", "Other"))
LONG = " and so on" * 12
FIRE, RAIN = "<e1>fire</e1>", "<e2>rain</e2>"


def read(text: str = "The fire met rain.", label: object = "Other", **spans: object) -> Example:
    columns = {"head": [4, 8], "tail": [13, 17], **spans}
    return TASK.read(Row({"text": text, **columns, "label": label}, "a.csv", 7))


def marked(text: str, label: str = "Other") -> Example:
    return read(text, label, head=None, tail=None)


@pytest.fixture
def backbone(tiny_folder: MakeTiny) -> Backbone:
    return load_backbone(tiny_folder("llama"), **TASK.layer(STATE, answer="head")._asdict())


def encode(
    backbone: Backbone, example: Example, limit: LengthLimit, answer: AnswerMode = "head"
) -> list[Features]:
    return TASK.encode(
        [example], STATE, backbone.tokenizer, answer=answer, limit=limit, with_target=True
    )


def test_spans_are_marked_and_tell_rows_of_one_text_apart() -> None:
    one, other = read(), read(head=[13, 17], tail=[4, 8])
    assert one.text == f"The {FIRE} met {RAIN}."
    assert other.text == "The <e2>fire</e2> met <e1>rain</e1>."
    assert one.id != other.id
    assert marked(one.text).id == one.id != read(label="Cause(e1,e2)").id


def test_pairs_of_one_text_stay_together() -> None:
    groups = {read(head=[4, 8]).group, read(head=[0, 3]).group, marked(read().text).group}
    assert groups == {"The fire met rain."}


def test_labels_keep_their_direction() -> None:
    examples = [read(label=label) for label in (" Cause(e2,e1)", "Cause(e1,e2)", "Other")]
    assert TASK.prepare(examples, Preparation(num_shots=0), multi_label=False) == STATE


@pytest.mark.parametrize(
    ("label", "message"), [(None, "`label` is empty"), (["a", "b"], "`label` holds a list.*a row for each")]
)  # fmt: skip
def test_missing_label_and_several_are_refused(label: object, message: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.csv, row 7: .*{message}"):
        read(label=label)


def test_prompt_shows_labels_and_examples_and_ends_in_the_question() -> None:
    shot = marked(f"{RAIN} ends {FIRE}", "Cause(e2,e1)")
    (asked,) = TASK.render(read(), STATE, answer="generate", with_target=False, shots=[shot])
    assert asked.text == (
        "Name the relation of <e1> and <e2> as one of: Cause(e1,e2), Cause(e2,e1), Other.\n\n"
        f"Text: {RAIN} ends {FIRE}\nRelation: Cause(e2,e1)\n\nText: The {FIRE} met {RAIN}.\nRelation:"
    )
    assert asked.text[slice(*asked.cuttable)] == "The "
    (told,) = TASK.render(read(), STATE, answer="generate", with_target=True)
    assert told.text[slice(*told.supervised[0])] == " Other"


@pytest.mark.parametrize("answer", ["head", "generate"])
@pytest.mark.parametrize("policy", ["truncate", "window"])
@pytest.mark.parametrize(
    "text", [f"x{LONG} {FIRE} met {RAIN}.", f"A {RAIN}ed {FIRE}s{LONG}", f"{FIRE}{RAIN}){LONG}"]
)
def test_spans_and_what_is_between_stay_whole(
    text: str, policy: LengthPolicy, answer: AnswerMode, backbone: Backbone
) -> None:
    (whole,) = encode(backbone, marked(text), LengthLimit(1000), answer)
    limit = LengthLimit(len(whole.token_ids) - 20, policy)
    start, end = min(map(text.index, (FIRE, RAIN))), max(map(text.index, (FIRE, RAIN))) + len(RAIN)
    windows = encode(backbone, marked(text), limit, answer)
    assert len(windows) == (2 if policy == "window" else 1)
    for each in windows:
        decoded = backbone.tokenizer.decode(list(each.token_ids))
        assert text[start:end] in decoded
        assert len(each.token_ids) <= limit.max_tokens


def test_truncation_takes_what_is_farthest_from_the_spans(backbone: Backbone) -> None:
    for text in (f"far{LONG} near {FIRE} met {RAIN}.", f"{FIRE} met {RAIN} near{LONG} far"):
        (whole,) = encode(backbone, marked(text), LengthLimit(1000))
        limit = LengthLimit(len(whole.token_ids) - 20, "truncate")
        (cut,) = encode(backbone, marked(text), limit)
        decoded = backbone.tokenizer.decode(list(cut.token_ids))
        assert "near" in decoded
        assert "far" not in decoded
        assert cut.num_cut_tokens == 20


@pytest.mark.parametrize("policy", ["truncate", "window"])
def test_spans_that_are_too_far_apart_are_refused(policy: LengthPolicy, backbone: Backbone) -> None:
    apart = marked(f"{FIRE}{LONG} {RAIN} again")
    message = r"^a\.csv, row 7: .* at most 20 fit\. What must stay \(both spans, .* is too long"
    with pytest.raises(DataError, match=message):
        encode(backbone, apart, LengthLimit(20, policy))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3", "bert", "modernbert"])
def test_saved_model_gives_the_same_scores_in_transformers(
    model_type: str, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    folder = tiny_folder(model_type)
    backbone = load_backbone(folder, **TASK.layer(STATE, answer="head")._asdict())
    save_model(tmp_path / "model", backbone, meaning_of(backbone, folder))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokens = AutoTokenizer.from_pretrained(tmp_path / "model")(read().text, return_tensors="pt")
    with torch.inference_mode():
        (features,) = encode(backbone, read(), LengthLimit(128))
        ours = TASK.outputs(backbone, pack([features]))[0]
        theirs = model(**tokens).logits[0]
    assert model.config.id2label == dict(enumerate(STATE.labels))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_baseline_can_tell_the_direction_by_the_marks() -> None:
    nouns = ("fire", "smoke", "rain", "mud")
    pairs = [(one, other) for one in nouns for other in nouns]
    forth = [marked(f"<e1>{a}</e1> makes <e2>{b}</e2>", "Cause(e1,e2)") for a, b in pairs]
    back = [marked(f"<e2>{a}</e2> makes <e1>{b}</e1>", "Cause(e2,e1)") for a, b in pairs]
    examples = [each for both in zip(forth, back, strict=True) for each in both]
    parts = Parts(examples[:20], examples[20:26], examples[26:])
    for name in TASK.baselines[1:]:
        found = load_baseline(name).answer(parts, state=STATE).predictions
        assert [each.answer for each in found] == [each.target for each in parts.test]


def test_wrong_direction_counts_as_wrong_and_other_is_no_relation() -> None:
    examples = [read(label=label) for label in ("Cause(e1,e2)", "Cause(e2,e1)", "Other")]
    answers = ("Cause(e1,e2)", "Cause(e1,e2)", "Other")
    predictions = [
        Prediction(each.id, answer, {answer: 1.0})
        for each, answer in zip(examples, answers, strict=True)
    ]
    scores = TASK.score(predictions, examples, STATE)
    assert scores.main_metric == "macro_f1"
    assert scores.metrics["macro_f1"].value == pytest.approx(0.5)
    assert scores.metrics["accuracy"].value == pytest.approx(2 / 3)
    assert list(scores.correct) == [True, False, True]
    assert scores.details["confusion"] == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]

"""The model reads the same tokens wherever it is asked: in training, evaluation, prediction, after loading again.

What it reads is recorded where it enters the model, and compared with what the `tokenizers` library makes of
prompts that are written out here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import tokenizers
from torch import Tensor

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import Backbone
from lushan.backbones.packing import Prefix
from lushan.backbones.tokenizer import Tokenizer
from lushan.cli.main import run
from lushan.model_store import certificate
from lushan.model_store.tuned_model import load_predictor
from lushan.records import AnswerMode, Batch, Example, Features, TaskState
from lushan.tasks.classification import Task
from tests.bad_inputs import good_rows, write_splits
from tests.conftest import MakeTiny
from tests.runs import QUICK, answers_of_this_process, tune
from tests.saved import save_tuned

Ids = tuple[int, ...]
RENAMED = {"sea": "film", "hill": "again"}
"""Labels whose first tokens differ, so that a prompt is read without any part of an answer."""
ROWS = [{"text": row["text"], "label": RENAMED[row["label"]]} for row in good_rows()]
SPLITS = {"train": ROWS[0::2], "validation": ROWS[1::4], "test": ROWS[3::4]}
INSTRUCTION = "Classify the text as one of: again, film.\n\n"
BOS = {"llama": 0, "gemma3_text": 1}
"""How many `<bos>` a document has."""


def raw_ids(folder: Path, texts: Sequence[str]) -> list[Ids]:
    """Ask the library itself."""
    raw = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tuple(raw.encode(text).ids) for text in texts]


def prompts(answer: AnswerMode, split: str) -> list[str]:
    texts = [row["text"] for row in SPLITS[split]]
    if answer == "head":
        return texts
    return [f"{INSTRUCTION}Text: {text}\nLabel:" for text in texts]


@dataclass(frozen=True)
class Read:
    """One document as the model got it."""

    in_training: bool
    prompt: Ids
    """Its tokens, without those that are supervised."""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Read]:
    """Record what every model of this process reads."""
    seen: list[Read] = []
    starts: list[tuple[Prefix, Ids]] = []
    original = Backbone.hidden_states

    def hidden_states(
        self: Backbone,
        batch: Batch,
        *,
        prefix: Prefix | None = None,
        record: Prefix | None = None,
    ) -> Tensor:
        documents = zip(batch.features, batch.first_N, batch.last_N, strict=True)
        for features, first, last in documents:
            ids = tuple(batch.token_ids_1T[0, first : last + 1].tolist())
            if record is not None:
                starts.append((record, ids))
                continue
            start = next((each for known, each in starts if known is prefix), ())
            supervised = features.num_supervised if features.targets_from >= 0 else 0
            prompt = (*start, *ids)[: len(start) + len(ids) - supervised]
            seen.append(Read(self.model.training, prompt))
        return original(self, batch, prefix=prefix, record=record)

    monkeypatch.setattr(Backbone, "hidden_states", hidden_states)
    return seen


def note_what_the_certificate_asks(reads: list[Read], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give how much had been read before and after it asked; empty until then."""
    asked_again: list[int] = []

    def ask_again(path: Path) -> dict[str, object]:
        asked_again.append(len(reads))
        answers = answers_of_this_process(path)
        asked_again.append(len(reads))
        return answers

    monkeypatch.setattr(certificate, "_answers_of_fresh_process", ask_again)
    return asked_again


@pytest.mark.parametrize("answer", ["head", "generate"])
@pytest.mark.parametrize("model_type", BOS)
def test_training_evaluation_prediction_and_certificate_read_the_same_tokens(
    model_type: str,
    answer: AnswerMode,
    *,
    tiny_folder: MakeTiny,
    tmp_path: Path,
    reads: list[Read],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked_again = note_what_the_certificate_asks(reads, monkeypatch)
    base = tiny_folder(model_type)
    expected = {split: set(raw_ids(base, prompts(answer, split))) for split in SPLITS}
    assert len(expected["train"]) == len(SPLITS["train"])
    data = write_splits(tmp_path, **SPLITS)
    options = ("--model", str(base), "--answer", answer, "--adapter", "full")
    assert tune(data, tmp_path / "run", *QUICK, *options) == 0

    in_training = [place for place, each in enumerate(reads) if each.in_training]
    assert {reads[place].prompt for place in in_training} == expected["train"]
    after = {each.prompt for each in reads[in_training[-1] + 1 :]}
    untouched = set(raw_ids(base, prompts("generate", "test")))
    assert after == expected["validation"] | expected["test"] | untouched
    assert {each.prompt for each in reads[slice(*asked_again)]} == expected["test"]

    for command in (["predict", "--out", str(tmp_path / "answers.jsonl")], ["evaluate"]):
        reads.clear()
        name, *more = command
        assert run([name, str(tmp_path / "run"), str(data / "train.jsonl"), *more]) == 0
        assert {each.prompt for each in reads} == expected["train"]


TEXTS = (
    "a great film",
    "ends in a space ",
    " begins with one",
    "海浪拍打着礁石",
    "Label: again\n\nText:",
    "a",
)
TASK = Task()
STATE = TaskState(labels=("again", "film"))
EXAMPLES = [Example(f"id{n}", text, "film", f"row {n}") for n, text in enumerate(TEXTS)]
SHOTS = (Example("s1", "cold soup ", "again"), Example("s2", "a brave fox", "film"))
WRITTEN_SHOTS = "Text: cold soup \nLabel: again\n\nText: a brave fox\nLabel: film\n\n"
LIMIT = LengthLimit(500, "error")


def written(answer: AnswerMode, shots: Sequence[Example]) -> list[str]:
    if answer == "head":
        return list(TEXTS)
    start = INSTRUCTION + (WRITTEN_SHOTS if shots else "")
    return [f"{start}Text: {text}\nLabel:" for text in TEXTS]


def encode(tokenizer: Tokenizer, answer: AnswerMode, *, with_target: bool) -> list[Features]:
    return TASK.encode(
        EXAMPLES, STATE, tokenizer, answer=answer, limit=LIMIT, with_target=with_target
    )


@pytest.mark.parametrize("answer", ["head", "generate"])
@pytest.mark.parametrize("model_type", BOS)
def test_prompt_of_a_text_is_the_same_with_and_without_its_answer(
    model_type: str, answer: AnswerMode, tiny_folder: MakeTiny
) -> None:
    tokenizer = Tokenizer.load(tiny_folder(model_type))
    learned = encode(tokenizer, answer, with_target=True)
    asked = encode(tokenizer, answer, with_target=False)
    expected = raw_ids(tiny_folder(model_type), written(answer, ()))
    assert [each.token_ids for each in asked] == expected
    ends = [each.targets_from if answer == "generate" else None for each in learned]
    prompts_of_learned = [each.token_ids[:end] for each, end in zip(learned, ends, strict=True)]
    assert prompts_of_learned == expected


@pytest.mark.parametrize("shots", [(), SHOTS], ids=["no shots", "shots"])
@pytest.mark.parametrize("answer", ["head", "generate"])
@pytest.mark.parametrize("model_type", BOS)
def test_reloaded_model_reads_what_the_one_in_memory_reads_and_one_bos_where_it_wants_one(
    model_type: str,
    answer: AnswerMode,
    shots: Sequence[Example],
    *,
    tiny_folder: MakeTiny,
    tmp_path: Path,
) -> None:
    predictor = save_tuned(tmp_path, tiny_folder(model_type), answer=answer, state=STATE)
    reloaded = load_predictor(tmp_path)
    ids = [each.token_ids for each in predictor.encode(EXAMPLES[:2], shots=shots)]
    assert ids == raw_ids(tmp_path / "model", written(answer, shots)[:2])
    assert [each.token_ids for each in reloaded.encode(EXAMPLES[:2], shots=shots)] == ids
    bos_id = predictor.backbone.tokenizer.bos_id
    assert bos_id == 1
    assert {each.count(bos_id) for each in ids} == {BOS[model_type]}
    assert all(each[0] == bos_id for each in ids) is bool(BOS[model_type])

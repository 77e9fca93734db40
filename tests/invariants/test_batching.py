"""No step and no gradient depends on how texts are cut into batches, and none on what a text is packed with.

Compared with plain transformers and PEFT: the saved model, one document after the other, without padding, and torch's
losses over all that a step supervises.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lushan.backbones import attention
from lushan.backbones.adapters import Method
from lushan.backbones.encoding import LengthLimit
from lushan.backbones.load import load_backbone
from lushan.data.batching import PackedSource, pack
from lushan.inference.predict import Predictor
from lushan.model_store import certificate
from lushan.records import AnswerMode, Batch, Example, Features, LossSum, TaskState
from lushan.training.checkpoint import Checkpoints
from lushan.training.loop import Evaluated, FitSettings, StepDone, fit
from lushan.training.optimizer import Optimizer, OptimizerSettings
from lushan.workflows import tune as tune_workflow
from tests.bad_inputs import good_rows, write_splits
from tests.conftest import MakeTiny
from tests.runs import QUICK, answers_of_this_process, read_steps, tune
from tests.saved import save_tuned

pytestmark = pytest.mark.filterwarnings(  # of PEFT
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
assert_close = partial(torch.testing.assert_close, rtol=1e-4, atol=2e-5)
assert_close_gradients = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4)
"""Of norms from 3 to 50, in float32."""

LABELS = ("bad", "fine", "good")
LEARNED = (
    ("soup", "bad"),
    ("a great film, 10 out of 10", "good"),
    ("the children ran home along the river and ate soup with fresh bread", "good"),
    ("so so", "fine"),
    ("the service was slow and the food was cold. " * 3, "bad"),  # cut into windows
    ("never again", "bad"),
    ("a brave little fox", "good"),
    ("it helped all the other animals", "fine"),
    ("cold", "bad"),
    ("never again, and again, and again, and never again", "bad"),
)
LIMITS: dict[AnswerMode, LengthLimit] = {
    "head": LengthLimit(32, "window"),
    "generate": LengthLimit(96, "window"),
}
ROWS = [Example(f"row{n}", text, label) for n, (text, label) in enumerate(LEARNED)]
ROWS_PER_STEP = 4
"""The last step of an epoch has only two rows."""
ONE = TaskState(LABELS)
BALANCED = TaskState(LABELS, class_weights=(10 / (3 * 5), 10 / (3 * 2), 10 / (3 * 3)))
SEVERAL = TaskState(LABELS, multi_label=True)
RATE = 0.01
"""Larger ones let the rounding of float32 grow from step to step."""


@dataclass(frozen=True)
class Kind:
    """One way of learning and answering."""

    model_type: str
    answer: AnswerMode
    method: Method = "full"
    state: TaskState = ONE

    @property
    def name(self) -> str:
        more = {id(ONE): "", id(BALANCED): "-balanced", id(SEVERAL): "-several"}
        return f"{self.model_type}-{self.answer}-{self.method}{more[id(self.state)]}"


LEARNING = (
    Kind("llama", "head"),
    Kind("llama", "head", state=BALANCED),
    Kind("llama", "head", state=SEVERAL),
    Kind("llama", "head", "lora"),
    Kind("llama", "generate"),
    Kind("llama", "generate", state=BALANCED),
    Kind("llama", "generate", state=SEVERAL),
    Kind("llama", "generate", "lora"),
    Kind("bert", "head"),
)
KINDS = (
    *LEARNING,
    Kind("gpt2", "head"),
    Kind("gpt2", "generate"),
    Kind("gemma3_text", "head", "lora"),
    Kind("gemma3_text", "generate"),
    Kind("gpt_neo", "generate"),
    Kind("modernbert", "head"),
)


@dataclass(frozen=True)
class Start:
    """A model before a step, and what it is to learn."""

    kind: Kind
    run: Path
    predictor: Predictor
    features: list[Features]

    @property
    def model(self) -> nn.Module:
        return self.predictor.backbone.model

    def loss(self, batch: Batch) -> LossSum:
        kind, predictor = self.kind, self.predictor
        return predictor.task.loss(predictor.backbone, batch, kind.state, dropout=0.0)


def begin(kind: Kind, run: Path, base: Path) -> Start:
    predictor = save_tuned(run, base, answer=kind.answer, method=kind.method, state=kind.state)
    for part in predictor.backbone.model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    examples = ROWS
    if kind.state.multi_label:
        examples = [replace(each, target=labels_of(number)) for number, each in enumerate(ROWS)]
    features = predictor.task.encode(
        examples,
        kind.state,
        predictor.backbone.tokenizer,
        answer=kind.answer,
        limit=LIMITS[kind.answer],
        with_target=True,
    )
    return Start(kind, run, predictor, features)


def labels_of(row: int) -> tuple[str, ...]:
    """Give none, one or two labels."""
    label = LEARNED[row][1]
    return ((), (label,), tuple(sorted({label, "fine"})))[row % 3]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def start(request: pytest.FixtureRequest, tiny_folder: MakeTiny, tmp_path: Path) -> Start:
    return begin(request.param, tmp_path / "run", tiny_folder(request.param.model_type))


# The reference


def load_plain(start: Start) -> nn.Module:
    """Load the saved model without Lushan, ready to train the same weights."""
    import peft  # slow to import

    folder = str(start.run / "model")
    options: dict[str, Any] = {"attn_implementation": "eager"}
    is_head = start.kind.answer == "head"
    if start.kind.method != "lora":
        library = AutoModelForSequenceClassification if is_head else AutoModelForCausalLM
        return library.from_pretrained(folder, **options).eval()
    options |= {"is_trainable": True}
    if not is_head:
        return peft.AutoPeftModelForCausalLM.from_pretrained(folder, **options).eval()
    library = peft.AutoPeftModelForSequenceClassification
    return library.from_pretrained(folder, num_labels=len(LABELS), **options).eval()


def plain_loss(plain: nn.Module, start: Start, rows: Iterable[int]) -> Tensor:
    """Take rows one document after the other; the loss is one sum divided by one count."""
    num_parts = Counter((each.example_index, each.candidate) for each in start.features)
    losses: list[Tensor] = []
    count = 0.0
    for each in start.features:
        if each.example_index not in rows:
            continue
        weight = 1 / num_parts[each.example_index, each.candidate]
        if start.kind.state.class_weights:
            weight *= BALANCED.class_weights[LABELS.index(LEARNED[each.example_index][1])]
        loss, num_targets = document_loss(plain, start.kind, each)
        losses.append(weight * loss)
        count += weight * num_targets
    return torch.stack(losses).sum() / count


def document_loss(plain: nn.Module, kind: Kind, document: Features) -> tuple[Tensor, int]:
    """Give the summed loss of one document and how many targets it has."""
    ids_T = torch.tensor(document.token_ids)
    logits = plain(input_ids=ids_T[None]).logits[0]
    row = document.example_index
    if kind.answer == "head" and kind.state.multi_label:
        truth_C = torch.tensor([float(label in labels_of(row)) for label in LABELS])
        return functional.binary_cross_entropy_with_logits(logits, truth_C), 1
    if kind.answer == "head":
        return functional.cross_entropy(logits, torch.tensor(LABELS.index(LEARNED[row][1]))), 1
    targets_T = ids_T.clone()
    targets_T[: document.targets_from] = -100
    loss = functional.cross_entropy(logits[:-1], targets_T[1:], reduction="sum")
    return loss, int((targets_T[1:] >= 0).sum())


def trained_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    trained = trained_by_name(model)
    return {
        name: torch.zeros_like(each) if each.grad is None else each.grad
        for name, each in trained.items()
    }


def train_plainly(
    plain: nn.Module, start: Start, steps: Iterable[Iterable[int]]
) -> list[tuple[float, float]]:
    """Take steps of plain gradient descent; gives the loss and the gradient's norm of each."""
    optimizer = torch.optim.SGD(trained_by_name(plain).values(), lr=RATE)
    told: list[tuple[float, float]] = []
    for rows in steps:
        optimizer.zero_grad()
        loss = plain_loss(plain, start, rows)
        loss.backward()
        norm = torch.stack([each.norm() for each in gradients(plain).values()]).norm()
        optimizer.step()
        told.append((loss.item(), norm.item()))
    return told


# The loop


@dataclass
class Notes:
    """Remembers which rows a step saw in which parts, and what the loop told of it."""

    start: Start
    parts: list[list[list[int]]] = field(default_factory=lambda: [[]])
    told: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    def loss(self, batch: Batch) -> LossSum:
        self.parts[-1].append([each.example_index for each in batch.features])
        return self.start.loss(batch)

    def on_step(self, done: StepDone) -> None:
        self.told.append((done.loss, done.gradient_norm))
        self.parts.append([])

    def on_evaluation(self, epoch: int, step: int, found: Evaluated) -> None:
        pass

    @property
    def rows(self) -> list[set[int]]:
        return [{row for part in parts for row in part} for parts in self.parts[:-1]]


def train(start: Start, *, max_batch_tokens: int, folder: Path) -> Notes:
    """Train for an epoch, with steps that show the size of a gradient and not only its direction."""
    notes = Notes(start)
    settings = OptimizerSettings(
        optimizer="sgd",
        learning_rate=RATE,
        head_learning_rate=RATE,
        momentum=0.0,
        weight_decay=0.0,
        warmup_fraction=0.0,
        schedule="constant",
        max_gradient_norm=1e9,
    )
    fit(
        start.model,
        PackedSource(
            start.features,
            rows_per_step=ROWS_PER_STEP,
            seed=0,
            max_batch_tokens=max_batch_tokens,
        ),
        settings=FitSettings(1, keep="last"),
        optimizer=Optimizer(start.model, settings, num_steps=3),
        loss=notes.loss,
        evaluate=lambda: Evaluated(0.0, 0.0),
        checkpoints=Checkpoints(folder),
        listeners=[notes],
    )
    return notes


SPLITS = {"whole": 100_000, "one by one": 1, "uneven": 150}
"""Most tokens of a micro-batch."""


def sizes_of_parts(notes: Notes) -> list[list[int]]:
    """How many documents each part of each step has."""
    return [[len(part) for part in parts] for parts in notes.parts[:-1]]


@pytest.mark.parametrize("start", LEARNING, ids=lambda kind: kind.name, indirect=True)
def test_steps_are_those_of_plain_transformers_however_they_are_cut_up(
    start: Start, tmp_path: Path
) -> None:
    plain = load_plain(start)
    before = {name: each.detach().clone() for name, each in start.model.state_dict().items()}
    found: dict[str, Notes] = {}
    weights: dict[str, dict[str, Tensor]] = {}
    for split, max_batch_tokens in SPLITS.items():
        start.model.load_state_dict(before)
        found[split] = train(start, max_batch_tokens=max_batch_tokens, folder=tmp_path / split)
        weights[split] = {
            name: each.detach().clone() for name, each in trained_by_name(start.model).items()
        }
    rows = found["whole"].rows
    assert [len(each) for each in rows] == [4, 4, 2]
    told = torch.tensor(train_plainly(plain, start, rows))
    theirs = trained_by_name(plain)
    for split, notes in found.items():
        assert notes.rows == rows
        assert_close_gradients(torch.tensor(notes.told), told)
        assert_close(weights[split], {name: each.detach() for name, each in theirs.items()})
    assert max((each - before[name]).abs().max().item() for name, each in theirs.items()) > 0.003


def test_splits_are_whole_single_and_uneven_and_a_row_has_windows(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    start = begin(Kind("llama", "generate"), tmp_path / "run", tiny_folder("llama"))
    whole, single, uneven = (
        sizes_of_parts(train(start, max_batch_tokens=most, folder=tmp_path / str(most)))
        for most in SPLITS.values()
    )
    assert [len(each) for each in whole] == [1, 1, 1]
    assert {size for sizes in single for size in sizes} == {1}
    assert len(set(uneven[0])) > 1
    assert min(len(sizes) for sizes in uneven[:2]) > 1
    assert sum(size for sizes in whole for size in sizes) > len(ROWS)


@pytest.mark.parametrize("kind", LEARNING[1:6:4], ids=lambda kind: kind.name)
def test_shares_of_two_processes_add_up_to_the_gradient_of_the_step(
    kind: Kind, tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    start = begin(kind, tmp_path / "run", tiny_folder(kind.model_type))
    plain = load_plain(start)
    sources = [
        PackedSource(
            start.features,
            rows_per_step=ROWS_PER_STEP,
            seed=0,
            max_batch_tokens=150,
            process=(rank, 2),
        )
        for rank in range(2)
    ]
    for shares in zip(*(each.rest_of_epoch() for each in sources), strict=True):
        start.model.zero_grad()
        plain.zero_grad()
        rows: set[int] = set()
        for share in shares:
            for batch in share.micro_batches:
                (start.loss(batch).total / share.num_supervised).backward()
                rows |= {each.example_index for each in batch.features}
        plain_loss(plain, start, rows).backward()
        assert_close_gradients(gradients(start.model), gradients(plain))


PLAIN_SETTINGS = (
    *("training.optimizer=sgd", "training.momentum=0", "training.weight_decay=0"),
    *("training.warmup_fraction=0", "training.schedule=constant", "training.keep=last"),
    *(f"training.learning_rate={RATE}", "training.max_gradient_norm=1e9", "training.epochs=3"),
    *("training.rows_per_step=10", "task_settings.class_weights=balanced"),
    *("data.over_length=window", f"model.max_length={LIMITS['generate'].max_tokens}"),
)


@pytest.mark.parametrize("max_batch_tokens", [150, 100_000])
def test_command_trains_like_plain_transformers_whatever_its_micro_batches(
    max_batch_tokens: int, tiny_folder: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = partial(PackedSource, max_batch_tokens=max_batch_tokens)
    monkeypatch.setattr(tune_workflow, "PackedSource", source)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # it would stay for other tests
    monkeypatch.setattr(certificate, "_answers_of_fresh_process", answers_of_this_process)
    start = begin(Kind("llama", "generate", state=BALANCED), tmp_path / "a", tiny_folder("llama"))
    rows = [{"text": text, "label": label} for text, label in LEARNED]
    other = [{"text": row["text"], "label": "fine"} for row in good_rows(step=8)]
    data = write_splits(tmp_path, train=rows, validation=other[:3], test=other[3:])
    options = [*(f"--set={each}" for each in PLAIN_SETTINGS), "--model", str(start.run / "model")]
    assert (
        tune(data, tmp_path / "run", *QUICK[2:], *options, "--answer=generate", "--adapter=full")
        == 0
    )

    expected = train_plainly(load_plain(start), start, [range(len(ROWS))] * 3)
    told = [(each["loss"], each["gradient_norm"]) for each in read_steps(tmp_path / "run")]
    assert_close_gradients(torch.tensor(told), torch.tensor(expected))


# Packing


def test_gradient_of_each_document_of_a_batch_is_that_of_the_document_alone(start: Start) -> None:
    plain = load_plain(start)
    for row in (0, 1, 4):
        start.model.zero_grad()
        plain.zero_grad()
        batch = pack([
            replace(each, weight=each.weight * (each.example_index == row))
            for each in start.features
        ])
        found = start.loss(batch)
        mean = found.total / found.count
        mean.backward()
        expected = plain_loss(plain, start, [row])
        expected.backward()
        assert_close(mean, expected)
        assert_close_gradients(gradients(start.model), gradients(plain))


LENGTHS = (1, 2, 9, 13, 30, 33, 60)
"""In groups of similar length; some longer than the window of 8 that some of the models have."""
PACKED_TYPES = ("llama", "gpt2", "gemma3_text", "bert", "modernbert")
MASKED_TYPE = "gpt_neo"
each_type_and_kernel = pytest.mark.parametrize(
    ("model_type", "flash_from_tokens"),
    [*((each, tokens) for each in PACKED_TYPES for tokens in (1, 512)), (MASKED_TYPE, 512)],
)


def documents_without_a_token_in_common(lengths: Sequence[int]) -> list[Features]:
    ids = torch.randperm(300, generator=torch.Generator().manual_seed(1)) + 3
    parts = ids[: sum(lengths)].split(list(lengths))
    return [
        Features(tuple(each.tolist()), str(number), number) for number, each in enumerate(parts)
    ]


def tokens_of(batch: Batch, document: int) -> slice:
    return slice(int(batch.first_N[document]), int(batch.last_N[document]) + 1)


@torch.inference_mode()
@each_type_and_kernel
def test_changed_document_leaves_all_others_as_they_were_bit_for_bit(
    model_type: str,
    flash_from_tokens: int,
    tiny_folder: MakeTiny,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "FLASH_FROM_TOKENS", flash_from_tokens)
    backbone = load_backbone(tiny_folder(model_type), purpose="embed")
    documents = documents_without_a_token_in_common(LENGTHS)
    batch = pack(documents)
    hidden_TD = backbone.hidden_states(batch)
    for changed, document in enumerate(documents):
        other = replace(document, token_ids=(7,) * len(document.token_ids))
        others = [*documents[:changed], other, *documents[changed + 1 :]]
        again_TD = backbone.hidden_states(pack(others))
        for number in range(len(documents)):
            its = tokens_of(batch, number)
            assert torch.equal(again_TD[its], hidden_TD[its]) is (number != changed)


@each_type_and_kernel
def test_gradient_of_a_document_reaches_its_own_tokens_and_no_others(
    model_type: str,
    flash_from_tokens: int,
    tiny_folder: MakeTiny,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "FLASH_FROM_TOKENS", flash_from_tokens)
    backbone = load_backbone(tiny_folder(model_type), purpose="embed")
    batch = pack(documents_without_a_token_in_common(LENGTHS))
    hidden_TD = backbone.hidden_states(batch)
    factors_D = torch.linspace(-1, 2, hidden_TD.shape[1])
    weight_VD = backbone.core.get_input_embeddings().weight
    for number, document in enumerate(batch.features):
        total = (hidden_TD[tokens_of(batch, number)] * factors_D).sum()
        (gradient_VD,) = torch.autograd.grad(total, weight_VD, retain_graph=True)
        reached = gradient_VD.abs().sum(dim=1).nonzero()[:, 0].tolist()
        assert reached == sorted(document.token_ids)

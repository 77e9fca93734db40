"""A run that could learn nothing is refused before it starts; one whose loss is not finite leaves no model behind."""

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from lushan import label_answers
from lushan.backbones.encoding import LengthLimit, Window, encode_rendered
from lushan.backbones.hardware import Choice
from lushan.backbones.load import Backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.cli.main import run
from lushan.records import Batch, LossSum, Rendered, TaskState
from lushan.tasks import classification
from tests.bad_inputs import good_rows, write_lines
from tests.conftest import MakeTiny
from tests.runs import QUICK, answers_of_this_process, read_steps, tune

ROWS_PER_STEP = 16
SPOILT_STEP = 5
"""The middle one of the three steps of the second epoch."""
ROWS = good_rows()
GENERATE = ("--answer", "generate")


@dataclass(frozen=True)
class Hopeless:
    """A run in which nothing could be learned: its rows, its options, and what the one message says."""

    name: str
    rows: Sequence[Mapping[str, object]]
    message: str
    options: tuple[str, ...] = ()
    model: str = "llama"


HOPELESS = (
    Hopeless(
        "one class", [row | {"label": "sea"} for row in ROWS], "rows have the same label, 'sea'"
    ),
    Hopeless(
        "no label at all",
        [row | {"label": None} for row in ROWS],
        r"48 row\(s\) have no `label` \(empty, null or NaN\): row 1, 2, 3, 4, 5 \.\.\.\. Fill",
    ),
    Hopeless(
        "empty lists of labels", [row | {"label": []} for row in ROWS], "have the same label, "
    ),
    Hopeless(
        "one row drawn", ROWS, "All 1 training rows have the", ("--set=data.max_train_rows=1",)
    ),
    Hopeless(
        "every text too long",
        [row | {"text": f"{row['text']} " * 40} for row in ROWS],
        r"data\.jsonl, row \d+: \d+ tokens, but at most 128 fit\. Choose `--set data\.over_length=",
    ),
    Hopeless(
        "no room for a text beside its prompt",
        ROWS,
        r"row \d+: \d+ tokens, but at most 16 fit\. What surrounds the text is too long by itself",
        (*GENERATE, "--set=data.over_length=truncate", "--set=model.max_length=16"),
    ),
    Hopeless(
        "nothing to train",
        ROWS,
        "`--adapter head` has nothing to train with `--answer generate`",
        (*GENERATE, "--adapter", "head"),
    ),
    Hopeless(
        "a class layer that is not known",
        ROWS,
        "The class layer of `deberta-v2` is not supported",
        model="deberta-v2",
    ),
    Hopeless(
        "the last of layers that share their weights",
        ROWS,
        "`--adapter top:2`: the 2 layers of a model of type `albert` share their weights",
        ("--adapter", "top:2"),
        model="albert",
    ),
)
every_hopeless_run = pytest.mark.parametrize("hopeless", HOPELESS, ids=lambda each: each.name)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty folder, which is also where the command is called from."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """Certify in this process, use one thread, and write a checkpoint after every step."""
    one_thread = Choice("1", "so small a model is quickest so")
    with pytest.MonkeyPatch.context() as patch:
        fresh = "lushan.model_store.certificate._answers_of_fresh_process"
        patch.setattr(fresh, answers_of_this_process)
        patch.setattr("lushan.workflows.tune.choose_num_threads", lambda: one_thread)
        patch.setattr("lushan.training.checkpoint.LEAST_INTERVAL_SECONDS", 0.0)
        patch.setattr("lushan.training.checkpoint.SPENT_FRACTION", 1e9)
        yield


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def told_error(captured: pytest.CaptureFixture[str]) -> str:
    """Give the one message: in JSON and for a person it is the same."""
    output = captured.readouterr()
    message = json.loads(output.out)["error"]
    assert "Traceback" not in output.err
    assert " ".join(output.err.split()).endswith(f"Error: {' '.join(message.split())}")
    assert "\n" not in message
    return message


@every_hopeless_run
def test_run_that_could_learn_nothing_exits_2_with_one_message_and_writes_nothing(
    hopeless: Hopeless,
    place: Path,
    tiny_folder: MakeTiny,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_lines(place / "data.jsonl", [dict(row) for row in hopeless.rows])
    base = str(tiny_folder(hopeless.model))
    assert run(["tune", str(data), "--model", base, *QUICK, *hopeless.options, "--json"]) == 2
    assert re.search(hopeless.message, told_error(capsys))
    assert list(place.iterdir()) == [data]


@every_hopeless_run
def test_run_that_could_learn_nothing_leaves_the_run_whole_that_it_was_to_replace(
    hopeless: Hopeless, place: Path, tiny_folder: MakeTiny, tiny_run: Path
) -> None:
    data = write_lines(place / "data.jsonl", [dict(row) for row in hopeless.rows])
    shutil.copytree(tiny_run, place / "run")
    before = contents(place)
    options = ("--model", str(tiny_folder(hopeless.model)), *QUICK, *hopeless.options)
    assert tune(data, place / "run", *options, "--overwrite") == 2
    assert contents(place) == before


def without_target(window: Window) -> Window:
    return dataclasses.replace(window, targets_from=len(window.token_ids))


def without_stop(window: Window) -> Window:
    return dataclasses.replace(window, token_ids=window.token_ids[:-1])


@pytest.mark.parametrize(
    ("spoil", "spoilt_label", "message"),
    [
        (
            without_target,
            "",
            r"Zero training signal: of [\d,]+ training tokens none is supervised\.",
        ),
        (without_target, "sea", "Zero training signal for `sea`: none of its tokens is supervised"),
        (without_stop, "", "The stop token is not supervised in every training document"),
    ],
)
def test_mask_that_hides_what_is_to_be_learned_is_refused_before_anything_is_written(
    spoil: Callable[[Window], Window],
    spoilt_label: str,
    message: str,
    *,
    place: Path,
    tiny_folder: MakeTiny,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def encode(
        rendered: Sequence[Rendered], tokenizer: Tokenizer, *, limit: LengthLimit, places: list[str]
    ) -> list[list[Window]]:
        windows = encode_rendered(rendered, tokenizer, limit=limit, places=places)
        return [
            [spoil(each) for each in parts] if one.text.endswith(spoilt_label) else parts
            for one, parts in zip(rendered, windows, strict=True)
        ]

    monkeypatch.setattr(label_answers, "encode_rendered", encode)
    data = write_lines(place / "data.jsonl", ROWS)
    options = ("--model", str(tiny_folder("llama")), *QUICK, *GENERATE, "--json")
    assert tune(data, place / "run", *options) == 2
    assert re.search(message, told_error(capsys))
    assert list(place.iterdir()) == [data]


def as_nan(total: Tensor) -> Tensor:
    return total * math.nan


def as_inf(total: Tensor) -> Tensor:
    return total * math.inf


def with_endless_gradient(total: Tensor) -> Tensor:
    return total + (total - total.detach()).clamp(min=0).sqrt()


def plant(
    patch: pytest.MonkeyPatch, spoil: Callable[[Tensor], Tensor], *, at_step: int
) -> list[set[str]]:
    """Spoil the loss of one step; gives a list that is filled with the rows of every step."""
    original = classification.Task.loss
    rows: list[set[str]] = []

    def loss(
        task: classification.Task,
        backbone: Backbone,
        batch: Batch,
        state: TaskState,
        *,
        dropout: float,
    ) -> LossSum:
        found = original(task, backbone, batch, state, dropout=dropout)
        rows.append({each.place for each in batch.features})
        is_spoilt = len(rows) == at_step
        return dataclasses.replace(found, total=spoil(found.total)) if is_spoilt else found

    patch.setattr(classification.Task, "loss", loss)
    return rows


def assert_holds_no_model(out: Path, data: Path) -> None:
    files = {str(file.relative_to(out)) for file in out.rglob("*")}
    assert files.isdisjoint({"model", ".model", "certificate.json", "results.json", "report.html"})
    assert "predictions/after.jsonl" not in files
    assert run(["predict", str(out), str(data)]) == 2


@dataclass(frozen=True)
class Whole:
    """A run that nothing disturbed."""

    data: Path
    options: tuple[str, ...]
    path: Path


@pytest.fixture(scope="module")
def whole(tiny_folder: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    data = write_lines(folder / "data.jsonl", ROWS)
    rates = ("--set=training.learning_rate=0.01", "--set=training.keep=last")
    options = ("--model", str(tiny_folder("llama")), *QUICK, "--epochs", "2", *rates)
    assert tune(data, folder / "run", *options) == 0
    return Whole(data, options, folder / "run")


SPOILINGS: dict[Callable[[Tensor], Tensor], str] = {
    as_nan: "loss is nan",
    as_inf: "loss is inf",
    with_endless_gradient: "gradient norm is (nan|inf)",
}
"""What is done to the loss of a step, and what the message says about it."""
every_spoiling = pytest.mark.parametrize("spoil", SPOILINGS)


@every_spoiling
def test_step_that_is_not_finite_is_named_with_its_rows_and_leaves_no_model(
    spoil: Callable[[Tensor], Tensor],
    *,
    whole: Whole,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = plant(monkeypatch, spoil, at_step=SPOILT_STEP)
    assert tune(whole.data, tmp_path / "run", *whole.options, "--json") == 2
    message = told_error(capsys)
    assert re.match(rf"Step {SPOILT_STEP}: the {SPOILINGS[spoil]}\. Rows of this step", message)
    assert len(rows) == SPOILT_STEP
    assert len(rows[-1]) == ROWS_PER_STEP
    assert set(re.findall(r"data\.jsonl, row \d+", message)) == rows[-1]
    assert read_steps(tmp_path / "run") == read_steps(whole.path)[: SPOILT_STEP - 1]
    assert_holds_no_model(tmp_path / "run", whole.data)


@every_spoiling
def test_run_goes_on_from_before_the_step_that_was_not_finite_once_its_cause_is_gone(
    spoil: Callable[[Tensor], Tensor], *, whole: Whole, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, spoil, at_step=SPOILT_STEP)
        assert tune(whole.data, out, *whole.options) == 2
    (checkpoint,) = (out / "checkpoints").glob("step-*")
    tensors = load_file(checkpoint / "tensors.safetensors")
    assert int(tensors["num_steps_done"]) == SPOILT_STEP - 1
    assert all(each.isfinite().all() for each in tensors.values())
    steps = (out / "steps.jsonl").read_bytes()
    assert tune(whole.data, out, "--resume") == 0
    assert (out / "steps.jsonl").read_bytes().startswith(steps)
    weights = Path("model", "model.safetensors")
    assert (out / weights).read_bytes() == (whole.path / weights).read_bytes()
    assert read_steps(out) == read_steps(whole.path)


@pytest.mark.parametrize("answer", ["head", "generate"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        # More than float32 can hold: the only step before the evaluation takes every weight there.
        (
            ("training.learning_rate=1e39", "training.rows_per_step=64"),
            r"Step 1: the loss on the validation rows is nan\. Lower `training\.learning_rate`\.",
        ),
        (("training.weight_decay=1e30",), r"Step [23]: the (loss|gradient norm) is (nan|inf)\. "),
    ],
)
def test_training_that_diverges_by_itself_leaves_no_model(
    settings: tuple[str, ...],
    message: str,
    answer: str,
    *,
    tiny_folder: MakeTiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_lines(tmp_path / "data.jsonl", ROWS)
    options = ["--model", str(tiny_folder("llama")), *QUICK, "--answer", answer, "--json"]
    options += [f"--set={each}" for each in (*settings, "training.warmup_fraction=0")]
    assert tune(data, tmp_path / "run", *options) == 2
    assert re.match(message, told_error(capsys))
    assert_holds_no_model(tmp_path / "run", data)


@pytest.mark.parametrize(
    ("model_type", "answer", "weight", "value"),
    [
        ("llama", "head", "model.layers.1.mlp.up_proj.weight", math.nan),
        ("llama", "generate", "model.norm.weight", math.inf),
        ("llama", "head", "model.embed_tokens.weight", math.nan),  # of a token that no text has
        ("bert", "head", "encoder.layer.0.output.dense.weight", -math.inf),
    ],
)
def test_base_whose_weights_are_not_finite_is_refused_by_the_name_of_the_weight(
    model_type: str,
    answer: str,
    weight: str,
    value: float,
    *,
    tiny_folder: MakeTiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_folder(model_type), base)
    weights = load_file(base / "model.safetensors")
    weights[weight].view(-1)[-1] = value
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    data = write_lines(tmp_path / "data.jsonl", ROWS)
    options = ("--model", str(base), *QUICK, "--answer", answer, "--json")
    assert tune(data, tmp_path / "run", *options) == 2
    in_model = f"bert.{weight}" if model_type == "bert" else weight
    message = f"`{base}`: weights are broken: `{in_model}` holds values that are not finite."
    assert told_error(capsys).startswith(message)
    assert not (tmp_path / "run" / "predictions").exists()
    assert_holds_no_model(tmp_path / "run", data)

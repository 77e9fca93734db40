"""What should move moves, and what is frozen does not: read from the files of real runs by plain libraries."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from lushan.backbones.hardware import Choice
from lushan.backbones.load import Backbone
from lushan.backbones.packing import Prefix
from lushan.inference.predict import Predictor
from lushan.records import Batch
from tests.bad_inputs import good_rows, write_lines
from tests.conftest import MakeTiny
from tests.runs import QUICK, read, read_steps, tune

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # of PEFT
)

NUM_STEPS, RATE = 3, 1e-3
FARTHEST = NUM_STEPS * RATE * (1 - 0.9) / (1 - 0.999) ** 0.5
"""No step of Adam is longer than this share of its rate (Kingma and Ba 2015, section 2.1)."""
HEAD = r"score\.|classifier\."
MATRICES = (nn.Linear, Conv1D)
LAST_LAYER = {
    "llama": r"model\.layers\.1\.|model\.norm\.|",
    "bert": r"bert\.encoder\.layer\.1\.|bert\.pooler\.|",
    "gpt2": r"transformer\.h\.1\.|transformer\.ln_f\.|",
}


@dataclass(frozen=True)
class Kind:
    """What is trained of which model."""

    model_type: str
    answer: str
    adapter: str

    def options(self) -> list[str]:
        values: dict[str, object] = {"weight_decay": 0, "warmup_fraction": 0}
        values["schedule"] = "constant"
        if self.answer == "head":
            values["head_learning_rate"] = RATE
        if self.adapter != "head":
            values["learning_rate"] = RATE
        settings = [f"--set=training.{name}={value}" for name, value in values.items()]
        return ["--answer", self.answer, "--adapter", self.adapter, *QUICK, *settings]

    def is_trained(self, name: str) -> bool:
        """Whether a weight of this name moves; of an adapter, its library says so."""
        patterns = {"full": "", "head": HEAD, "top:1": LAST_LAYER[self.model_type] + HEAD}
        return re.match(patterns[self.adapter], name) is not None


ADAPTERS = ("full", "lora", "head", "top:1")
KINDS = [
    Kind(model_type, answer, adapter)
    for model_type in ("llama", "bert", "gpt2")  # gpt2's input and output share one matrix
    for answer in ("head", "generate")
    for adapter in ADAPTERS
    if answer == "head" or (model_type != "bert" and adapter != "head")
]


@dataclass(frozen=True)
class Moved:
    """A run, and its weights by name before and after, as plain libraries read them."""

    base: Path
    run: Path
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    in_memory: dict[str, Tensor]
    """Those that the run ended with; of an adapter's base, no file of the run tells."""
    trained: set[str]


Move = Callable[[Kind], Moved]


def plain(kind: Kind, folder: Path) -> nn.Module:
    """Load without Lushan; what the folder lacks is drawn from the seed of the run."""
    torch.manual_seed(0)
    if kind.answer == "generate":
        return AutoModelForCausalLM.from_pretrained(folder)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)


def plain_adapter(kind: Kind, base: Path, saved: Path | None = None) -> nn.Module:
    """Put an adapter around a base without Lushan: a new one, or a saved one."""
    import peft  # slow to import

    model: Any = plain(kind, base)
    if saved is not None:
        return peft.PeftModel.from_pretrained(model, str(saved), is_trainable=True)
    task_type = peft.TaskType.SEQ_CLS if kind.answer == "head" else peft.TaskType.CAUSAL_LM
    config = peft.LoraConfig(
        task_type=task_type,
        r=16,
        target_modules="all-linear",
        fan_in_fan_out=kind.model_type == "gpt2",  # its matrices are stored transposed
    )
    return peft.get_peft_model(model, config)


def num_weights(file: Path, *, without: tuple[str, ...] = ()) -> int:
    return sum(each.numel() for name, each in load_file(file).items() if name not in without)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters()}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def compare(kind: Kind, base: Path, run: Path, *, in_memory: dict[str, Tensor]) -> Moved:
    if kind.adapter == "lora":
        model = plain_adapter(kind, base)
        after = plain_adapter(kind, base, run / "model")
        trained = {name for name, each in model.named_parameters() if each.requires_grad}
    else:
        model, after = plain(kind, base), plain(kind, run / "model")
        trained = {name for name, _ in model.named_parameters() if kind.is_trained(name)}
    return Moved(base, run, weights_of(model), weights_of(after), in_memory, trained)


@pytest.fixture(scope="module")
def move(tiny_folder: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Move:
    """Give a function that tunes; every kind is tuned once."""
    folder = tmp_path_factory.mktemp("moves")
    data = write_lines(folder / "data.jsonl", good_rows())

    @cache
    def run(kind: Kind) -> Moved:
        base = tiny_folder(kind.model_type)
        files, seen = contents(base), list[Predictor]()
        out = folder / "-".join((kind.model_type, kind.answer, kind.adapter.replace(":", "")))
        with pytest.MonkeyPatch.context() as patch:
            # Neither certificate nor report moves anything, and both take time.
            patch.setattr("lushan.workflows.outcome.write_report", lambda *_: None)
            patch.setattr("lushan.workflows.tune.certify", lambda _, each, __: seen.append(each))
            one_thread = Choice("1", "so small a model is quickest so")
            patch.setattr("lushan.workflows.tune.choose_num_threads", lambda: one_thread)
            assert tune(data, out, "--model", str(base), *kind.options()) == 0
        assert len(read_steps(out)) == NUM_STEPS
        assert contents(base) == files
        return compare(kind, base, out, in_memory=weights_of(seen[0].backbone.model))

    return run


every_kind = pytest.mark.parametrize(
    "kind", KINDS, ids=lambda each: f"{each.model_type}-{each.answer}-{each.adapter}"
)


@every_kind
def test_all_that_is_trained_moved_and_no_farther_than_its_steps(kind: Kind, move: Move) -> None:
    moved = move(kind)
    ways = {
        name: float((moved.after[name] - moved.before[name]).abs().max()) for name in moved.trained
    }
    assert ways
    assert {name: way for name, way in ways.items() if not 0 < way <= FARTHEST} == {}


@every_kind
def test_all_that_is_frozen_is_the_base_models_bit_for_bit(kind: Kind, move: Move) -> None:
    moved = move(kind)
    frozen = moved.before.keys() - moved.trained
    assert bool(frozen) is (kind.adapter != "full")
    for after in (moved.after, moved.in_memory):
        assert after.keys() == moved.before.keys()
        assert [name for name in frozen if not torch.equal(after[name], moved.before[name])] == []


@every_kind
def test_run_tells_how_many_weights_are_trained_and_how_many_are_frozen(
    kind: Kind, move: Move
) -> None:
    moved = move(kind)
    if kind.adapter == "lora":
        trained = num_weights(moved.run / "model" / "adapter_model.safetensors")
        without = ("lm_head.weight",) if kind.answer == "head" else ()
        frozen = num_weights(moved.base / "model.safetensors", without=without)
    else:
        saved = load_file(moved.run / "model" / "model.safetensors")
        counts = {name: weight.numel() for name, weight in saved.items()}
        trained = sum(count for name, count in counts.items() if kind.is_trained(name))
        frozen = sum(counts.values()) - trained
    told = read(moved.run / "results.json")["num_weights"]
    assert told == {"trained": trained, "frozen": frozen}


@pytest.mark.parametrize("kind", [each for each in KINDS if each.adapter == "lora"], ids=str)
def test_adapter_file_holds_adapters_and_the_class_layer_alone_and_no_outer_matrix_is_zero(
    kind: Kind, move: Move
) -> None:
    moved = move(kind)
    saved = load_file(moved.run / "model" / "adapter_model.safetensors")
    model = plain(kind, moved.base)
    matrices = {name for name, each in model.named_modules() if isinstance(each, MATRICES)}
    layers = matrices - {"score", "classifier", "lm_head"}
    expected = {f"{name}.lora_{side}.weight" for name in layers for side in "AB"}
    expected |= {name for name in weights_of(model) if re.match(HEAD, name)}
    assert {name.removeprefix("base_model.model.") for name in saved} == expected
    outer = [weight for name, weight in saved.items() if ".lora_B." in name]
    assert all(weight.count_nonzero() > 0.9 * weight.numel() for weight in outer)


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("factor", [None, 0.0])
def test_run_whose_loss_does_not_reach_what_it_trains_is_refused_at_its_first_step(
    factor: float | None,
    adapter: str,
    *,
    tiny_folder: MakeTiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    original = Backbone.hidden_states

    def cut_off(backbone: Backbone, batch: Batch, **options: Prefix | None) -> Tensor:
        hidden_TD = original(backbone, batch, **options)
        return hidden_TD.detach() + (0 if factor is None else hidden_TD * factor)

    monkeypatch.setattr(Backbone, "hidden_states", cut_off)
    data = write_lines(tmp_path / "data.jsonl", good_rows())
    options = ("--model", str(tiny_folder("llama")), "--adapter", adapter, *QUICK)
    assert tune(data, tmp_path / "run", *options) == 2
    message = "The loss does not reach [0-9]+ weights that should be trained, such as `"
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert read_steps(tmp_path / "run") == []
    assert not (tmp_path / "run" / "model").exists()

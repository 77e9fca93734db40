"""Compiled layers give what the same layers give uncompiled, and are only made where that pays back.

What is compared with is the model as it is, in the same process; the timings of decisions are written down, not taken.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

from lushan.backbones import compiling
from lushan.backbones.adapters import Method, attach
from lushan.backbones.compiling import CompiledLayers, Measured, Work, choose_compiling
from lushan.backbones.frozen import FrozenStates
from lushan.backbones.hardware import Choice, machine
from lushan.backbones.inspect import ModelFacts
from lushan.backbones.load import Backbone, load_backbone
from lushan.data.batching import pack
from lushan.records import Batch, Features
from tests.conftest import MakeTiny
from tests.tiny import TINY_TYPES

pytestmark = [
    pytest.mark.filterwarnings(each)
    for each in (
        "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # of PEFT
        "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",  # torch imports it
        "ignore:The .grad attribute of a Tensor:UserWarning",  # torch looks itself
        "ignore:<class 'torch.autograd.function.Function'> should not be:DeprecationWarning",  # torch does
    )
]
needs_compiler = pytest.mark.skipif(
    compiling.find_compiler() is None, reason="no C++ compiler here, so nothing can be compiled"
)
LENGTHS = (3, 3, 8, 9, 20, 33)
OTHER_LENGTHS = (1, 12, 40)


@pytest.fixture(autouse=True)
def _kept_code(monkeypatch: pytest.MonkeyPatch, compiled_code: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled_code))


def documents(lengths: tuple[int, ...]) -> Batch:
    return pack([
        Features(tuple((97 * length + 31 * place) % 300 + 3 for place in range(length)), "", number)
        for number, length in enumerate(lengths)
    ])


def load(folder: Path, method: Method = "full", *, precision: str = "fp32") -> Backbone:
    backbone = load_backbone(
        folder,
        purpose="classify",
        labels=("a", "b"),
        precision="bf16" if precision == "bf16" else "fp32",
    )
    attach(backbone, method=method, layers=1, rank=4, dropout=0.5 if method == "lora" else 0.0)
    backbone.model.train()
    return backbone


def states_and_gradients(backbone: Backbone, batch: Batch) -> list[Tensor]:
    torch.manual_seed(0)  # dropout
    hidden_TD = backbone.hidden_states(batch)
    factors_TD = torch.linspace(-1, 2, hidden_TD.numel()).view_as(hidden_TD).to(hidden_TD)
    trained = [each for each in backbone.core.parameters() if each.requires_grad]
    total = (hidden_TD * factors_TD).sum()
    return [hidden_TD.detach(), *torch.autograd.grad(total, trained, materialize_grads=True)]


def check_equal(backbone: Backbone, layers: CompiledLayers, lengths: tuple[int, ...]) -> None:
    """In float32, both are equal but for the order of sums."""
    batch = documents(lengths)
    expected = states_and_gradients(backbone, batch)
    with layers.in_use():
        found = states_and_gradients(backbone, batch)
    largest = max(each.abs().max().item() for each in expected[1:])
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-3, atol=1e-5 * largest)


def num_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@needs_compiler
@pytest.mark.parametrize(
    ("model_type", "method"),
    [
        ("llama", "full"),
        ("llama", "top"),
        pytest.param("llama", "lora", marks=pytest.mark.slow),
        *(
            pytest.param(each, "full", marks=pytest.mark.slow)
            for each in TINY_TYPES
            if each not in ("llama", "gpt_neo")  # gpt_neo does not pack
        ),
    ],
)
def test_compiled_layers_give_the_same_states_and_gradients_for_any_number_of_tokens(
    model_type: str, method: Method, tiny_folder: MakeTiny
) -> None:
    backbone = load(tiny_folder(model_type), method)
    assert backbone.packing_mode == "packed"
    # Where the first layer gets states without gradients, it has a code of its own: one of the two is enough here.
    layers = CompiledLayers(list(backbone.layers)[-2 if method == "full" else -1 :])
    torch._dynamo.reset()  # what other tests compiled must not count
    before = num_graphs()
    check_equal(backbone, layers, LENGTHS)
    made = num_graphs()
    assert made > before
    check_equal(backbone, layers, OTHER_LENGTHS)
    assert num_graphs() == made


@needs_compiler
def test_layers_run_compiled_also_under_gradient_checkpointing(tiny_folder: MakeTiny) -> None:
    backbone = load(tiny_folder("llama"))
    backbone.plain_model.activation_checkpointing_enable()
    layers = CompiledLayers(list(backbone.layers))
    torch._dynamo.reset()  # what other tests compiled must not count
    made = num_graphs()
    check_equal(backbone, layers, LENGTHS)
    assert num_graphs() > made


@needs_compiler
def test_skipped_layers_stay_skipped_below_compiled_ones(tiny_folder: MakeTiny) -> None:
    backbone = load(tiny_folder("llama"), "top")
    batch = documents(LENGTHS)
    layers = CompiledLayers([backbone.layers[1]])
    expected = states_and_gradients(backbone, batch)
    states_TD = backbone.states_at(1, batch).detach()
    rows = {
        each.token_ids: int(first)
        for each, first in zip(batch.features, batch.first_N, strict=True)
    }
    backbone.frozen = FrozenStates(1, "all", rows, states_TD)
    with layers.in_use():
        found = states_and_gradients(backbone, batch)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert "forward" not in vars(backbone.layers[1])


# Trying


def work_of(backbone: Backbone) -> Work:
    return Work(backbone.facts, "fp32", "full", 2, 1)


def try_layers(
    backbone: Backbone, cache: Path, *, gain_decides: bool = False
) -> tuple[CompiledLayers | None, list[str]]:
    told: list[str] = []
    layers = compiling.compile_layers(
        backbone,
        documents(LENGTHS),
        work_of(backbone),
        cache=cache,
        gain_decides=gain_decides,
        tell=told.append,
    )
    return layers, told


@needs_compiler
def test_what_was_compiled_is_measured_told_and_remembered(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    backbone = load(tiny_folder("llama"))
    state = torch.get_rng_state()
    layers, told = try_layers(backbone, tmp_path)
    assert layers is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert [each.grad for each in backbone.model.parameters()] == [None] * len(
        list(backbone.model.parameters())
    )
    known = compiling._read(tmp_path)[work_of(backbone).key]
    assert told[-1].startswith("Compiled 2 layers in ")
    assert told[-1].endswith(f"{known.speedup:.2f} times as fast, measured.")


@needs_compiler
def test_layers_that_are_no_faster_are_left_alone_if_the_gain_decides(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    backbone = load(tiny_folder("llama"))
    compiling._write(tmp_path, work_of(backbone).key, measured(speedup=0.9))
    layers, told = try_layers(backbone, tmp_path, gain_decides=True)
    assert layers is None
    assert told[-1] == "The layers run as they are."
    assert try_layers(backbone, tmp_path)[0] is not None


@needs_compiler
def test_compiled_layers_that_differ_are_refused(
    tiny_folder: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_LARGEST_ERROR", {torch.float32: -1.0})
    layers, told = try_layers(load(tiny_folder("llama")), tmp_path)
    assert layers is None
    assert "away from the uncompiled" in told[0]
    assert not (tmp_path / "compiling.json").exists()


def test_architecture_that_does_not_compile_runs_as_it_is_and_says_so(
    tiny_folder: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Callable[..., Tensor]:
        def run(*_: object, **__: object) -> Tensor:
            raise RuntimeError("no such operation\nand so on")

        return run

    monkeypatch.setattr(torch, "compile", fail)
    layers, told = try_layers(load(tiny_folder("llama")), tmp_path)
    assert layers is None
    assert told == ["Not compiling: these layers cannot be compiled (no such operation)."]


def test_architecture_that_does_not_pack_runs_as_it_is_and_says_so(
    tiny_folder: MakeTiny, tmp_path: Path
) -> None:
    layers, told = try_layers(load(tiny_folder("gpt_neo")), tmp_path)
    assert layers is None
    assert told == ["Not compiling: documents run `masked` in this architecture."]


def test_code_is_kept_in_the_cache_unless_the_user_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    compiling._prepare_library(tmp_path)
    assert cache_dir() == own
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
    compiling._prepare_library(tmp_path)
    assert cache_dir() == str(tmp_path / "compiled")


def test_code_is_made_by_our_compiler_of_which_other_processes_hear_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []

    def listen(forward: Callable[..., Tensor], **given: Any) -> Callable[..., Tensor]:  # noqa: ANN401
        asked.append(given["options"])
        return forward

    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiling, "find_compiler", lambda: "clang++")
    monkeypatch.setattr(torch, "compile", listen)
    compiling._prepare_library(tmp_path)
    CompiledLayers([nn.Linear(1, 1)])
    assert [each["cpp.cxx"] for each in asked] == [("clang++",)]
    assert "CXX" not in os.environ


# Choosing

FACTS = ModelFacts(
    architecture="LlamaForCausalLM",
    family="decoder",
    num_layers=12,
    width=100,
    vocabulary_size=1_000,
    context_tokens=512,
    num_parameters=100_000_000,
    tied=True,
    has_chat_template=False,
    model_type="llama",
    weights_bytes=4_400_000,
)
WORK = Work(FACTS, "bf16", "full", 12, 1)


def measured(*, speedup: float, warm_seconds: float | None = None) -> Measured:
    """Of a model that takes 2 ms per token."""
    return Measured(
        eager_seconds_per_token=0.002,
        compiled_seconds_per_token=0.002 / speedup,
        cold_seconds=60.0,
        warm_seconds=warm_seconds,
    )


def choose(cache: Path, *, num_tokens: float, work: Work = WORK, device: str = "cpu") -> Choice:
    return choose_compiling(
        work, num_tokens=num_tokens, seconds_per_token=lambda: 0.002, device=device, cache=cache
    )


@pytest.fixture
def with_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "find_compiler", lambda: "g++")


@pytest.mark.usefixtures("with_compiler")
@pytest.mark.parametrize(
    ("speedup", "warm_seconds", "num_tokens", "value"),
    [
        (2.0, None, 59_000, "off"),  # saves 59 s
        (2.0, None, 61_000, "on"),
        (2.0, 10.0, 9_000, "off"),
        (2.0, 10.0, 11_000, "on"),
        (0.9, 10.0, 1e9, "off"),
    ],
)
def test_measured_gain_decides_against_measured_seconds(
    speedup: float,
    warm_seconds: float | None,
    num_tokens: float,
    *,
    value: str,
    tmp_path: Path,
) -> None:
    compiling._write(tmp_path, WORK.key, measured(speedup=speedup, warm_seconds=warm_seconds))
    choice = choose(tmp_path, num_tokens=num_tokens)
    assert choice.value == value
    assert f"measured here: steps are {speedup:.2f} times as fast" in choice.why
    assert f"compiling takes {warm_seconds or 60:.0f} s" in choice.why
    other = WORK._replace(num_threads=2)
    assert "not measured" in choose(tmp_path, num_tokens=1e6, work=other).why


@pytest.mark.usefixtures("with_compiler")
@pytest.mark.parametrize("features", [(), ("amx_bf16",)])
def test_unknown_gain_is_taken_to_be_small(
    features: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replace(machine(), features=features)
    monkeypatch.setattr(compiling, "machine", lambda: here)
    speedup = compiling.USUAL_SPEEDUP_AMX if features else compiling.USUAL_SPEEDUP
    pays_from = compiling.COLD_SECONDS / (1 - 1 / speedup) / 0.002
    assert choose(tmp_path, num_tokens=pays_from * 0.99).value == "off"
    assert choose(tmp_path, num_tokens=pays_from * 1.01).value == "on"


@pytest.mark.usefixtures("with_compiler")
def test_short_run_does_not_measure_its_speed(tmp_path: Path) -> None:
    def measure() -> float:
        raise AssertionError

    choice = choose_compiling(
        WORK, num_tokens=1_000, seconds_per_token=measure, device="cpu", cache=tmp_path
    )
    assert choice.value == "off"
    assert "too short" in choice.why


def test_without_compiler_processor_or_layers_for_it_nothing_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose(tmp_path, num_tokens=1e9, work=WORK._replace(num_trained_layers=0)).value == "off"
    assert choose(tmp_path, num_tokens=1e9, work=WORK._replace(method="lora")).value == "off"
    assert "`cuda`" in choose(tmp_path, num_tokens=1e9, device="cuda").why
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    choice = choose(tmp_path, num_tokens=1e9)
    assert (choice.value, "no C++ compiler" in choice.why) == ("off", True)


def test_broken_record_counts_as_nothing_known(tmp_path: Path) -> None:
    (tmp_path / "compiling.json").write_text("[]", encoding="utf-8")
    assert compiling._read(tmp_path) == {}

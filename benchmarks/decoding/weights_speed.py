"""How fast the forms of weights are against each other: the products of a step alone, and whole steps of the engine.

Times are those of the processor in this thread (the lowest of a few tries), so that other work on the machine counts
less; memory that others read meanwhile is slower all the same. Compare what was measured in one go.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lushan.backbones import native, packed_linear
from lushan.backbones.load import Backbone, WeightForm
from lushan.backbones.lora import FrozenProduct
from lushan.backbones.packed import load_untuned
from lushan.backbones.packed_linear import Packed
from lushan.backbones.sources import locate
from lushan.inference import generate
from lushan.inference.generate import GenerationEngine
from lushan.inference.generation_settings import GenerationSettings

SHAPES = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))
"""(outputs, inputs) of the products in a layer of SmolLM2-135M."""
NUM_LAYERS = 30
VOCABULARY = (49_152, 576)
ROWS = (1, 8, 32, 512)
MANY_ROWS = 512
REQUESTS = (1, 8, 32)
FORMS: tuple[WeightForm, ...] = ("bf16", "int8", "int4")
Layer = tuple[int, Callable[[Tensor], Tensor]]
"""Number of inputs, and what multiplies by the weight."""
PROMPT_TOKENS = 128
NUM_STEPS = 12
NUM_TRIES = 4


def main() -> None:
    """Measure, write the result file, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a name of the cache, or a folder")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument("--part", choices=("products", "steps"), help="else both")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = json.loads(options.out.read_text()) if options.out.is_file() else {}
    if options.part != "steps":
        found["products_ms"] = products()
    if options.part != "products":
        found["steps_ms"] = {
            form: steps(load_untuned(locate(options.model), purpose="language", weights=form))
            for form in FORMS
        }
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for part, by_form in found.items():
        counts = list(next(iter(by_form.values())))
        print(f"| {part} | {' | '.join(counts)} |\n|---|{'---|' * len(counts)}")
        for form, each in by_form.items():
            print(f"| {form} | {' | '.join(f'{each[n]:.1f}' for n in counts)} |")


def makers() -> dict[str, Callable[[Tensor], Callable[[Tensor], Tensor]]]:
    """Give every way to multiply, by name: from a weight matrix to what multiplies by it."""

    def ours(make: Callable[[Tensor, WeightForm], Packed], form: WeightForm) -> Any:  # noqa: ANN401
        def made(weight_OI: Tensor) -> Callable[[Tensor], Tensor]:
            product = make(weight_OI, form)
            return lambda inputs_MI: product.forward(inputs_MI, None)

        return made

    def onednn(weight_OI: Tensor) -> Callable[[Tensor], Tensor]:
        product = FrozenProduct(weight_OI)
        return lambda inputs_MI: product.forward(inputs_MI, None)

    ways: dict[str, Any] = {
        "torch, bf16, not packed": lambda w: lambda x: torch.nn.functional.linear(x, w),
        "torch, bf16, packed for oneDNN": onednn,
        "torch, int8": ours(packed_linear.TorchPacked, "int8"),
        "torch, int4": torch_int4,
    }
    if not native.why_missing():
        ways |= {f"ours, {form}": ours(packed_linear.NativePacked, form) for form in FORMS}
    return ways


def torch_int4(weight_OI: Tensor) -> Callable[[Tensor], Tensor]:
    """Pack for torch's own product with 4 bits, 32 inputs a group."""
    groups_OGI = weight_OI.float().unflatten(1, (-1, 32))
    low_OG, high_OG = groups_OGI.aminmax(dim=2)
    scales_OG = (high_OG - low_OG).clamp(min=1e-6) / 15
    zeros_OG = low_OG + scales_OG * 8
    numbers = ((groups_OGI - zeros_OG[..., None]) / scales_OG[..., None] + 8).round().clamp(0, 15)
    laid_out = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers.flatten(1).int(), 1)
    both = torch.stack([scales_OG.T, zeros_OG.T], dim=2).bfloat16().contiguous()
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    return lambda inputs_MI: multiply(inputs_MI, laid_out, 32, both)


def products() -> dict[str, dict[str, float]]:
    """Time all products of one step, in milliseconds, by who multiplies and the number of rows."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, dict[str, float]] = {}
    for name, make in makers().items():
        weights = (
            torch.randn(shape, generator=generator).mul_(0.03).bfloat16()
            for shape in (*SHAPES * NUM_LAYERS, VOCABULARY)
        )
        layers = [(weight_OI.shape[1], make(weight_OI)) for weight_OI in weights]
        # A prompt's tokens are not all projected onto the vocabulary.
        found[name] = {
            str(rows): 1000 * fastest_step(layers if rows < MANY_ROWS else layers[:-1], rows)
            for rows in ROWS
        }
    return found


def fastest_step(layers: Sequence[Layer], num_rows: int) -> float:
    """Add up the lowest time that each layer took, in seconds; all others are called between two calls of one."""
    inputs = {size: torch.randn(num_rows, size).bfloat16() for size in (576, 1536)}
    least = [float("inf")] * len(layers)
    for _ in range(NUM_TRIES if num_rows < MANY_ROWS else 1):
        for place, (num_inputs, multiply) in enumerate(layers):
            start = time.thread_time()
            multiply(inputs[num_inputs])
            least[place] = min(least[place], time.thread_time() - start)
    return sum(least)


def steps(backbone: Backbone) -> dict[str, float]:
    """Time one step of the engine, in milliseconds, by the number of requests."""
    generate.stop_ids = lambda _: frozenset()  # no answer ends early
    found: dict[str, float] = {}
    for num_requests in REQUESTS:
        engine = GenerationEngine(backbone, max_rows=num_requests)
        settings = GenerationSettings(max_new_tokens=NUM_STEPS + 2)
        for index in range(num_requests):
            prompt = [(7 * index + 13 * n) % 1000 + 5 for n in range(PROMPT_TOKENS)]
            engine.add(prompt, settings, index=index)
        engine.step()
        least = float("inf")
        for _ in range(NUM_STEPS):
            start = time.thread_time()
            engine.step()
            least = min(least, time.thread_time() - start)
        found[str(num_requests)] = 1000 * least
    return found


if __name__ == "__main__":
    main()

"""Load a pretrained model with the layer that its answers need, and prove on a probe that packing is exact.

Shapes: T tokens, D width.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from lushan.backbones import attention
from lushan.backbones.attention import block_mask
from lushan.backbones.frozen import FrozenStates, run_until, skip_layers
from lushan.backbones.hardware import keep_freed_memory
from lushan.backbones.inspect import ModelFacts, describe, is_head
from lushan.backbones.packing import Prefix, plan_packing
from lushan.backbones.pretrained import read_pretrained
from lushan.backbones.remembered import remembered
from lushan.backbones.slot_cache import SlotCache
from lushan.backbones.token_models import class_options, know_token_model
from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import ModelError
from lushan.records import Batch

Purpose = Literal["classify", "tag", "language", "embed"]
PackingMode = Literal["packed", "masked", "alone"]
Prefixes = Prefix | Sequence[Prefix | None] | None
"""What all documents continue, or what each of them does."""
WeightForm = Literal["fp32", "bf16", "int8", "int4"]
"""How weights are held for answering; in all but `fp32` the arithmetic is that of bfloat16."""

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

MODEL_CLASSES: dict[Purpose, Any] = {
    "classify": AutoModelForSequenceClassification,
    "tag": AutoModelForTokenClassification,
    "language": AutoModelForCausalLM,
    "embed": AutoModel,
}
_PROBE_LENGTHS = (7, 12, 19)
_MASKED_TOKENS = 512
"""Tokens under one explicit mask, which costs the square of them."""
_TILE_TOKENS = 8
"""Steps in bf16 are filled up to a multiple of it: oneDNN makes code for every number of rows and keeps it, which takes
megabytes, and is slower where that is odd."""


class AnswerLayer(NamedTuple):
    """What a backbone needs in order to answer for a task; see `load_backbone`."""

    purpose: Purpose
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    both_ways: bool = False


class Call(NamedTuple):
    """One pass through the model."""

    token_ids_1T: Tensor
    position_ids_1T: Tensor
    options: dict[str, Any]


@dataclass(slots=True)
class Backbone:
    """A pretrained model with its tokenizer."""

    model: Any
    """A `PreTrainedModel`, or a `PeftModel` around one."""
    tokenizer: Tokenizer
    facts: ModelFacts
    packing_mode: PackingMode
    """`packed`: own attention. `masked`: an explicit mask keeps documents apart. `alone`: one by one."""
    fresh_weights: tuple[str, ...] = ()
    """Weights that were drawn anew: the class layer of an untuned model, or of one that was tuned on other labels."""
    weight_form: WeightForm | None = None
    """How weights are packed (`packed.py`); None where they are as they were trained."""
    frozen: FrozenStates | None = None
    """What the frozen layers make of the documents of this run; those are then not computed again."""
    start: Prefix | None = None
    """What all documents continue, where nothing else is said; only in `packed` mode."""

    @property
    def plain_model(self) -> Any:  # noqa: ANN401 - transformers' classes share no useful type
        """The `transformers` model, inside its adapter if there is one."""
        return (
            self.model if isinstance(self.model, PreTrainedModel) else self.model.get_base_model()
        )

    @property
    def core(self) -> Any:  # noqa: ANN401
        """The layers that make hidden states."""
        return self.plain_model.base_model

    @property
    def layers(self) -> nn.ModuleList:
        """The layers that follow each other."""
        return max(
            (each for each in self.core.modules() if isinstance(each, nn.ModuleList)), key=len
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def hidden_states(
        self, batch: Batch, *, prefix: Prefixes = None, record: Prefix | None = None
    ) -> Tensor:
        """Run the documents of a batch, none of which sees another; (T, D), after the last norm.

        Args:
            batch: Packed documents.
            prefix: Keys and values that every document continues, or what each does; only in `packed` mode.
            record: Filled with this pass's keys and values; only in `packed` mode.
        """
        has_own_start = prefix is None and record is None
        if has_own_start:
            prefix = self.start
        kept_TD = self.frozen.of(batch) if self.frozen and has_own_start else None
        if self.frozen is None or kept_TD is None:
            calls = self._calls(batch, prefix=prefix, record=record)
            return _joined([self._run(call) for call in calls])[: batch.num_tokens]
        if self.frozen.depth == self.facts.num_layers:
            return kept_TD
        calls = self._calls(batch)
        sizes = [call.token_ids_1T.shape[1] for call in calls]
        kept_TD = functional.pad(kept_TD, (0, 0, 0, sum(sizes) - batch.num_tokens))
        parts = kept_TD[None].split(sizes, dim=1)
        outputs: list[Tensor] = []
        for call, part_1TD in zip(calls, parts, strict=True):
            with skip_layers(self.layers, self.frozen.depth, part_1TD):
                outputs.append(self._run(call))
        return _joined(outputs)[: batch.num_tokens]

    def next_states(self, token_ids_1N: Tensor, cache: SlotCache) -> Tensor:
        """Run the next token of every text in a cache, which keeps them; (N, D). Only in `packed` mode."""
        positions_1N = cache.begin_step()
        return self._run(Call(token_ids_1N, positions_1N, {"packing": cache}))

    def states_at(self, depth: int, batch: Batch) -> Tensor:
        """Run the documents of a batch through the first `depth` layers alone; (T, D).

        With all layers, these are the hidden states after the last norm.
        """
        if depth == self.facts.num_layers:
            return self.hidden_states(batch)
        layer = self.layers[depth]
        calls = self._calls(batch)
        return _joined([run_until(partial(self._run, call), layer)[0] for call in calls])

    def read_rows(self, token_ids: Sequence[int]) -> dict[str, Tensor]:
        """Which rows of the token embedding these tokens read, ascending, by the weight's name.

        Its gradient then holds nothing but the rows of a batch. Nothing is said of an embedding that is frozen, or
        that is the vocabulary layer too, all of which every answer reads.
        """
        model = self.plain_model
        embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
        weight = embedding.weight
        if not weight.requires_grad or (output is not None and output.weight is weight):
            return {}
        embedding.sparse = True
        (name,) = (name for name, each in self.model.named_parameters() if each is weight)
        return {name: torch.tensor(sorted(set(token_ids)), device=weight.device)}

    def _calls(
        self, batch: Batch, *, prefix: Prefixes = None, record: Prefix | None = None
    ) -> list[Call]:
        """Cut a batch into what runs at once."""
        lengths = [len(each.token_ids) for each in batch.features]
        branches = [each.branch_starts for each in batch.features]
        if self.packing_mode == "packed":
            if prefix is None or isinstance(prefix, Prefix):
                prefix = [prefix] * len(lengths)
            spare = _num_spare(self, batch)
            packing = plan_packing(lengths, branches=branches, prefixes=prefix, num_spare=spare)
            packing.record = record
            ids_1T, positions_1T = (
                functional.pad(each, (0, spare))
                for each in (batch.token_ids_1T, batch.position_ids_1T)
            )
            return [Call(ids_1T, positions_1T, {"packing": packing})]
        most_tokens = self._most_masked_tokens()
        _refuse_long_branches(self.core.config, branches, lengths, most_tokens)
        parts = _consecutive(lengths, most_tokens)
        sizes = [sum(part) for part in parts]
        rest = iter(branches)
        pieces = zip(
            parts,
            [[next(rest) for _ in part] for part in parts],
            batch.token_ids_1T.split(sizes, dim=1),
            batch.position_ids_1T.split(sizes, dim=1),
            strict=True,
        )
        return [self._masked_call(*piece) for piece in pieces]

    def _most_masked_tokens(self) -> int:
        if self.packing_mode == "alone":
            return 1
        # An explicit mask replaces a sliding window, which documents of its length do not notice.
        window = getattr(self.core.config, "sliding_window", None) or _MASKED_TOKENS
        return min(_MASKED_TOKENS, window, self.facts.context_tokens)

    def _masked_call(
        self,
        lengths: list[int],
        branches: list[tuple[int, ...]],
        token_ids_1T: Tensor,
        position_ids_1T: Tensor,
    ) -> Call:
        """Without the own attention: one document alone, or several under a mask."""
        if len(lengths) == 1 and not any(branches):
            return Call(token_ids_1T, position_ids_1T, {})
        mask = block_mask(lengths, branches=branches, dtype=self.core.dtype, causal=is_causal(self))
        return Call(token_ids_1T, position_ids_1T, {"attention_mask": mask.to(self.device)})

    def _run(self, call: Call) -> Tensor:
        options = dict(call.options)
        if self.facts.family == "decoder":
            options["use_cache"] = False
        positions_1T = call.position_ids_1T + self.facts.first_position
        outputs = self.core(input_ids=call.token_ids_1T, position_ids=positions_1T, **options)
        return outputs.last_hidden_state[0]


def _num_spare(backbone: Backbone, batch: Batch) -> int:
    """How many tokens fill a batch up."""
    is_half = backbone.core.dtype == torch.bfloat16 and backbone.device.type == "cpu"
    trains = backbone.model.training and torch.is_grad_enabled()
    return -batch.num_tokens % _TILE_TOKENS if is_half and trains else 0


def is_causal(backbone: Backbone) -> bool:
    """Whether a token sees those before it alone."""
    is_decoder = backbone.facts.family == "decoder"
    return is_decoder and getattr(backbone.core.config, "is_causal", True)


def _refuse_long_branches(
    config: Any,  # noqa: ANN401
    branches: list[tuple[int, ...]],
    lengths: list[int],
    most_tokens: int,
) -> None:
    # Without the own attention a window counts tokens, and those of other branches are among them.
    most = min(most_tokens, getattr(config, "window_size", None) or most_tokens)
    if any(each and size > most for each, size in zip(branches, lengths, strict=True)):
        raise ModelError(
            f"`{config.model_type}` models cannot keep apart the choices of a row whose question and choices have "
            f"more than {most} tokens. Use another model."
        )


def _joined(outputs: list[Tensor]) -> Tensor:
    """Put what ran one after another together; one alone is not copied."""
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _consecutive(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Cut a list of lengths into parts of at most so many tokens; a longer document stands alone."""
    parts: list[list[int]] = []
    for length in lengths:
        if not parts or sum(parts[-1]) + length > most_tokens:
            parts.append([])
        parts[-1].append(length)
    return parts


def load_backbone(
    folder: Path,
    *,
    purpose: Purpose,
    labels: Sequence[str] = (),
    multi_label: bool = False,
    both_ways: bool = False,
    precision: Literal["bf16", "fp32"] = "fp32",
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> Backbone:
    """Load a model folder.

    Args:
        folder: A Hugging Face model folder; nothing is fetched.
        purpose: `classify` adds a class layer, `tag` one for every token, `language` the vocabulary,
            `embed` nothing.
        labels: Class names, in the order of their numbers.
        multi_label: Whether a text may have several labels.
        both_ways: Whether the tokens of a decoder also see those behind them; those of an encoder always do.
        precision: Arithmetic of everything but the class layer, which stays in float32.
        seed: Seed of a class layer that the folder does not have, or has for another number of labels.
        tokenizer: The folder's, where it is loaded already.

    Raises:
        ModelError: If the folder cannot be used for this purpose; says why.
    """
    facts = describe(folder)
    if purpose == "language" and facts.why_silent:
        raise ModelError(f"`{folder.name}` {facts.why_silent}. Use `--answer head`.")
    tokenizer = tokenizer or Tokenizer.load(folder)
    options = class_options(purpose, labels, multi_label=multi_label)
    if purpose == "tag":
        know_token_model(folder)
    keep_freed_memory(keep=False)
    attention.register()
    torch.manual_seed(seed)
    model, fresh_weights = read_pretrained(folder, MODEL_CLASSES[purpose], options)
    model.config.pad_token_id = _padding_id(model, tokenizer)
    backbone = Backbone(model.eval(), tokenizer, facts, "packed", fresh_weights)
    if both_ways and facts.family == "decoder":
        _look_both_ways(backbone)
    backbone.packing_mode = _find_packing_mode(backbone)
    cast_weights(model, DTYPES[precision])
    keep_freed_memory(keep=True)
    return backbone


def _look_both_ways(backbone: Backbone) -> None:
    """Say so in the configuration, which transformers heeds too, and to every layer; then see whether it has an effect."""
    for config in (backbone.core.config, backbone.plain_model.config):
        config.is_causal = False
    for module in backbone.core.modules():
        if getattr(module, "is_causal", False):
            setattr(module, "is_causal", False)  # noqa: B010 - no attribute that a module declares
    ids, others = torch.zeros(2, 1, 2, dtype=torch.long)
    others[0, 1] = 1
    with torch.inference_mode():
        first, second = (run_alone(backbone, each[0])[0] for each in (ids, others))
    if torch.equal(first, second):
        raise ModelError(
            f"`{backbone.facts.model_type}` models cannot look both ways: what stands behind a token changed nothing. "
            "Leave `task_settings.attention` as it is, or use another model."
        )


def _padding_id(model: Any, tokenizer: Tokenizer) -> int | None:  # noqa: ANN401
    # transformers' own class models look for the last token that is not padding. Lushan never pads,
    # but whoever loads the saved folder there will.
    known = model.config.pad_token_id
    if known is not None and 0 <= known < tokenizer.vocabulary_size:
        return known
    return tokenizer.stop_id


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Set the precision of all weights but those of a class layer; buffers (rotary angles) stay exact."""
    for name, parameter in model.named_parameters():
        if not is_head(name):
            parameter.data = parameter.data.to(dtype)


def _find_packing_mode(backbone: Backbone) -> PackingMode:
    """Take the fastest way of keeping documents apart that agrees with running them alone."""
    config = backbone.core.config
    if config._attn_implementation == attention.ATTENTION_NAME:
        sides = (_code_of_packing(), type(backbone.core).__name__, config.to_json_string(False))
        if remembered("packing", sides, lambda: _first_exact(backbone, ["packed"])):
            return "packed"
        config._attn_implementation = "eager"
    if found := _first_exact(backbone, ["masked", "alone"]):
        return found
    raise ModelError(
        f"`{backbone.facts.model_type}` models count positions in a way that is not known here. Use another model."
    )


@cache
def _code_of_packing() -> str:
    """Name whose arithmetic it is: versions, the processor's instructions, and our own code."""
    own = [each.read_text("utf-8") for each in sorted(Path(__file__).parent.glob("*.py"))]
    others = [torch.__version__, transformers.__version__, torch.backends.cpu.get_cpu_capability()]
    return hashlib.sha256("\n".join(others + own).encode()).hexdigest()


@torch.inference_mode()
def _first_exact(backbone: Backbone, modes: list[PackingMode]) -> PackingMode | None:
    """Give the first in which documents come out as each alone does."""
    generator = torch.Generator().manual_seed(0)
    top = min(backbone.facts.vocabulary_size, backbone.tokenizer.vocabulary_size)
    ids = [torch.randint(top, (length,), generator=generator) for length in _PROBE_LENGTHS]
    if backbone.facts.first_position:  # padding has no place of its own
        ids = [each.where(each != backbone.core.config.pad_token_id, top - 1) for each in ids]
    alone = torch.cat([run_alone(backbone, each) for each in ids])
    return next((mode for mode in modes if _is_exact(backbone, mode, ids, alone)), None)


def _is_exact(backbone: Backbone, mode: PackingMode, ids: list[Tensor], alone: Tensor) -> bool:
    backbone.packing_mode = mode
    try:
        return torch.allclose(_probe_packed(backbone, ids), alone, rtol=1e-3, atol=1e-3)
    except (TypeError, ValueError, KeyError, RuntimeError):
        return False  # the architecture does not take the mask or the extra argument


def run_alone(backbone: Backbone, ids: Tensor) -> Tensor:
    """Run one document through the model's own eager attention, without any code of ours; (T, D)."""
    config = backbone.core.config
    ours = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        return backbone.core(input_ids=ids[None]).last_hidden_state[0]
    finally:
        config._attn_implementation = ours


def _probe_packed(backbone: Backbone, ids: list[Tensor]) -> Tensor:
    lengths = [len(each) for each in ids]
    if backbone.packing_mode == "alone":
        calls = [Call(each[None], torch.arange(len(each))[None], {}) for each in ids]
        return torch.cat([backbone._run(call) for call in calls])
    token_ids_1T = torch.cat(ids)[None]
    position_ids_1T = torch.cat([torch.arange(length) for length in lengths])[None]
    if backbone.packing_mode == "packed":
        return backbone._run(
            Call(token_ids_1T, position_ids_1T, {"packing": plan_packing(lengths)})
        )
    no_branches: list[tuple[int, ...]] = [()] * len(lengths)
    return backbone._run(backbone._masked_call(lengths, no_branches, token_ids_1T, position_ids_1T))

"""Answers that vLLM writes, on a GPU or a CPU: for `Streams` the same as our own engine, step by step.

vLLM holds weights of its own, in a process of its own. It chooses tokens; where answers end, what of their text is certain
and how they are told is decided here, as for every other answer.

Source: Kwon et al. 2023, https://arxiv.org/abs/2309.06180.
"""

import json
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from lushan.backbones.load import Backbone
from lushan.backbones.many_adapters import Adapter
from lushan.errors import ModelError, SettingError, UserError
from lushan.inference.draft import Alternatives, Draft, TokenEvent
from lushan.inference.generate import begin_draft, check_length, stop_ids
from lushan.inference.generation_settings import GenerationSettings, check_settings
from lushan.inference.grammar import Constraint
from lushan.inference.prefix_store import bytes_of_token

MAX_RANK = 64
"""Of an adapter; vLLM takes the room for it when it starts."""
MAX_ADAPTERS = 8
"""That answer at once; others wait."""
MAX_ALTERNATIVES = 20
SPARE_TOKENS = 512
"""Beyond those that are asked for: vLLM remembers tokens by blocks, and keeps one of them."""
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Nothing is told or fetched over the network, and the log is the server's."""


class VllmEngine:
    """Answers requests together, step by step; new ones may come at any time."""

    def __init__(
        self,
        backbone: Backbone,
        folder: Path,
        *,
        precision: str,
        max_rows: int,
        max_tokens: int,
        takes_adapters: bool,
    ) -> None:
        """Start vLLM, which takes from half a minute to several.

        Args:
            backbone: The same model as Lushan has it: its tokenizer and stop tokens are used.
            folder: Its weights.
            precision: Of vLLM's weights and arithmetic.
            max_rows: Answers that are written at once; more wait.
            max_tokens: Tokens that prompt and answer may have together.
            takes_adapters: Whether requests may have adapters.

        Raises:
            ModelError: If vLLM cannot load it; tells why.
        """
        self._backbone = backbone
        self._context = min(backbone.facts.context_tokens, max_tokens)
        self._stop_ids = stop_ids(backbone)
        self._drafts: dict[str, tuple[Draft, int]] = {}
        """By vLLM's name of it, each with its number among the answers to its prompt."""
        self._adapters: dict[Path, Any] = {}
        self._failures: dict[int, UserError] = {}
        os.environ |= _ENVIRONMENT | os.environ
        vllm = import_module("vllm")
        self._parameters = vllm.SamplingParams
        adapters = (
            {"enable_lora": True, "max_lora_rank": MAX_RANK, "max_loras": MAX_ADAPTERS}
            if takes_adapters
            else {}
        )
        try:
            arguments = vllm.EngineArgs(
                model=str(folder),
                dtype=precision,
                max_model_len=self._context,
                max_num_seqs=max_rows,
                kv_cache_memory_bytes=(max_tokens + SPARE_TOKENS)
                * bytes_of_token(backbone, precision),
                max_logprobs=MAX_ALTERNATIVES,
                disable_log_stats=True,
                structured_outputs_config={"backend": "guidance"},
                **adapters,
            )
            self._vllm = vllm.LLMEngine.from_engine_args(arguments)
        except Exception as error:
            raise ModelError(
                f"vLLM cannot load `{folder}`: {error} Serve it with `--backend lushan`."
            ) from error

    @property
    def is_busy(self) -> bool:
        """Whether any request is not answered yet."""
        return bool(self._drafts)

    @property
    def open_indices(self) -> set[int]:
        """The requests that are not answered yet."""
        return {draft.prompt_index for draft, _ in self._drafts.values()}

    def add(
        self,
        prompt_ids: Sequence[int],
        settings: GenerationSettings,
        *,
        index: int,
        constraint: Constraint | None = None,
        adapter: Adapter | None = None,
        num_alternatives: int = 0,
    ) -> None:
        """Take a request, as `Engine.add` does; draws of a seed are others than those of our own engine.

        Raises:
            SettingError: Also if beam search is asked for, which vLLM does not have.
        """
        check_settings(settings)
        if settings.num_beams > 1:
            raise SettingError(
                f"vLLM has no beam search: `num_beams` is {settings.num_beams}. Take 1, or serve with `--backend lushan`."
            )
        check_length(
            len(prompt_ids), settings.max_new_tokens, index=index, context_tokens=self._context
        )
        if constraint is not None:
            constraint.check()
        loaded = None if adapter is None else self._loaded(adapter.folder)
        sampling = _sampling(settings, self._stop_ids, constraint, num_alternatives)
        for number in range(settings.num_return_sequences):
            draft = begin_draft(
                self._backbone, prompt_ids, settings, index=index, num_alternatives=num_alternatives
            )
            name = f"{index}-{number}"
            seed = settings.seed_of(number) if settings.temperature else None
            self._vllm.add_request(
                name,
                {"prompt_token_ids": list(prompt_ids)},
                self._parameters(**sampling, seed=seed),
                lora_request=loaded,
            )
            self._drafts[name] = draft, number

    def _loaded(self, folder: Path | None) -> Any:  # noqa: ANN401 - a class of vLLM
        """Give vLLM an adapter, once."""
        if folder is None:
            raise ModelError("vLLM takes adapters that are stored in a folder.")
        if folder not in self._adapters:
            request = import_module("vllm.lora.request").LoRARequest(
                str(folder), len(self._adapters) + 1, str(folder)
            )
            try:
                self._vllm.add_lora(request)
            except Exception as error:
                raise ModelError(
                    f"vLLM cannot load the adapter in `{folder}`: {error} Serve it with `--backend lushan`."
                ) from error
            self._adapters[folder] = request
        return self._adapters[folder]

    def cancel(self, index: int) -> None:
        """Forget a request; its rows are free at once. Nothing happens when it is answered already."""
        self._forget([
            name for name, (draft, _) in self._drafts.items() if draft.prompt_index == index
        ])

    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            del self._drafts[name]
        if names:
            self._vllm.abort_request(list(names))

    def take_failures(self) -> dict[int, UserError]:
        """Give what went wrong with requests since the last call; they have ended, the others go on."""
        failures, self._failures = self._failures, {}
        return failures

    def step(self) -> list[TokenEvent]:
        """Continue answers by what vLLM wrote since the last step, a token each where nothing waits."""
        if not self._drafts:
            return []
        events: list[TokenEvent] = []
        for output in self._vllm.step():
            if output.request_id in self._drafts:
                events += self._continue(output)
        return events

    def _continue(self, output: Any) -> list[TokenEvent]:  # noqa: ANN401
        draft, number = self._drafts[output.request_id]
        draft.num_reused_tokens = output.num_cached_tokens or 0
        (written,) = output.outputs
        events: list[TokenEvent] = []
        for token_id, likeliest in zip(written.token_ids, written.logprobs, strict=True):
            draft.add(token_id, likeliest[token_id].logprob, _alternatives(likeliest, draft))
            events.append(draft.event(number))
            if draft.ended:
                break
        if draft.ended and output.finished:
            del self._drafts[output.request_id]
        elif draft.ended:  # at a stop string, of which vLLM knows nothing
            self._forget([output.request_id])
        elif output.finished:
            del self._drafts[output.request_id]
            self.cancel(draft.prompt_index)  # the other answers to it
            self._failures[draft.prompt_index] = ModelError(
                f"vLLM ended an answer before its end: {written.finish_reason}."
            )
        return events


def _sampling(
    settings: GenerationSettings,
    ends: frozenset[int],
    constraint: Constraint | None,
    num_alternatives: int,
) -> dict[str, Any]:
    """Say to vLLM how answers are written, but for their seed."""
    parameters = import_module("vllm.sampling_params")
    form = constraint and parameters.StructuredOutputsParams(grammar=_lark(constraint))
    return {
        "temperature": settings.temperature,
        "top_k": settings.top_k or 0,
        "top_p": settings.top_p,
        "min_p": settings.min_p,
        "repetition_penalty": settings.repetition_penalty,
        "max_tokens": settings.max_new_tokens,
        "stop_token_ids": sorted(ends),
        "logprobs": num_alternatives,
        "detokenize": False,
        "output_kind": parameters.RequestOutputKind.DELTA,
        "structured_outputs": form,
    }


def _alternatives(likeliest: Mapping[int, Any], draft: Draft) -> Alternatives:
    ranked = sorted(likeliest.items(), key=lambda each: each[1].logprob, reverse=True)
    return tuple((token_id, each.logprob) for token_id, each in ranked[: draft.num_alternatives])


def _lark(constraint: Constraint) -> str:
    """Write a form as the grammar that vLLM takes; it reads that by the same library."""
    if not constraint.grammar.startswith("{"):
        return constraint.grammar
    (grammar,) = json.loads(constraint.grammar)["grammars"]
    if grammar.get("lark_grammar"):
        return grammar["lark_grammar"]
    return f"start: %json {json.dumps(grammar['json_schema'], ensure_ascii=False)}"

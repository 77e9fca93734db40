"""A stand-in for vLLM: the parts of its interface that Lushan uses, answered by Lushan's own engine."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

from lushan.backbones.load import Backbone
from lushan.inference.draft import TokenEvent
from lushan.inference.generate import GenerationEngine
from lushan.inference.generation_settings import GenerationSettings


@dataclass
class StandIn:
    """What was said to vLLM, and its engine."""

    backbone: Backbone
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    """With which the engine was started."""
    parameters: dict[str, SimpleNamespace] = field(default_factory=dict[str, SimpleNamespace])
    """Of every request."""
    adapters: list[Any] = field(default_factory=list[Any])
    lora_requests: list[Any] = field(default_factory=list[Any])
    aborted: list[str] = field(default_factory=list[str])
    most_tokens: int | None = None
    """After which it ends an answer, whatever was asked for."""
    failure: Exception | None = None
    """What starting it, or taking an adapter, raises."""

    def __post_init__(self) -> None:
        """Have an engine without requests."""
        self._engine = GenerationEngine(self.backbone)
        self._names: list[str] = []

    def fail(self) -> None:
        """Raise what is to be raised."""
        if self.failure is not None:
            raise self.failure

    def from_engine_args(self, arguments: Mapping[str, Any]) -> "StandIn":
        """Start."""
        self.fail()
        self.arguments = dict(arguments)
        return self

    def add_lora(self, request: object) -> None:
        """Take an adapter."""
        self.fail()
        self.adapters.append(request)

    def add_request(
        self,
        name: str,
        prompt: Mapping[str, Sequence[int]],
        parameters: SimpleNamespace,
        lora_request: object,
    ) -> None:
        """Take a request."""
        self.parameters[name] = parameters
        self.lora_requests.append(lora_request)
        settings = GenerationSettings(
            max_new_tokens=self.most_tokens or parameters.max_tokens,
            temperature=parameters.temperature,
            seed=parameters.seed or 0,
        )
        self._engine.add(
            prompt["prompt_token_ids"],
            settings,
            index=len(self._names),
            num_alternatives=max(1, parameters.logprobs),
        )
        self._names.append(name)

    def abort_request(self, names: Sequence[str]) -> None:
        """Forget requests."""
        self.aborted += names
        for name in names:
            self._engine.cancel(self._names.index(name))

    def step(self) -> list[SimpleNamespace]:
        """Give the next token of every answer."""
        return [self._told(event) for event in self._engine.step()]

    def _told(self, event: TokenEvent) -> SimpleNamespace:
        likeliest = {token: SimpleNamespace(logprob=value) for token, value in event.alternatives}
        likeliest[event.token_id] = SimpleNamespace(logprob=event.log_probability)
        written = SimpleNamespace(
            token_ids=[event.token_id], logprobs=[likeliest], finish_reason=event.ended
        )
        return SimpleNamespace(
            request_id=self._names[event.prompt_index],
            outputs=[written],
            finished=event.ended is not None,
            num_cached_tokens=3,
        )


@contextmanager
def installed(stand_in: StandIn) -> Iterator[StandIn]:
    """Have `import vllm` find the stand-in."""
    engine, parameters, adapters = (
        ModuleType(name) for name in ("vllm", "vllm.sampling_params", "vllm.lora.request")
    )
    engine.__dict__.update(EngineArgs=dict, LLMEngine=stand_in, SamplingParams=SimpleNamespace)
    parameters.__dict__.update(
        StructuredOutputsParams=SimpleNamespace, RequestOutputKind=SimpleNamespace(DELTA="delta")
    )
    adapters.__dict__["LoRARequest"] = lambda *each: each
    modules = {each.__name__: each for each in (engine, parameters, adapters)}
    with patch.dict(sys.modules, modules):
        yield stand_in

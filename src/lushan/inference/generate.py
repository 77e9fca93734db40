"""From prompts to answers: continuous batching over the rows of a decoder.

A finished answer leaves at once and the next prompt takes its place, so that a step is never spent on rows that wait.
`generate` answers a list; `stream` tells every token as it comes; `GenerationEngine` takes requests while it runs.

Shapes: N rows, R rows of one request, D width, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lushan.backbones.heads import vocabulary_logits
from lushan.backbones.load import Backbone
from lushan.backbones.many_adapters import Adapter, ManyAdapters
from lushan.data.batching import MAX_BATCH_TOKENS
from lushan.errors import DataError, ModelError, UserError
from lushan.inference.beam import BeamSearch
from lushan.inference.decoder import Decoder, SingleDecoder, SlotDecoder
from lushan.inference.draft import Advance, Draft, End, Ends, Search, TokenEvent
from lushan.inference.engine import Engine
from lushan.inference.generation_settings import GenerationSettings, check_settings
from lushan.inference.grammar import Constraint, GrammarState
from lushan.inference.prefix_store import PrefixStore
from lushan.inference.sampling import Sampling
from lushan.inference.scores import Scores
from lushan.inference.text_stream import TextStream

MAX_ROWS = 32
"""Drafts that are written at once, if nothing else is said; bounds memory, changes no answer."""

Prompt = str | Sequence[int]
"""A rendered text, or its token ids."""

Constraints = Constraint | Sequence[Constraint | None] | None
"""A form for all answers, or one for each prompt."""


@dataclass(slots=True)
class Generated:
    """One answer."""

    prompt_index: int
    """Which prompt it answers."""
    answer_index: int
    """Which of the answers to that prompt; the best first in beam search."""
    token_ids: list[int] = field(default_factory=list[int])
    """What was written, its stop token or stop string included."""
    log_probabilities: list[float] = field(default_factory=list[float])
    """Natural logarithm of the model's own probability of each token."""
    pieces: list[str] = field(default_factory=list[str])
    """The text that became certain with each token; nothing for a stop token, a stop string, half a character."""
    ended: End = "length"
    """`length` tells that the answer, also a constrained one, may be unfinished."""

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(self.pieces)

    @property
    def log_likelihood(self) -> float:
        """Natural logarithm of the probability of the whole answer."""
        return sum(self.log_probabilities)

    def add(self, event: TokenEvent) -> None:
        """Append its next token."""
        self.token_ids.append(event.token_id)
        self.log_probabilities.append(event.log_probability)
        self.pieces.append(event.text)
        if event.ended:
            self.ended = event.ended


def generate(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    settings: GenerationSettings,
    *,
    constraint: Constraints = None,
    max_rows: int = MAX_ROWS,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Generated]:
    """Answer every prompt.

    Args:
        backbone: A causal language model.
        prompts: Rendered texts, or their token ids.
        settings: How answers are written.
        constraint: A form that all answers must have, or one for each prompt.
        max_rows: Drafts that are written at once.
        advance: Called with the number of prompts that were answered since the last call.

    Returns:
        `num_return_sequences` answers to each prompt (in beam search fewer, where a constraint leaves fewer), in the
        order of the prompts.

    Raises:
        DataError: If a prompt is empty or leaves no room for `max_new_tokens`.
        ModelError: If the model cannot write.
        SettingError: If settings do not go together, or the constraint is no valid one.
    """
    num_open = [settings.num_return_sequences] * len(prompts)

    def ended(prompt_index: int) -> None:
        num_open[prompt_index] -= 1
        if num_open[prompt_index] == 0:
            advance(1)

    events = stream(backbone, prompts, settings, constraint=constraint, max_rows=max_rows)
    return collect(events, ended=ended)


def collect(
    events: Iterable[TokenEvent], *, ended: Callable[[int], None] = lambda _: None
) -> list[Generated]:
    """Put the tokens that were told together to answers, in the order of the prompts.

    Args:
        events: All of them.
        ended: Called with the number of a prompt whenever one of its answers is whole.
    """
    answers: dict[tuple[int, int], Generated] = {}
    for event in events:
        place = event.prompt_index, event.answer_index
        answers.setdefault(place, Generated(*place)).add(event)
        if event.ended:
            ended(event.prompt_index)
    return [answers[place] for place in sorted(answers)]


def stream(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    settings: GenerationSettings,
    *,
    constraint: Constraints = None,
    max_rows: int = MAX_ROWS,
    prefixes: PrefixStore | None = None,
) -> Iterator[TokenEvent]:
    """Answer every prompt and tell each token as it comes; beam search tells an answer when it is final.

    Arguments and errors are those of `generate`; what is wrong is told before the first token. Prompts that start alike
    share that start; `prefixes` has them share it with those of other calls too.
    """
    token_ids = encode_prompts(backbone, prompts)
    if prefixes is None and len(token_ids) > 1:
        prefixes = PrefixStore.for_texts(token_ids)
    engine = GenerationEngine(backbone, max_rows=max_rows, prefixes=prefixes)
    constraints: Sequence[Constraint | None] = (
        [constraint] * len(token_ids)
        if constraint is None or isinstance(constraint, Constraint)
        else constraint
    )
    for index, (each, form) in enumerate(zip(token_ids, constraints, strict=True)):
        engine.add(each, settings, index=index, constraint=form)
    return run(engine)


def run(engine: Engine) -> Iterator[TokenEvent]:
    """Answer all requests of an engine and tell each token as it comes."""
    while engine.is_busy:
        yield from engine.step()
        for error in engine.take_failures().values():
            raise error


def encode_prompts(backbone: Backbone, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    """Give the token ids of prompts, as the model reads them everywhere else."""
    texts = [each for each in prompts if isinstance(each, str)]
    encoded = iter(backbone.tokenizer.encode(texts))
    return [tuple(next(encoded).ids if isinstance(each, str) else each) for each in prompts]


@dataclass(slots=True)
class _Waiting:
    """A request that has no rows yet."""

    start: Draft
    settings: GenerationSettings
    adapter: Adapter | None

    @property
    def num_rows(self) -> int:
        """Rows that it will take."""
        return max(self.settings.num_beams, self.settings.num_return_sequences)

    @property
    def most_tokens(self) -> int:
        """Tokens that each of them can have, prompt and answer."""
        return len(self.start.prompt_ids) + self.settings.max_new_tokens


@dataclass(slots=True)
class _Active:
    """A request that is being answered."""

    index: int
    search: Search
    num_rows: int
    most_tokens: int
    slots: list[int]
    """Where its drafts are in the decoder."""
    next_ids: list[int] = field(default_factory=list[int])
    """The token that each of them reads next."""


class GenerationEngine:
    """Answers requests together, step by step; new ones may come at any time."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        max_rows: int = MAX_ROWS,
        max_tokens: int | None = None,
        max_read_tokens: int = MAX_BATCH_TOKENS,
        prefixes: PrefixStore | None = None,
        many: ManyAdapters | None = None,
    ) -> None:
        """Make an engine without requests.

        Args:
            backbone: A causal language model.
            max_rows: Drafts that are written at once; a request that needs more runs alone.
            max_tokens: Tokens that are remembered at once, all drafts counted as the longest can become; None sets no
                bound. A request that needs more runs alone. What drafts leave of it is for `prefixes`.
            max_read_tokens: Prompt tokens that are read between two tokens of answers that are being written.
            prefixes: What was computed for earlier texts, and takes up what is computed here; None reads every prompt
                from its start.
            many: What adapts the layers of the backbone, where requests have adapters of their own.

        Raises:
            ModelError: If the model cannot write.
        """
        if backbone.facts.family == "encoder":
            raise ModelError(
                f"`{backbone.facts.model_type}` is an encoder: it fills gaps and cannot write. Use a decoder."
            )
        if backbone.plain_model.get_output_embeddings() is None:
            raise ModelError("This model was loaded without its vocabulary layer and cannot write.")
        self.notes: tuple[str, ...] = ()
        """What a user should know."""
        self._decoder: Decoder
        if backbone.packing_mode == "packed":
            self._decoder = SlotDecoder(
                backbone, prefixes=prefixes, many=many, max_tokens=max_tokens
            )
        else:
            self._decoder = SingleDecoder(backbone)
            self.notes = (
                f"`{backbone.facts.model_type}` cannot use packed attention: answers are written one after "
                "another, slower, with the same results.",
            )
        self._backbone = backbone
        self._takes_adapters = many is not None and backbone.packing_mode == "packed"
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._max_read_tokens = max_read_tokens
        self._stop_ids = stop_ids(backbone)
        self._waiting: deque[_Waiting] = deque()
        self._reading: dict[int, _Waiting] = {}
        self._active: list[_Active] = []
        self._failures: dict[int, UserError] = {}

    @property
    def is_busy(self) -> bool:
        """Whether any request is not answered yet."""
        return bool(self._waiting or self._reading or self._active)

    @property
    def open_indices(self) -> set[int]:
        """The requests that are not answered yet."""
        waiting = (each.start.prompt_index for each in self._waiting)
        return {*waiting, *self._reading, *(each.index for each in self._active)}

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
        """Take a request; arguments and errors are those of `Engine.add`."""
        if adapter is not None and not self._takes_adapters:
            raise ModelError(
                "This engine writes with one model alone, and takes no other's adapter."
            )
        check_settings(settings)
        check_length(
            len(prompt_ids),
            settings.max_new_tokens,
            index=index,
            context_tokens=self._backbone.facts.context_tokens,
        )
        draft = begin_draft(
            self._backbone, prompt_ids, settings, index=index, num_alternatives=num_alternatives
        )
        if constraint:
            num_tokens = self._backbone.plain_model.get_output_embeddings().out_features
            draft.grammar = GrammarState.start(
                constraint,
                self._backbone.tokenizer,
                vocabulary_size=num_tokens,
                stop_ids=self._stop_ids,
            )
        self._waiting.append(_Waiting(draft, settings, adapter))

    def cancel(self, index: int) -> None:
        """Forget a request; its rows are free at once. Nothing happens when it is answered already."""
        self._waiting = deque(each for each in self._waiting if each.start.prompt_index != index)
        if self._reading.pop(index, None) is not None:
            self._decoder.drop(index)
        self._active = [each for each in self._active if each.index != index]
        with torch.inference_mode():
            self._close_holes()

    def take_failures(self) -> dict[int, UserError]:
        """Give what went wrong with requests since the last call; they have ended, the others go on."""
        failures, self._failures = self._failures, {}
        return failures

    def step(self) -> list[TokenEvent]:
        """Continue all answers by one token, and read on what is asked, as far as there is room for it."""
        model = self._backbone.model
        was_training = model.training
        if was_training:  # to set it again at every step costs as much as a layer
            model.eval()
        try:
            with torch.inference_mode():
                return [*self._continue_active(), *self._read_waiting()]
        finally:
            if was_training:
                model.train()

    def _continue_active(self) -> list[TokenEvent]:
        if not self._active:
            return []
        next_ids = {
            slot: token
            for each in self._active
            for slot, token in zip(each.slots, each.next_ids, strict=True)
        }
        hidden_ND = self._decoder.step([next_ids[slot] for slot in range(len(next_ids))])
        return self._advance(self._active, self._scores(hidden_ND), first_slot=0)

    def _read_waiting(self) -> list[TokenEvent]:
        first_slot = sum(len(each.slots) for each in self._active)
        while self._waiting and _fit(
            [*self._active, *self._reading.values(), self._waiting[0]],
            self._max_rows,
            self._max_tokens,
        ):
            each = self._waiting.popleft()
            self._reading[each.start.prompt_index] = each
            self._decoder.add(each.start.prompt_index, each.start.prompt_ids, each.adapter)
        # Where nobody waits for the next token, fewer and larger passes are faster.
        found = self._decoder.read(self._max_read_tokens if self._active else MAX_BATCH_TOKENS)
        if not found:
            return []
        requests: list[_Active] = []
        for slot, read in enumerate(found, start=first_slot):
            each = self._reading.pop(read.number)
            each.start.num_reused_tokens = read.num_reused
            requests.append(
                _Active(read.number, _search(each), each.num_rows, each.most_tokens, [slot])
            )
        self._active = [*self._active, *requests]
        scores = self._scores(torch.stack([each.hidden_D for each in found]))
        return self._advance(requests, scores, first_slot=first_slot)

    def _scores(self, hidden_ND: Tensor) -> Scores:
        return Scores.of(vocabulary_logits(self._backbone.plain_model, hidden_ND))

    def _advance(
        self, requests: Sequence[_Active], scores: Scores, *, first_slot: int
    ) -> list[TokenEvent]:
        """Let requests choose their next tokens, and close the holes that finished drafts leave."""
        events: list[TokenEvent] = []
        for each in requests:
            rows = [slot - first_slot for slot in each.slots]
            try:
                moved_on = each.search.advance(scores.of_rows(rows))
            except UserError as error:  # a form that this model's tokens cannot complete
                self._failures[each.index] = error
                moved_on = Advance([], [])
            events += moved_on.events
            self._decoder.keep([each.slots[row] for row in moved_on.finished])
            each.slots = [each.slots[row] for row, _ in moved_on.rows]
            each.next_ids = [token for _, token in moved_on.rows]
        self._active = [each for each in self._active if each.slots]
        self._close_holes()
        return events

    def _close_holes(self) -> None:
        placed = iter(
            self._decoder.rearrange([slot for each in self._active for slot in each.slots])
        )
        for each in self._active:
            each.slots = [next(placed) for _ in each.slots]


def _fit(requests: Sequence[_Active | _Waiting], max_rows: int, max_tokens: int | None) -> bool:
    """Whether requests can run together; one alone always can."""
    if len(requests) == 1:
        return True
    num_rows = sum(each.num_rows for each in requests)
    num_tokens = num_rows * max(each.most_tokens for each in requests)
    return num_rows <= max_rows and (max_tokens is None or num_tokens <= max_tokens)


def _search(request: _Waiting) -> Search:
    make = BeamSearch if request.settings.num_beams > 1 else Sampling
    return make(request.start, request.settings)


def check_length(
    num_prompt_tokens: int, max_new_tokens: int, *, index: int, context_tokens: int
) -> None:
    """Refuse a prompt that the model cannot read and answer.

    Raises:
        DataError: If it is empty or leaves no room for `max_new_tokens`.
    """
    if num_prompt_tokens == 0:
        raise DataError(f"Prompt {index + 1} is empty: the model needs at least one token.")
    if num_prompt_tokens + max_new_tokens > context_tokens:
        raise DataError(
            f"Prompt {index + 1} has {num_prompt_tokens} tokens; with `max_new_tokens` {max_new_tokens} that is "
            f"more than the {context_tokens} that this model reads. Shorten the prompt, or lower `max_new_tokens`."
        )


def begin_draft(
    backbone: Backbone,
    prompt_ids: Sequence[int],
    settings: GenerationSettings,
    *,
    index: int,
    num_alternatives: int = 0,
) -> Draft:
    """Begin an answer of any form."""
    return Draft(
        prompt_index=index,
        prompt_ids=tuple(prompt_ids),
        ends=Ends(stop_ids(backbone), settings.max_new_tokens),
        text=TextStream(backbone.tokenizer, prompt_ids, settings.stop_strings),
        num_alternatives=num_alternatives,
    )


def stop_ids(backbone: Backbone) -> frozenset[int]:
    """Give the tokens that end an answer: the tokenizer's, and those of the model's generation settings."""
    return backbone.tokenizer.stop_ids.union(named_stop_ids(backbone))


def named_stop_ids(backbone: Backbone) -> list[int]:
    """Give the tokens that end an answer by the model's generation settings alone, which other programs go by."""
    config = getattr(backbone.plain_model, "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    return [named] if isinstance(named, int) else list(named or [])

"""What the models of a run are asked about the test rows: which worked examples fit; and how many tokens rows take.

Tokens are counted before the first step: of rows that are trained on, and of all that is read of a test row.
"""

import math
from collections.abc import Sequence
from functools import partial

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.inspect import ModelFacts
from lushan.backbones.tokenizer import Tokenizer
from lushan.errors import TooLongError
from lushan.inference.constrained import num_shared_tokens
from lushan.inference.generation_settings import GenerationSettings
from lushan.inference.prefix_store import SHORTEST_PREFIX_TOKENS
from lushan.records import AnswerMode, Example, TaskState
from lushan.tasks import Task
from lushan.workflows.encode import Encoder
from lushan.workflows.recipe import TuneRecipe

_NUM_TRIED = 500
"""Documents that stand for all where only their length is to be known."""


def shots_that_fit(
    task: Task,
    state: TaskState,
    tokenizer: Tokenizer,
    *,
    context_tokens: int,
    generation: GenerationSettings,
) -> tuple[Example, ...]:
    """Give as many worked examples as leave half of a model's context to the text that is asked about.

    Args:
        task: What gives the rows their meaning.
        state: What it learned, with the worked examples that were drawn.
        tokenizer: The model's.
        context_tokens: The model's context.
        generation: How long an answer may become, which has to fit too where one is written.
    """
    most_tokens = context_tokens // 2
    if task.writes:
        most_tokens -= generation.max_new_tokens
    blank = Example("", "", None)
    for num_shots in range(len(state.shots), 0, -1):
        shots = state.shots[:num_shots]
        prompts = task.render(blank, state, answer="generate", with_target=False, shots=shots)
        encoded = tokenizer.encode([prompt.text for prompt in prompts])
        if max(len(each.ids) for each in encoded) <= most_tokens:
            return shots
    return ()


def tokens_of_readings(
    examples: Sequence[Example],
    recipe: TuneRecipe,
    state: TaskState,
    *,
    task: Task,
    facts: ModelFacts,
    tokenizer: Tokenizer,
) -> tuple[float, ...]:
    """Say what each reading of a test row takes, on the mean: by the tuned model, the untouched one, and that one with worked examples.

    What all prompts start with is computed once, and not counted. Nor is what is read anew while an answer is found: for
    labels that begin alike, and to write.

    Args:
        examples: The test rows, of which the first stand for all.
        recipe: `answer`, `baselines`, and how long a text may be.
        state: What the task learned.
        task: What gives the rows their meaning.
        facts: What the model is.
        tokenizer: Its tokenizer.

    Raises:
        DataError: If a text cannot be asked about.
    """
    if not examples:
        return ()
    asked = partial(_mean_read, examples, state, task=task, tokenizer=tokenizer)
    own = _limit(recipe, facts)
    tuned = asked(answer=recipe.answer, limit=own)
    way = task.untuned[facts.asked_as]
    if way == "nothing":
        return (tuned,)
    if way == "similarity":  # of the text alone, which is what a head reads
        return tuned, tuned
    whole = LengthLimit(facts.context_tokens, "truncate")
    bare = asked(answer="generate", limit=whole)
    if not recipe.baselines:
        return tuned, bare
    shots = shots_that_fit(
        task,
        state,
        tokenizer,
        context_tokens=facts.context_tokens,
        generation=recipe.generation,
    )
    return tuned, bare, asked(answer="generate", limit=whole, shots=shots)


def mean_tokens(
    examples: Sequence[Example],
    recipe: TuneRecipe,
    state: TaskState,
    *,
    task: Task,
    facts: ModelFacts,
    tokenizer: Tokenizer,
) -> float:
    """Say what a training row takes in a pass, on the mean: all its documents together, as they are cut.

    Args:
        examples: The training rows, of which some, spread evenly, stand for all.
        recipe: `answer`, and how long a text may be.
        state: What the task learned.
        task: What gives the rows their meaning.
        facts: What the model is.
        tokenizer: Its tokenizer.

    Raises:
        DataError: If a row cannot be learned from.
    """
    rows = examples[:: math.ceil(len(examples) / _NUM_TRIED)]
    limit = _limit(recipe, facts)
    encoder = Encoder(task, state, tokenizer, recipe.answer, limit, learns=True)
    return sum(_num_tokens(each, encoder) for each in rows) / len(rows)


def _num_tokens(example: Example, encoder: Encoder) -> int:
    try:
        features = encoder.encode([example], with_target=True)
    except TooLongError:  # refused when it is its turn, with how many are
        return encoder.limit.max_tokens
    return sum(len(each.token_ids) for each in features)


def _limit(recipe: TuneRecipe, facts: ModelFacts) -> LengthLimit:
    """Give how long a document of a run may be, where no more than its length is to be known."""
    # A text that is too long is refused when it is its turn, with how many are.
    policy = "truncate" if recipe.data.over_length == "error" else recipe.data.over_length
    return LengthLimit(recipe.model.max_length or facts.context_tokens, policy)


def _mean_read(
    examples: Sequence[Example],
    state: TaskState,
    *,
    task: Task,
    tokenizer: Tokenizer,
    answer: AnswerMode,
    limit: LengthLimit,
    shots: Sequence[Example] = (),
) -> float:
    """Tokens that are read of an example, all its documents together."""

    def documents_of(some: Sequence[Example]) -> list[tuple[int, ...]]:
        # Of a written answer, the model is asked how likely the truth is.
        features = task.encode(
            some,
            state,
            tokenizer,
            answer=answer,
            limit=limit,
            with_target=task.writes,
            shots=shots,
        )
        return [each.token_ids for each in features]

    # Two rows at least: the documents of one share its text too, which those of all rows do not.
    num_rows = max(2, _NUM_TRIED // len(documents_of(examples[:1])))
    tried = examples[:num_rows]
    documents = documents_of(tried)
    num_tokens = sum(map(len, documents))
    shares_start = answer == "generate" and (task.writes or bool(task.candidates(state)))
    if shares_start and len(documents) > 1:
        num_shared = num_shared_tokens(documents)
        if num_shared >= SHORTEST_PREFIX_TOKENS:
            num_tokens -= num_shared * len(documents)
    return num_tokens / len(tried)

"""What the tuned model is measured against: the untouched model, and what a user would otherwise pick."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.inspect import ModelFacts, describe
from lushan.backbones.packed import load_untuned
from lushan.backbones.tokenizer import Tokenizer
from lushan.baselines import Baseline
from lushan.catalog import load_baseline
from lushan.evaluation.phrases import drawn_of
from lushan.inference.predict import Predictor
from lushan.inference.similarity import predict_by_similarity
from lushan.model_store.run_folder import RunFolder
from lushan.records import Example, Prediction
from lushan.workflows import asking
from lushan.workflows.prepare import NOT_DRAWN
from lushan.workflows.progress import say_nothing
from lushan.workflows.setup import Setup

FEW_SHOT = "few_shot"


def answer_untuned(
    setup: Setup,
    examples: Sequence[Example],
    *,
    shots: Sequence[Example] = (),
    tell: Callable[[str], None] = say_nothing,
) -> list[Prediction]:
    """Ask the untouched model in the way that the task and the model's family have.

    Args:
        setup: The run.
        examples: What is asked.
        shots: Worked examples put before every prompt, for few-shot.
        tell: Hears of texts that were too long and were cut, whatever `data.over_length` says.
    """
    answers = _answer_untuned(setup, examples, shots)
    if num_cut := sum(each.num_cut_tokens > 0 for each in answers):
        tell(
            f"{num_cut:,} of {len(answers):,} texts were too long for the untouched model and were cut."
        )
    return answers


def _answer_untuned(
    setup: Setup, examples: Sequence[Example], shots: Sequence[Example]
) -> list[Prediction]:
    weights = "bf16" if setup.recipe.model.precision == "bf16" else "fp32"
    facts = describe(setup.base)
    way = setup.task.untuned[facts.asked_as]
    if way == "nothing":
        asked = replace(setup.parts, test=list(examples))
        return load_baseline("nothing").answer(asked, state=setup.state).predictions
    if way == "similarity":
        limit = LengthLimit(setup.limit.max_tokens, "truncate")
        backbone = load_untuned(setup.base, purpose="embed", weights=weights)
        return predict_by_similarity(backbone, examples, setup.state, limit=limit)
    # A prompt is longer than its text: it must not stop a run whose texts fit.
    limit = LengthLimit(facts.context_tokens, "truncate")
    backbone = load_untuned(setup.base, purpose="language", weights=weights)
    generation = setup.recipe.generation
    predictor = Predictor(
        backbone, setup.task, setup.state, "generate", limit, generation=generation
    )
    return predictor.examine(examples, shots=shots)


def what_is_asked(setup: Setup) -> str:
    """Say for people what `answer_untuned` does."""
    if setup.task.untuned[describe(setup.base).asked_as] == "nothing":
        return (
            f"an untouched model cannot be asked for `{setup.recipe.task}`; that nothing is found stands in its "
            "place,"
        )
    return "asking the untouched model"


def run_baselines(run: RunFolder, setup: Setup, *, tell: Callable[[str], None]) -> None:
    """Have every baseline answer the test rows, unless it has already; each is described in `run.json`."""
    told: dict[str, str] = run.get("baselines") or {}
    names = [*setup.task.baselines]
    facts = describe(setup.base)
    if setup.task.untuned[facts.asked_as] == "prompt":
        names.append(FEW_SHOT)
    else:
        tell(f"No few-shot baseline: {_why_not(setup, facts)}.")
    for name in names:
        if run.predictions(name) is not None:
            continue
        made = _few_shot(setup) if name == FEW_SHOT else _classical(setup, name)
        tell(f"Baseline {name}: {made.description}")
        run.save_predictions(name, made.predictions)
        told[name] = made.description
        run.note(baselines=told)


def _why_not(setup: Setup, facts: ModelFacts) -> str:
    if facts.family == "encoder":
        return "an encoder cannot be prompted"
    if facts.why_silent:
        return f"the model {facts.why_silent}"
    return f"an untouched model cannot be asked for `{setup.recipe.task}`"


def _classical(setup: Setup, name: str) -> Baseline:
    made = load_baseline(name).answer(setup.parts, state=setup.state)
    left_out = num_not_drawn(setup)
    if not (made.learns and left_out):
        return made
    told = drawn_of(len(setup.parts.train), left_out)
    return replace(made, description=f"{made.description} Learned from {told}.")


def num_not_drawn(setup: Setup) -> int:
    """Training rows that neither the model nor a baseline has seen, because others were drawn."""
    return setup.ledger.splits["train"].num_dropped.get(NOT_DRAWN, 0)


def _few_shot(setup: Setup) -> Baseline:
    shots = shots_that_fit(setup)
    told = [
        "The untouched model, prompted with worked examples: "
        f"{len(shots)} of the {len(setup.state.shots)} that were drawn fit."
    ]
    predictions = answer_untuned(setup, setup.parts.test, shots=shots, tell=told.append)
    return Baseline(predictions, " ".join(told))


def shots_that_fit(setup: Setup) -> tuple[Example, ...]:
    """Give as many worked examples as leave half of the model's context to the text that is asked about."""
    return asking.shots_that_fit(
        setup.task,
        setup.state,
        Tokenizer.load(setup.base),
        context_tokens=describe(setup.base).context_tokens,
        generation=setup.recipe.generation,
    )

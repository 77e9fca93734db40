"""What the tuned model is measured against: the untouched model, and what a user would otherwise pick."""

from collections.abc import Callable, Sequence
from typing import Literal

from lushan.backbones.encoding import LengthLimit
from lushan.backbones.inspect import describe
from lushan.backbones.load import load_backbone
from lushan.backbones.tokenizer import Tokenizer
from lushan.inference.predict import Predictor
from lushan.inference.similarity import predict_by_similarity
from lushan.model_store.run_folder import RunFolder
from lushan.records import Example, Prediction
from lushan.workflows.setup import Setup


def answer_untuned(
    setup: Setup, examples: Sequence[Example], *, shots: Sequence[Example] = ()
) -> list[Prediction]:
    """Ask the untouched model: a decoder writes one of the labels, an encoder takes the most similar.

    Args:
        setup: The run.
        examples: What is asked.
        shots: Worked examples put before every prompt, for few-shot.
    """
    precision: Literal["bf16", "fp32"] = (
        "bf16" if setup.recipe.model.precision == "bf16" else "fp32"
    )
    facts = describe(setup.base)
    if facts.family == "encoder":
        limit = LengthLimit(setup.limit.max_tokens, "truncate")
        backbone = load_backbone(setup.base, purpose="embed", precision=precision)
        return predict_by_similarity(backbone, examples, setup.state, limit=limit)
    # A prompt is longer than its text: it must not stop a run whose texts fit.
    limit = LengthLimit(facts.context_tokens, "truncate")
    backbone = load_backbone(setup.base, purpose="language", precision=precision)
    predictor = Predictor(backbone, setup.task, setup.state, "generate", limit)
    return predictor.predict(examples, shots=shots)


def run_baselines(run: RunFolder, setup: Setup, *, tell: Callable[[str], None]) -> None:
    """Have every baseline answer the test rows, unless it has already; each is described in `run.json`."""
    # scikit-learn takes a second to import, which training should not wait for.
    from lushan.evaluation import baselines

    told: dict[str, str] = run.get("baselines") or {}
    parts, state = setup.parts, setup.state
    makers: dict[str, Callable[[], baselines.Baseline]] = {
        "majority": lambda: baselines.majority(parts.train, parts.test, state=state),
        "tf_idf": lambda: baselines.tf_idf(
            parts.train,
            parts.validation,
            parts.test,
            state=state,
            metric="micro_f1" if state.multi_label else "accuracy",
        ),
        "few_shot": lambda: baselines.Baseline(*_few_shot(setup)),
    }
    if describe(setup.base).family == "encoder":
        del makers["few_shot"]
        tell("No few-shot baseline: an encoder cannot be prompted.")
    for name, make in makers.items():
        if run.predictions(name) is not None:
            continue
        made = make()
        tell(f"Baseline {name}: {made.description}")
        run.save_predictions(name, made.predictions)
        told[name] = made.description
        run.note(baselines=told)


def _few_shot(setup: Setup) -> tuple[list[Prediction], str]:
    shots = shots_that_fit(setup)
    predictions = answer_untuned(setup, setup.parts.test, shots=shots)
    return predictions, (
        f"The untouched model, prompted with {len(shots)} worked examples "
        f"({len(setup.state.shots)} asked for)."
    )


def shots_that_fit(setup: Setup) -> tuple[Example, ...]:
    """Give as many worked examples as leave half of the model's context to the text that is asked about."""
    tokenizer = Tokenizer.load(setup.base)
    most_tokens = describe(setup.base).context_tokens // 2
    blank = Example("", "", None)
    for num_shots in range(len(setup.state.shots), 0, -1):
        shots = setup.state.shots[:num_shots]
        prompts = setup.task.render(
            blank, setup.state, answer="generate", with_target=False, shots=shots
        )
        encoded = tokenizer.encode([prompt.text for prompt in prompts])
        if max(len(each.ids) for each in encoded) <= most_tokens:
            return shots
    return ()

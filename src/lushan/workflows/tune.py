"""Tune one model on one task: the five steps, in order. Read this file first.

Every phase leaves its result in the run folder, so a killed run goes on where it stopped, to the same weights bit
for bit.
"""

import math
import platform
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import fields, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import transformers

import lushan
from lushan.atomic import write_json
from lushan.backbones.adapters import attach, trained_parts
from lushan.backbones.class_layer import fit_class_layer
from lushan.backbones.compiling import CompiledLayers
from lushan.backbones.hardware import choose_num_threads
from lushan.backbones.inspect import describe
from lushan.backbones.load import Backbone, load_backbone
from lushan.backbones.sources import locate
from lushan.backbones.tokenizer import Tokenizer
from lushan.backbones.trained_layers import (
    compute_layers_twice,
    fuse_trained_layers,
    has_trained_layers,
    leave_trained_layers,
)
from lushan.catalog import load_task
from lushan.data.batching import PackedSource
from lushan.data.feature_store import distinct_tokens
from lushan.errors import CertificateError
from lushan.inference.predict import Predictor
from lushan.model_store.certificate import certify
from lushan.model_store.run_folder import (
    RunFolder,
    check_can_be_told,
    check_is_free,
    check_keeps,
)
from lushan.model_store.tuned_model import load_predictor, model_version, save_model
from lushan.records import Batch, LossSum
from lushan.settings import build
from lushan.training.checkpoint import Checkpoints
from lushan.training.loop import Evaluated, FitSettings, Fitted, Listener, fit
from lushan.training.optimizer import Optimizer, OptimizerSettings
from lushan.training.processes import Team
from lushan.training.sharding import shard
from lushan.workflows.comparison import answer_untuned, run_baselines, what_is_asked
from lushan.workflows.compiling import compiled_layers, library_of
from lushan.workflows.frozen_rows import GiveStates, frozen_states, noted_states
from lushan.workflows.label_curve import run_label_curve
from lushan.workflows.meaning import meaning_of
from lushan.workflows.no_answer import with_threshold
from lushan.workflows.outcome import peak_rss_bytes, write_outcome
from lushan.workflows.prepare import prepare
from lushan.workflows.progress import Tell, say_nothing
from lushan.workflows.recipe import TuneRecipe, with_added_path, with_model_path
from lushan.workflows.reopen import NOTED, digests_of_base, reopen, same_setup
from lushan.workflows.resolve import refuse_what_the_task_lacks, with_usual_answer
from lushan.workflows.setup import Setup, plan
from lushan.workflows.steps_file import StepsFile
from lushan.workflows.validation import Clock, asked_features, validated

PHASES = (
    *("check", "before_evaluation", "compile", "train", "validation", "after_evaluation"),
    *("baselines", "report"),
)
"""What `seconds` in `results.json` tells of; a phase that there was none of took 0."""


def tune(
    data: Path,
    recipe: TuneRecipe,
    *,
    out: Path,
    resume: bool = False,
    overwrite: bool = False,
    tell: Tell,
    listeners: Sequence[Listener] = (),
) -> dict[str, Any]:
    """Run a recipe; the run folder `out` then holds the tuned model, its proof and its report.

    Args:
        data: A file, or a folder with train, validation and test files.
        recipe: What to do; what it leaves open is decided here, and told.
        out: The run folder.
        resume: Go on with the run in `out`.
        overwrite: Replace the run in `out`.
        tell: Takes one line for a person.
        listeners: Hear of steps and evaluations.

    Returns:
        The content of `results.json`; nothing in a process that only helped another (see `processes.py`).

    Raises:
        UserError: If the recipe, the data or the model is wrong; nothing is written then.
    """
    team = Team()
    with ExitStack() as at_end:
        with closing(team):
            if not team.leads:
                _help(data, team)
                return {}
            try:
                run, setup = _opened(
                    data, recipe, out=out, resume=resume, overwrite=overwrite, tell=tell
                )
                at_end.callback(run.close)  # a notebook keeps what was there when it failed
                write_json(run.path / "ledger.json", setup.ledger.as_dict())
                torch.set_num_threads(run.get("num_threads"))
            except BaseException:
                team.share(None)  # nothing to help with
                raise
            predictor = _trained(run, setup, team=team, tell=tell, listeners=listeners)
        if run.predictions("after") is None:
            with run.clock("after_evaluation"):
                tell(f"After: asking the tuned model about {len(setup.parts.test):,} test rows.")
                run.save_predictions("after", predictor.examine(setup.parts.test))
        del predictor  # the tuned and the untouched model are never in memory together
        _ask_before(run, setup, tell=tell)
        if setup.recipe.baselines:
            with run.clock("baselines"):
                run_baselines(run, setup, tell=tell)
        if setup.recipe.data.label_curve:
            with run.clock("label_curve"):
                run_label_curve(
                    run,
                    setup,
                    untrained=partial(untrained, tell=say_nothing),
                    train=partial(train_apart, tell=say_nothing),
                    tell=tell,
                )
        with run.clock("report"):
            return write_outcome(run, setup)


def _opened(
    data: Path, recipe: TuneRecipe, *, out: Path, resume: bool, overwrite: bool, tell: Tell
) -> tuple[RunFolder, Setup]:
    if resume:
        return reopen(data, recipe, out=out, tell=tell)
    return _begin(data, recipe, out=out, overwrite=overwrite, tell=tell)


def _ask_before(run: RunFolder, setup: Setup, *, tell: Tell) -> None:
    """Ask the untouched model, from its folder; only now, so that training begins at once."""
    if run.predictions("before") is None:
        test = setup.parts.test
        with run.clock("before_evaluation"):
            tell(f"Before: {what_is_asked(setup)} about {len(test):,} test rows.")
            run.save_predictions("before", answer_untuned(setup, test, tell=tell))


def _begin(
    data: Path, recipe: TuneRecipe, *, out: Path, overwrite: bool, tell: Tell
) -> tuple[RunFolder, Setup]:
    """Check everything and decide what is open; only then is anything written."""
    started = time.perf_counter()
    check_is_free(out, overwrite=overwrite)
    task = load_task(recipe.task)
    recipe = with_usual_answer(recipe, task)
    refuse_what_the_task_lacks(recipe, task)
    base = locate(recipe.model.name)
    added = [] if recipe.data.added is None else [Path(recipe.data.added)]
    check_can_be_told(out, data, base, *added)
    if overwrite:
        check_keeps(out, needed=(data, base, *added))
    recipe = with_added_path(with_model_path(recipe, out=out))
    facts = describe(base)
    tokenizer = Tokenizer.load(base)
    prepared = prepare(data, task=task, recipe=recipe, tell=tell)
    setup, decisions, notes = plan(
        prepared, recipe, task=task, base=base, facts=facts, tokenizer=tokenizer, tell=tell
    )
    threads = choose_num_threads()
    choices = [each.as_dict() for each in decisions]
    choices.append({"name": "threads", "value": int(threads.value), "why": threads.why})
    for note in notes:
        tell(note)
    for each in choices:
        tell(f"Chose {each['name']} = {each['value']}: {each['why']}.")
    status = {
        "data": str(data.resolve()),
        "fingerprint": prepared.fingerprint,
        "digests": dict(prepared.digests),
        **digests_of_base(base),
        "num_threads": int(threads.value),
        "choices": choices,
        "notes": notes,
        "seconds": {**dict.fromkeys(PHASES, 0.0), "check": time.perf_counter() - started},
        "versions": {
            "lushan": lushan.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    # Nothing that may fail comes behind it: a notebook would keep its lock.
    run = RunFolder.create(
        out, recipe=setup.recipe.model_dump(), status=status, overwrite=overwrite
    )
    return run, setup


def _help(data: Path, team: Team) -> None:
    """Train along with the leader, as soon as it says what."""
    told: dict[str, Any] | None = team.share()
    if told is None:
        return
    recipe = build(TuneRecipe, told["recipe"], source="recipe.yaml")
    setup = same_setup(data, recipe, noted=told)
    torch.set_num_threads(told["num_threads"])
    library_of(recipe, found=told["library"])  # or the processes would round in different ways
    predictor = untrained(setup, tell=say_nothing)
    checkpoints = Checkpoints(Path(told["checkpoints"]))
    layers = compiled_layers(predictor.backbone, recipe, gain_decides=False, tell=say_nothing)
    train(predictor, setup, checkpoints=checkpoints, layers=layers, tell=say_nothing)


def _trained(
    run: RunFolder, setup: Setup, *, team: Team, tell: Tell, listeners: Sequence[Listener]
) -> Predictor:
    """Give the tuned model: train it, or load it if that is done."""
    checkpoints = Checkpoints(run.checkpoints)
    if run.get("training") is not None:
        team.share(None)
        checkpoints.remove()
        return load_predictor(run.path)
    library = library_of(setup.recipe, found=run.get("library"), tell=tell)
    team.share({
        "recipe": run.recipe(),
        "checkpoints": str(run.checkpoints.resolve()),
        "library": library,
        **{name: run.get(name) for name in (*NOTED, "num_threads")},
    })
    predictor = untrained(setup, tell=tell)
    backbone = predictor.backbone
    layers = _compiled(run, backbone, setup.recipe, tell=tell)
    run.note(compiled=layers is not None, library=library)
    steps_file = StepsFile(run.path / "steps.jsonl", first_step=checkpoints.last_step() + 1)
    with closing(steps_file) as steps:
        fitted = train(
            predictor,
            setup,
            checkpoints=checkpoints,
            layers=layers,
            frozen=partial(noted_states, run),
            clock=partial(run.clock, "validation"),
            tell=tell,
            listeners=[steps, *listeners],
        )
    with run.clock("validation"):
        predictor, points = with_threshold(predictor, setup.parts.validation, tell=tell)
    with run.clock("report"):
        meaning = meaning_of(setup, predictor, base_digest=run.get("base_digest"))
        save_model(run.path / "model", backbone, meaning)
        certify(run.path, predictor, setup.parts.test)
        tell("Certified: the saved model, loaded in a fresh process, gives the same answers.")
    progress = fitted.progress
    best = progress.best
    kept = best if setup.recipe.training.keep == "best" else progress.validation[-1]
    run.note(
        training={
            "num_tokens": progress.num_tokens,
            "seconds": progress.seconds,
            "validation": progress.validation,
            "best_epoch": best["epoch"],
            "kept_epoch": kept["epoch"],
            "num_weights": trained_parts(backbone.model),
            "packing": backbone.packing_mode,
            "thresholds": points,
        },
        peak_rss_bytes=peak_rss_bytes(),
        seconds={**run.get("seconds"), "train": progress.seconds},
    )
    checkpoints.remove()
    return replace(predictor, version=model_version(run.path / "model"))


def _compiled(
    run: RunFolder, backbone: Backbone, recipe: TuneRecipe, *, tell: Tell
) -> CompiledLayers | None:
    """Compile the layers where the recipe says so; a run that is resumed does as before."""
    with run.clock("compile") if recipe.engine.compile else nullcontext():
        return compiled_layers(
            backbone,
            recipe,
            found=run.get("compiled"),
            gain_decides="engine.compile" in {each["name"] for each in run.get("choices")},
            tell=tell,
        )


def tuned_apart(setup: Setup, *, tell: Tell) -> tuple[Predictor, int]:
    """Train a model that is not kept; gives it and its number of optimizer steps."""
    predictor = untrained(setup, tell=tell)
    return predictor, train_apart(predictor, setup, tell=tell)


def train_apart(predictor: Predictor, setup: Setup, *, tell: Tell) -> int:
    """Train a model to its last weights, outside of a run; gives the number of optimizer steps."""
    layers = compiled_layers(predictor.backbone, setup.recipe, gain_decides=True, tell=tell)
    with TemporaryDirectory(prefix="lushan-") as folder:
        checkpoints = Checkpoints(Path(folder))
        unwatched = _unwatched(setup)
        fitted = train(predictor, unwatched, checkpoints=checkpoints, layers=layers, tell=tell)
    return int(fitted.progress.validation[-1]["step"])


def _unwatched(setup: Setup) -> Setup:
    """Leave one validation row: the last weights are kept, so asking about all after every epoch would decide nothing."""
    first = list(takewhile(lambda each: each.example_index == 0, setup.features["validation"]))
    return replace(
        setup,
        parts=replace(setup.parts, validation=setup.parts.validation[:1]),
        features={**setup.features, "validation": first},
    )


def untrained(setup: Setup, *, tell: Tell) -> Predictor:
    """Load the pretrained model with what is to be trained, ready to train and to answer."""
    recipe, adapter = setup.recipe, setup.recipe.adapter
    precision: Literal["bf16", "fp32"] = "bf16" if recipe.model.precision == "bf16" else "fp32"
    layer = setup.task.layer(setup.state, answer=recipe.answer)
    backbone = load_backbone(
        setup.base,
        **layer._asdict(),
        precision=precision,
        seed=recipe.seed,
        tokenizer=setup.tokenizer,
    )
    fit_class_layer(backbone, setup.base, layer, seed=recipe.seed)
    attach(
        backbone,
        method=adapter.method,
        layers=adapter.layers,
        rank=adapter.rank,
        alpha=adapter.alpha,
        dropout=adapter.dropout,
    )
    if not _is_spread(recipe):  # else layers move one by one, when each is cut
        backbone.model.to(Team().device)
    if recipe.engine.gradient_checkpointing:
        compute_layers_twice(backbone)
    fuse_trained_layers(backbone)
    if has_trained_layers(backbone):
        tell("Layers run fused: what stands between their products takes one pass each.")
    if backbone.packing_mode != "packed":
        tell(
            f"This architecture runs documents `{backbone.packing_mode}`: slower, with the same results."
        )
    num_weights = trained_parts(backbone.model)
    tell(f"Training {num_weights['trained']:,} weights; {num_weights['frozen']:,} stay frozen.")
    return Predictor(
        backbone,
        setup.task,
        setup.state,
        recipe.answer,
        setup.limit,
        generation=recipe.generation,
    )


def train(
    predictor: Predictor,
    setup: Setup,
    *,
    checkpoints: Checkpoints,
    layers: CompiledLayers | None = None,
    frozen: GiveStates = frozen_states,
    clock: Clock = nullcontext,
    tell: Tell,
    listeners: Sequence[Listener] = (),
) -> Fitted:
    """Train by gradient, watching the validation rows; the model then holds the weights to keep.

    Args:
        predictor: Of `untrained`.
        setup: What to train on.
        checkpoints: Goes on from the last, if there is one.
        layers: Compiled layers to train with; None trains with them as they are.
        frozen: Gives what the layers that stay frozen make of the rows, where that is kept.
        clock: Measures the time of asking about the validation rows.
        tell: Takes one line for a person.
        listeners: Hear of steps and evaluations.
    """
    recipe, settings = setup.recipe, setup.recipe.training
    assert settings.epochs and settings.learning_rate and settings.head_learning_rate  # noqa: S101, PT018
    assert recipe.engine.batch_tokens  # noqa: S101 - a resolved recipe
    backbone, team = predictor.backbone, Team()
    is_spread = _is_spread(recipe)
    if is_spread:
        shard(backbone, team)
    source = PackedSource(
        setup.features["train"],
        rows_per_step=settings.rows_per_step,
        seed=recipe.seed,
        max_batch_tokens=recipe.engine.batch_tokens,
        process=team.place,
        device=backbone.device,
        even=is_spread,
    )
    optimizer = Optimizer(
        backbone.model,
        OptimizerSettings(
            **settings.model_dump(include={x.name for x in fields(OptimizerSettings)})
        ),
        num_steps=settings.epochs * source.num_steps_per_epoch,
        read_rows=backbone.read_rows(distinct_tokens(setup.features["train"]).tolist()),
    )
    started = time.perf_counter()
    backbone.frozen = frozen(setup, backbone, tell=tell)
    frozen_seconds = time.perf_counter() - started
    asked = asked_features(setup, predictor, tell=tell)
    evaluate = partial(validated, setup, predictor, asked, clock)

    def loss(batch: Batch) -> LossSum:
        with layers.in_use() if layers else nullcontext():
            return setup.task.loss(backbone, batch, setup.state, dropout=recipe.model.head_dropout)

    fitted = fit(
        backbone.model,
        source,
        settings=FitSettings(settings.epochs, settings.patience, settings.keep),
        optimizer=optimizer,
        loss=loss,
        evaluate=evaluate,
        checkpoints=checkpoints,
        listeners=listeners,
    )
    if is_spread:
        _put_together(setup, predictor, optimizer, team)
    # Put together, a model that was spread over GPUs answers on the processor, which rounds in another way.
    is_elsewhere = is_spread and team.device.type != "cpu"
    if settings.keep == "best" and team.leads and not is_elsewhere:
        _refuse_another_score(fitted, evaluate(), runs_code=recipe.task_settings.run_code)
    leave_trained_layers(backbone)  # what is measured from here on is what is saved
    backbone.model.to("cpu")  # where everybody who loads it answers
    backbone.frozen = setup.frozen
    fitted.progress.seconds += frozen_seconds
    return fitted


def _refuse_another_score(fitted: Fitted, again: Evaluated, *, runs_code: bool) -> None:
    best = fitted.progress.best
    # A program that runs into its limit passes at one time and fails at another; the loss is the same then.
    if again.score == best["score"] or (runs_code and math.isclose(again.loss, best["loss"])):
        return
    raise CertificateError(
        f"The best weights scored {best['score']} on the validation rows, but {again.score} when asked again."
    )


def _is_spread(recipe: TuneRecipe) -> bool:
    """Whether layers are spread over the processes; what is trained apart, by the leader alone, is whole."""
    return recipe.engine.spread_layers and Team().place[1] > 1


def _put_together(setup: Setup, predictor: Predictor, optimizer: Optimizer, team: Team) -> None:
    """Give the leader a whole model with the trained weights, in main memory; the others have nothing left to do."""
    weights = optimizer.weights()
    if team.leads:
        whole = untrained(setup, tell=say_nothing).backbone.model
        for name, weight in whole.named_parameters():
            weight.data.copy_(weights[name])
        predictor.backbone.model = whole.eval()

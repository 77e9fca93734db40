"""Whether a run compiles its layers: decided before it begins, tried before its first step, the same when resumed."""

from collections.abc import Callable

import torch

from lushan.backbones import native
from lushan.backbones.compiling import CompiledLayers, Work, compile_layers
from lushan.backbones.hardware import choose_device
from lushan.backbones.inspect import ModelFacts
from lushan.backbones.load import Backbone
from lushan.backbones.sources import cache_folder
from lushan.data.batching import pack
from lushan.errors import RunError
from lushan.records import Batch, Features
from lushan.training.processes import Team
from lushan.workflows.progress import Tell, say_nothing
from lushan.workflows.recipe import TuneRecipe

_PROBE_LENGTHS = tuple(range(9, 41, 2))
"""Tokens of the documents that layers are compiled on, whatever the data: a resumed run then has the same code."""


def work_of(recipe: TuneRecipe, facts: ModelFacts, *, precision: str, num_threads: int) -> Work:
    """Say which layers would be compiled: those that are trained, for the others are not computed at every pass."""
    method = recipe.adapter.method
    trained = {"head": 0, "top": recipe.adapter.layers}.get(method, facts.num_layers)
    return Work(facts, precision, method, trained, num_threads)


def compiled_layers(
    backbone: Backbone,
    recipe: TuneRecipe,
    *,
    found: bool | None = None,
    gain_decides: bool,
    tell: Callable[[str], None],
) -> CompiledLayers | None:
    """Compile the layers if the recipe says so; None if they run as they are.

    Args:
        backbone: Ready to train.
        recipe: Resolved.
        found: What this run, which is resumed, used so far; None if it is new.
        gain_decides: Whether layers that turn out to be no faster are left alone.
        tell: Takes one line for a person.

    Raises:
        RunError: If other layers than before, or than in another process, would run.
    """
    if recipe.engine.compile is not True:
        return None
    team = Team()
    work = work_of(
        recipe,
        backbone.facts,
        precision=recipe.model.precision,
        num_threads=torch.get_num_threads(),
    )

    def make(*, gain_decides: bool) -> CompiledLayers | None:
        folder = cache_folder()
        return compile_layers(
            backbone, _probe(backbone), work, cache=folder, gain_decides=gain_decides, tell=tell
        )

    layers = None
    if team.leads and found is not False:
        layers = make(gain_decides=gain_decides and found is None)
    agreed = team.share(layers is not None)
    if agreed and not team.leads:
        layers = make(gain_decides=False)
    if (found or agreed) and layers is None:
        raise RunError(
            "This run trains with compiled layers, and they cannot be compiled now. Give back the C++ compiler "
            "and the versions that it began with, or start again with `--overwrite`."
        )
    return layers


def library_of(recipe: TuneRecipe, *, found: str | None, tell: Tell = say_nothing) -> str:
    """Name the functions that we compiled (`native.py`) and a run computes with, as in bfloat16 or with AdamW on a processor.

    Args:
        recipe: Resolved.
        found: What this run, which is resumed, computed with so far: a name, or nothing; None if it is new.
        tell: Hears why there are none, where they could be used.

    Raises:
        RunError: If that has changed: it would round otherwise than a run that was not stopped. The others are sent home.
    """
    team = Team()
    is_spread = recipe.engine.spread_layers and team.place[1] > 1  # moves weights in another way
    moves = recipe.training.optimizer == "adamw" and not is_spread
    can_use = (recipe.model.precision == "bf16" or moves) and choose_device().value == "cpu"
    why = native.why_missing() if can_use else "it computes in another way"
    name = "" if why else native.identity()
    if can_use and why:
        tell(f"Torch computes what has compiled functions elsewhere: {why}.")
    if found is None or found == name:
        return name
    if team.leads:
        team.share(None)  # the others have nothing to help with
    raise RunError(_why_other_functions(found, name, why))


def _why_other_functions(found: str, name: str, why: str) -> str:
    if not name:
        return (
            f"This run computes with compiled functions, which it cannot now: {why}. Give back what is missing, or start "
            "again with `--overwrite`."
        )
    if not found:
        return (
            "This run computes without compiled functions, which were missing when it began; they would round otherwise. "
            "Leave them out with the environment variable `CXX=none`, or start again with `--overwrite`."
        )
    return (
        f"This run computes with compiled functions (`{found}`) that are not those of now (`{name}`), which may round "
        "otherwise. Give back the compiler and the versions of torch and Lushan that it began with, or start again with "
        "`--overwrite`."
    )


def _probe(backbone: Backbone) -> Batch:
    top = backbone.facts.vocabulary_size
    documents = [
        Features(tuple((97 * length + 31 * place) % top for place in range(length)), "", number)
        for number, length in enumerate(_PROBE_LENGTHS)
    ]
    return pack(documents, device=backbone.device)

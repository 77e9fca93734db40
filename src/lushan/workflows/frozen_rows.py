"""What the layers that stay frozen make of the rows of a run: computed once, read from then on."""

from functools import partial
from typing import Protocol

from lushan.backbones.adapters import num_frozen_layers
from lushan.backbones.frozen import FrozenStates
from lushan.backbones.heads import read_position
from lushan.backbones.inspect import file_digest
from lushan.backbones.load import Backbone
from lushan.backbones.sources import cache_folder
from lushan.data.feature_store import Joined
from lushan.inference.frozen_cache import FrozenCache, FrozenPart
from lushan.model_store.run_folder import RunFolder
from lushan.model_store.tuned_model import weights_digest
from lushan.training.processes import Team
from lushan.workflows.progress import Tell
from lushan.workflows.setup import Setup


class GiveStates(Protocol):
    """Gives the states of a setup's rows, as `frozen_states` does."""

    def __call__(self, setup: Setup, backbone: Backbone, *, tell: Tell) -> FrozenStates | None:
        """Give them; None where they are not kept."""
        ...


def noted_states(
    run: RunFolder, setup: Setup, backbone: Backbone, *, tell: Tell
) -> FrozenStates | None:
    """Give the states of a run's rows, and note in `run.json` whether there are any: it goes on as it began.

    Args:
        run: Where it is noted, before the first step.
        setup: As for `frozen_states`.
        backbone: As for `frozen_states`.
        tell: Takes one line for a person.

    Raises:
        RunError: If the run read states so far, and the cache has no room for them now.
    """
    states = frozen_states(setup, backbone, found=run.get("reads_frozen_states"), tell=tell)
    run.note(reads_frozen_states=states is not None)
    return states


def frozen_states(
    setup: Setup, backbone: Backbone, *, found: bool | None = None, tell: Tell
) -> FrozenStates | None:
    """Run the rows of training and validation through the layers that stay frozen, once.

    Read or computed in every pass, states differ in their last bits: all processes of a run do the same.

    Args:
        setup: Whose rows; states that it brings along are taken.
        backbone: With its adapter.
        found: Whether this run, which is resumed, read states so far; None if it is new.
        tell: Takes one line for a person.

    Returns:
        None where nothing is frozen, the cache has no room, or the run did without so far.

    Raises:
        RunError: If the run, or its leader, reads states, and the cache has no room for them here.
    """
    if setup.frozen is not None:
        return setup.frozen
    adapter = setup.recipe.adapter
    depth = num_frozen_layers(backbone, method=adapter.method, layers=adapter.layers)
    if depth == 0 or adapter.cache_gigabytes == 0:
        return None
    read = partial(_kept_states, setup, backbone, depth, tell=tell)
    team, states = Team(), None
    if found is False:
        tell(f"Computing the {depth} frozen layers anew in every pass, as this run did so far.")
    elif team.leads:
        states = read(is_needed=found is True)
    is_read = team.share(states is not None)
    return read(is_needed=True) if is_read and not team.leads else states


def _kept_states(
    setup: Setup, backbone: Backbone, depth: int, *, is_needed: bool, tell: Tell
) -> FrozenStates | None:
    adapter, base = setup.recipe.adapter, setup.base
    part = FrozenPart(
        depth=depth,
        position=read_position(backbone.plain_model) if adapter.method == "head" else "all",
        identity=(
            *(weights_digest(base), file_digest(base / "config.json")),
            backbone.tokenizer.fingerprint,
        ),
    )
    cache = FrozenCache(cache_folder() / "frozen", adapter.cache_gigabytes * 1e9)
    features = Joined(setup.features["train"], setup.features["validation"])
    return cache.states(backbone, part, features, is_needed=is_needed, tell=tell)

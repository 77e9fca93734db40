"""What the layers that stay frozen make of the rows of a run: computed once, read from then on."""

from collections.abc import Callable

from lushan.backbones.adapters import num_frozen_layers
from lushan.backbones.frozen import FrozenStates
from lushan.backbones.heads import read_position
from lushan.backbones.load import Backbone
from lushan.backbones.sources import cache_folder
from lushan.data.feature_store import Joined
from lushan.inference.frozen_cache import FrozenCache, FrozenPart
from lushan.model_store.tuned_model import weights_digest
from lushan.workflows.setup import Setup


def frozen_states(
    setup: Setup, backbone: Backbone, *, tell: Callable[[str], None]
) -> FrozenStates | None:
    """Run the rows of training and validation through the layers that stay frozen, once.

    Args:
        setup: Whose rows; states that it brings along are taken.
        backbone: With its adapter.
        tell: Takes one line for a person.

    Returns:
        None where nothing is frozen, or the cache has no room.
    """
    if setup.frozen is not None:
        return setup.frozen
    adapter = setup.recipe.adapter
    depth = num_frozen_layers(backbone, method=adapter.method, layers=adapter.layers)
    if depth == 0 or adapter.cache_gigabytes == 0:
        return None
    part = FrozenPart(
        depth=depth,
        position=read_position(backbone.plain_model) if adapter.method == "head" else "all",
        identity=(weights_digest(setup.base), backbone.tokenizer.fingerprint),
    )
    cache = FrozenCache(cache_folder() / "frozen", adapter.cache_gigabytes * 1e9)
    features = Joined(setup.features["train"], setup.features["validation"])
    return cache.states(backbone, part, features, tell=tell)

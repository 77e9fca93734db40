"""The models of a server: loaded, and shown to answer as their certificates say before they are asked anything else."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lushan.backbones.load import Backbone
from lushan.backbones.many_adapters import ManyAdapters
from lushan.backbones.sources import locate
from lushan.errors import LushanError, RunError, SettingError
from lushan.inference.mixed import SharedLayers
from lushan.inference.predict import Predictor
from lushan.model_store.certificate import replay
from lushan.model_store.resident import Resident
from lushan.model_store.tuned_model import is_tuned_model
from lushan.serving.errors import UnknownModelError

CERTIFICATE = "certificate.json"


@dataclass(frozen=True)
class HostedModel:
    """One model that a server answers with."""

    name: str
    """What requests call it."""
    predictor: Predictor
    folder: Path
    """Its weights, or its adapter, and what they mean."""
    run: Path | None
    """The folder that `lushan tune` wrote; None for an untuned model."""
    is_tuned: bool
    certified: bool
    """Whether its certificate's probes were answered here, and as the certificate says."""
    layers: SharedLayers | None = None
    """What it computes with together with others of the same base; None where it computes alone."""
    loaded_at: int = field(default_factory=lambda: int(time.time()))
    """Seconds since 1970."""

    @property
    def writes_with(self) -> tuple[Backbone, ManyAdapters | None]:
        """The backbone that writes, and what adapts it where others write with it too."""
        return (self.predictor.backbone, None) if self.layers is None else self.layers

    @property
    def reads_conversations(self) -> bool:
        """Whether its task reads messages, not columns."""
        return "messages" in self.predictor.task.columns.all_names


def find_model(models: Mapping[str, HostedModel], name: str) -> HostedModel:
    """Give the model that a request names.

    Raises:
        UnknownModelError: If there is none of this name; lists those there are.
    """
    if name not in models:
        raise UnknownModelError(name, list(models))
    return models[name]


def host(target: str, resident: Resident) -> HostedModel:
    """Load what a user named: a run folder, a model folder, or a model of the cache.

    Args:
        target: As on the command line.
        resident: Takes models, so that those of one base share it; one of the same name is replaced. It says how
            weights are held.

    Raises:
        RunError: If a run does not answer as its certificate says.
        ModelError: If there is no such model, or it cannot be loaded.
    """
    path = locate(target)
    folder = path / "model" if (path / "model").is_dir() else path
    if is_tuned_model(folder) or (path / "recipe.yaml").is_file():
        return _host_run(folder, resident)
    return _host_untuned(folder, resident)


def names_of(targets: Sequence[str]) -> list[str]:
    """Give the names under which models will be served: those of their folders.

    Raises:
        ModelError: If there is no such model.
        SettingError: If two have the same name.
    """
    names = [_name_of(locate(each)) for each in targets]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SettingError(
            f"Two models would be called `{twice[0]}`. Rename the folder of one, or serve one of them."
        )
    return names


def _name_of(path: Path) -> str:
    folder = path.resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def _host_run(folder: Path, resident: Resident) -> HostedModel:
    run = folder.parent if folder.name == "model" else folder
    is_certified = (run / CERTIFICATE).is_file()

    def check(predictor: Predictor) -> None:
        if is_certified:
            _replay(run, predictor)

    name = resident.load(folder, name=_name_of(folder), replaces=True, check=check)
    model = resident.model(name)
    return HostedModel(
        name,
        model.predictor,
        folder,
        run,
        is_tuned=True,
        certified=is_certified,
        layers=model.layers,
    )


def _replay(run: Path, predictor: Predictor) -> None:
    try:
        replay(run, predictor)
    except LushanError as error:
        raise RunError(f"`{run}` is not what its certificate is about. {error} {REMEDY}") from None


REMEDY = "It is not served. Restore its `model` folder, or tune again."


def _host_untuned(folder: Path, resident: Resident) -> HostedModel:
    model = resident.model(resident.load_untuned(folder, name=_name_of(folder), replaces=True))
    return HostedModel(
        model.name,
        model.predictor,
        folder,
        None,
        is_tuned=False,
        certified=False,
        layers=model.layers,
    )

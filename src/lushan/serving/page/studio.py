"""What the page knows of the server, and what all its tabs and visitors share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fastapi import FastAPI

from lushan.errors import RunError
from lushan.serving.hosted import HostedModel, find_model, host, names_of
from lushan.serving.page.texts import Texts
from lushan.serving.page.tuning import Tuner
from lushan.serving.proof import prove
from lushan.serving.worker import Worker


@dataclass(frozen=True, slots=True)
class Studio:
    """The server behind the page."""

    app: FastAPI
    tuner: Tuner = field(default_factory=Tuner)

    @property
    def models(self) -> Mapping[str, HostedModel]:
        """Name to model, as they are now."""
        return self.app.state.models

    @property
    def worker(self) -> Worker:
        """What computes."""
        return self.app.state.worker

    @property
    def store(self) -> Path | None:
        """The folder of runs and uploads; None where the server keeps none."""
        return self.app.state.store

    def needed_store(self) -> Path:
        """Give the folder of runs and uploads.

        Raises:
            RunError: If the server keeps none.
        """
        if self.store is None:
            raise RunError("This server has no store folder. Start it with `--store FOLDER`.")
        return self.store

    def model(self, name: str | None) -> HostedModel:
        """Give a model.

        Raises:
            UnknownModelError: If there is none of that name (any more).
        """
        return find_model(self.models, name or "")

    async def load(self, run: Path) -> str:
        """Take a tuned model into the server; gives its name.

        Raises:
            RunError: If it does not answer as its certificate says, or one of its name is served from another folder.
        """
        self._refuse_taken_name(run)
        loading = partial(host, str(run), self.app.state.resident)
        hosted = await self.worker.run(loading, has_deadline=False)
        await prove(hosted, self.worker)
        self.app.state.models[hosted.name] = hosted
        self.worker.forget_replaced()
        return hosted.name

    def _refuse_taken_name(self, run: Path) -> None:
        (name,) = names_of([str(run)])
        served = self.models.get(name)
        if served is not None and (served.run or served.folder).resolve() != run.resolve():
            raise RunError(
                f"A model `{name}` is served already, from another folder. Rename the folder of this run, and serve it "
                "with `lushan serve`."
            )

    def choices(
        self, texts: Texts, fits: Callable[[HostedModel], bool] = lambda _: True
    ) -> list[tuple[str, str]]:
        """List models as a person reads them, each with its name; tuned ones first."""
        found = sorted(filter(fits, self.models.values()), key=lambda each: not each.is_tuned)
        return [
            (f"{each.name} ({texts('tuned' if each.is_tuned else 'untouched')})", each.name)
            for each in found
        ]

"""`lushan doctor`: what this machine has and what is used because of it; or whether a model or an export is the certified one."""

import dataclasses
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from lushan.cli.console import (
    JsonOption,
    SeedOption,
    WeightsOption,
    emit_json,
    quick_imports,
    show_table,
    tell,
)
from lushan.errors import CertificateError, RunError, SettingError

GIBIBYTE = 1 << 30
PACKAGES = ("lushan", "torch", "transformers", "tokenizers", "peft", "accelerate", "scikit-learn")


def command(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            help="A run or an export, which is held to its certificate; else the machine.",
        ),
    ] = None,
    *,
    again: Annotated[
        bool, typer.Option("--again", help="Measure anew; the machine was busy the last time.")
    ] = False,
    weights: WeightsOption = "auto",
    as_json: JsonOption = False,
    seed: SeedOption = 0,
) -> None:
    """Tell what this machine can do, what will be used, and why; or whether a model or an export is the certified one."""
    del seed  # every command takes it; nothing here is random
    if run is not None:
        if again:
            raise SettingError(
                "`--again` has no effect with a run: nothing is measured. Remove it."
            )
        _prove(run, weights=weights, as_json=as_json)
        return
    if weights != "auto":
        raise SettingError("`--weights` has no effect without a run. Remove it, or name a run.")
    findings = _examine(again=again)
    if as_json:
        emit_json(findings)
    else:
        _show(findings)


def _prove(run: Path, *, weights: str, as_json: bool) -> None:
    with quick_imports():
        from lushan.model_store.certificate import replay
        from lushan.model_store.export_certificate import is_export_folder
        from lushan.model_store.tuned_model import load_predictor

    if is_export_folder(run):
        _prove_export(run, weights=weights, as_json=as_json)
        return
    predictor = load_predictor(run, weights=weights)
    try:
        difference = replay(run, predictor)
    except CertificateError as error:
        raise RunError(f"`{run}` is not what was certified. {error}") from None
    tell(
        f"`{run}` is what was certified, version {predictor.version}: the probes are answered as they were (largest "
        f"difference {difference:.2g}, weights held in {predictor.backbone.weight_form or 'fp32'})."
    )
    if as_json:
        found = {"run": str(run), "model_version": predictor.version}
        emit_json({**found, "largest_difference": difference})


def _prove_export(folder: Path, *, weights: str, as_json: bool) -> None:
    from lushan.model_store.export_certificate import replay_export

    if weights != "auto":
        raise SettingError(
            f"`--weights` has no effect with an export: `{folder}` is asked through the program that loads it. Remove it."
        )
    try:
        found = replay_export(folder)
    except CertificateError as error:
        raise RunError(f"`{folder}` is not what was certified. {error}") from None
    tell(
        f"`{folder}` is what was certified, as `{found['form']}` of version {found['model_version']}: {found['program']} "
        f"answers the probes as it did (largest difference {found['largest_difference']:.2g})."
    )
    if as_json:
        emit_json({"export": str(folder), **found})


def _examine(*, again: bool) -> dict[str, Any]:
    from lushan.backbones import hardware, native
    from lushan.backbones.sources import cache_folder

    cache = cache_folder()
    device = hardware.choose_device()
    speed = hardware.measure(device.value, cache=cache, again=again)
    choices = {
        "device": device,
        "threads": hardware.choose_num_threads(),
        "precision": hardware.choose_precision("auto", device.value, cache=cache),
        "functions": native.choose_functions(),
    }
    return {
        "machine": dataclasses.asdict(hardware.machine()),
        "speed": dataclasses.asdict(speed),
        "choices": [{"name": name, **dataclasses.asdict(made)} for name, made in choices.items()],
        "cache": {"path": str(cache), "free_bytes": shutil.disk_usage(_existing(cache)).free},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
    }


def _existing(folder: Path) -> Path:
    """Give the folder, or the nearest one above it that exists."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def _show(findings: dict[str, Any]) -> None:
    found, speed, cache = findings["machine"], findings["speed"], findings["cache"]
    rows = [
        ("processor", f"{found['processor']}, {found['num_cores']} cores"),
        ("features", " ".join(found["features"]) or "not told by this system"),
        ("memory", f"{found['memory_bytes'] / GIBIBYTE:.1f} GiB"),
        ("accelerators", ", ".join(found["accelerators"]) or "none"),
        (f"fp32 on {_where(speed)}", f"{speed['fp32_gflops']:,.0f} GFLOP/s"),
        (f"bf16 on {_where(speed)}", f"{speed['bf16_gflops']:,.0f} GFLOP/s"),
        ("models are kept in", f"{cache['path']} ({cache['free_bytes'] / GIBIBYTE:.0f} GiB free)"),
        (
            "versions",
            ", ".join(f"{name} {number}" for name, number in findings["versions"].items()),
        ),
    ]
    show_table(("this machine", ""), rows)
    chosen = [(each["name"], each["value"], each["why"]) for each in findings["choices"]]
    show_table(("will be used", "", "because"), chosen)


def _where(speed: dict[str, Any]) -> str:
    return "one core" if speed["device"] == "cpu" else str(speed["device"])

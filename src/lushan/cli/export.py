"""`lushan export`: a run's model in a form that other programs load."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lushan.cli.console import (
    JsonOption,
    RunArgument,
    SeedOption,
    emit_json,
    quick_imports,
    show_table,
    tell,
)


def command(
    run: RunArgument,
    *,
    to: Annotated[str, typer.Option("--to", metavar="FORM", help="hf, gguf, onnx or openvino.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write here, not into RUN/exports."),
    ] = None,
    quantise: Annotated[
        str | None,
        typer.Option(
            "--quantise",
            metavar="HOW",
            help="f16, q8_0 or q4_0 (gguf); none or int8 (onnx, openvino); none (hf).",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DATA", help="Score on these rows, not on the run's own."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the export in --out.")
    ] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Write a run's model in a form that other programs load, and tell what quality that costs."""
    with quick_imports():
        from lushan.workflows.export import export

    result = export(
        run,
        to=to,
        out=out,
        quantise=quantise,
        data=data,
        overwrite=overwrite,
        seed=seed,
        tell=tell,
    )
    show_export(result)
    if as_json:
        emit_json(result)


def show_export(result: dict[str, Any]) -> None:
    """Print what the export was held against, and where it is."""
    quality, program = result["quality"], result["program"]
    if "largest_difference" in program:
        measured = f"its scores differ by at most {program['largest_difference']:.2g} from those"
    else:
        measured = f"{program['equal_tokens']:.1%} of the tokens that it would write are those"
    tell(f"{program['name']} loads it: {measured} of Lushan with the same weights.")
    if "agreement" in quality:
        found = quality["agreement"]
        tell(
            f"It answers {found['value']:.1%} of {quality['num_examples']:,} rows as the run does "
            f"({found['low']:.1%} to {found['high']:.1%})."
        )
    if "lost_nats_per_token" in quality:
        lost = quality["lost_nats_per_token"]
        tell(
            f"The truth is less likely by {lost['value']:.4f} per token ({lost['low']:.4f} to {lost['high']:.4f} nats)."
        )
    if "main_metric" in quality:
        _show_scores(quality)
    size = sum(each["bytes"] for each in result["files"].values())
    tell(f"Export: {result['out']} ({size / 1e6:,.1f} MB)")
    tell(f"Its certificate is beside it; `lushan doctor {result['out']}` asks again.")


def _show_scores(quality: dict[str, Any]) -> None:
    from lushan.evaluation.phrases import metric_decimal

    metric = quality["main_metric"]
    rows = [
        (
            name,
            metric_decimal(quality[name][metric]["value"], metric),
            f"{metric_decimal(quality[name][metric]['low'], metric)} to "
            f"{metric_decimal(quality[name][metric]['high'], metric)}",
        )
        for name in ("run", "export")
    ]
    compared = quality["comparison"]
    change = compared["difference"]
    title = f"{quality['num_examples']:,} rows: {quality['rows']}"
    show_table(("system", metric, "95 % interval"), rows, title=title)
    tell(
        f"Difference of a row's score: {change['value']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f}), "
        f"p = {compared['p_value']:.2g}."
    )

"""`lushan explain`: say which words made the model answer so."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lushan.cli.console import (
    JsonOption,
    RunArgument,
    SeedOption,
    SetOption,
    emit_json,
    quick_imports,
    show_table,
    tell,
)

if TYPE_CHECKING:
    from lushan.explain.explanation import Attribution, Explanation

MOST_WORDS_SHOWN = 20
_BAR = 12


def command(
    run: RunArgument,
    source: Annotated[
        str,
        typer.Argument(
            metavar="TEXT|FILE", help="A text, or a file of texts, or a folder with a test file."
        ),
    ],
    *,
    label: Annotated[
        str | None,
        typer.Option("--label", help="Explain this label, not the one that is answered."),
    ] = None,
    baseline: Annotated[
        str,
        typer.Option("--baseline", help="What stands for no word: padding, mean or zero."),
    ] = "padding",
    most_gap: Annotated[
        float,
        typer.Option("--most-gap", help="Completeness gap, as a share, at which steps suffice."),
    ] = 0.02,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write a page (.html) or JSON Lines (any other name)."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file in --out.")
    ] = False,
    settings: SetOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Say which words made the model answer so, and check that they did."""
    from lushan.explain.settings import ExplainSettings
    from lushan.settings import build, parse_assignments

    with quick_imports():
        from lushan.workflows.explain import as_lines, as_page, explain_rows, explain_text, file_of
        from lushan.workflows.predict import check_input_stays, check_output, write_file

    chosen = {"baseline": baseline, "most_gap": most_gap, "seed": seed}
    options: dict[str, Any] = {
        "label": label,
        "how": build(ExplainSettings, chosen, source="explain"),
        "settings": parse_assignments(settings or []),
    }
    check_output(out, overwrite=overwrite)

    def write(explained: Iterable[tuple[int, Explanation]]) -> None:
        if out is not None and out.suffix.casefold() in {".html", ".htm"}:
            write_file(out, as_page(explained, run=run))
        elif out is not None:
            write_file(out, as_lines(explained))
        else:
            sys.stdout.writelines(as_lines(explained))

    data = file_of(source)
    check_input_stays(out, run=run, data=data)
    if data is not None:
        done = explain_rows(run, data, write=write, tell=tell, **options)
        tell(f"Explained {done['num_examples']:,} rows in {done['seconds']:.1f} s{_place(out)}")
    else:
        explanation = explain_text(run, source, **options)
        _show(explanation)
        if out is not None:
            write([(1, explanation)])
            tell(f"Written{_place(out)}")
        done = {"run": str(run), "explanation": asdict(explanation)}
    if as_json:
        emit_json({**done, "out": None if out is None else str(out)})


def _show(explanation: Explanation) -> None:
    """Print a table for every part of an answer: its strongest words, in the order of the text."""
    if not explanation.parts:
        tell("Nothing was found in the text, so there is nothing to explain.")
    for part in explanation.parts:
        strongest = sorted(part.words, key=lambda each: -abs(each.weight))[:MOST_WORDS_SHOWN]
        largest = max((abs(each.weight) for each in strongest), default=0.0) or 1.0
        rows = [
            (each.text, f"{each.weight:+.3f}", _bar(each.weight / largest))
            for each in part.words
            if each in strongest
        ]
        hidden = len(part.words) - len(rows)
        more = f" (the {len(rows)} strongest of {len(part.words)} words)" if hidden else ""
        show_table(("word", "weight", ""), rows, title=f"{part.target}{more}")
        tell(_trust(part))


def _bar(share: float) -> str:
    return ("+" if share > 0 else "-") * round(_BAR * abs(share))


def _trust(part: Attribution) -> str:
    check = part.faithfulness
    words = "word" if check.num_words == 1 else f"{check.num_words} words"
    return (
        f"Log-probability {part.score:.3f}, {part.baseline_score:.3f} without any word; completeness gap "
        f"{part.completeness_gap:.1%} after {part.num_steps} steps; {part.template_share:.0%} of the weight is the "
        f"template's. Without the strongest {words} it falls by {check.comprehensiveness:.3f}, without random ones "
        f"by {check.random_comprehensiveness:.3f}."
    )


def _place(out: Path | None) -> str:
    return "." if out is None else f": {out}"

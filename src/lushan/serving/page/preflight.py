"""The pre-flight of a tuning run as a person reads it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lushan.serving.page.drawing import MOST_BARS, draw
from lushan.serving.page.texts import Texts
from lushan.workflows.check import check
from lushan.workflows.recipe import make_recipe


def preflight_html(data: Path, task: str, model: str | None, texts: Texts) -> str:
    """Check a table as `lushan tune` would, and draw what was found.

    Args:
        data: The table.
        task: What is to be learned.
        model: Whose tokens are counted; None takes the default model.
        texts: Of the visitor's language.

    Raises:
        UserError: If something would block a run; says where and what to do.
    """
    options = {"task": task, "model": {"name": model}} if model else {"task": task}
    found = check(data, make_recipe(None, options, []), tell=lambda _: None)
    values = summary(found)
    values["has_model"] = found["has_model"]
    values["notes"] = [texts.message(each) for each in values["notes"]]
    return draw("check", texts, **values)


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Choose what is shown of the findings of a check."""
    splits = [
        {
            "name": name,
            "num_rows": split["total"]["num_examples"],
            "num_left_out": sum(split["num_dropped"].values()),
            "num_tokens": split["total"]["num_tokens"],
        }
        for name, split in found["ledger"]["splits"].items()
    ]
    labels = sorted(found["labels"].get("train", {}).items(), key=lambda each: -each[1])
    most = max((times for _, times in labels), default=1)
    return {
        "splits": splits,
        "labels": [
            {"name": name, "num_rows": times, "share": times / most}
            for name, times in labels[:MOST_BARS]
        ],
        "num_hidden": max(0, len(labels) - MOST_BARS),
        "notes": list(dict.fromkeys([*found["warnings"], *found["notes"]])),
    }

"""The README of a run: a model card in the form that model hubs read, with the result first."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lushan.atomic import write_text
from lushan.evaluation import phrases
from lushan.evaluation.report import environment, markdown_text
from lushan.evaluation.report_tables import complete, facts, systems

MAX_LABELS = 40
"""More labels than that are counted, not listed."""


def write_model_card(results: Mapping[str, Any], folder: Path) -> Path:
    """Write `README.md` into a run folder.

    Args:
        results: The content of `results.json`; `licence` and `languages` are used where they are known.
        folder: The run folder.

    Returns:
        The file.
    """
    results = complete(results)
    template = environment().get_template("model_card.md")
    card = template.render(
        results=results,
        front_matter=_front_matter(results),
        name=markdown_text(folder.resolve().name),
        headline=phrases.headline(results),
        facts=[(name, markdown_text(value)) for name, value in facts(results)],
        systems=systems(results),
        metrics=list(results["after"]),
        labels=[markdown_text(label) for label in results["labels"][:MAX_LABELS]],
        weakest=_weakest(results),
    )
    target = folder / "README.md"
    write_text(target, card)
    return target


def _front_matter(results: Mapping[str, Any]) -> str:
    """The block that hubs read, as YAML: https://huggingface.co/docs/hub/model-cards."""
    metrics = [
        {"type": name, "name": phrases.metric_name(name), "value": round(score["value"], 4)}
        for name, score in results["after"].items()
    ]
    # A folder of this machine says nothing to others, and may say too much.
    model = Path(results["model"])
    base_model = model.name if model.is_absolute() or len(model.parts) > 2 else results["model"]
    task = {"type": "text-classification"}
    dataset = {"name": results.get("dataset", "own data"), "type": "own", "split": "test"}
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": base_model,
        "tags": ["lushan", results["task"], results["adapter"]],
        "model-index": [
            {
                "name": f"{base_model}, tuned",
                "results": [{"task": task, "dataset": dataset, "metrics": metrics}],
            }
        ],
    }
    for name, key in (("licence", "license"), ("languages", "language")):
        if results.get(name):
            values[key] = results[name]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _weakest(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The labels that the model knows worst."""
    tested = [each for each in results["per_class"] if each["support"]]
    tested.sort(key=lambda each: each["f1"])
    return [{**each, "label": markdown_text(each["label"])} for each in tested[:5]]

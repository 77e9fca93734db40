"""The README of a run: a model card in the form that model hubs read, with the result first."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lushan.atomic import write_text
from lushan.catalog import load_task
from lushan.evaluation import phrases
from lushan.evaluation.report import environment, markdown_text
from lushan.evaluation.report_tables import all_systems, complete, facts
from lushan.tasks import Wording

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
    wording = load_task(results["task"]).wording
    template = environment().get_template("model_card.md")
    card = template.render(
        results=results,
        front_matter=_front_matter(results, wording.pipeline_tag),
        name=markdown_text(folder.resolve().name),
        headline=phrases.headline(results),
        facts=[(name, markdown_text(value)) for name, value in facts(results)],
        systems=all_systems(results),
        metrics=list(results["after"]),
        use=_use(results, wording),
        wording=wording,
        limit=wording.limits.get(results["answer"]),
        overlap=_overlap(results),
        right_rows=phrases.right_rows(results),
        test=phrases.test_words(phrases.any_graded(results)),
        weakest=_weakest(results),
    )
    target = folder / "README.md"
    write_text(target, card)
    return target


def _use(results: Mapping[str, Any], wording: Wording) -> str:
    """Say what the model is for, with its labels where there are some."""
    labels = results["labels"]
    shown = ", ".join(markdown_text(label) for label in labels[:MAX_LABELS])
    more = " and more" if len(labels) > MAX_LABELS else ""
    return wording.use.format(count=len(labels), labels=f"{shown}{more}")


def _overlap(results: Mapping[str, Any]) -> str:
    """`12 are in train and 3 are in validation`: test rows of which others have the text too; empty where there are none."""
    told = [f"{num_rows:,} are in {split}" for split, num_rows in results["kept_overlap"].items()]
    return " and ".join(told)


def _front_matter(results: Mapping[str, Any], pipeline_tag: str) -> str:
    """The block that hubs read, as YAML: https://huggingface.co/docs/hub/model-cards."""
    metrics = [
        {"type": name, "name": phrases.metric_name(name), "value": round(score["value"], 4)}
        for name, score in results["after"].items()
    ]
    # A folder of this machine says nothing to others, and may say too much.
    model = Path(results["model"])
    base_model = model.name if model.is_absolute() or len(model.parts) > 2 else results["model"]
    task = {"type": pipeline_tag}
    dataset = {"name": results.get("dataset", "own data"), "type": "own", "split": "test"}
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": pipeline_tag,
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

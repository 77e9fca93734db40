"""The report is one whole, safe page for every kind of run."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lushan.errors import RunError
from lushan.evaluation.report import markdown_text, read_steps, write_report

Run = Callable[[str], tuple[dict[str, Any], Path]]
KINDS = ["binary", "intents_30", "intents_151", "chinese", "multi_label", "no_gain", "injection"]
VOID = {"meta", "br", "img", "link", "input", "hr", "path"}


class Page(HTMLParser):
    """Collects the tags, attributes and text of a page, and checks that tags are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _page(run: Run, kind: str) -> tuple[str, Page]:
    html = write_report(*run(kind)).read_text(encoding="utf-8")
    return html, Page(html)


def test_label_that_f1_is_of_is_named(run: Run) -> None:
    results, folder = run("binary")
    told = {**results, "positive_label": "negative"}
    page = Page(write_report(told, folder).read_text(encoding="utf-8"))
    assert "F1, precision and recall are those of the label negative." in page.text


@pytest.mark.parametrize("kind", KINDS)
def test_page_is_whole_and_needs_nothing_from_outside(run: Run, kind: str) -> None:
    html, page = _page(run, kind)
    assert page.open == []
    assert {"script", "link", "img", "iframe"} & set(page.tags) == set()
    assert not any(
        name in {"src", "srcset"} or name.startswith("on") for name, _ in page.attributes
    )
    links = [value for name, value in page.attributes if name == "href"]
    ids = {value for name, value in page.attributes if name == "id"}
    assert {link[1:] for link in links if link} <= ids
    assert not re.search(r"url\(|@import|https?:", html)


@pytest.mark.parametrize("kind", KINDS)
def test_page_says_every_label_and_the_result(run: Run, kind: str) -> None:
    results, _ = run(kind)
    page = _page(run, kind)[1]
    value = results["after"][results["main_metric"]]["value"]
    assert f"{100 * value:.1f}\u00a0%" in page.text
    for label in results["labels"]:
        assert label in page.text


@pytest.mark.parametrize(
    ("kept_epoch", "says"),
    [
        (4, "that model is the one that was tested"),
        (5, "the model of the last epoch, 5, was tested"),
    ],
)
def test_page_says_which_epoch_was_tested(run: Run, kept_epoch: int, says: str) -> None:
    results, folder = run("binary")
    write_report({**results, "kept_epoch": kept_epoch}, folder)
    assert says in (folder / "report.html").read_text(encoding="utf-8")


def test_html_in_texts_and_labels_is_shown_not_run(run: Run) -> None:
    html, page = _page(run, "injection")
    assert "<script" not in html
    assert 'alert("owned")</script>' in page.text
    assert not any(
        value and "onerror" in value for name, value in page.attributes if name == "style"
    )


def test_charts_and_tables_are_told_to_those_who_cannot_see(run: Run) -> None:
    _, page = _page(run, "intents_30")
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert any(value and value.startswith("Training loss over 300 steps") for value in labels)
    assert any(value and "best after epoch 4" in value for value in labels)
    scopes = [value for name, value in page.attributes if name == "scope"]
    assert {"row", "col"} == set(scopes)


def test_thresholds_of_giving_no_answer_are_shown_with_the_one_in_use(run: Run) -> None:
    results, folder = run("binary")
    shares = dict.fromkeys(("answered_fraction", "f1", "exact_match", "has_answer_f1"), 0.625)
    shares |= {"has_answer_exact_match": 0.5, "no_answer_accuracy": 0.375}
    points = [
        {"threshold": 0.2, **shares, "is_best": False, "is_best_exact": True},
        {"threshold": 0.31, **shares, "is_best": True, "is_best_exact": False},
    ]
    page = write_report({**results, "thresholds": points}, folder).read_text(encoding="utf-8")
    (section,) = re.findall(r'<section id="thresholds".*?</section>', page, re.DOTALL)
    first, second = re.findall(r"<tr class.*?</tr>", section)
    assert "0.2<" in first
    assert "exact match<" in first
    assert "0.31<" in second
    assert "F1: in use<" in second
    assert second.count("62.5") == 4
    assert "When it gives no answer" not in write_report(results, folder).read_text(
        encoding="utf-8"
    )


def test_binary_matrix_shows_the_counts(run: Run) -> None:
    results, folder = run("binary")
    html = write_report(results, folder).read_text(encoding="utf-8")
    cells = re.findall(r'--mix:\d+%">(\d+)</td>', html)
    assert [int(cell) for cell in cells] == [n for row in results["confusion"] for n in row]


def test_a_run_without_training_baselines_or_files_has_a_report(tmp_path: Path) -> None:
    results = {
        "task": "classification", "model": "m", "adapter": "full", "answer": "head",
        "main_metric": "accuracy", "after": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}},
        "num_examples": {"test": 20},
    }  # fmt: skip
    page = Page(write_report(results, tmp_path).read_text(encoding="utf-8"))
    assert page.open == []
    assert "Accuracy is" in page.text
    assert "How it learned" not in page.text


def test_nothing_half_written_is_left(run: Run) -> None:
    results, folder = run("binary")
    write_report(results, folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {"report.html", "steps.jsonl", "ledger.json", "recipe.yaml"}


def test_broken_steps_are_named(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n{'step': 2}\n", encoding="utf-8")
    with pytest.raises(RunError, match=r"steps\.jsonl`, line 2 is not valid JSON: \"\{'step'"):
        read_steps(path)


def test_broken_ledger_is_named(run: Run) -> None:
    results, folder = run("binary")
    (folder / "ledger.json").write_text('{"splits":\n', encoding="utf-8")
    with pytest.raises(RunError, match=r"ledger\.json` is not valid JSON: line"):
        write_report(results, folder)


@pytest.mark.parametrize(
    ("metric", "written", "curve"),
    [
        ("bleu", "<b>36.2</b> <small>35.1 to 37.4</small>", ">36.4</span>"),
        ("perplexity", "<b>12.3</b> <small>11.3 to 13.6</small>", ">12.5</span>"),
        (
            "answer_log_likelihood",
            "<b>\u22121.53</b> <small>\u22122.57 to \u22120.27</small>",
            ">\u22121.33</span>",
        ),
    ],
)
def test_metrics_of_texts_are_shown_in_their_own_scale(
    graded_run: Run, metric: str, written: str, curve: str
) -> None:
    html = write_report(*graded_run(metric)).read_text(encoding="utf-8")
    assert Page(html).open == []
    assert written in html
    assert re.search(rf'class="best-text[^>]*{curve}', html)
    assert "in %, by step" not in html


def test_graded_rows_are_compared_in_their_own_words(graded_run: Run) -> None:
    page = Page(write_report(*graded_run("bleu")).read_text(encoding="utf-8"))
    for words in ("It is better", "Permutation p", "paired permutation test", "Worst answers"):
        assert words in page.text
    assert "row score 12.5\u00a0%" in page.text
    assert "McNemar" not in page.text


def test_markdown_text_is_one_plain_line() -> None:
    assert markdown_text("a | <b>\n# *c*") == r"a \| &lt;b&gt; \# \*c\*"

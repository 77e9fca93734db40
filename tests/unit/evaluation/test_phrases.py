"""Sentences tell the truth about the numbers they are made of."""

from typing import Any

import pytest

from lushan.evaluation import phrases


def _results(before: float | None, after: float, p_value: float = 1e-9) -> dict[str, Any]:
    results: dict[str, Any] = {
        "main_metric": "accuracy",
        "after": {"accuracy": {"value": after, "low": after - 0.015, "high": after + 0.013}},
        "num_examples": {"train": 2_000, "validation": 300, "test": 900},
    }
    if before is not None:
        results["before"] = {"accuracy": {"value": before, "low": before, "high": before}}
        wins, losses = (9, 1) if after > before else (1, 9)
        results["comparisons"] = {"before": {"p_value": p_value, "wins": wins, "losses": losses}}
    return results


def _plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_a_clear_gain_is_one_sentence() -> None:
    assert _plain(phrases.headline(_results(0.123, 0.941)).sentence) == (
        "Accuracy rose from 12.3 % to 94.1 % "
        "(95 % interval 92.6 to 95.4 %; p < 0.001, exact McNemar test; 900 test rows)."
    )


def test_a_clear_loss_is_not_hidden() -> None:
    assert _plain(phrases.headline(_results(0.9, 0.8)).lead) == "Accuracy fell from 90.0 % to"


def test_an_unclear_gain_is_no_gain() -> None:
    found = phrases.headline(_results(0.80, 0.81, p_value=0.21))
    assert _plain(found.lead) == "Accuracy did not change clearly: 80.0 % before, now"
    assert "p = 0.210" in found.detail


def test_rows_that_got_better_make_no_fall_of_another_measure_clear() -> None:
    results = _results(0.3, 0.0)
    results["comparisons"]["before"] |= {"wins": 90, "losses": 10}
    results["baselines"] = {"majority": {"accuracy": {"value": 0.2}}}
    results["comparisons"]["majority"] = {"p_value": 1e-9, "wins": 90, "losses": 1}
    found = phrases.headline(results)
    assert _plain(found.lead) == "Accuracy did not change clearly: 30.0 % before, now"
    assert _plain(found.verdict) == "Not clearly better than: Majority (20.0 %)."


def test_without_a_before_there_is_only_a_score() -> None:
    found = phrases.headline(_results(None, 0.81))
    assert found.lead == "Accuracy is"
    assert "McNemar" not in found.detail
    assert found.verdict == ""


def _with_baselines(tf_idf_p: float, *, wins: int = 50, num_not_drawn: int = 0) -> str:
    results = {**_results(0.1, 0.8), "num_not_drawn": num_not_drawn}
    results["baselines"] = {
        "majority": {"accuracy": {"value": 0.2}},
        "tf_idf": {"accuracy": {"value": 0.78}},
    }
    results["system_titles"] = {
        "majority": "Most frequent label",
        "tf_idf": "TF-IDF + logistic regression",
    }
    results["comparisons"] |= {
        "majority": {"p_value": 1e-9, "wins": 90, "losses": 1},
        "tf_idf": {"p_value": 0.001, "p_value_holm": tf_idf_p, "wins": wins, "losses": 20},
    }
    return _plain(phrases.headline(results).verdict)


def test_beaten_baselines_are_named_by_the_best() -> None:
    assert _with_baselines(0.01) == (
        "Every baseline is clearly beaten; the best is TF-IDF + logistic regression at 78.0 %."
    )


@pytest.mark.parametrize(("p_value", "wins"), [(0.3, 50), (0.001, 5)])
def test_a_baseline_that_is_not_beaten_is_named(p_value: float, wins: int) -> None:
    expected = "Not clearly better than: TF-IDF + logistic regression (78.0 %)."
    assert _with_baselines(p_value, wins=wins) == expected


def test_headline_goes_by_the_p_value_that_is_corrected_and_prints_it() -> None:
    results = _results(0.80, 0.83, p_value=0.02)
    results["comparisons"]["before"]["p_value_holm"] = 0.06
    found = phrases.headline(results)
    assert _plain(found.lead) == "Accuracy did not change clearly: 80.0 % before, now"
    assert "; corrected p = 0.060, exact McNemar test; " in found.detail
    results["comparisons"]["before"]["p_value_holm"] = 0.04
    assert _plain(phrases.headline(results).lead) == "Accuracy rose from 80.0 % to"


@pytest.mark.parametrize(
    ("tf_idf_p", "start"), [(0.01, "Every baseline is"), (0.3, "Not clearly better")]
)
def test_verdict_says_from_how_many_rows_was_learned_where_they_were_drawn(
    tf_idf_p: float, start: str
) -> None:
    told = "Model and baselines learned from the 2,000 drawn of 9,000 training rows."
    found = _with_baselines(tf_idf_p, num_not_drawn=7_000)
    assert found.startswith(start)
    assert found.endswith(f". {told}")
    assert "learned" not in _with_baselines(tf_idf_p, num_not_drawn=0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.81, "0.8 s"), (24.2, "24 s"), (59.7, "1 min 0 s"), (224, "3 min 44 s"), (3_720, "1 h 2 min")],
)  # fmt: skip
def test_durations_read_well(seconds: float, text: str) -> None:
    assert _plain(phrases.duration(seconds)) == text


@pytest.mark.parametrize(("num_bytes", "text"), [(2.316e9, "2.3 GB"), (5.4e7, "54 MB")])
def test_sizes_read_well(num_bytes: float, text: str) -> None:
    assert _plain(phrases.size(num_bytes)) == text


def test_differences_have_a_sign() -> None:
    assert (phrases.points(0.0521), phrases.points(-0.05)) == ("+5.2", "\u22125.0")


@pytest.mark.parametrize(("p_value", "text"), [(0.0004, "p < 0.001"), (0.0123, "p = 0.012")])
def test_p_values_read_well(p_value: float, text: str) -> None:
    assert phrases.p_text(p_value) == text


def test_what_is_no_model_is_no_before() -> None:
    results = {**_results(0.1, 0.8), "before_is_model": False}
    found = phrases.headline(results)
    assert _plain(found.lead) == "Accuracy is"
    assert "McNemar" not in found.detail


def test_titles_of_systems_come_with_the_results() -> None:
    assert phrases.system_name("dictionary", {"dictionary": "A list"}) == "A list"
    assert phrases.system_name("after", {"dictionary": "A list"}) == "Tuned model"


def test_right_rows_are_named_by_their_metric() -> None:
    assert phrases.right_rows({"after": {"f1": {}, "exact_match": {}}}) == "Exact match"
    assert phrases.right_rows({"after": {"accuracy": {}}}) == "Accuracy"
    assert phrases.right_rows({"after": {"bleu": {}}}) == "Right rows"


def test_spans_are_shown_with_their_labels() -> None:
    spans = [{"text": "Ulm", "label": "city"}, {"text": "Ada", "label": "name"}]
    assert phrases.answer_text(spans) == "Ulm (city), Ada (name)"
    assert phrases.answer_text([], "no entity") == "no entity"


def test_triples_are_shown_from_head_to_tail() -> None:
    parts = ({"text": "Ada", "start": 0, "end": 3}, {"text": "Ulm", "start": 7, "end": 10})
    triple = {"head": parts[0], "label": "is in", "tail": parts[1]}
    assert phrases.answer_text([triple]) == "Ada \u2014 is in \u2192 Ulm"


def test_names_are_for_people() -> None:
    assert phrases.metric_name("macro_f1") == "Macro F1"
    assert phrases.inline("Macro F1") == "macro F1"
    assert phrases.inline("F1") == "F1"
    assert phrases.system_name("zero_shot") == "Untouched model, zero-shot"
    assert phrases.answer_text(()) == "no label"
    assert phrases.answer_text(("a", "b")) == "a, b"


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("accuracy", 0.941, "94.1 %"),
        ("rouge_l", 0.4567, "45.7 %"),
        ("bleu", 36.18, "36.2"),
        ("chrf", 58.0, "58.0"),
        ("perplexity", 12.31, "12.3"),
        ("answer_log_likelihood", -1.532, "\u22121.53"),
        ("bits_per_byte", 0.8214, "0.821"),
        ("reply_length", 9.25, "9.2"),
    ],
)
def test_a_metric_is_written_in_its_own_scale(metric: str, value: float, text: str) -> None:
    assert _plain(phrases.metric_text(value, metric)) == text
    assert phrases.metric_number(value, metric) == text.removesuffix(" %")


def test_a_terminal_shows_fractions_as_such_and_the_rest_in_its_scale() -> None:
    assert phrases.metric_decimal(0.94149, "rouge_l") == "0.941"
    assert phrases.metric_decimal(0.125, "needless_calls") == "0.125"
    assert phrases.metric_decimal(36.18, "bleu") == "36.2"
    assert phrases.metric_decimal(-1.532, "answer_log_likelihood") == "-1.53"


def test_metrics_of_texts_have_the_names_of_their_papers() -> None:
    named = [
        "bleu",
        "chrf",
        "rouge_1",
        "rouge_2",
        "rouge_l",
        "distinct_1",
        "distinct_2",
        "pass_at_1",
    ]
    names = ["BLEU", "chrF", "ROUGE-1", "ROUGE-2", "ROUGE-L", "distinct-1", "distinct-2", "pass@1"]
    assert [phrases.metric_name(metric) for metric in named] == names
    assert [phrases.inline(name) for name in names] == names
    assert phrases.inline(phrases.metric_name("answer_log_likelihood")) == "answer log-likelihood"


def test_headline_of_bleu_has_no_percent_and_names_the_permutation_test() -> None:
    results = _results(None, 0.5)
    results |= {
        "main_metric": "bleu",
        "after": {"bleu": {"value": 36.18, "low": 34.96, "high": 38.2}},
    }
    results["before"] = {"bleu": {"value": 12.3, "low": 12.0, "high": 13.0}}
    better = {"p_value": 1e-4, "test": "permutation", "difference": {"value": 0.2}}
    results["comparisons"] = {"before": better}
    assert _plain(phrases.headline(results).sentence) == (
        "BLEU rose from 12.3 to 36.2 "
        "(95 % interval 35.0 to 38.2; p < 0.001, paired permutation test; 900 test rows)."
    )


def test_best_baseline_of_perplexity_is_the_lowest() -> None:
    results = _results(None, 0.5)
    results |= {
        "main_metric": "perplexity",
        "after": {"perplexity": {"value": 9, "low": 8, "high": 11}},
    }
    results["baselines"] = {
        "a": {"perplexity": {"value": 20.0}},
        "b": {"perplexity": {"value": 40.0}},
    }
    better = {"p_value": 1e-4, "test": "permutation", "difference": {"value": 0.1}}
    results["comparisons"] = {"a": better, "b": better}
    assert phrases.headline(results).verdict.endswith("the best is A at 20.0.")


@pytest.mark.parametrize(("difference", "standing"), [(0.02, "better"), (-0.02, "worse")])
def test_graded_rows_stand_by_their_mean_not_by_how_many_rows_are_better(
    difference: float, standing: str
) -> None:
    compared = {"p_value": 0.001, "test": "permutation", "wins": 5, "losses": 5}
    assert phrases.standing({**compared, "difference": {"value": difference}}) == standing


def test_graded_rows_are_named_as_such() -> None:
    graded = {"after": {"accuracy": {}}, "comparisons": {"before": {"test": "permutation"}}}
    assert phrases.right_rows(graded) == "Row score"
    assert phrases.any_graded(graded)
    assert phrases.test_words(graded=True).wins == "It is better"
    assert phrases.test_words(graded=False).wins == "Only it is right"


def _curve(low: float, *, whole: int = 1_024) -> list[dict[str, Any]]:
    rise = {"value": 0.06, "low": low, "high": 0.1}
    return [
        {"num_rows": 64, "rise": {"value": 0.3, "low": 0.2, "high": 0.4}},
        {"num_rows": 256, "rise": rise},
        {"num_rows": whole, "rise": None},
    ]


def test_outlook_tells_what_a_doubling_brought_and_promises_no_more() -> None:
    told = phrases.label_outlook(_curve(0.02), "Accuracy")
    assert "+6.0 (+2.0 to +10.0) points from 256 to 1,024 rows" in told
    assert "+3.0 (+1.0 to +5.0) each time the rows were doubled" in told
    assert "Another 1,024 labels" in told
    assert "the most to hope for" in told


def test_outlook_claims_nothing_where_the_interval_holds_zero() -> None:
    told = phrases.label_outlook(_curve(-0.01), "Accuracy")
    assert "more labels did not clearly help" in told
    assert "hardly bring more than +5.0 points" in told
    assert "Another" not in told


def test_outlook_compares_with_at_most_half_of_the_rows() -> None:
    told = phrases.label_outlook(_curve(0.02, whole=500), "Accuracy")
    assert "+30.0 (+20.0 to +40.0) points from 64 to 500 rows" in told
    assert phrases.label_outlook(_curve(0.02, whole=100), "Accuracy") == ""
    unknown = [{**each, "rise": None} for each in _curve(0.02)]
    assert phrases.label_outlook(unknown, "Accuracy") == ""


def test_outlook_promises_nothing_of_labels_where_a_model_added_rows() -> None:
    *few, whole = _curve(0.02)
    told = phrases.label_outlook([*few, {**whole, "num_added": 3_000}], "Accuracy")
    assert "3,000 rows that a model wrote or labelled" in told
    assert "doubled" not in told

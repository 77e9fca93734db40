"""TF-IDF features and logistic regression, tuned on the validation rows."""

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from lushan.baselines import Baseline
from lushan.data.splits import Parts
from lushan.data.words import is_unspaced
from lushan.errors import DataError
from lushan.metrics.classification import Answer, score
from lushan.records import Example, Prediction, TaskState

TITLE = "TF-IDF + logistic regression"

INVERSE_PENALTIES = (0.1, 1.0, 10.0, 100.0)
"""Values of scikit-learn's `C` that are tried on the validation rows."""
MAX_FEATURES = 50_000
"""Most frequent n-grams kept; bounds memory at 151 labels to some hundred megabytes."""

# scikit-learn's own pattern drops words of one letter, such as `I` or `5`.
_WORD = r"(?u)\b\w+\b"


def answer(parts: Parts, *, state: TaskState) -> Baseline:
    """Answer by TF-IDF features and logistic regression, tuned on the validation rows.

    Words and pairs of words are counted; one to three characters where the training texts are
    mostly written without spaces, as Chinese is. The result depends on nothing but its arguments.

    Args:
        parts: Fitted on train; validation chooses the penalty (without its rows C is 10), by accuracy, or
            micro F1 where a text can have several labels; test is answered, in order.
        state: The labels, in class order.

    Raises:
        DataError: If an example has no label; names its place.
    """
    train, validation, test = parts.train, parts.validation, parts.test
    metric = "micro_f1" if state.multi_label else "accuracy"
    vectorizer, features = _vectorizer([example.text for example in train])
    train_NF = vectorizer.fit_transform([example.text for example in train])
    targets = _targets(train, state)
    tried: list[tuple[float, float, _Classifier]] = []
    for inverse_penalty in INVERSE_PENALTIES if validation else (10.0,):
        classifier = _Classifier.fit(train_NF, targets, inverse_penalty, state)
        value = classifier.value(validation, vectorizer, metric) if validation else 0.0
        tried.append((value, inverse_penalty, classifier))
    value, inverse_penalty, classifier = max(tried, key=lambda each: each[0])

    probability_NL = classifier.probabilities(vectorizer.transform([each.text for each in test]))
    reason = f" (validation {metric.replace('_', ' ')} {value:.3f})" if validation else ""
    return Baseline(
        _predictions(test, classifier.answers(probability_NL), probability_NL, state),
        f"TF-IDF of {features}, logistic regression with C = {inverse_penalty:g}{reason}.",
    )


def _vectorizer(texts: Sequence[str]) -> tuple[TfidfVectorizer, str]:
    has_words = any(re.search(r"\w", text) for text in texts)
    if is_unspaced(texts) or not has_words:
        vectorizer = TfidfVectorizer(
            analyzer="char", ngram_range=(1, 3), sublinear_tf=True, max_features=MAX_FEATURES
        )
        return vectorizer, "1 to 3 characters"
    vectorizer = TfidfVectorizer(
        token_pattern=_WORD,
        ngram_range=(1, 2),
        sublinear_tf=True,
        max_features=MAX_FEATURES,
    )
    return vectorizer, "words and word pairs"


@dataclass(frozen=True, slots=True)
class _Classifier:
    """A fitted scikit-learn classifier that speaks labels."""

    model: LogisticRegression | OneVsRestClassifier | DummyClassifier
    state: TaskState

    @classmethod
    def fit(
        cls, train_NF: object, targets: NDArray[np.int64], inverse_penalty: float, state: TaskState
    ) -> "_Classifier":
        chosen = model = LogisticRegression(C=inverse_penalty, max_iter=200, tol=1e-3)
        if state.multi_label and len(state.labels) > 1:
            chosen = OneVsRestClassifier(model)
        elif len(np.unique(targets)) == 1:
            # The label curve may draw so few rows that all have the same label, which a regression refuses.
            chosen = DummyClassifier()
        with warnings.catch_warnings():
            # A last digit of the optimum is no matter: validation decides between the penalties.
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.filterwarnings("ignore", message="Label .* is present in all training")
            warnings.filterwarnings("ignore", message="Label not .* is present in all training")
            chosen.fit(train_NF, targets)
        return cls(chosen, state)

    def probabilities(self, features_NF: object) -> NDArray[np.float64]:
        """Probability of every label, (N, L); 0 for labels that training did not have."""
        found = np.asarray(self.model.predict_proba(features_NF), dtype=float)
        num_labels, several = len(self.state.labels), self.state.multi_label
        if several and num_labels > 1:
            return found
        # Of a single label that a text may have, the two classes are to lack it and to have it.
        probability_NC = np.zeros((len(found), 2 if several else num_labels))
        probability_NC[:, self.model.classes_] = found
        return probability_NC[:, 1:] if several else probability_NC

    def value(self, examples: Sequence[Example], vectorizer: TfidfVectorizer, metric: str) -> float:
        """Score on examples whose labels are known."""
        probability_NL = self.probabilities(vectorizer.transform([each.text for each in examples]))
        truth, answers = [_target(each) for each in examples], self.answers(probability_NL)
        scores = score(truth, answers, self.state.labels, multi_label=self.state.multi_label)
        return scores.metrics[metric]

    def answers(self, probability_NL: NDArray[np.float64]) -> list[Answer]:
        """The likeliest label, or every label above one half."""
        labels = self.state.labels
        if not self.state.multi_label:
            return [labels[i] for i in probability_NL.argmax(axis=1)]
        return [tuple(labels[i] for i in np.flatnonzero(row > 0.5)) for row in probability_NL]


def _predictions(
    examples: Sequence[Example],
    answers: Sequence[Answer],
    probability_NL: NDArray[np.float64],
    state: TaskState,
) -> list[Prediction]:
    predictions: list[Prediction] = []
    for example, answer, row in zip(examples, answers, probability_NL, strict=True):
        probabilities = dict(zip(state.labels, map(float, row), strict=True))
        if isinstance(answer, str):
            likelihood = probabilities[answer]
        else:
            likelihood = math.prod(p if k in answer else 1 - p for k, p in probabilities.items())
        log_likelihood = math.log(max(likelihood, 1e-300))
        predictions.append(Prediction(example.id, answer, probabilities, log_likelihood))
    return predictions


def _targets(examples: Sequence[Example], state: TaskState) -> NDArray[np.int64]:
    """Class numbers, (N,), or 0/1 per label, (N, L); of a single label (N,)."""
    order = {label: place for place, label in enumerate(state.labels)}
    if not state.multi_label:
        return np.array([_places(_target(each), order)[0] for each in examples])
    has_NL = np.zeros((len(examples), len(order)), dtype=np.int64)
    for row, example in enumerate(examples):
        has_NL[row, list(_places(_target(example), order))] = 1
    return has_NL[:, 0] if len(order) == 1 else has_NL


def _target(example: Example) -> Answer:
    target: Any = example.target
    if target is None:
        raise DataError(f"{example.place}: no label, but baselines learn from labels.")
    return target


def _labels_of(target: Answer) -> tuple[str, ...]:
    return (target,) if isinstance(target, str) else target


def _places(target: Answer, order: dict[str, int]) -> tuple[int, ...]:
    return tuple(order[label] for label in _labels_of(target))

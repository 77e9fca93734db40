"""What the metrics are called for people, and in which unit and with how many digits they are written."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measure:
    """How one metric is shown."""

    name: str
    factor: float = 100.0
    """A fraction is shown in percent; what has a scale of its own, as it is."""
    unit: str = "\u00a0%"
    digits: int = 1
    least: float = 0.0
    most: float = 1.0

    @property
    def span(self) -> float:
        """Width of the scale; 1 where it has no end."""
        width = self.most - self.least
        return width if math.isfinite(width) else 1.0

    def text(self, value: float) -> str:
        """`0.941` -> `94.1 %`, with a space that does not break; `36.2` stays where the scale has no unit."""
        return f"{self.bare(value)}{self.unit}"

    def bare(self, value: float) -> str:
        """The same without its unit, with a true minus sign."""
        return f"{self.factor * value:.{self.digits}f}".replace("-", "\u2212")

    def tick(self, value: float) -> str:
        """A value on an axis."""
        return f"{self.factor * value:g}".replace("-", "\u2212")


def _plain(name: str, **scale: float) -> Measure:
    return Measure(name, **{"factor": 1.0, "unit": "", "most": math.inf, **scale})


_MEASURES = {
    "accuracy": Measure("Accuracy"),
    "macro_f1": Measure("Macro F1"),
    "micro_f1": Measure("Micro F1"),
    "f1": Measure("F1"),
    "precision": Measure("Precision"),
    "recall": Measure("Recall"),
    "exact_match": Measure("Exact match"),
    "rouge_1": Measure("ROUGE-1"),
    "rouge_2": Measure("ROUGE-2"),
    "rouge_l": Measure("ROUGE-L"),
    "pass_at_1": Measure("pass@1"),
    "bleu": _plain("BLEU", most=100.0),
    "chrf": _plain("chrF", most=100.0),
    "perplexity": _plain("Perplexity", least=1.0),
    "answer_log_likelihood": _plain("Answer log-likelihood", digits=3, least=-math.inf, most=0.0),
    "reply_length": _plain("Reply length"),
    "compression": Measure("Compression", most=math.inf),
}


def measure(metric: str) -> Measure:
    """Give how a metric is shown; one that is not known is a fraction: `some_share` -> `Some share`."""
    return _MEASURES.get(metric) or Measure(metric.replace("_", " ").capitalize())

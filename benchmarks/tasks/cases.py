"""What is tuned: one public set per line, with the floor that the tuned model should reach on its test rows."""

from __future__ import annotations

from dataclasses import dataclass

SMALL, CHINESE = "SmolLM2-135M-Instruct", "gemma-3-270m"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run of `lushan tune`."""

    data: str
    """Folder below `LUSHAN_DATA`."""
    task: str
    model: str = SMALL
    options: tuple[str, ...] = ()
    """Settings, chosen on validation rows or set beforehand."""
    floor: float | None = None
    """What the main metric should reach; the share of exact matches of answers that are found."""
    above: tuple[str, float] | None = None
    """Whom it should beat, and by how much."""

    @property
    def name(self) -> str:
        """What its results are called."""
        return self.data.replace("/", "-")

    def command(self, data: str, out: str) -> list[str]:
        """The words behind `python -m lushan`."""
        words = ["tune", data, "--task", self.task, "--model", self.model, "--out", out]
        return [*words, *self.options, "--json"]


def settings(**values: object) -> tuple[str, ...]:
    """Give settings as words of the command line; `__` stands for a dot."""
    return tuple(
        word
        for name, value in values.items()
        for word in ("--set", f"{name.replace('__', '.')}={value}")
    )


CASES = (
    Case(
        data="translation/multi30k_en_de",
        task="translation",
        options=settings(
            training__epochs=1, training__learning_rate=1e-4, data__max_train_rows=4000
        ),
        above=("before", 10),
    ),
    Case(
        data="translation/tatoeba_en_zh",
        task="translation",
        model=CHINESE,
        options=settings(
            training__epochs=1, training__learning_rate=5e-5, data__max_train_rows=2500
        ),
        above=("before", 10),
    ),
    Case(
        data="summarization/debian_descriptions",
        task="summarization",
        options=settings(
            training__epochs=1, training__learning_rate=1e-4, data__max_train_rows=2000
        ),
        above=("lead_sentence", 0),
    ),
    Case(
        data="commonsense/openbookqa",
        task="choice",
        options=settings(training__epochs=1, training__learning_rate=5e-5),
        above=("before", 0.05),
    ),
    Case(
        data="code/mbpp",
        task="code",
        options=settings(
            training__epochs=2, training__learning_rate=1e-4, task_settings__run_code="true"
        ),
    ),
    Case(
        data="dialogue/sgd",
        task="dialogue",
        options=settings(
            training__epochs=1,
            training__learning_rate=1e-4,
            data__max_train_rows=500,
            baselines="false",
        ),
        above=("before", 0),
    ),
    Case(
        data="ner/wnut17",
        task="tagging",
        options=settings(
            training__epochs=4,
            training__learning_rate=1e-4,
            task_settings__attention="bidirectional",
        ),
        floor=0.40,
    ),
    Case(
        data="ner/bc5cdr",
        task="tagging",
        options=settings(training__epochs=3, training__learning_rate=1e-4),
        floor=0.80,
    ),
    Case(
        data="relation/semeval2010_task8",
        task="relations",
        options=settings(training__epochs=4, training__learning_rate=1e-4),
        floor=0.84,
    ),
    Case(
        data="summarization/csl_title",
        task="summarization",
        model=CHINESE,
        options=settings(training__epochs=3, training__learning_rate=5e-5),
        above=("lead_sentence", 0),
    ),
    Case(
        data="dialogue/alpaca_zh_demo",
        task="dialogue",
        model=CHINESE,
        options=settings(training__epochs=1, training__learning_rate=5e-5, baselines="false"),
        above=("before", 0),
    ),
    Case(
        data="ner/resume_ner",
        task="tagging",
        model=CHINESE,
        options=settings(
            training__epochs=3,
            training__learning_rate=5e-5,
            task_settings__attention="bidirectional",
        ),
        floor=0.93,
    ),
    Case(
        data="qa/squad11_dev_articles",
        task="answering",
        options=settings(training__epochs=1, training__learning_rate=1e-4),
        floor=0.35,
    ),
    Case(
        data="qa/cmrc2018",
        task="answering",
        model=CHINESE,
        options=settings(training__epochs=1, training__learning_rate=5e-5),
        above=("before", 0.2),
    ),
)


def case_named(name: str) -> Case:
    """Give one case."""
    return next(case for case in CASES if case.name == name)

"""Show on real rows what the other tables do not: triples, abstention, control, unlabelled rows, rows that a model wrote.

Each case makes its rows from public sets, runs `lushan` commands on them, one process each, and keeps what they found.
A case that has a result in `--out` is not run again. Test rows choose nothing: they are asked once, at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "quality")]

import real_sets  # noqa: E402
import table  # noqa: E402
from cases import settings  # noqa: E402

from lushan.metrics.control import satisfied_shares  # noqa: E402
from lushan.metrics.pieces import pieces  # noqa: E402
from lushan.metrics.statistics import accuracy  # noqa: E402

RESULTS = HERE / "results"
MODEL = "SmolLM2-135M-Instruct"
SPLIT_NAMES = ("train", "validation", "test")
METRICS = {
    "triples": ("f1", "precision", "recall", "exact_match"),
    "answering": ("f1", "exact_match", "has_answer_f1", "no_answer_accuracy"),
    "completion": ("constraint_satisfaction", "answer_log_likelihood"),
    "summarization": ("rouge_l", "length_satisfaction"),
}
"""What of a tuned model's scores the table shows."""
LENGTHS = ("short", "medium", "long", 20)
"""What is asked of each test document of the length case."""

Found = dict[str, Any]
Make = Callable[[Path, Path], None]
"""Makes the rows of a case in the second folder from the sets in the first."""
Run = Callable[["Case", Path], Found]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Rows, and what is done with them."""

    name: str
    rows: str
    """What they are, for the table."""
    make: Make
    run: Run
    task: str
    options: tuple[str, ...]
    """Settings, set beforehand or chosen on validation rows."""

    @property
    def settings(self) -> str:
        """The same for a person."""
        return ", ".join(each for each in self.options if each != "--set")


def main() -> None:
    """Run what is missing, then make the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        help="folder of results; what is there is not run again",
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("LUSHAN_DATA"))
    parser.add_argument("--case", nargs="+", default=[case.name for case in CASES])
    parser.add_argument(
        "--runs", type=Path, help="where runs are kept, else `runs/real`, or `runs` in `--out`"
    )
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    parser.add_argument("--document", type=Path, help="put the tables between this file's markers")
    options = parser.parse_args()
    if not options.table_only:
        if not options.data:
            parser.error("set LUSHAN_DATA or give --data")
        default = Path("runs/real") if options.out == RESULTS else options.out / "runs"
        run_missing(
            options.case, data=Path(options.data), runs=options.runs or default, out=options.out
        )
    tables = (tuned_table(options.out), length_table(options.out), more_rows_table(options.out))
    section = "\n\n".join(each for each in tables if each)
    print(section)
    if options.document:
        table.put_between_markers(options.document, section, name="real-rows")


def run_missing(names: Sequence[str], *, data: Path, runs: Path, out: Path) -> None:
    """Run each case that has no result yet."""
    cases = {case.name: case for case in CASES}
    wanted = [cases[name] for name in names]
    missing = [case for case in wanted if not result_file(out, case).exists()]
    table.tell_kept(len(wanted) - len(missing), out)
    for case in missing:
        keep_result(case, data=data, runs=runs, result=result_file(out, case))


def result_file(out: Path, case: Case) -> Path:
    """Give the place of one result."""
    return out / f"real-{case.name}.json"


def keep_result(case: Case, *, data: Path, runs: Path, result: Path) -> None:
    """Make the rows of a case, run it, and keep what was found."""
    folder = runs / case.name
    folder.mkdir(parents=True, exist_ok=True)
    case.make(data, folder / "data")
    found = {**case.run(case, folder), "options": list(case.options)}
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def result_of(case: Case, out: Path) -> Found | None:
    """Give what a case found, if it was run.

    Raises:
        SystemExit: If it was run with other settings.
    """
    file = result_file(out, case)
    if not file.exists():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    if case.options != tuple(found["options"]):
        raise SystemExit(f"{case.name} was run with other settings. Remove its result.")
    return found


def lushan(*words: str | Path) -> Found:
    """Run one command and give the object that it prints.

    Raises:
        SystemExit: If it fails.
    """
    command = [sys.executable, "-m", "lushan", *map(str, words), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"`lushan {' '.join(map(str, words))}` ended with {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1])


def tuned(case: Case, folder: Path) -> Found:
    """Tune, or go on; keep what every system scored on the test rows."""
    run = folder / "run"
    words = ["tune", folder / "data", "--task", case.task, "--model", MODEL, "--out", run]
    resumed = ["--resume"] if (run / "recipe.yaml").exists() else []
    found = lushan(*words, *case.options, *resumed)
    names = ("main_metric", "before", "after", "baselines", "num_examples", "seconds")
    kept = {name: found[name] for name in names}
    points = json.loads((run / "run.json").read_text(encoding="utf-8"))["training"]["thresholds"]
    return {**kept, "threshold": next((each for each in points if each["is_best"]), None)}


def tuned_to_lengths(case: Case, folder: Path) -> Found:
    """Tune a model to keep to lengths, then ask it for several of each test document."""
    found = tuned(case, folder)
    documents = real_sets.read(folder / "data" / "test")
    words_by_length: dict[str, list[int]] = {}
    for length in LENGTHS:
        asked, answered = folder / f"asked-{length}.jsonl", folder / f"answers-{length}.jsonl"
        rows = [{"document": each["document"], "length": length} for each in documents]
        real_sets.write(asked, rows)
        lushan("predict", folder / "run", asked, "--out", answered, "--overwrite")
        answers = [str(each["answer"]) for each in real_sets.read(answered.with_suffix(""))]
        words_by_length[str(length)] = [len(pieces(each)) for each in answers]
    state = json.loads((folder / "run" / "model" / "lushan.json").read_text(encoding="utf-8"))
    return {**found, "num_words": words_by_length, "lengths": state["state"]["lengths"]}


def augmented(case: Case, folder: Path) -> Found:
    """Write rows, or label those without a label; the validation rows alone measure."""
    others, out = folder / "data-unlabelled.jsonl", folder / "new.jsonl"
    words = ["augment", folder / "data", "--task", case.task, "--model", MODEL]
    words += ["--unlabelled", others] if others.exists() else []
    found = lushan(*words, *case.options, "--out", out, "--keep", "--overwrite")
    kept = {name: each for name, each in found.items() if name not in ("data", "unlabelled", "out")}
    wrong = None
    if others.exists() and out.exists():
        truth = {row["text"]: row["label"] for row in real_sets.read(others.with_suffix(""))}
        new = real_sets.read(out.with_suffix(""))
        wrong = sum(truth[row["text"]] != row["label"] for row in new) / len(new)
    return {**kept, "wrong_fraction": wrong}


def _few(name: str, num_rows: int, *, way: str, **values: object) -> Case:
    """A case of few labelled rows, and of what is made of them."""
    short = name.rpartition("/")[2]
    return Case(
        name=f"{way}-{short}-{num_rows}",
        rows=f"{short}, {num_rows} rows of each label",
        make=real_sets.few_labels(name, num_rows, with_others=way == "unlabelled"),
        run=augmented,
        task="classification",
        options=settings(**values),
    )


_SHORT: dict[str, object] = {
    "training__epochs": 1,
    "training__learning_rate": 2e-4,
    "training__rows_per_step": 4,
    "adapter__method": "top",
    "adapter__layers": 8,
}
"""One pass over few rows; set beforehand so that a run takes minutes."""
_TREC = "classification/trec6"
_HEAD: dict[str, object] = {"adapter__method": "head"}
_TOP: dict[str, object] = {"adapter__method": "top", "adapter__layers": 8}

CASES = (
    Case(
        name="triples",
        rows="SemEval-2010 Task 8: one triple a text, none for `Other`",
        make=real_sets.triples,
        run=tuned,
        task="triples",
        options=settings(training__epochs=1, training__learning_rate=1e-4, baselines="false"),
    ),
    Case(
        name="no-answer",
        rows="SQuAD, a third of the questions put to a text without their answer",
        make=real_sets.questions,
        run=tuned,
        task="answering",
        options=settings(
            answer="generate",
            **_SHORT,
            baselines="false",
        ),
    ),
    Case(
        name="control",
        rows="Debian packages: a description from topic, length and a keyword",
        make=real_sets.completions,
        run=tuned,
        task="completion",
        options=settings(**_SHORT, baselines="false"),
    ),
    Case(
        name="length",
        rows="Debian packages: short descriptions of long ones, with a wanted length",
        make=real_sets.summaries,
        run=tuned_to_lengths,
        task="summarization",
        options=settings(**_SHORT, task_settings__length_control="true", baselines="false"),
    ),
    _few(_TREC, 16, way="unlabelled", **_TOP),
    _few(_TREC, 64, way="unlabelled", **_HEAD),
    _few(_TREC, 16, way="written", **_TOP),
)


def tuned_table(out: Path) -> str:
    """One line for each metric of a tuned case that matters there."""
    lines = [
        "| rows (train / validation / test) | task, settings | metric | tuned [95 %] | untouched, zero-shot | best other |",
        "|---|---|---|---|---|---|",
    ]
    for case in CASES:
        if case.run is not augmented:
            lines += _tuned_lines(case, out)
    return "\n".join(lines)


def _tuned_lines(case: Case, out: Path) -> list[str]:
    found = result_of(case, out)
    if found is None:
        return [f"| {case.rows} | {case.task}, {case.settings} | | not run | | |"]
    counts = " / ".join(f"{found['num_examples'][name]:,}" for name in SPLIT_NAMES)
    start = f"| {case.rows} ({counts}) | {case.task}, {case.settings} "
    lines: list[str] = []
    for metric in METRICS[case.task]:
        others = {
            name: scores[metric]["value"]
            for name, scores in found["baselines"].items()
            if metric in scores and name != "zero_shot"
        }
        best = max(others, key=lambda name: others[name], default=None)
        told = "-" if best is None else f"{others[best]:.3f} ({best})"
        before = f"{found['before'][metric]['value']:.3f}" if metric in found["before"] else "-"
        lines.append(
            f"{start}| {metric} | {_with_ends(found['after'][metric])} | {before} | {told} |"
        )
        start = "| | "
    return lines


def length_table(out: Path) -> str:
    """One line for each length that was asked for; nothing where that was not run."""
    found = next(result_of(case, out) for case in CASES if case.run is tuned_to_lengths)
    if found is None:
        return ""
    lines = [
        "| asked | words that it means | words written, mean | within a fifth [95 %] | the answers to `medium`, held against this |",
        "|---|---|---|---|---|",
    ]
    for length in LENGTHS:
        wanted = found["lengths"][LENGTHS.index(length)] if isinstance(length, str) else length
        written = found["num_words"][str(length)]
        kept = _with_ends(_kept_lengths(written, wanted))
        others = _kept_lengths(found["num_words"]["medium"], wanted)["value"]
        mean = np.mean(written)
        lines.append(f"| {length} | {wanted} | {mean:.1f} | {kept} | {others:.2f} |")
    return "\n".join(lines)


def _kept_lengths(written: Sequence[int], wanted: int) -> Found:
    """Share of texts of these numbers of words that are as long as wanted, as `length_satisfaction` counts."""
    kept = satisfied_shares(["word " * n for n in written], [{"length": wanted}] * len(written))
    return asdict(accuracy(kept, seed=0))


def more_rows_table(out: Path) -> str:
    """One line for each way of getting more rows."""
    lines = [
        "| set | new rows | settings | kept of asked | wrong labels in them | without [95 %] | with [95 %] | gain [95 %] | they help |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        if case.run is augmented:
            lines.append(_more_rows_line(case, out))
    return "\n".join(lines)


def _more_rows_line(case: Case, out: Path) -> str:
    found = result_of(case, out)
    start = f"| {case.rows} | {case.name.split('-')[0]} | {case.settings} "
    if found is None:
        return f"{start}| not run | | | | | |"
    start += f"| {found['num_new_rows']:,} of {found['num_asked']:,} "
    wrong = found["wrong_fraction"]
    start += f"| {'-' if wrong is None else f'{100 * wrong:.1f} %'} "
    if found["gain"] is None:
        return f"{start}| | | | no |"
    gain = found["gain"]
    change = gain["difference"]
    return (
        f"{start}| {_with_ends(gain['without'])} | {_with_ends(gain['with'])} "
        f"| {change['value']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}] | {'yes' if found['helps'] else 'no'} |"
    )


def _with_ends(value: Mapping[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


if __name__ == "__main__":
    main()

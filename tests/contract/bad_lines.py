"""What a wrong command line is, and those of exports; `test_bad_commands.py` has the others and runs all."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BadCommand:
    """One wrong command line, and what its message must say: where, what was expected, what came, what to do."""

    line: str
    """After `lushan`; its paths are those of the fixture `place`."""
    says: tuple[str, ...]
    """Parts of the message, as they stand there."""


def bad(line: str, *says: str) -> BadCommand:
    """Shorten the tables."""
    return BadCommand(line, says)


EXPORTS = (
    bad("export run", "Missing option '--to'", "`lushan export --help` shows"),
    bad("export run --to gguf", "answers by a head", "`--to onnx`, `openvino` or `hf`"),
    bad("export run --to pickle", "`--to pickle` is no form", "Known: gguf, hf, onnx, openvino"),
    bad("export run --to hf --quantise int8", "`--quantise int8` is none of `--to hf`", "none"),
    bad("export mine --to hf", "`mine` holds no tuned model", "`lushan tune --out` wrote"),
    bad("export run --to hf --out mine", "`--out mine` holds files that are no export", "Name"),
    bad("export run --to hf --out notes.txt/x", "`notes.txt` is a file", "Name a folder"),
    bad("export run --to hf --data nowhere.csv", "`nowhere.csv` does not exist", "Give a file"),
    bad("export run --to hf --data strange.jsonl", "the label `sand`", "knows: hill, sea"),
)
"""Forms that there are not, or not for this model, and places and rows that do not fit."""

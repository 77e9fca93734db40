"""What a wrong command line is, and those of talking and of going on; `test_bad_commands.py` has the others and runs all."""

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


TALKS = (
    bad("chat", "Missing argument 'RUN|MODEL'", "`lushan chat --help` shows"),
    bad("chat run --seed x", "'--seed'", "valid integer", "Got 'x'"),
    bad("chat run --set data.over_length=window", "`data` has no effect here", "`generation`"),
    bad("chat run --system hello", "no effect here", "`classification` answers each line"),
    bad("chat run --set generation.top_p=0.5", "`classification` writes no free text"),
    bad("chat tiny --set generation.max_new_tokens=128", "`generation.max_new_tokens` is 128"),
    bad("chat encoder", "`encoder` is an encoder", "Choose a decoder (`lushan models list`)"),
    bad("chat nosuch", "Unknown model `nosuch`", "Known: SmolLM2-135M-Instruct"),
)
"""Nobody to talk to, or in no such way."""

RESUMED = (
    bad("predict run words.jsonl --resume", "`--resume` has no effect without `--out FILE`"),
    bad(
        "predict run words.jsonl --resume --out new.jsonl", "`new.jsonl.part`", "nothing was begun"
    ),
    bad("doctor run --again", "`--again` has no effect with a run"),
)
"""Nothing to go on with, or to measure."""

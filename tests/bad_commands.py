"""What a wrong command line is, and those about stores, talking and going on; `test_bad_commands.py` has the others and runs all."""

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


STORES = (
    bad("keys create web", "Missing option '--scope'", "`lushan keys create --help` shows"),
    bad("keys create web --scope fly --store new", "Unknown scope `fly`", "Known: predict, chat"),
    bad("keys create a/b --scope chat --store new", "`a/b` cannot be a key's name", "use letters"),
    bad(
        "keys create web --scope chat --expires 1y --store new",
        *("`--expires 1y`", "expected a time such as `30d`"),
    ),
    bad("keys create web --scope chat --store notes.txt", "`notes.txt` is a file", "Name a folder"),
    bad(
        "keys create web --scope chat --store notes.txt/deep",
        *("`notes.txt/deep`", "a part of that path is a file", "Name another folder"),
    ),
    bad(
        "keys create web --scope chat --store postgresql://me:secret@host/lushan",
        *("`postgresql://host/lushan` cannot be used", "a folder, or a URL of SQLite such as"),
    ),
    bad("keys create web --scope --expires 1d", "'--scope' requires", "'--expires' follows"),
    bad("keys list --store mine", "no store in `mine`", "no file `lushan.sqlite3`", "`--store`"),
    bad("keys rotate web --grace soon --store mine", "`--grace soon`", "such as `30d`"),
    bad("keys revoke web --store broken", "broken/lushan.sqlite3`", "is not a SQLite", "Move"),
    bad("feedback add reviews Fine.", "Missing option '--task'", "`lushan feedback add --help`"),
    bad(
        "feedback add reviews Fine. --task telepathy --rating bad --store new",
        *("Unknown task `telepathy`", "Known: answering, choice"),
    ),
    bad(
        "feedback add reviews Fine. --task classification --store new",
        *("cannot be stored", "needs a `rating` (`good` or `bad`), a `correction`, or both"),
    ),
    bad(
        "feedback add reviews Fine. --task tagging --correction name --store new",
        *("feedback, row 1", "`entities`", "'name'"),
    ),
    bad("feedback list --limit 0", "'--limit'", "greater than or equal to 1", "Got '0'"),
    bad("feedback list --store broken", "broken/lushan.sqlite3`", "is not a SQLite", "Move the"),
    bad("feedback export --store mine", "no store in `mine`", "no file `lushan.sqlite3`"),
    bad("feedback export --out rows.csv", "`--out rows.csv` must end in `.jsonl`", "JSON Lines"),
    bad("feedback export --out rows.jsonl", "`--out rows.jsonl` is there already", "overwrite`"),
)
"""Feedback and keys, and stores that are none."""

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

SERVED = (
    bad("serve --no-page", "nothing to serve", "Name a run or a model, or install the page"),
    bad("serve unfinished --port 70000", "`port` is wrong", "65535", "Got 70000"),
)
"""Nothing to serve, or in no such way."""

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

EXPLAINED = (
    bad("explain run nowhere.csv", "`nowhere.csv` does not exist", "Give a file (.csv"),
    bad("explain run text --label green", "The label 'green' is not one of the 2", "'hill', 'sea'"),
)
"""Nothing to explain."""

OTHERS = (*EXPLAINED, *EXPORTS, *STORES, *TALKS, *RESUMED, *SERVED)

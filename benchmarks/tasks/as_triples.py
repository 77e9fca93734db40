"""Turn rows of `relations` into rows of `triples`: one row a text, with the direction of a label told by head and tail.

```sh
python benchmarks/tasks/as_triples.py relation/semeval2010_task8 semeval_triples
```
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

NO_RELATION = frozenset({"Other", "unknown"})
_BACK = "(e2,e1)"


def triples_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the triple of a row, or none where its label says that there is no relation."""
    label: str = row["label"]
    if label in NO_RELATION:
        return []
    head, tail = (row["tail"], row["head"]) if label.endswith(_BACK) else (row["head"], row["tail"])
    name = label.removesuffix(_BACK).removesuffix("(e1,e2)")
    return [{"head": head, "label": name, "tail": tail}]


def convert(source: Path, target: Path) -> None:
    """Write the rows of one file."""
    opened = gzip.open if source.suffix == ".gz" else open
    found: dict[str, list[dict[str, Any]]] = {}
    with opened(source, "rt", encoding="utf-8") as stream:
        for row in map(json.loads, stream):
            found.setdefault(row["text"], []).extend(triples_of(row))
    rows = ({"text": text, "triples": triples} for text, triples in found.items())
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    target.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    folder, out = map(Path, sys.argv[1:3])
    files = sorted(folder.glob("*.jsonl*"))
    if not files:
        sys.exit(f"`{folder}` holds no `.jsonl` files.")
    out.mkdir(parents=True, exist_ok=True)
    for file in files:
        convert(file, out / file.name.removesuffix(".gz"))

"""No command opens a socket, but the two that fetch a model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_tiny

GUARD = """
import os
import socket


def refuse(*args, **kwargs):
    with open(os.environ["SOCKETS_OPENED"], "a", encoding="utf-8") as log:
        log.write(f"{args}")
    raise AssertionError(f"a socket was opened: {args}")


for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse)
"""
THINGS = [
    "film",
    "book",
    "river",
    "garden",
    "engine",
    "dinner",
    "hotel",
    "song",
    "teacher",
    "winter",
    "letter",
    "bridge",
]
MANNERS = [
    "slowly",
    "twice",
    "alone",
    "again",
    "early",
    "loudly",
    "gladly",
    "badly",
    "often",
    "nearly",
    "sadly",
    "once",
]
JUDGEMENTS = {"good": ("delight", "love"), "bad": ("bore", "hate")}
ROWS = [
    {"text": f"{first} {thing}, which we {second} {manner}", "label": label}
    for label, (first, second) in JUDGEMENTS.items()
    for thing, manner in zip(THINGS, MANNERS, strict=True)
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Give a folder with data, and a `sitecustomize` that guards every Python process started there."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    lines = [json.dumps(row) for row in ROWS]
    (tmp_path / "reviews.jsonl").write_text("\n".join(lines), encoding="utf-8")
    short = [{"text": each, "label": str(len(each) % 2)} for each in (*THINGS, *MANNERS)]
    (tmp_path / "short.jsonl").write_text("\n".join(map(json.dumps, short)), encoding="utf-8")
    return tmp_path


def run_guarded(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python where no process, nor any that it starts, can open a connection."""
    paths = [str(place / "guard"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "SOCKETS_OPENED": str(place / "sockets_opened"),
        "LUSHAN_CACHE": str(place / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)


def lushan(place: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run one command of Lushan, guarded."""
    return run_guarded(place, "-m", "lushan", *line.split())


def test_guard_refuses_connections_and_remembers_them(place: Path) -> None:
    code = "import socket; socket.create_connection(('127.0.0.1', 9), timeout=1)"
    assert "a socket was opened" in run_guarded(place, "-c", code).stderr
    assert "127.0.0.1" in (place / "sockets_opened").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "doctor --json",
        "models list --json",
        "check reviews.jsonl --task classification --json",
    ],
)
def test_command_works_without_the_network(line: str, place: Path) -> None:
    ran = lushan(place, line)
    assert ran.returncode == 0, ran.stderr
    assert not (place / "sockets_opened").exists()


@pytest.mark.parametrize(
    "line",
    [
        "models show SmolLM2-135M-Instruct",
        "tune reviews.jsonl --task classification --out run",
    ],
)
def test_command_without_its_model_names_the_command_that_gets_it(line: str, place: Path) -> None:
    ran = lushan(place, line)
    assert ran.returncode == 2, ran.stderr
    assert "lushan models get SmolLM2-135M-Instruct" in ran.stderr
    assert not (place / "run").exists()
    assert not (place / "sockets_opened").exists()


def test_whole_run_from_tuning_to_comparing_works_without_the_network(place: Path) -> None:
    write_tiny("llama", place / "tiny")
    lines = [
        "tune reviews.jsonl --task classification --model tiny --epochs 1 --out run",
        "evaluate run reviews.jsonl",
        "predict run reviews.jsonl --out answers.jsonl",
        "tune reviews.jsonl --task classification --model tiny --epochs 1 --no-baselines --out other",
        "compare run other",
        "augment short.jsonl --model tiny --rows 2 --set training.epochs=1 --out new.jsonl",
        "models show tiny",
    ]
    outcomes = {line: lushan(place, line) for line in lines}
    assert {line: ran.stderr for line, ran in outcomes.items() if ran.returncode != 0} == {}
    assert not (place / "sockets_opened").exists()

"""Two processes, started by `torchrun`, train the curve of one, and only the first of them writes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lushan.errors import SettingError
from lushan.training.processes import Team
from tests.bad_inputs import good_rows, write_lines
from tests.conftest import MakeTiny
from tests.runs import QUICK, read, read_steps, tune

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")
ACCELERATE = (
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes=2",
    "--main_process_port=0",
)
ROWS_PER_STEP = 3  # 34 rows: the last step has one, and the second process none


WATCHED = """\
import sys
from lushan.cli.main import run
from lushan.workflows import tune
shard = tune.shard
def watched(*given):
    print("Layers are cut.", file=sys.stderr, flush=True)
    shard(*given)
tune.shard = watched
sys.exit(run(sys.argv[1:]))
"""
"""Does what `lushan` does, and tells when layers are cut."""


def run_two(
    *words: str, program: tuple[str, ...] = ("-m", "lushan"), launcher: tuple[str, ...] = TORCHRUN
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *launcher, *program, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_one_process_leads_and_shares_with_itself() -> None:
    team = Team()
    assert team.leads
    assert team.place == (0, 1)
    assert team.share("word") == "word"
    assert team.sum(torch.ones(2)).tolist() == [1.0, 1.0]


def test_several_processes_of_which_one_was_started_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    Team()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(SettingError, match=r"starts one process, however many .* `torchrun"):
        Team()


@pytest.mark.parametrize(
    ("adapter", "together", "launcher"),
    [
        ("full", (), ACCELERATE),
        ("lora", (), TORCHRUN),
        ("top:1", ("--set", "data.label_curve=true"), TORCHRUN),
        ("full", ("--set", "engine.spread_layers=true"), TORCHRUN),
    ],
)
def test_two_processes_give_the_curve_and_the_weights_of_one(
    adapter: str,
    together: tuple[str, ...],
    *,
    launcher: tuple[str, ...],
    tiny_folder: MakeTiny,
    tmp_path: Path,
) -> None:
    data = write_lines(tmp_path / "data.jsonl", good_rows())
    options = ["--model", str(tiny_folder("llama")), "--adapter", adapter, *QUICK]
    options += ["--set", f"training.rows_per_step={ROWS_PER_STEP}"]
    assert tune(data, tmp_path / "one", *options) == 0
    program = tmp_path / "watched.py"
    program.write_text(WATCHED, encoding="utf-8")
    words = ("tune", str(data), "--out", str(tmp_path / "two"), *options, *together)
    done = run_two(*words, program=(str(program),), launcher=launcher)
    assert done.returncode == 0, done.stderr
    is_spread = "engine.spread_layers=true" in together
    assert done.stderr.count("Layers are cut.") == (2 if is_spread else 0)
    assert done.stderr.count("Certified") == 1
    one, two = (read_steps(tmp_path / name) for name in ("one", "two"))
    for own, other in zip(one, two, strict=True):
        assert other == pytest.approx(own, rel=1e-4)
    file = Path("model", f"{'adapter_' if adapter == 'lora' else ''}model.safetensors")
    torch.testing.assert_close(
        load_file(tmp_path / "two" / file), load_file(tmp_path / "one" / file), rtol=1e-3, atol=1e-5
    )
    scores = [read(tmp_path / name / "results.json")["after"] for name in ("one", "two")]
    assert scores[0] == scores[1]
    if "data.label_curve=true" in together:
        curve = read(tmp_path / "two" / "results.json")["label_curve"]
        assert [each["num_rows"] for each in curve] == [8, 16, 34]


def test_what_the_leader_refuses_ends_both_without_a_word_of_the_other(tmp_path: Path) -> None:
    missing = tmp_path / "missing.jsonl"
    done = run_two("tune", str(missing), "--out", str(tmp_path / "run"), *QUICK)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "exitcode  : 2" in done.stderr
    assert not (tmp_path / "run").exists()

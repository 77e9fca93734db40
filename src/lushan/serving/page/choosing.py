"""Lists to choose from that grow while the page is open."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

Triggers = list[Callable[..., Any]]
"""Events of gradio."""


def among(choices: Sequence[tuple[str, str]], current: str | None) -> Any:  # noqa: ANN401 - an update of gradio
    """Offer these choices; what is chosen stays if it still can be, else the first is.

    Args:
        choices: What a person reads, and the name that it stands for.
        current: The name that is chosen now.
    """
    names = [name for _, name in choices]
    if current in names:
        return gr.update(choices=choices, value=current)
    return gr.update(choices=choices, value=names[0] if names else None)

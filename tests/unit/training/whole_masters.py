"""States of optimizers, whether weights in bf16 are halves of their masters or stand beside them."""

from torch import Tensor

from lushan.backbones.native_training import joined


def in_one_piece(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state as an optimizer that keeps whole masters has it."""
    rests = {name.removeprefix("rest/"): state[name] for name in state if name.startswith("rest/")}
    found = {name: value for name, value in state.items() if not name.startswith("rest/")}
    return found | {
        f"weight/{name}": joined(state[f"weight/{name}"], rest) for name, rest in rests.items()
    }

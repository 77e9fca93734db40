"""Several processes on one run, as `torchrun` or `accelerate launch` starts them.

The first leads: it checks, decides, asks, compares and writes. The others help to train, and do nothing else.
"""

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from lushan.errors import SettingError

_PATIENCE = timedelta(days=7)
"""How long helpers wait for the leader, who may have much to ask the model before it trains."""


def _several_were_wanted() -> bool:
    """Whether `accelerate launch --cpu` runs this process: it names a meeting place only for several."""
    uses_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").casefold() == "true"
    return uses_cpu and "MASTER_ADDR" in os.environ


class Team:
    """The processes of this run; mostly there is only this one."""

    def __init__(self) -> None:
        """Find out from the environment, and connect.

        Raises:
            SettingError: If `accelerate` was told of several processes, and started one.
        """
        self._state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_PATIENCE)
        if self._state.num_processes == 1 and _several_were_wanted():
            raise SettingError(
                "`accelerate launch --cpu` starts one process, however many it is told of. "
                "Start them with `torchrun --nproc-per-node N -m lushan tune ...`."
            )

    @property
    def leads(self) -> bool:
        """Whether this process is the first."""
        return self._state.is_main_process

    @property
    def place(self) -> tuple[int, int]:
        """The number of this process, from 0, and how many there are; alone once it has disconnected."""
        if self._is_closed:
            return 0, 1
        return self._state.process_index, self._state.num_processes

    @property
    def _is_closed(self) -> bool:
        """Whether there were others to which there is no connection any more."""
        return self._state.num_processes > 1 and not torch.distributed.is_initialized()

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device = self._state.device
        assert device is not None, "set by every way in which it is made"  # noqa: S101 - of accelerate
        return device

    def share(self, value: Any = None) -> Any:  # noqa: ANN401 - whatever the leader says
        """Give every process what the leader passes; the others pass nothing."""
        if self.place[1] == 1:
            return value
        held = [value]
        broadcast_object_list(held)
        return held[0]

    def sum(self, value: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place."""
        if self.place[1] > 1:
            torch.distributed.all_reduce(value)
        return value

    def close(self) -> None:
        """Disconnect; a process that ends without would be aborted."""
        self._state.destroy_process_group()

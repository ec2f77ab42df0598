"""How a command that may run in several processes starts and ends."""

import gc
import os
import sys
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from accelerate import PartialState


def process_state() -> "PartialState":
    """The processes of this launch. On CPU, accelerate reports one process unless `cpu=True`."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != launched:
        raise RuntimeError(
            f"{launched} processes were launched (`WORLD_SIZE`), but accelerate sees {state.num_processes}: each "
            "would write the whole result. Make the model under `accelerate launch` with several processes."
        )
    return state


def end_processes() -> None:
    """
    Wait for the other processes of the launch and leave the process group; nothing where this process is alone.

    A process that ends while another one still talks to it makes the other one abort, after all its work is done.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    from accelerate import PartialState

    PartialState().wait_for_everyone()
    gc.collect()  # a wrapped model in a cycle of references would hold the group, and its threads, until exit
    torch.distributed.destroy_process_group()

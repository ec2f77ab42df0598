"""How a command that may run in several processes ends."""

import gc
import sys


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

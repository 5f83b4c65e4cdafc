"""What the processes of a run say to each other beside the gradients."""

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from instseg.core.stopping import Stop
from instseg.evaluation.collect import Part, Share

if TYPE_CHECKING:
    from accelerate import Accelerator


# For a process that hangs; one that ends is noticed at once. The main one scores an evaluation alone: some seconds.
LONGEST_WAIT = timedelta(hours=2)


def end_group() -> None:
    """The processes part, if they have not yet."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def mean_over(accelerator: "Accelerator") -> Callable[[Tensor], Tensor]:
    """The mean of a tensor over all processes, without gradient; every process has to ask for it."""
    return lambda value: accelerator.reduce(value.detach(), "mean")


def same_buffers(module: nn.Module, accelerator: "Accelerator") -> None:
    """Give every process the main one's buffers (the statistics of norms); parameters are the same anyway."""
    if accelerator.num_processes > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)


def share_of(accelerator: "Accelerator", stop: Stop) -> Share | None:
    """This process' share of an evaluation; None where it is alone."""
    if accelerator.num_processes == 1:
        return None

    def gather(work: Callable[[], list[Part]]) -> list[list[Part]]:
        from accelerate.utils import gather_object

        mine: Any
        try:  # whatever happens here, the others wait
            with stop.at_once():
                mine = work()
        except (Exception, KeyboardInterrupt) as error:
            mine = error
        with stop.held_back():
            found = gather_object([mine])
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return list(found)

    return Share(accelerator.process_index, accelerator.num_processes, gather)

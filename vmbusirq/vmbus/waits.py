"""What closing and removing a channel wait for: its tasklet, and an arrival that is on its way."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from vmbusirq._ffi import lib
from vmbusirq.irq.waits import grace_period
from vmbusirq.steps import Step, Steps
from vmbusirq.vmbus.channel import Channel
from vmbusirq.vmbus.context import Context
from vmbusirq.vmbus.isr import sched_lock

__all__ = ["TASKLET", "free_channel", "reset_channel_cb"]

TASKLET: Final = "tasklet"
"""The waits for a channel's tasklet, among those that ``IrqCore.without`` leaves out."""


def reset_channel_cb(context: Context, channel: Channel) -> Steps[None]:
    """Clear a channel's callback when its tasklet does not run, under sched_lock (vmbus_reset_channel_cb, v6.10).

    Up to its next step the caller touches no more than the channel, its ring, relid and IRQ, and what is asked.
    """
    if channel.gone:
        return
    relid = channel.relid
    touches = frozenset({f"channel {relid}", f"ring {relid} in", f"relid {relid}", f"irq {channel.irq}", "requests"})
    step = Step(f"channel {relid}: vmbus_reset_channel_cb takes sched_lock", takes=sched_lock(relid), touches=touches)
    if TASKLET in context.irq.without:
        yield step
    else:
        point = f"channel {relid}: vmbus_reset_channel_cb waits for the tasklet (tasklet_disable), takes sched_lock"
        yield replace(step, point=point, ready=lambda: not _tasklet(context, channel) & lib.VI_STEP_TASKLET_RUNS)
    channel.clear_callback()


def free_channel(context: Context, channel: Channel) -> Steps[None]:
    """Wait until nobody has a channel in its hands that nobody finds any more (free_channel, kfree_rcu; v6.10)."""
    what, touches = f"channel {channel.relid}: free_channel", frozenset({f"channel {channel.relid}", "requests"})
    if TASKLET not in context.irq.without:
        point = f"{what} waits for the tasklet (tasklet_kill)"
        yield Step(point, ready=lambda: not _tasklet(context, channel), touches=touches)
    yield from grace_period(context.irq, what, touches)


def _tasklet(context: Context, channel: Channel) -> int:
    """Where a channel's tasklet is on CPUs that are run step by step; 0: nowhere, or the channel is gone."""
    return 0 if channel.gone else int(lib.vi_step_has_tasklet(context.core.handle, channel.c))

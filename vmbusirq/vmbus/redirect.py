"""Moving channels in a design that redirects interrupts: the chip's irq_set_affinity (genirq, December 2025).

What the guest chooses is where the handler runs, and that takes effect at once. Which CPU the host interrupts only
decides whether the handler has to be sent for: MODIFYCHANNEL is posted, and whether and when the host follows does not
matter, as long as the CPU that it still interrupts looks at its event flags.
"""

from __future__ import annotations

from vmbusirq.cpumask import cpumask_first
from vmbusirq.irq import IrqDesc
from vmbusirq.irq.settings import IRQ_SET_MASK_OK
from vmbusirq.steps import Step, Steps
from vmbusirq.vmbus.channel import Channel, ChannelState
from vmbusirq.vmbus.context import SET_AFFINITY_LOCK, Context
from vmbusirq.vmbus.retarget import Retarget, moves_touch
from vmbusirq.wire.protocol import ModifyChannel, Unlock

__all__ = ["Redirector"]


class Redirector:
    """Which CPU channels run on.

    Args:
        context: the kernel and the hypervisor.
        retarget: who keeps the books of moves.
    """

    def __init__(self, context: Context, retarget: Retarget) -> None:
        self._ctx = context
        self._retarget = retarget

    def chip_set_affinity(self, desc: IrqDesc, mask: int, force: bool) -> Steps[int]:
        """Run a channel on the first CPU of ``mask``, and at once on any other of them that its flag comes to.

        It never fails (irq_chip_redirect_set_affinity). The effective mask is all of ``mask``: the core has taken
        what is offline out of it.
        """
        channel = desc.handler_data
        if not isinstance(channel, Channel):
            return (yield from self._retarget.message_set_affinity(desc, mask))
        target = cpumask_first(mask)
        touches = moves_touch(channel)
        yield Step(f"irq {desc.irq}: cpu {target} becomes the target of redirection", touches=touches | {"host queue"})
        desc.update_effective_affinity(mask)
        if channel.state is ChannelState.OPENING and not channel.irq_requested:
            return IRQ_SET_MASK_OK  # irq_startup() has its own idea; the hint of the open comes next
        if channel.gone or channel.rescinded:
            return IRQ_SET_MASK_OK
        old = channel.target_cpu
        if old != target:
            channel.set_cpu(target)
            self._retarget.account(channel, old)
        yield from self._ask_host(channel)
        return IRQ_SET_MASK_OK

    def _ask_host(self, channel: Channel) -> Steps[None]:
        """Ask the host to interrupt the CPU that runs the channel, if it can be asked, and do not wait."""
        version = self._ctx.control.version
        if version is None or not version.has(Unlock.MODIFYCHANNEL):
            return
        if channel.state is not ChannelState.OPENED or channel.moves.host_cpu == channel.target_cpu:
            return
        if self._ctx.design.set_affinity_lock:
            point = f"channel {channel.relid}: its redirection takes set_affinity_lock"
            yield Step(point, takes=SET_AFFINITY_LOCK, touches=moves_touch(channel) | {"host queue"})
        cpu = channel.target_cpu
        if not self._retarget.synic_online >> cpu & 1 or channel.state is not ChannelState.OPENED:
            return
        if self._ctx.control.post_nowait(ModifyChannel(channel.relid, cpu)):
            self._retarget.note_sent(channel, cpu)

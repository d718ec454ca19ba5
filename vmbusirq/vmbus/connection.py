"""The guest's VMBus driver: connecting to the host, taking up what it offers, leaving it again.

See drivers/hv/{connection,vmbus_drv}.c, v6.10, with RFC patches 07 to 12. The driver meets the host in hypercalls,
message slots, event flags and shared memory only. Operations that the host or another CPU can overtake are step
generators; the ordinary calls run the same code to its end.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar
from uuid import UUID

from vmbusirq._ffi import ffi, lib
from vmbusirq.core import TICKS_PER_MS, TICKS_PER_S, Core
from vmbusirq.designs import Design
from vmbusirq.errors import Hung, IrqError
from vmbusirq.irq import IrqCore
from vmbusirq.limits import SINT_VMBUS
from vmbusirq.steps import Context as StepContext
from vmbusirq.steps import Step, Steps, run
from vmbusirq.vmbus.affinity import CONNECT_CPU, VpAssignment
from vmbusirq.vmbus.callbacks import ROOM
from vmbusirq.vmbus.channel import Channel, ChannelState
from vmbusirq.vmbus.channel_mgmt import ChannelManager
from vmbusirq.vmbus.context import Context, GuestOptions
from vmbusirq.vmbus.control import Control, Request
from vmbusirq.vmbus.device import HvDevice
from vmbusirq.vmbus.devices import Devices
from vmbusirq.vmbus.drivers import DRIVERS
from vmbusirq.vmbus.monitor import Monitors
from vmbusirq.vmbus.open import Opener
from vmbusirq.vmbus.pages import HV_PAGE, GuestPages
from vmbusirq.vmbus.retarget import Retarget
from vmbusirq.vmbus.toplevel import make_domain, request_message_irq, request_ppi
from vmbusirq.vmbus.work import WorkQueues
from vmbusirq.wire.protocol import (
    LINUX_VERSIONS,
    VMBUS_MESSAGE_CONNECTION_ID,
    VMBUS_MESSAGE_CONNECTION_ID_4,
    InitiateContact,
    MessageType,
    RequestOffers,
    TlConnectRequest,
    Unload,
    Unlock,
    Version,
    VersionResponse,
)

__all__ = ["VmbusConnection"]

T = TypeVar("T")

RESUME_TIMEOUT_TICKS: Final = 10 * TICKS_PER_S
CRASH_POLL_TICKS: Final = 10 * TICKS_PER_MS
CRASH_POLLS: Final = 10_000  # 100 s
CRASH_NOTICE_POLLS: Final = 500
MONITOR_PENDING: Final = 8  # trigger_group[4] of a monitor page, {pending, armed} each (vmbus.md 2.5)
MONITOR_GROUP: Final = 8
MONITOR_IDS: Final = 128
_ISOLATION_MIN: Final = Version.V5_2


class VmbusConnection:
    """The guest's end of VMBus.

    Args:
        hv: the partition: hypercalls, memory, SynICs, time.
        nodes: mask of online CPUs of each NUMA node.
        ppi_irq: Linux IRQ of the per-CPU interrupt that serves the top level (arm64), 0 on x86.

    Attributes:
        control: messages to and from the host.
        devices: devices by instance GUID, in the order in which they came; drivers, and ids added to them.
        channels: offered channels by relid.
        work: the work queues.
        retarget: which CPU channels interrupt.
        monitors: the monitor pages.
        manager: channels from offer to removal.
    """

    def __init__(
        self,
        core: Core,
        irq: IrqCore,
        hv: Any,
        design: Design,
        *,
        nodes: Sequence[int],
        options: GuestOptions | None = None,
        ppi_irq: int = 0,
    ) -> None:
        options = options or GuestOptions()
        self._irq = irq
        self._hv = hv
        self.design: Final = design
        self.options: Final = options
        self.log: Final = irq.log
        self.control: Final = Control(hv, irq.log)
        self._ctx: Final = Context(core, irq, hv, self.control, design, options)
        self._nodes = tuple(nodes)
        self._pages: dict[str, GuestPages] = {}
        self.monitors: Final = Monitors(self._pages)
        self.work: Final = WorkQueues(irq.owner.keep)
        assignment = VpAssignment(nodes, irq.possible & ~options.isolated)
        self.retarget: Final = Retarget(self._ctx, assignment)
        self.domain: Final = make_domain(irq, self.retarget.chip_set_affinity, self)
        self._opener: Final = Opener(self._ctx)
        self.devices: Final = Devices(irq.log, self._opener.abandon)
        self.manager: Final = ChannelManager(
            self._ctx, self._opener, self.devices, self.work, self.domain, self._set_signal, assignment
        )
        self.retarget.perf_channel_on = self.manager.perf_channel_on
        for name, driver in DRIVERS.items():
            self.devices.drivers[name] = driver(self)
        self._take_messages()
        irq.owner.rooms[ROOM] = self
        irq.owner.set_hooks(message=lib.vi_py_message, packet=lib.vi_py_packet)
        hv.add_pump(self.work.pump, guest=True)
        irq.idle = hv.idle
        core.before_end.append(self.work.close)
        if ppi_irq:
            request_ppi(core, irq, design, ppi_irq)
        if design.message_irq:
            request_message_irq(core, irq, self.domain)

    def _take_messages(self) -> None:
        control, manager = self.control, self.manager
        control.handlers.update(
            {
                MessageType.OFFERCHANNEL: manager.queue_offer,
                MessageType.RESCIND_CHANNELOFFER: manager.queue_rescind,
                MessageType.OPENCHANNEL_RESULT: lambda m: control.answer(m, m.child_relid, m.openid),  # type: ignore[attr-defined]
                MessageType.GPADL_CREATED: lambda m: control.answer(m, m.child_relid, m.gpadl),  # type: ignore[attr-defined]
                MessageType.GPADL_TORNDOWN: lambda m: control.answer(m, m.gpadl),  # type: ignore[attr-defined]
                MessageType.VERSION_RESPONSE: control.answer,
                MessageType.UNLOAD_RESPONSE: control.answer,
                MessageType.MODIFYCHANNEL_RESPONSE: self.retarget.on_response,
            }
        )

    # ---- what others look at

    @property
    def channels(self) -> Mapping[int, Channel]:
        """Offered channels by relid."""
        return self._ctx.channels

    @property
    def version(self) -> Version | None:
        """The protocol version agreed upon, None while not connected."""
        return self.control.version if self.control.connected else None

    @property
    def messages_received(self) -> Mapping[int, int]:
        """Control messages taken out of the slot, by type."""
        return self.control.received

    @property
    def isolated(self) -> int:
        """CPUs that channels keep away from."""
        return self.options.isolated

    @property
    def synic_online(self) -> int:
        """CPUs whose SynIC takes interrupts."""
        return self.retarget.synic_online

    def cpu_to_node(self, cpu: int) -> int:
        """Return the NUMA node of a CPU."""
        return next((node for node, cpus in enumerate(self._nodes) if cpus >> cpu & 1), 0)

    @property
    def nr_online_cpus(self) -> int:
        """How many CPUs are online, which is what drivers ask sub-channels by."""
        return self._irq.online.bit_count()

    def on_message(self, message_type: int, size: int, payload: bytes) -> None:
        """Take one control message (vmbus_on_msg_dpc)."""
        self.control.on_message(message_type, size, payload)

    def shared_pages(self) -> dict[str, tuple[int, ...]]:
        """Return what the host may reach now, by what it is: guest page numbers; none for a CPU's SynIC pages."""
        gpadls = {f"GPADL {handle:#x}": gpadl.pfns for handle, gpadl in self._opener.gpadls.items()}
        synics: dict[str, tuple[int, ...]] = {
            f"cpu {cpu}: message page, event flag page": ()
            for cpu in range(self._irq.nr_cpus)
            if self.synic_online >> cpu & 1
        }
        return {**{name: tuple(pages.pfns) for name, pages in self._pages.items()}, **gpadls, **synics}

    @property
    def stranded_pages(self) -> int:
        """Pages of rings that the host never let go of; they come back when it rescinds the channel, or at unload."""
        return self._opener.stranded_pages

    # ---- connecting

    def synic_init(self, cpus: Iterable[int]) -> None:
        """Switch the SynICs of CPUs on (hv_synic_init)."""
        for cpu in cpus:
            self._hv.synic.enable(cpu)
            self.retarget.synic_online |= 1 << cpu

    def connect(self) -> None:
        """Agree on a version and ask for the offers, which come as the machine runs.

        Errors as :meth:`connect_steps`.
        """
        self._run(self.connect_steps())

    def connect_steps(self) -> Steps[None]:
        """Yield the steps of negotiation and REQUESTOFFERS (vmbus_connect, vmbus_request_offers).

        Raises:
            IrqError: EDOM the host speaks none of our versions; else as posting.
        """
        self._irq.check_owner()
        if self.control.connected:
            raise IrqError(errno.EBUSY, f"vmbus: is connected at version {self.version} already (EBUSY)")
        self._allocate_pages()
        newest = Version(self.options.max_version)
        tried = [version for version in LINUX_VERSIONS if version <= newest]
        if self.options.isolation:
            tried = [version for version in tried if version >= _ISOLATION_MIN]
        for version in tried:
            try:
                if (yield from self._negotiate(version)):
                    break
            except Hung:
                raise
            except IrqError:
                continue
        else:
            self._free_pages()
            spoken = ", ".join(str(version) for version in tried) or "none"
            raise IrqError(errno.EDOM, f"vmbus: the host speaks none of our versions (EDOM); tried: {spoken}")
        self.log.info(f"hv_vmbus: Vmbus version:{self.version}")
        yield from self.control.post(RequestOffers())

    def _allocate_pages(self) -> None:
        for name in ("interrupt page", "monitor page 1", "monitor page 2"):
            if name not in self._pages:
                self._pages[name] = GuestPages(self._hv.memory, 1)

    def _free_pages(self) -> None:
        for pages in self._pages.values():
            pages.free()
        self._pages.clear()

    def _gpa(self, name: str) -> int:
        return self._pages[name].pfns[0] * HV_PAGE

    def _negotiate(self, version: Version) -> Steps[bool]:
        """Try one version (vmbus_negotiate_version). Linux looks at version_supported alone."""
        control = self.control
        multi_client = version.has(Unlock.MULTI_CLIENT)
        control.msg_conn_id = VMBUS_MESSAGE_CONNECTION_ID_4 if multi_client else VMBUS_MESSAGE_CONNECTION_ID
        message = InitiateContact(
            version,
            CONNECT_CPU,
            InitiateContact.target() if version.has(Unlock.MSG_SINT) else self._gpa("interrupt page"),
            self._gpa("monitor page 1"),
            self._gpa("monitor page 2"),
        )
        answer = yield from control.ask(Request(MessageType.VERSION_RESPONSE), message)
        if not isinstance(answer, VersionResponse) or not answer.version_supported:
            return False
        if multi_client:
            control.msg_conn_id = answer.msg_conn_id
        control.version = version
        control.connected = True
        return True

    def _set_signal(self, channel: Channel) -> None:
        """Let a channel signal the host as its offer says (vmbus_setevent; vmbus.md 2.6)."""
        offer = channel.offer
        interrupt_page = monitor = ffi.NULL
        if not offer.is_dedicated or offer.is_monitored:
            interrupt_page = ffi.cast("uint64_t *", self._address("interrupt page") + HV_PAGE // 2)
        monitored = offer.is_monitored and offer.monitorid < MONITOR_IDS
        if monitored:
            group = offer.monitorid // 32
            monitor = ffi.cast("uint32_t *", self._address("monitor page 2") + MONITOR_PENDING + group * MONITOR_GROUP)
        try:
            channel.set_signal(
                offer.connection_id,
                send_int_page=interrupt_page,
                monitor_pending=monitor,
                monitor_bit=offer.monitorid % 32 if monitored else 0,
            )
        except IrqError as error:
            self.log.warn(f"hv_vmbus: the host cannot be signalled: {error}")

    def _address(self, name: str) -> Any:
        return self._hv.memory.address(self._pages[name].pfns[0])

    # ---- what drivers use

    def wait(self, point: str, ready: Callable[[], bool], timeout_ticks: int | None = None) -> Steps[bool]:
        """Wait until ``ready``, or so many ticks; return whether it came true."""
        return (yield from self.control.wait(point, ready, timeout_ticks))

    def open_steps(
        self, channel: Channel, callback: Callable[[Channel], object] | None = None, *, userdata: bytes = b""
    ) -> Steps[None]:
        """Yield the steps of :meth:`open`. An error undoes exactly what was done."""
        yield from self._opener.open(channel, callback, userdata)

    def close_steps(self, channel: Channel) -> Steps[None]:
        """Yield the steps of :meth:`close`."""
        subs = channel.device.sub_channels if channel.device is not None and channel.primary is None else []
        yield from self._opener.close(channel, subs, self.manager.process_removal)

    def establish_gpadl_steps(self, channel: Channel, pages: GuestPages) -> Steps[int]:
        """Share pages with the host; the result is the handle. EDQUOT: refused; ENODEV: rescinded."""
        return (yield from self._opener.establish_gpadl(channel, pages.pfns))

    def teardown_gpadl_steps(self, channel: Channel, handle: int) -> Steps[None]:
        """Take shared pages back."""
        yield from self._opener.teardown_gpadl(channel, handle)

    def alloc_pages(self, pages: int) -> GuestPages:
        """Return contiguous pages of 4096 bytes to share."""
        return GuestPages(self._hv.memory, pages)

    def queue_work(self, label: str, steps: Steps[None]) -> None:
        """Run steps later, on the system's work queue."""
        self.work.system.queue(label, steps)

    def tl_connect_steps(self, guest_endpoint_id: UUID, host_service_id: UUID) -> Steps[None]:
        """Ask for an hv_sock connection; success is an offer (vmbus_send_tl_connect_request).

        Raises:
            IrqError: EINVAL below 4.0; else as posting.
        """
        yield from self.control.post(TlConnectRequest(guest_endpoint_id, host_service_id))

    # ---- by hand

    def open(self, channel: Channel, callback: Callable[[Channel], object] | None = None) -> None:
        """Share rings with the host, request the IRQ, open the channel (__vmbus_open, RFC patch 09).

        Args:
            channel: an offered one that no driver has opened.
            callback: called with the channel where its mode says; None for the driver's own reader, which counts what
                it reads.
        Raises:
            IrqError: EINVAL unless it is offered and closed; EDEADLK inside a handler; ENOMEM; EDQUOT the host refuses
                the rings, EAGAIN the channel; ENODEV it was rescinded meanwhile; what request_irq refuses with;
                ETIMEDOUT (Hung) the host will never answer.
        """
        self._run(self.open_steps(channel, callback))

    def close(self, channel: Channel) -> None:
        """Stop the callback, tell the host, take the rings back, free the IRQ (vmbus_close).

        Raises:
            IrqError: EINVAL unless it is open and a primary; EDEADLK from inside an interrupt; ETIMEDOUT as above.
        """
        self._run(self.close_steps(channel))

    def target_cpu_store(self, channel: Channel, text: bytes) -> int:
        """Take a write to channels/<relid>/cpu; errors and result: :meth:`Retarget.target_cpu_store`."""
        return self._run(self.target_cpu_store_steps(channel, text))

    def target_cpu_store_steps(self, channel: Channel, text: bytes) -> Steps[int]:
        """Yield the steps of :meth:`target_cpu_store`."""
        self._irq.check_owner()
        return (yield from self.retarget.target_cpu_store(channel, text))

    def bind(self, driver: str, device: HvDevice) -> None:
        """Bind a driver by hand; errors as :meth:`Devices.bind`."""
        self._run(self.devices.bind(self.devices.driver(driver), device))

    def unbind(self, device: HvDevice) -> None:
        """Let the driver of a device go. ENODEV: none is bound."""
        self._run(self.devices.unbind(device))

    def new_id(self, driver: str, class_id: UUID) -> None:
        """Let a driver serve one more class. EEXIST: it does."""
        self._run(self.devices.new_id(self.devices.driver(driver), class_id))

    def remove_id(self, driver: str, class_id: UUID) -> None:
        """Take a class of :meth:`new_id` back; what is bound stays bound. ENODEV: it was not added."""
        self._irq.check_owner()
        self.devices.remove_id(self.devices.drivers[driver], class_id)

    def _run(self, steps: Steps[T]) -> T:
        self._irq.check_owner()
        return run(steps, self._hv.idle)

    # ---- leaving

    def unload(self) -> None:
        """Leave the host: it closes everything and forgets it (vmbus_initiate_unload)."""
        self._run(self.unload_steps())

    def unload_steps(self) -> Steps[None]:
        """Yield the steps of :meth:`unload`; nothing happens if the guest is not connected."""
        control = self.control
        if not control.connected:
            return
        control.connected = False
        if control.version is not None and control.version.has(Unlock.RECONNECT):
            yield from control.ask(Request(MessageType.UNLOAD_RESPONSE), Unload())
            self._opener.let_go()

    def kexec(self) -> dict[str, tuple[int, ...]]:
        """Leave for another kernel: everything that is shared is revoked (hv_kexec_handler).

        Returns:
            What stays shared, as :meth:`shared_pages`: nothing.
        """
        self._run(self.unload_steps())
        self._opener.let_go()
        for cpu in range(self._irq.nr_cpus):
            self._synic_cleanup(cpu)
        self._free_pages()
        return self.shared_pages()

    def _synic_cleanup(self, cpu: int) -> None:
        if self.retarget.synic_online >> cpu & 1:
            self._hv.synic.disable(cpu)
            self.retarget.synic_online &= ~(1 << cpu)

    def panic(self, cpu: int) -> dict[str, tuple[int, ...]]:
        """Leave because the kernel crashed on ``cpu`` (hv_crash_handler): only that CPU's SynIC pages are revoked.

        The other CPUs stand still; UNLOAD_RESPONSE is looked for in every slot, for 100 seconds.

        Returns:
            What stays shared, as :meth:`shared_pages`.
        """
        return self._run(self.panic_steps(cpu))

    def panic_steps(self, cpu: int) -> Steps[dict[str, tuple[int, ...]]]:
        """Yield the steps of :meth:`panic`."""
        control = self.control
        if control.connected:
            control.connected = False
            if control.version is not None and control.version.has(Unlock.RECONNECT):
                yield Step("crash: send UNLOAD", StepContext.HARDIRQ)
                with suppress(IrqError):  # posted or not, the answer is looked for (vmbus_initiate_unload)
                    for step in control.post(Unload()):
                        yield Step(step.point, StepContext.HARDIRQ, ready=step.ready)
                if (yield from self._poll_for_unload()):
                    self._opener.let_go()
                    self._pages.clear()  # the host lets go of them too; the pages are never used again
        self._synic_cleanup(cpu)
        return self.shared_pages()

    def _poll_for_unload(self) -> Steps[bool]:
        """Read every CPU's slot until the answer to UNLOAD is in one (vmbus_wait_for_unload)."""
        clock = self._hv.clock
        for poll in range(CRASH_POLLS):
            if self._found_unload_response():
                return True
            if poll % CRASH_NOTICE_POLLS == CRASH_NOTICE_POLLS - 1:
                self.log.info("hv_vmbus: Waiting for VMBus UNLOAD to complete")
            end = clock.now + CRASH_POLL_TICKS
            timer = clock.call_at(end, lambda: None)
            yield Step("crash: poll for UNLOAD_RESPONSE", StepContext.HARDIRQ, ready=lambda end=end: clock.now >= end)  # type: ignore[misc]
            timer.cancel()
        self.log.err("hv_vmbus: Continuing even though VMBus UNLOAD did not complete")
        return False

    def _found_unload_response(self) -> bool:
        found = False
        for cpu in range(self._irq.nr_cpus):
            payload = self._hv.synic.take_message(cpu, SINT_VMBUS)
            found |= payload is not None and payload[:4] == MessageType.UNLOAD_RESPONSE.to_bytes(4, "little")
        return found

    # ---- hibernation

    def suspend(self) -> None:
        """Get ready for hibernation. Errors as :meth:`suspend_steps`."""
        self._run(self.suspend_steps())

    def suspend_steps(self) -> Steps[None]:
        """Suspend every device, then the bus (vmbus_suspend of the devices, vmbus_bus_suspend).

        An error, and a host that does not answer, leave the guest as it was: devices that were suspended are resumed.

        Raises:
            IrqError: EINVAL it is not connected; EOPNOTSUPP a driver cannot suspend, or a channel is open that no
                driver looks after; EBUSY a device of an earlier resume is still missing.
        """
        self._irq.check_owner()
        if not self.control.connected:
            raise IrqError(errno.EINVAL, "vmbus: cannot suspend: it is not connected (EINVAL)")
        self._refuse_open_by_hand()
        # dpm_prepare: wait_for_device_probe(), device_block_probing()
        yield from self.wait("suspend: wait for the probes", lambda: self.work.bus_idle and self.work.system.idle)
        self.devices.probing_blocked = True
        suspended: list[HvDevice] = []
        try:
            for device in tuple(self.devices.values()):
                suspended.append(device)
                yield from self.devices.under_lock(device, self._suspend_device(device))
            yield from self._suspend_bus()
        except IrqError:
            for device in reversed(suspended):
                yield from self.devices.under_lock(device, self._resume_device(device))
            yield from self.devices.allow_probing()
            raise
        yield from self.unload_steps()

    def _suspend_device(self, device: HvDevice) -> Steps[None]:
        if device.driver is not None and device.primary.state is ChannelState.OPENED:
            yield from device.driver.suspend(device)

    def _refuse_open_by_hand(self) -> None:
        for device in self.devices.values():
            channel = device.primary
            in_use = channel.state in (ChannelState.OPENING, ChannelState.OPENED)
            if device.driver is None and in_use and not channel.is_hv_sock:
                raise IrqError(
                    errno.EOPNOTSUPP,
                    f"vmbus: cannot suspend: channel {channel.relid} is {channel.state.name} and no driver closes it "
                    "(EOPNOTSUPP); close it first",
                )

    def _suspend_bus(self) -> Steps[None]:
        """Yield the steps of vmbus_bus_suspend() up to the UNLOAD."""
        manager = self.manager
        yield from self.wait("suspend: wait for what the host has to say", lambda: manager.offers_in_progress == 0)
        manager.ignore_offers = True
        try:
            yield from self._drain_bus()
        except BaseException:
            manager.ignore_offers = False
            raise
        manager.forget_relids()

    def _drain_bus(self) -> Steps[None]:
        manager = self.manager
        yield from self.wait("suspend: drain the work queues", lambda: self.work.bus_idle)
        for device in tuple(self.devices.values()):
            if device.primary.is_hv_sock and not device.primary.rescinded:
                yield from manager.rescind(device.primary)
        yield from self.wait("suspend: wait for sub-channels to go", lambda: manager.close_on_suspend == 0)
        if manager.fixup_on_resume:
            self.log.err("hv_vmbus: Can not suspend due to a previous failed resuming")
            raise IrqError(errno.EBUSY, f"vmbus: {manager.fixup_on_resume} devices are missing since the last resume")

    def resume(self) -> None:
        """Come back from hibernation. Errors as :meth:`resume_steps`."""
        self._run(self.resume_steps())

    def resume_steps(self) -> Steps[None]:
        """Connect at the same version, take up the offers again, resume every device (vmbus_bus_resume).

        Raises:
            IrqError: EINVAL there was no suspend; EPROTO the host does not speak the version any more.
        """
        self._irq.check_owner()
        version, manager = self.control.version, self.manager
        if version is None or self.control.connected:
            raise IrqError(errno.EINVAL, "vmbus: cannot resume: it was not suspended (EINVAL)")
        manager.ignore_offers = False
        if not (yield from self._negotiate(version)):
            raise IrqError(errno.EPROTO, f"vmbus: the host does not speak version {version} any more (EPROTO)")
        yield from self.control.post(RequestOffers())
        point = "resume: wait for the offers"
        if not (yield from self.wait(point, lambda: manager.fixup_on_resume == 0, RESUME_TIMEOUT_TICKS)):
            self.log.err("hv_vmbus: Some vmbus device is missing after suspending?")
        for device in tuple(self.devices.values()):
            yield from self.devices.under_lock(device, self._resume_device(device))
        yield from self.devices.allow_probing()

    def _resume_device(self, device: HvDevice) -> Steps[None]:
        """Let a driver open its device again; what it fails with is logged, as the PM core does."""
        channel = device.primary
        if device.driver is None or channel.state is ChannelState.OPENED or not channel.mapped:
            return
        try:
            yield from device.driver.resume(device)
        except IrqError as error:
            number = -(error.errno or errno.EIO)
            self.log.err(f"vmbus {device.guid}: PM: failed to restore noirq: error {number}: {error}")

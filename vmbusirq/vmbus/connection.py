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
from vmbusirq.core import Core
from vmbusirq.designs import Design
from vmbusirq.errors import Hung, IrqError
from vmbusirq.hyperv.monitor import GROUP_BITS, GROUPS, PENDING
from vmbusirq.irq import IrqCore
from vmbusirq.steps import Steps, run
from vmbusirq.vmbus.affinity import CONNECT_CPU, VpAssignment
from vmbusirq.vmbus.callbacks import ROOM
from vmbusirq.vmbus.channel import Channel
from vmbusirq.vmbus.channel_mgmt import ChannelManager
from vmbusirq.vmbus.context import Context, GuestOptions
from vmbusirq.vmbus.control import Control, Request
from vmbusirq.vmbus.cpuhp import CpuHotplug
from vmbusirq.vmbus.device import HvDevice
from vmbusirq.vmbus.devices import Devices
from vmbusirq.vmbus.drivers import DRIVERS
from vmbusirq.vmbus.hibernation import Hibernation
from vmbusirq.vmbus.leaving import Leaving
from vmbusirq.vmbus.migrate import Migration
from vmbusirq.vmbus.monitor import Monitors
from vmbusirq.vmbus.open import Opener
from vmbusirq.vmbus.pages import HV_PAGE, GuestPages
from vmbusirq.vmbus.redirect import Redirector
from vmbusirq.vmbus.retarget import Retarget
from vmbusirq.vmbus.synic import GuestSynic
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
    Unlock,
    Version,
    VersionResponse,
)

__all__ = ["VmbusConnection"]

T = TypeVar("T")

_ISOLATION_MIN: Final = Version.V5_2


class VmbusConnection:
    """The guest's end of VMBus.

    Args:
        hv: the partition: hypercalls, memory, SynICs, time.
        nodes: mask of the CPUs of each NUMA node.
        ppi_irq: Linux IRQ of the per-CPU interrupt that serves the top level (arm64), 0 on x86.

    Attributes:
        control: messages to and from the host.
        devices: devices by instance GUID, in the order in which they came; drivers, and ids added to them.
        channels: offered channels by relid.
        work: the work queues.
        retarget: which CPU channels interrupt; redirector: the same in a design that redirects them.
        cpuhp: CPUs that come and go.
        monitors: the monitor pages.
        synic: the SynICs as the guest programs them.
        manager: channels from offer to removal.
        leaving, hibernation: unload, kexec and crash; suspend and resume.
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
        self._pages: Final[dict[str, GuestPages]] = {}
        self.monitors: Final = Monitors(self._pages)
        self.work: Final = WorkQueues(irq.owner.keep)
        assignment = VpAssignment(nodes, irq.possible & ~options.isolated, lambda: irq.online)
        self.retarget: Final = Retarget(self._ctx, assignment, self.work.system.queue)
        self.redirector: Final = Redirector(self._ctx, self.retarget)
        moves = self.redirector if design.redirects else self.retarget
        self.domain: Final = make_domain(irq, moves.chip_set_affinity, self)
        self._opener: Final = Opener(self._ctx, self.work.system.queue)
        self.devices: Final = Devices(irq.log, self._opener.abandon)
        self.synic: Final = GuestSynic(hv)
        migration = Migration(self._ctx, self.retarget, self.devices)
        self.cpuhp: Final = CpuHotplug(self._ctx, self.retarget, migration, self.synic)
        self.manager: Final = ChannelManager(
            self._ctx, self._opener, self.devices, self.work, self.domain, self._set_signal, assignment
        )
        self.retarget.perf_channel_on = self.manager.perf_channel_on
        self.leaving: Final = Leaving(
            self._ctx, self._opener, self.cpuhp, self._pages, self.synic, self.devices.all_channels
        )
        self.hibernation: Final = Hibernation(
            self._ctx,
            self.manager,
            self.devices,
            self.work,
            unload=self.leaving.unload,
            negotiate=self._negotiate,
            request_offers=self._request_offers,
        )
        for name, driver in DRIVERS.items():
            self.devices.drivers[name] = driver(self)
        self._take_messages()
        self._stimer0_isr: Callable[[int, bytes], object] | None = None
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
    def synics_on(self) -> int:
        """CPUs whose SynIC takes interrupts."""
        return self.cpuhp.synics_on

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

    def set_stimer0_isr(self, handler: Callable[[int, bytes], object] | None) -> None:
        """Call ``handler`` with the CPU and the payload of each timer message, in the hard interrupt (hv_stimer0_isr).

        The slot is freed after that. None: timer messages are counted and freed, and nobody is called.
        """
        self._stimer0_isr = handler
        self._irq.owner.set_hooks(stimer=ffi.NULL if handler is None else lib.vi_py_stimer)

    def on_stimer(self, cpu: int, payload: bytes) -> None:
        """Take one timer message."""
        if self._stimer0_isr is not None:
            self._stimer0_isr(cpu, payload)

    def shared_pages(self) -> dict[str, tuple[int, ...]]:
        """Return what the host may reach now, by what it is: guest page numbers."""
        gpadls = {f"GPADL {handle:#x}": gpadl.pfns for handle, gpadl in self._opener.gpadls.items()}
        synics: dict[str, tuple[int, ...]] = {
            f"cpu {cpu}: message page, event flag page": self.synic.pages[cpu]
            for cpu in range(self._irq.nr_cpus)
            if self.synics_on >> cpu & 1
        }
        return {**{name: tuple(pages.pfns) for name, pages in self._pages.items()}, **gpadls, **synics}

    @property
    def stranded_pages(self) -> int:
        """Pages of rings that the host never let go of; they come back when it rescinds the channel, or at unload."""
        return self._opener.stranded_pages

    # ---- connecting

    def synic_init(self, cpus: Iterable[int]) -> None:
        """Switch the SynICs of CPUs on (hv_synic_init)."""
        cpus = list(cpus)
        self.synic.prepare(cpus)
        for cpu in cpus:
            self._run(self.cpuhp.synic_init(cpu))

    def synic_cleanup(self, cpu: int) -> None:
        """Switch the SynIC of a CPU off that is to go offline (hv_synic_cleanup).

        Raises:
            IrqError: EBUSY the connect CPU, a CPU that a channel interrupts, or one with flags that nobody serves;
                everything is as it was then.
        """
        self._run(self.cpuhp.synic_cleanup(cpu))

    def connect(self) -> None:
        """Agree on a version and ask for the offers, which come as the machine runs.

        Errors as :meth:`connect_steps`.
        """
        self._run(self.connect_steps())

    def connect_steps(self) -> Steps[None]:
        """Yield the steps of negotiation and REQUESTOFFERS (vmbus_connect, vmbus_request_offers).

        Raises:
            IrqError: EBUSY it is connected, suspended, or has channels of a connection that it left; EDOM the host
                speaks none of our versions; else as posting.
        """
        self._irq.check_owner()
        self._refuse_second_connection()
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
        yield from self._request_offers()

    def _refuse_second_connection(self) -> None:
        if self.control.connected:
            raise IrqError(errno.EBUSY, f"vmbus: is connected at version {self.version} already (EBUSY)")
        if self.control.suspended:
            raise IrqError(errno.EBUSY, "vmbus: cannot connect: it is suspended (EBUSY); resume first")
        left = sum(1 for _ in self.devices.all_channels())
        if left:
            raise IrqError(
                errno.EBUSY,
                f"vmbus: cannot connect: {left} channels are left of a connection that is over (EBUSY); suspend and "
                "resume instead",
            )

    def _request_offers(self) -> Steps[None]:
        """Post REQUESTOFFERS (vmbus_request_offers); a guest that cannot leaves its host again."""
        try:
            yield from self.control.post(RequestOffers())
        except Exception:
            with suppress(IrqError):  # the first error is the one that counts
                yield from self.leaving.unload()
            raise

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
        self._opener.let_go()  # to a host, first contact is an unload as well (vmbus.md 2.10)
        control.version = version
        control.connected = True
        return True

    def _set_signal(self, channel: Channel) -> None:
        """Let a channel signal the host as its offer says (vmbus_setevent; vmbus.md 2.6)."""
        offer = channel.offer
        interrupt_page = monitor = ffi.NULL
        if not offer.is_dedicated or offer.is_monitored:
            interrupt_page = ffi.cast("uint64_t *", self._address("interrupt page") + HV_PAGE // 2)
        monitored = offer.is_monitored and offer.monitorid < GROUPS * GROUP_BITS
        if monitored:
            group = offer.monitorid // GROUP_BITS
            monitor = ffi.cast("uint32_t *", self._address("monitor page 2") + PENDING + 8 * group)
        try:
            channel.set_signal(
                offer.connection_id,
                send_int_page=interrupt_page,
                monitor_pending=monitor,
                monitor_bit=offer.monitorid % GROUP_BITS if monitored else 0,
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
        """Share pages with the host; the result is the handle. EDQUOT: refused; ENODEV: rescinded.

        The pages are not the caller's any more, whatever happens: an error frees them, or keeps them from everybody if
        the host may know of them.
        """
        return (yield from self._opener.share(channel, pages))

    def teardown_gpadl_steps(self, channel: Channel, handle: int, pages: GuestPages) -> Steps[None]:
        """Have the host let go of shared pages, and free them; if it does not, nobody gets them."""
        yield from self._opener.unshare(channel, handle, pages)

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
        self.devices.remove_id(self.devices.driver(driver), class_id)

    def _run(self, steps: Steps[T]) -> T:
        self._irq.check_owner()
        return run(steps, self._hv.idle)

    # ---- leaving, and coming back

    def unload(self) -> None:
        """Leave the host: it closes everything and forgets it (vmbus_initiate_unload)."""
        self._run(self.leaving.unload())

    def unload_steps(self) -> Steps[None]:
        """Yield the steps of :meth:`unload`; nothing happens if the guest is not connected."""
        yield from self.leaving.unload()

    def kexec(self) -> dict[str, tuple[int, ...]]:
        """Leave for another kernel: everything that is shared is revoked (hv_kexec_handler).

        Returns:
            What stays shared, as :meth:`shared_pages`: nothing.
        """
        self._run(self.leaving.kexec())
        return self.shared_pages()

    def panic(self, cpu: int) -> dict[str, tuple[int, ...]]:
        """Leave because the kernel crashed on ``cpu`` (hv_crash_handler): only that CPU's SynIC pages are revoked.

        The other CPUs stand still; UNLOAD_RESPONSE is looked for in every slot, for 100 seconds.

        Returns:
            What stays shared, as :meth:`shared_pages`.
        Raises:
            IrqError(EINVAL): there is no such CPU.
        """
        self._run(self.panic_steps(cpu))
        return self.shared_pages()

    def panic_steps(self, cpu: int) -> Steps[None]:
        """Yield the steps of :meth:`panic`."""
        if not isinstance(cpu, int) or not 0 <= cpu < self._irq.nr_cpus:
            raise IrqError(errno.EINVAL, f"panic on cpu {cpu}: there is none (EINVAL); 0 to {self._irq.nr_cpus - 1}")
        yield from self.leaving.panic(cpu)

    def suspend(self) -> None:
        """Get ready for hibernation. Errors as :meth:`Hibernation.suspend`."""
        self._run(self.hibernation.suspend())

    def suspend_steps(self) -> Steps[None]:
        """Yield the steps of :meth:`suspend`."""
        self._irq.check_owner()
        yield from self.hibernation.suspend()

    def resume(self) -> None:
        """Come back from hibernation. Errors as :meth:`Hibernation.resume`."""
        self._run(self.hibernation.resume())

    def resume_steps(self) -> Steps[None]:
        """Yield the steps of :meth:`resume`."""
        self._irq.check_owner()
        yield from self.hibernation.resume()

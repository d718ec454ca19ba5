"""Requesting and freeing, enabling and disabling interrupts (kernel/irq/manage.c, v6.10).

There are no interrupt threads: a request always brings a handler, and IRQ_WAKE_THREAD gets the kernel's warning.
"""

from __future__ import annotations

import errno
from typing import Any, Final

from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError, check
from vmbusirq.irq.action import CHandler, IrqAction, same_cookie
from vmbusirq.irq.affinity import AffinityLayer
from vmbusirq.irq.chip import NO_IRQ_CHIP
from vmbusirq.irq.desc import IrqDesc
from vmbusirq.irq.settings import (
    IRQ_DISABLE_UNLAZY,
    IRQ_LEVEL,
    IRQ_NESTED_THREAD,
    IRQ_NO_BALANCING,
    IRQ_NO_DEBUG,
    IRQ_NOAUTOEN,
    IRQ_NOPROBE,
    IRQ_NOREQUEST,
    IRQ_NOTCONNECTED,
    IRQ_PER_CPU,
    IRQ_PER_CPU_DEVID,
    IRQ_SET_MASK_OK,
    IRQ_SET_MASK_OK_DONE,
    IRQ_SET_MASK_OK_NOCOPY,
    IRQ_TYPE_LEVEL_MASK,
    IRQD_ACTIVATED,
    IRQD_AFFINITY_MANAGED,
    IRQD_DEFAULT_TRIGGER_SET,
    IRQD_MANAGED_SHUTDOWN,
    IRQD_TRIGGER_MASK,
    IRQF_COND_ONESHOT,
    IRQF_COND_SUSPEND,
    IRQF_NO_AUTOEN,
    IRQF_NO_DEBUG,
    IRQF_NO_SUSPEND,
    IRQF_NOBALANCING,
    IRQF_ONESHOT,
    IRQF_PERCPU,
    IRQF_PROBE_SHARED,
    IRQF_SHARED,
    IRQF_TRIGGER_MASK,
    IRQS_SUSPENDED,
)
from vmbusirq.irq.waits import handlers_done
from vmbusirq.log import Level
from vmbusirq.steps import Step, Steps, run

__all__ = ["ManageLayer", "check_handler"]

U32_MASK: Final = 0xFFFF_FFFF
PROC_IRQ_FILES: Final = (
    "smp_affinity",
    "affinity_hint",
    "smp_affinity_list",
    "node",
    "effective_affinity",
    "effective_affinity_list",
    "spurious",
)


class ManageLayer(AffinityLayer):
    """Actions and the disable depth of IRQs."""

    def __init__(self, machine: Any, *, cond_oneshot: bool = False, noirqdebug: bool = False, **affinity: Any) -> None:
        super().__init__(machine, **affinity)
        self._request_flags = IRQF_COND_ONESHOT if cond_oneshot else 0
        self._noirqdebug = noirqdebug

    # ---- request

    def request_irq(
        self,
        irq: int,
        handler: Any,
        flags: int = 0,
        name: str | None = None,
        dev_id: Any = None,
        *,
        batched: bool = False,
    ) -> None:
        """Add a handler to an IRQ and, if it is the first, start the IRQ.

        ``handler`` is a Python callable ``(irq, dev_id) -> irqreturn``, a C function (``vi_handler_t``, with ``dev_id``
        a pointer) or a CHandler. A ``batched`` callable gets an IrqBatch, the interrupts of one scan, and returns one
        irqreturn each; it is not for shared and per-CPU IRQs. What arrived before the request replays.

        Raises:
            IrqError(ENOTCONN): irq 0x80000000.
            IrqError(EINVAL): flags that contradict each other, no such IRQ, one that may not be requested or is
                per-CPU-devid, no handler.
            IrqError(ENOSYS): the IRQ has no chip.
            IrqError(EBUSY): the IRQ has a handler that does not share it in this way; the log says how.
            IrqError(ENOSPC): too many handlers on one IRQ.
            IrqError: whatever the chip or the domain raises.

        See: kernel/irq/manage.c, request_threaded_irq, v6.10.
        """
        run(self.request_irq_steps(irq, handler, flags, name, dev_id, batched=batched))

    def request_irq_steps(
        self, irq: int, handler: Any, flags: int, name: str | None, dev_id: Any, *, batched: bool = False
    ) -> Steps[None]:
        """Yield the steps of request_irq()."""
        self.check_owner()
        if irq == IRQ_NOTCONNECTED:
            raise IrqError(errno.ENOTCONN, f"irq {irq:#x}: the device's interrupt is not connected")
        _check_request_flags(irq, flags, dev_id)
        desc = self.irq_to_desc(irq)
        if desc.settings & IRQ_NOREQUEST:
            raise IrqError(errno.EINVAL, f"irq {irq}: may not be requested (IRQ_NOREQUEST); map it in a domain first")
        if desc.settings & IRQ_PER_CPU_DEVID:
            self.log.warn(f"WARNING: request_irq of per-CPU irq {irq}")
            raise IrqError(errno.EINVAL, f"irq {irq}: has a cookie per CPU; use request_percpu_irq")
        check_handler(irq, handler, flags, batched)
        action = IrqAction(desc, handler, flags | self._request_flags, name, dev_id, batched=batched)
        yield from self._setup_irq(desc, action)

    def _setup_irq(self, desc: IrqDesc, action: IrqAction) -> Steps[None]:
        """Install an action (__setup_irq): nothing is changed unless it can be."""
        irq = desc.irq
        if desc.chip is NO_IRQ_CHIP:
            raise IrqError(errno.ENOSYS, f"irq {irq}: has no chip; set_chip_and_handler first")
        if not action.flags & IRQF_TRIGGER_MASK:
            action.c.flags |= desc.state & IRQD_TRIGGER_MASK
        if desc.settings & IRQ_NESTED_THREAD:
            raise IrqError(errno.EINVAL, f"irq {irq}: nests in another interrupt's thread; there are none")
        if desc.chip.oneshot_safe:
            action.c.flags &= U32_MASK & ~IRQF_ONESHOT
        yield Step(f"irq {irq}: request_irq takes request_mutex", takes=desc.request_mutex)
        mutex = (desc.request_mutex,)
        first = not desc.actions
        if first:
            self._request_resources(desc, action)
        try:
            yield Step(f"irq {irq}: request_irq takes desc->lock", locks=mutex, takes=desc.lock)
            if first:
                self._prepare_first(desc, action)
            else:
                self._check_sharing(desc, action)
            self._add_action(desc, action)
        except IrqError:
            if first and desc.chip.irq_release_resources is not None:
                desc.chip.irq_release_resources(desc)
            raise
        if first:
            self._first_start(desc, action)
        yield Step(f"irq {irq}: request_irq makes the /proc/irq entries")
        self.register_irq_proc(desc)
        self._register_handler_proc(desc, action)

    def _add_action(self, desc: IrqDesc, action: IrqAction) -> None:
        action.bind()
        result = lib.vi_irq_add_action(self.machine, desc.irq, action.c)
        if result < 0:
            action.unbind()
        check(result, f"irq {desc.irq}: cannot add {action.name}: it has {len(desc.actions)} already")
        desc.actions.append(action)
        self.layout_version += 1

    def _request_resources(self, desc: IrqDesc, action: IrqAction) -> None:
        if desc.chip.irq_request_resources is None:
            return
        try:
            desc.chip.irq_request_resources(desc)
        except IrqError:
            self.log.err(
                f"genirq: Failed to request resources for {action.name} (irq {desc.irq}) on irqchip {desc.chip.name}"
            )
            raise

    def _prepare_first(self, desc: IrqDesc, action: IrqAction) -> None:
        """What may still fail for a first action, and the settings it brings along."""
        if action.flags & IRQF_TRIGGER_MASK:
            self._set_trigger(desc, action.flags & IRQF_TRIGGER_MASK)
        if desc.domain is not None and desc.domain.ops.activate is not None:
            desc.domain.ops.activate(desc.domain, desc.irq)
        settings = 0
        if action.flags & IRQF_PERCPU:
            settings |= IRQ_PER_CPU
            if action.flags & IRQF_NO_DEBUG:
                settings |= IRQ_NO_DEBUG
        if self._noirqdebug:
            settings |= IRQ_NO_DEBUG
        if action.flags & IRQF_NOBALANCING:
            settings |= IRQ_NO_BALANCING
        if settings:
            self.modify_status(desc.irq, set_=settings)
        self._modify_state(desc, set_=IRQD_ACTIVATED)

    def _check_sharing(self, desc: IrqDesc, action: IrqAction) -> None:
        """May this action join the ones that are there?"""
        old = desc.actions[0]
        if old.batched:
            raise IrqError(errno.EBUSY, f"irq {desc.irq}: {old.name} runs batched and cannot share it")
        trigger = action.flags & IRQF_TRIGGER_MASK
        if desc.state & IRQD_DEFAULT_TRIGGER_SET:
            old_trigger = desc.state & IRQD_TRIGGER_MASK
        elif old.flags & IRQF_TRIGGER_MASK:
            old_trigger = old.flags & IRQF_TRIGGER_MASK
        else:  # nobody has said anything so far: the newcomer may
            old_trigger = trigger
            self._modify_state(desc, clear=IRQD_TRIGGER_MASK, set_=trigger | IRQD_DEFAULT_TRIGGER_SET)
        if old.flags & IRQF_ONESHOT and action.flags & IRQF_COND_ONESHOT:
            action.c.flags |= IRQF_ONESHOT
        same = IRQF_ONESHOT | IRQF_PERCPU
        if (
            old.flags & action.flags & IRQF_SHARED
            and old_trigger == trigger
            and (old.flags & same) == (action.flags & same)
        ):
            return
        text = (
            f"Flags mismatch irq {desc.irq}. {action.flags:08x} ({_c_string(action.name)})"
            f" vs. {old.flags:08x} ({_c_string(old.name)})"
        )
        if not action.flags & IRQF_PROBE_SHARED:
            self.log.err(f"genirq: {text}")
        raise IrqError(errno.EBUSY, f"irq {desc.irq}: {text}")

    def _first_start(self, desc: IrqDesc, action: IrqAction) -> None:
        if not action.flags & IRQF_NO_AUTOEN and not desc.settings & IRQ_NOAUTOEN:
            self._startup(desc, force=False)
            return
        if action.flags & IRQF_SHARED:
            self.log.once("__setup_irq", Level.WARNING, f"WARNING: irq {desc.irq} is shared and not enabled at once")
        desc.c.depth = 1

    def _startup(self, desc: IrqDesc, *, force: bool) -> None:
        """Start an IRQ that is not started: enable it, choose its CPU, replay what it has missed (irq_startup)."""
        if desc.state & IRQD_AFFINITY_MANAGED:
            self._modify_state(desc, clear=IRQD_MANAGED_SHUTDOWN)
            if not desc.affinity & self.online:
                if force:
                    self.log.once("irq_startup", Level.WARNING, f"WARNING: irq {desc.irq} is managed and was enabled")
                desc.c.depth = 0
                self._modify_state(desc, set_=IRQD_MANAGED_SHUTDOWN)
                return
            self._start_on(desc, desc.affinity)
        elif desc.chip.affinity_pre_startup:
            self._setup_affinity(desc)
        check(lib.vi_irq_startup(self.machine, desc.irq, 0), f"irq {desc.irq}: cannot be started")
        if not desc.state & IRQD_AFFINITY_MANAGED and not desc.chip.affinity_pre_startup:
            self._setup_affinity(desc)
        lib.vi_irq_check_resend(self.machine, desc.irq)  # that nothing can or need be replayed is no error here

    # ---- the entries under /proc/irq

    def register_irq_proc(self, desc: IrqDesc) -> None:
        """Make /proc/irq/N, if the IRQ has a chip; whether its affinity files are writable is settled here."""
        if desc.proc_dir or desc.chip is NO_IRQ_CHIP:
            return
        desc.proc_dir = True
        desc.proc_affinity_writable = self.can_set_affinity_usr(desc)

    def init_irq_proc(self) -> None:
        """Make /proc/irq/N for every IRQ that has a chip when the file system comes up."""
        self.check_owner()
        for desc in self:
            self.register_irq_proc(desc)

    def _register_handler_proc(self, desc: IrqDesc, action: IrqAction) -> None:
        others = [other for other in desc.actions if other is not action]
        taken = {*PROC_IRQ_FILES, *(other.dir_name for other in others if other.has_dir)}
        action.has_dir = (
            bool(action.name)
            and "/" not in action.dir_name
            and action.name not in [other.name for other in others]
            and action.dir_name not in taken
        )

    # ---- free

    def free_irq(self, irq: int, dev_id: Any = None) -> str | None:
        """Remove the handler with this ``dev_id``, wait until no CPU runs it, and return its name.

        The last one shuts the IRQ down; counts and /proc/irq/N stay. No such handler, or a per-CPU-devid IRQ: a warning
        in the log, and None.

        Raises:
            IrqError(EINVAL): no such IRQ.
            IrqError(EDEADLK): called from an interrupt handler.
        """
        return run(self.free_irq_steps(irq, dev_id))

    def free_irq_steps(self, irq: int, dev_id: Any = None) -> Steps[str | None]:
        """Yield the steps of free_irq()."""
        self.may_wait(f"irq {irq}: free_irq")
        desc = self.irq_to_desc(irq)
        if desc.settings & IRQ_PER_CPU_DEVID:
            self.log.warn(f"WARNING: free_irq of per-CPU irq {irq}")
            return None
        if desc.affinity_notify is not None:
            self.log.warn(f"WARNING: irq {irq}: free_irq with an affinity notifier still set")
            desc.affinity_notify = None
        touches = frozenset({f"irq {irq}"})
        yield Step(f"irq {irq}: free_irq takes request_mutex", takes=desc.request_mutex, touches=frozenset())
        mutex = (desc.request_mutex,)
        yield Step(f"irq {irq}: free_irq takes desc->lock", locks=mutex, takes=desc.lock, touches=touches)
        action = next((action for action in desc.actions if same_cookie(action.dev_id, dev_id)), None)
        if action is None:
            self.log.warn(f"Trying to free already-free IRQ {irq}")
            return None
        last = len(desc.actions) == 1
        if last:
            self.modify_status(irq, clear=IRQ_DISABLE_UNLAZY)
        if desc.affinity_hint is not None:
            self.log.once("__free_irq", Level.WARNING, f"WARNING: irq {irq}: free_irq with an affinity hint still set")
            desc.affinity_hint = None
        self._unlink_action(desc, action)
        yield from handlers_done(self, desc, "free_irq", mutex, touches)
        lib.vi_step_action_freed(self.machine, irq)
        action.unbind()
        if last:
            if desc.domain is not None and desc.domain.ops.deactivate is not None:
                desc.domain.ops.deactivate(desc.domain, irq)
            self._modify_state(desc, clear=IRQD_ACTIVATED)
            if desc.chip.irq_release_resources is not None:
                desc.chip.irq_release_resources(desc)
        return action.name

    def _unlink_action(self, desc: IrqDesc, action: IrqAction) -> None:
        check(
            lib.vi_irq_remove_action(self.machine, desc.irq, action.c),
            f"irq {desc.irq}: cannot remove {action.name}",
        )
        desc.actions.remove(action)
        self.layout_version += 1
        action.has_dir = False

    # ---- enable and disable

    def _global_desc(self, irq: int) -> IrqDesc:
        desc = self.irq_to_desc(irq)
        if desc.settings & IRQ_PER_CPU_DEVID:
            raise IrqError(errno.EINVAL, f"irq {irq}: is enabled per CPU; use enable_percpu_irq and disable_percpu_irq")
        return desc

    def disable_irq_nosync(self, irq: int) -> int:
        """Disable once more and return the new depth; handlers may still run. Raises IrqError(EINVAL): no such IRQ."""
        self.check_owner()
        self._global_desc(irq)
        return check(lib.vi_irq_disable(self.machine, irq), f"irq {irq}: cannot be disabled")

    def disable_irq(self, irq: int) -> int:
        """Disable once more, wait until no handler runs, and return the new depth.

        Raises:
            IrqError(EINVAL): no such IRQ, or a per-CPU-devid one.
            IrqError(EDEADLK): called from an interrupt handler.
        """
        return run(self.disable_irq_steps(irq))

    def disable_irq_steps(self, irq: int) -> Steps[int]:
        """Yield the steps of disable_irq()."""
        self.may_wait(f"irq {irq}: disable_irq")
        desc = self._global_desc(irq)
        yield Step(f"irq {irq}: disable_irq takes desc->lock", takes=desc.lock, touches=frozenset({f"irq {irq}"}))
        depth = self.disable_irq_nosync(irq)
        yield from self.synchronize_irq_steps(irq)
        return depth

    def synchronize_irq(self, irq: int) -> None:
        """Wait until no CPU runs a handler of the IRQ. Raises IrqError(EINVAL, EDEADLK) as disable_irq()."""
        run(self.synchronize_irq_steps(irq))

    def synchronize_irq_steps(self, irq: int) -> Steps[None]:
        """Yield the steps of synchronize_irq()."""
        self.may_wait(f"irq {irq}: synchronize_irq")
        desc = self.irq_to_desc(irq)
        yield from handlers_done(self, desc, "synchronize_irq")
        check(lib.vi_irq_synchronize(self.machine, irq), f"irq {irq}: cannot be waited for")

    def enable_irq(self, irq: int) -> int:
        """Undo one disable and return the new depth; the last one replays an arrival that came meanwhile.

        One enable too many changes nothing and leaves a warning in the log.

        Raises:
            IrqError(EINVAL): no such IRQ, or a per-CPU-devid one.
        """
        return run(self.enable_irq_steps(irq))

    def enable_irq_steps(self, irq: int) -> Steps[int]:
        """Yield the steps of enable_irq()."""
        self.check_owner()
        desc = self._global_desc(irq)
        touches = frozenset({f"irq {irq}", "resend"}) if desc.started else None
        yield Step(f"irq {irq}: enable_irq takes desc->lock", takes=desc.lock, touches=touches)
        depth = desc.depth
        if depth == 0 or (depth == 1 and desc.istate & IRQS_SUSPENDED):
            self.log.warn(f"Unbalanced enable for IRQ {irq}")
            return depth
        if depth == 1 and not desc.started:
            self.modify_status(irq, set_=IRQ_NOPROBE)
            self._startup(desc, force=True)
            return desc.depth
        return check(lib.vi_irq_enable(self.machine, irq), f"irq {irq}: cannot be enabled")

    # ---- trigger type

    def irq_set_irq_type(self, irq: int, trigger: int) -> None:
        """Set the trigger type (IRQF_TRIGGER_* bits). Raises IrqError(EINVAL): no such IRQ; others from the chip."""
        self.check_owner()
        self._set_trigger(self.irq_to_desc(irq), trigger & IRQD_TRIGGER_MASK)

    def _set_trigger(self, desc: IrqDesc, trigger: int) -> None:
        if desc.chip.irq_set_type is None:
            return  # one type only, whatever was asked
        try:
            result = desc.chip.irq_set_type(desc, trigger)
        except IrqError:
            self.log.err(f"genirq: Setting trigger mode {trigger} for irq {desc.irq} failed ({desc.chip.name})")
            raise
        if result in (IRQ_SET_MASK_OK, IRQ_SET_MASK_OK_DONE):
            self._modify_state(desc, clear=IRQD_TRIGGER_MASK, set_=trigger)
        elif result != IRQ_SET_MASK_OK_NOCOPY:
            raise IrqError(errno.EINVAL, f"irq {desc.irq}: chip {desc.chip.name} irq_set_type returned {result}")
        level = bool(desc.state & IRQ_TYPE_LEVEL_MASK)
        self.modify_status(desc.irq, clear=IRQ_LEVEL, set_=IRQ_LEVEL if level else 0)


def _check_request_flags(irq: int, flags: int, dev_id: Any) -> None:
    if not 0 <= flags <= U32_MASK:
        raise IrqError(errno.EINVAL, f"irq {irq}: flags {flags:#x} are not 32 bits")
    shared = bool(flags & IRQF_SHARED)
    if shared and dev_id is None:
        raise IrqError(errno.EINVAL, f"irq {irq}: a shared request needs a dev_id to be freed by")
    if shared and flags & IRQF_NO_AUTOEN:
        raise IrqError(errno.EINVAL, f"irq {irq}: IRQF_SHARED and IRQF_NO_AUTOEN exclude each other")
    if flags & IRQF_COND_SUSPEND and not shared:
        raise IrqError(errno.EINVAL, f"irq {irq}: IRQF_COND_SUSPEND is for shared irqs only")
    if flags & IRQF_COND_SUSPEND and flags & IRQF_NO_SUSPEND:
        raise IrqError(errno.EINVAL, f"irq {irq}: IRQF_COND_SUSPEND and IRQF_NO_SUSPEND exclude each other")


def check_handler(irq: int, handler: Any, flags: int, batched: bool) -> None:
    """Raise IrqError(EINVAL) unless ``handler`` can serve such a request."""
    in_c = isinstance(handler, CHandler | ffi.CData)
    if (isinstance(handler, ffi.CData) and handler == ffi.NULL) or (not in_c and not callable(handler)):
        raise IrqError(errno.EINVAL, f"irq {irq}: a request needs a handler")
    if batched and (in_c or flags & (IRQF_SHARED | IRQF_PERCPU)):
        raise IrqError(errno.EINVAL, f"irq {irq}: batched is for Python handlers that neither share nor are per-CPU")


def _c_string(name: str | None) -> str:
    """How printk shows a name that may be missing."""
    return "(null)" if name is None else name

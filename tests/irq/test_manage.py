"""irq/manage: request and free, enable and disable, replay, trigger types (genirq.md 4.4, 4.6, 4.7, 4.8)."""

from __future__ import annotations

import errno

import pytest

from tests.irq.rig import Rig
from vmbusirq._ffi import ffi, lib
from vmbusirq.errors import IrqError
from vmbusirq.irq import Flow, Fwnode, IrqDomainOps
from vmbusirq.irq.settings import (
    IRQ_NESTED_THREAD,
    IRQ_NO_DEBUG,
    IRQ_NOAUTOEN,
    IRQ_NOREQUEST,
    IRQ_NOTCONNECTED,
    IRQD_ACTIVATED,
    IRQD_IRQ_DISABLED,
    IRQD_IRQ_MASKED,
    IRQD_IRQ_STARTED,
    IRQD_LEVEL,
    IRQD_NO_BALANCING,
    IRQD_PER_CPU,
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
    IRQF_TRIGGER_FALLING,
    IRQF_TRIGGER_HIGH,
    IRQF_TRIGGER_RISING,
    IRQS_PENDING,
    IRQS_REPLAY,
)
from vmbusirq.log import Level

ENGINES = pytest.mark.parametrize("engine", ["fast", "linux"])


# ---- request: errno rows, in the order of the kernel's tests


@pytest.mark.parametrize(
    ("flags", "dev_id"),
    [
        (IRQF_SHARED, None),
        (IRQF_SHARED | IRQF_NO_AUTOEN, "d"),
        (IRQF_COND_SUSPEND, "d"),
        (IRQF_SHARED | IRQF_COND_SUSPEND | IRQF_NO_SUSPEND, "d"),
        (-1, "d"),
        (1 << 32, "d"),
    ],
)
def test_flags_that_contradict_each_other(flags, dev_id):
    """kernel/irq/manage.c v6.10, request_threaded_irq: EINVAL, before the IRQ is looked at."""
    with pytest.raises(IrqError) as caught:
        Rig().core.request_irq(9999, lambda irq, dev: 1, flags, "x", dev_id)
    assert errno.EINVAL == caught.value.errno
    assert "no such irq" not in str(caught.value)


def test_not_connected_is_enotconn():
    """kernel/irq/manage.c v6.10: irq 0x80000000, before anything else."""
    with pytest.raises(IrqError) as caught:
        Rig().core.request_irq(IRQ_NOTCONNECTED, None, IRQF_SHARED, "x", None)
    assert errno.ENOTCONN == caught.value.errno


def test_request_of_what_may_not_be_requested():
    """kernel/irq/manage.c v6.10: no descriptor, NOREQUEST, per-CPU-devid (and a warning): EINVAL before the handler."""
    rig = Rig()
    with pytest.raises(IrqError, match="irq 99: no such irq") as caught:
        rig.core.request_irq(99, None)
    assert errno.EINVAL == caught.value.errno
    desc = rig.irq()
    rig.core.modify_status(desc.irq, set_=IRQ_NOREQUEST)
    with pytest.raises(IrqError, match="IRQ_NOREQUEST") as caught:
        rig.core.request_irq(desc.irq, None)
    assert errno.EINVAL == caught.value.errno
    percpu = rig.irq(8)
    rig.core.irq_set_percpu_devid(percpu.irq)
    with pytest.raises(IrqError, match="request_percpu_irq") as caught:
        rig.core.request_irq(percpu.irq, None)
    assert errno.EINVAL == caught.value.errno
    assert ["WARNING: request_irq of per-CPU irq 25"] == rig.core.log.texts()


@pytest.mark.parametrize("handler", [None, 3, ffi.cast("vi_handler_t", 0)])
def test_request_without_handler(handler):
    """kernel/irq/manage.c v6.10: EINVAL, before the chip is looked at."""
    core = Rig().core
    irq = core.alloc_descs()
    with pytest.raises(IrqError, match="needs a handler") as caught:
        core.request_irq(irq, handler)
    assert errno.EINVAL == caught.value.errno


def test_request_without_chip_is_enosys():
    """kernel/irq/manage.c v6.10: no_irq_chip, before nested threads."""
    rig = Rig()
    irq = rig.core.alloc_descs()
    rig.core.modify_status(irq, set_=IRQ_NESTED_THREAD)
    with pytest.raises(IrqError) as caught:
        rig.core.request_irq(irq, rig.handler)
    assert errno.ENOSYS == caught.value.errno


def test_request_of_a_nested_thread_irq():
    """kernel/irq/manage.c v6.10: EINVAL without a thread function, before resources are asked for."""
    asked = []
    rig = Rig()
    rig.chip = rig.make_chip(irq_request_resources=asked.append)
    desc = rig.irq()
    rig.core.modify_status(desc.irq, set_=IRQ_NESTED_THREAD)
    with pytest.raises(IrqError, match="nests") as caught:
        rig.core.request_irq(desc.irq, rig.handler)
    assert (errno.EINVAL, []) == (caught.value.errno, asked)


def refuse(code):
    """Return a callback that raises this errno."""

    def raise_it(*arguments):
        raise IrqError(code, "the chip says no")

    return raise_it


@ENGINES
def test_a_failing_chip_leaves_nothing_behind(engine):
    """kernel/irq/manage.c v6.10: errnos of request_resources, set_type, activate come back; resources are released."""
    rig = Rig(engine=engine)
    released = []
    rig.chip = rig.make_chip(irq_request_resources=refuse(errno.ENXIO), irq_release_resources=released.append)
    desc = rig.irq()
    with pytest.raises(IrqError) as caught:
        rig.core.request_irq(desc.irq, rig.handler, 0, "x")
    assert (errno.ENXIO, []) == (caught.value.errno, released)
    assert ["genirq: Failed to request resources for x (irq 24) on irqchip VMBus"] == rig.core.log.texts()

    rig.chip = rig.make_chip(irq_set_type=refuse(errno.EDOM), irq_release_resources=released.append)
    desc = rig.irq(8)
    with pytest.raises(IrqError) as caught:
        rig.core.request_irq(desc.irq, rig.handler, IRQF_TRIGGER_RISING, "x")
    assert (errno.EDOM, [desc]) == (caught.value.errno, released)
    assert "genirq: Setting trigger mode 1 for irq 25 failed (VMBus)" == rig.core.log.texts()[-1]

    rig.chip = rig.make_chip()
    domain = rig.core.irq_domain_create_linear(
        Fwnode.named("stacked"), 4, IrqDomainOps(map=rig.map, activate=refuse(errno.ENOSPC))
    )
    irq = rig.core.irq_create_mapping(domain, 1)
    with pytest.raises(IrqError) as caught:
        rig.core.request_irq(irq, rig.handler, 0, "x")
    assert errno.ENOSPC == caught.value.errno
    for number in (24, 25, 26):
        left = rig.core.irq_to_desc(number)
        assert ([], False, 1, 0) == (left.actions, left.proc_dir, left.depth, left.state & IRQD_IRQ_STARTED)


def test_resources_are_held_from_first_to_last_action():
    """kernel/irq/manage.c v6.10: asked for before the first action, released after the last."""
    told = []
    rig = Rig()
    rig.chip = rig.make_chip(
        irq_request_resources=lambda desc: told.append("request"),
        irq_release_resources=lambda desc: told.append("release"),
    )
    domain = rig.core.irq_domain_create_linear(
        Fwnode.named("stacked"),
        4,
        IrqDomainOps(
            map=rig.map,
            activate=lambda domain, irq: told.append("activate"),
            deactivate=lambda domain, irq: told.append("deactivate"),
        ),
    )
    irq = rig.core.irq_create_mapping(domain, 1)
    for dev_id in "ab":
        rig.core.request_irq(irq, rig.handler, IRQF_SHARED, dev_id, dev_id)
    assert IRQD_ACTIVATED & rig.core.irq_to_desc(irq).state
    rig.core.free_irq(irq, "b")
    assert ["request", "activate"] == told
    rig.core.free_irq(irq, "a")
    assert ["request", "activate", "deactivate", "release"] == told
    assert 0 == IRQD_ACTIVATED & rig.core.irq_to_desc(irq).state


# ---- sharing


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (0, 0),
        (IRQF_SHARED, 0),
        (0, IRQF_SHARED),
        (IRQF_SHARED | IRQF_TRIGGER_RISING, IRQF_SHARED | IRQF_TRIGGER_FALLING),
        (IRQF_SHARED, IRQF_SHARED | IRQF_ONESHOT),
        (IRQF_SHARED | IRQF_ONESHOT, IRQF_SHARED),
        (IRQF_SHARED | IRQF_PERCPU, IRQF_SHARED),
    ],
)
def test_flags_mismatch(old, new):
    """kernel/irq/manage.c v6.10: EBUSY and the message: new flags, new name, old flags, old name."""
    rig = Rig()
    desc = rig.requested(flags=old, name="first", dev_id="1")
    with pytest.raises(IrqError) as caught:
        rig.core.request_irq(desc.irq, rig.handler, new, "second", "2")
    assert errno.EBUSY == caught.value.errno
    assert [f"genirq: Flags mismatch irq 24. {new:08x} (second) vs. {old:08x} (first)"] == rig.core.log.texts()
    assert ["first"] == [action.name for action in desc.actions]
    rig.fire(desc)
    assert [(24, "1")] == rig.calls


def test_probing_for_a_shareable_irq_is_quiet():
    """kernel/irq/manage.c v6.10: PROBE_SHARED gets EBUSY without the message; a missing name prints as (null)."""
    rig = Rig()
    desc = rig.requested(name=None)
    for flags in (IRQF_PROBE_SHARED, 0):
        with pytest.raises(IrqError) as caught:
            rig.core.request_irq(desc.irq, rig.handler, flags)
        assert errno.EBUSY == caught.value.errno
    assert ["genirq: Flags mismatch irq 24. 00000000 ((null)) vs. 00000000 ((null))"] == rig.core.log.texts()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (IRQF_SHARED, IRQF_SHARED),
        (IRQF_SHARED | IRQF_TRIGGER_HIGH, IRQF_SHARED | IRQF_TRIGGER_HIGH),
        (IRQF_SHARED, IRQF_SHARED | IRQF_TRIGGER_RISING),
        (IRQF_SHARED | IRQF_ONESHOT, IRQF_SHARED | IRQF_COND_ONESHOT),
        (IRQF_SHARED | IRQF_NO_DEBUG, IRQF_SHARED),
    ],
)
def test_flags_that_agree(old, new):
    """kernel/irq/manage.c v6.10: the newcomer may name a trigger where nobody did, and COND_ONESHOT adapts."""
    rig = Rig()
    desc = rig.requested(flags=old, name="first", dev_id="1")
    rig.core.request_irq(desc.irq, rig.handler, new, "second", "2")
    assert old & IRQF_ONESHOT == desc.actions[1].flags & IRQF_ONESHOT
    assert [] == rig.core.log.texts()
    rig.fire(desc, cpu=1)
    assert ([(24, "1"), (24, "2")], 1) == (rig.calls, desc.tot_count)


def test_a_trigger_named_by_the_second_binds_the_third():
    """kernel/irq/manage.c v6.10: from then on the type is set."""
    rig = Rig()
    desc = rig.requested(flags=IRQF_SHARED, dev_id="1")
    rig.core.request_irq(desc.irq, rig.handler, IRQF_SHARED | IRQF_TRIGGER_HIGH, "b", "2")
    assert IRQF_TRIGGER_HIGH == desc.state & IRQD_TRIGGER_MASK
    with pytest.raises(IrqError):
        rig.core.request_irq(desc.irq, rig.handler, IRQF_SHARED | IRQF_TRIGGER_RISING, "c", "3")
    rig.core.request_irq(desc.irq, rig.handler, IRQF_SHARED, "d", "4")
    assert IRQF_SHARED | IRQF_TRIGGER_HIGH == desc.actions[-1].flags


def test_newer_kernels_request_with_cond_oneshot():
    """kernel/irq/manage.c since 6.11: request_irq adds the flag, which the mismatch message shows."""
    rig = Rig(cond_oneshot=True)
    desc = rig.requested(name="a")
    with pytest.raises(IrqError):
        rig.core.request_irq(desc.irq, rig.handler, IRQF_SHARED, "b", "b")
    assert ["genirq: Flags mismatch irq 24. 00200080 (b) vs. 00200000 (a)"] == rig.core.log.texts()


def test_the_last_handler_that_fits():
    """64 actions on one IRQ, then ENOSPC; nothing of the 65th stays."""
    rig = Rig()
    desc = rig.irq()
    for number in range(lib.VI_ACTIONS_MAX):
        rig.core.request_irq(desc.irq, rig.handler, IRQF_SHARED, "x", number)
    with pytest.raises(IrqError) as caught:
        rig.core.request_irq(desc.irq, rig.handler, IRQF_SHARED, "x", 64)
    assert (errno.ENOSPC, 64) == (caught.value.errno, len(desc.actions))
    rig.fire(desc)
    assert [(24, number) for number in range(64)] == rig.calls


# ---- what a request does


@ENGINES
def test_request_starts_the_irq(engine):
    """kernel/irq/manage.c v6.10, __setup_irq: depth 0, enabled, unmasked, started, activated; /proc/irq/N appears."""
    desc = Rig(engine=engine).requested()
    assert 0 == desc.depth
    assert IRQD_ACTIVATED | IRQD_IRQ_STARTED == desc.state & (
        IRQD_ACTIVATED | IRQD_IRQ_STARTED | IRQD_IRQ_DISABLED | IRQD_IRQ_MASKED
    )
    assert (True, True, ["heartbeat"]) == (desc.proc_dir, desc.proc_affinity_writable, desc.action_dirs())


def test_without_mask_callbacks_an_irq_stays_masked():
    """Trap 33: MASKED follows the callback; the IRQ works all the same."""
    rig = Rig()
    desc = rig.requested(irq_mask=None, irq_unmask=None)
    rig.fire(desc)
    assert (IRQD_IRQ_MASKED, 1) == (desc.state & IRQD_IRQ_MASKED, desc.tot_count)


@pytest.mark.parametrize("setting", [0, IRQ_NOAUTOEN])
def test_request_without_enabling(setting):
    """kernel/irq/manage.c v6.10: NO_AUTOEN and NOAUTOEN leave depth 1; enable_irq starts it then."""
    rig = Rig()
    desc = rig.irq()
    rig.core.modify_status(desc.irq, set_=setting)
    rig.core.request_irq(desc.irq, rig.handler, 0 if setting else IRQF_NO_AUTOEN, "x", "x")
    assert (1, False, 0) == (desc.depth, desc.started, desc.effective_affinity)
    rig.fire(desc, times=3)
    assert (0, IRQS_PENDING) == (desc.tot_count, desc.istate & IRQS_PENDING)
    assert 0 == rig.core.enable_irq(desc.irq)
    assert (True, 1) == (desc.started, desc.effective_affinity)
    rig.settle()
    assert 1 == desc.tot_count


def test_request_flags_become_settings():
    """kernel/irq/manage.c v6.10: PERCPU, NOBALANCING; NO_DEBUG only together with PERCPU; noirqdebug for all."""
    rig = Rig()
    assert IRQD_NO_BALANCING & rig.requested(1, flags=IRQF_NOBALANCING).state
    percpu = rig.requested(2, flags=IRQF_PERCPU | IRQF_NO_DEBUG)
    assert IRQD_PER_CPU & percpu.state
    assert IRQ_NO_DEBUG & percpu.settings
    assert 0 == IRQ_NO_DEBUG & rig.requested(3, flags=IRQF_NO_DEBUG).settings
    assert IRQ_NO_DEBUG & Rig(noirqdebug=True).requested().settings


@ENGINES
def test_arrivals_before_the_request_replay_once(engine):
    """Trap 26: not counted, collapsed into one, replayed by the resend tasklet and counted then."""
    rig = Rig(engine=engine)
    desc = rig.irq()
    rig.fire(desc, times=3)
    assert IRQS_PENDING == desc.istate & IRQS_PENDING
    assert (0, False) == (desc.tot_count, desc.proc_dir)
    rig.core.request_irq(desc.irq, rig.handler, 0, "heartbeat", "x")
    assert (0, IRQS_REPLAY) == (desc.tot_count, desc.istate & (IRQS_REPLAY | IRQS_PENDING))
    rig.settle()
    assert ([(24, "x")], 1, 0) == (rig.calls, desc.tot_count, desc.istate & (IRQS_REPLAY | IRQS_PENDING))


def test_a_chip_may_retrigger_by_itself():
    """kernel/irq/resend.c v6.10: irq_retrigger instead of the tasklet, at once."""
    rig = Rig()
    retriggered = []
    rig.chip = rig.make_chip(irq_retrigger=lambda desc, cpu: retriggered.append(desc.irq))
    desc = rig.irq()
    rig.fire(desc)
    rig.core.request_irq(desc.irq, rig.handler)
    rig.settle()
    assert ([24], []) == (retriggered, rig.calls)


# ---- free


@ENGINES
def test_free_returns_the_name_and_keeps_the_rest(engine):
    """Trap 31: counts, /proc/irq/N and the affinity stay; the action directory goes; the IRQ is shut down."""
    rig = Rig(engine=engine)
    desc = rig.requested()
    rig.fire(desc, times=2)
    assert "heartbeat" == rig.core.free_irq(desc.irq, "heartbeat")
    assert (2, 1, True, []) == (desc.tot_count, desc.depth, desc.proc_dir, desc.action_dirs())
    assert IRQD_IRQ_DISABLED | IRQD_IRQ_MASKED == desc.state & (IRQD_IRQ_DISABLED | IRQD_IRQ_MASKED | IRQD_IRQ_STARTED)
    rig.fire(desc)
    assert 2 == desc.tot_count


def test_freeing_what_is_not_there():
    """kernel/irq/manage.c v6.10: a warning and NULL; no descriptor is told here, the kernel returns NULL silently."""
    rig = Rig()
    desc = rig.requested()
    assert None is rig.core.free_irq(desc.irq, "other")
    assert ["Trying to free already-free IRQ 24"] == rig.core.log.texts(Level.WARNING)
    assert ["heartbeat"] == [action.name for action in desc.actions]
    with pytest.raises(IrqError) as caught:
        rig.core.free_irq(99, "heartbeat")
    assert errno.EINVAL == caught.value.errno


def test_free_takes_the_first_action_with_the_cookie():
    """kernel/irq/manage.c v6.10: chain order; the others go on, and the IRQ stays started."""
    rig = Rig()
    desc = rig.irq()
    for name, dev_id in [("a", 1), ("b", 2), ("c", 1)]:
        rig.core.request_irq(desc.irq, rig.handler, IRQF_SHARED, name, dev_id)
    assert "a" == rig.core.free_irq(desc.irq, 1)
    rig.fire(desc)
    assert ([(24, 2), (24, 1)], True) == (rig.calls, desc.started)
    assert ["c", "b"] == [rig.core.free_irq(desc.irq, dev_id) for dev_id in (1, 2)]
    assert not desc.started


def test_equal_looking_objects_are_different_cookies():
    """dev_id is a pointer: the same object, or an equal number, string or C pointer."""
    rig = Rig()
    desc = rig.requested(dev_id=[1])
    assert None is rig.core.free_irq(desc.irq, [1])
    pointer = ffi.cast("void *", 64)
    rig.core.request_irq(rig.irq(8).irq, rig.handler, 0, "p", pointer)
    assert "p" == rig.core.free_irq(25, ffi.cast("void *", 64))


def test_free_with_a_hint_left_warns_once():
    """genirq.md 2.10: cleared, with one warning ever."""
    rig = Rig()
    for hwirq in (1, 2):
        desc = rig.requested(hwirq)
        rig.core.irq_update_affinity_hint(desc.irq, 1)
        rig.core.free_irq(desc.irq, "heartbeat")
        assert None is desc.affinity_hint
    assert ["WARNING: irq 24: free_irq with an affinity hint still set"] == rig.core.log.texts()


@pytest.mark.parametrize(("adds", "depth"), [(0, 1), (1, 3)])
def test_shutdown_of_a_disabled_irq(adds, depth):
    """genirq.md 4.6: depth 1 in v6.10, one more than before in 6.18."""
    rig = Rig(config={"shutdown_adds_depth": adds})
    desc = rig.requested()
    rig.core.disable_irq(desc.irq)
    rig.core.disable_irq(desc.irq)
    rig.core.free_irq(desc.irq, "heartbeat")
    assert depth == desc.depth
    rig.core.request_irq(desc.irq, rig.handler)
    assert 0 == desc.depth


# ---- /proc/irq entries


def test_action_directories_are_unique_per_irq():
    """Trap 35: two shared actions of one name make one directory, twenty IRQs can each have one."""
    rig = Rig()
    for hwirq in (1, 2):
        desc = rig.irq(hwirq)
        for dev_id in (1, 2):
            rig.core.request_irq(desc.irq, rig.handler, IRQF_SHARED, "netvsc", dev_id)
        assert ["netvsc"] == desc.action_dirs()
    rig.core.free_irq(desc.irq, 1)
    assert [] == desc.action_dirs()  # the directory was the first one's


@pytest.mark.parametrize(
    ("name", "directory"),
    [
        ("a/b", []),
        ("", []),
        (None, []),
        ("spurious", []),
        ("x" * 127, ["x" * 127]),
        ("x" * 128, ["x" * 127]),
        ("pri@storvsc0", ["pri@storvsc0"]),
    ],
)
def test_action_directory_names(name, directory):
    """genirq.md 2.1: cut at 127 bytes; none for a name with a slash, an empty one, or one that a file has."""
    assert directory == Rig().requested(name=name).action_dirs()


def test_proc_entries_at_boot():
    """genirq.md 2.1: when /proc/irq comes up, every IRQ with a real chip gets its directory."""
    rig = Rig()
    desc = rig.irq()
    bare = rig.core.irq_to_desc(rig.core.alloc_descs())
    assert (False, False) == (desc.proc_dir, bare.proc_dir)
    rig.core.init_irq_proc()
    assert (True, False) == (desc.proc_dir, bare.proc_dir)


def test_writability_is_settled_when_the_directory_is_made():
    """genirq.md 2.1 [>=6.12]: 0644 only if the user may set it at creation time."""
    rig = Rig()
    assert rig.requested(1).proc_affinity_writable
    assert not rig.requested(2, irq_set_affinity=None).proc_affinity_writable
    rig.chip = rig.make_chip()
    assert rig.requested(3, flags=IRQF_NOBALANCING).proc_affinity_writable is False


# ---- enable and disable


@ENGINES
def test_disable_nests_and_enable_replays(engine):
    """genirq.md 4.6, 4.7: lazy disable, arrivals collapse, the last enable replays one."""
    rig = Rig(engine=engine)
    desc = rig.requested()
    assert [1, 2] == [rig.core.disable_irq(desc.irq), rig.core.disable_irq_nosync(desc.irq)]
    assert IRQD_IRQ_DISABLED == desc.state & (IRQD_IRQ_DISABLED | IRQD_IRQ_MASKED)
    rig.fire(desc, cpu=3, times=5)
    assert [1, 0] == [rig.core.enable_irq(desc.irq) for _ in range(2)]
    assert 0 == desc.tot_count
    rig.settle()
    assert 1 == desc.tot_count
    rig.fire(desc, cpu=3)
    assert 2 == desc.tot_count


def test_one_enable_too_many():
    """kernel/irq/manage.c v6.10: a warning, and nothing changes."""
    rig = Rig()
    desc = rig.requested()
    assert 0 == rig.core.enable_irq(desc.irq)
    assert ["Unbalanced enable for IRQ 24"] == rig.core.log.texts(Level.WARNING)
    assert 1 == rig.core.disable_irq(desc.irq)


def test_an_unlazy_chip_disables_the_hardware():
    """genirq.md 4.6: with irq_disable the IRQ is MASKED at once, and irq_enable undoes it."""
    rig = Rig()
    told = []
    desc = rig.requested(
        irq_disable=lambda desc, cpu: told.append("disable"), irq_enable=lambda desc, cpu: told.append("enable")
    )
    rig.core.disable_irq(desc.irq)
    assert IRQD_IRQ_MASKED == desc.state & IRQD_IRQ_MASKED
    rig.core.enable_irq(desc.irq)
    assert (0, ["enable", "disable", "enable"]) == (desc.state & IRQD_IRQ_MASKED, told)


def test_chip_callbacks_of_startup_and_shutdown():
    """kernel/irq/chip.c v6.10: irq_startup and irq_shutdown instead of enable, disable and mask."""
    rig = Rig()
    told = []
    desc = rig.requested(
        irq_startup=lambda desc, cpu: told.append("startup"), irq_shutdown=lambda desc, cpu: told.append("shutdown")
    )
    assert 0 == desc.state & (IRQD_IRQ_DISABLED | IRQD_IRQ_MASKED)
    rig.core.free_irq(desc.irq, "heartbeat")
    assert ["startup", "shutdown"] == told


@pytest.mark.parametrize("call", ["disable_irq", "disable_irq_nosync", "enable_irq", "synchronize_irq"])
def test_calls_on_no_irq(call):
    """The kernel ignores them; here bad input is told."""
    with pytest.raises(IrqError, match="irq 99: no such irq") as caught:
        getattr(Rig().core, call)(99)
    assert errno.EINVAL == caught.value.errno


def test_level_irqs_do_not_replay():
    """genirq.md 4.7: the level is still there when the IRQ is enabled; PENDING is dropped."""
    rig = Rig()
    rig.chip = rig.make_chip(irq_set_type=lambda desc, trigger: 0)
    desc = rig.irq()
    rig.core.set_chip_and_handler(desc.irq, rig.chip, Flow.FASTEOI, "fasteoi")
    rig.core.request_irq(desc.irq, rig.handler, IRQF_TRIGGER_HIGH, "acpi")
    assert (IRQD_LEVEL | IRQF_TRIGGER_HIGH, "fasteoi") == (desc.state & (IRQD_LEVEL | IRQD_TRIGGER_MASK), desc.name)
    rig.core.disable_irq(desc.irq)
    rig.fire(desc)
    rig.core.enable_irq(desc.irq)
    rig.settle()
    assert (0, 0) == (desc.tot_count, desc.istate & (IRQS_PENDING | IRQS_REPLAY))


@pytest.mark.parametrize(("result", "shown"), [(0, IRQF_TRIGGER_RISING), (2, IRQF_TRIGGER_RISING), (1, 0)])
def test_set_type_results(result, shown):
    """kernel/irq/manage.c v6.10, __irq_set_trigger: OK and DONE store the type, NOCOPY leaves it to the chip."""
    rig = Rig()
    desc = rig.requested(irq_set_type=lambda desc, trigger: result)
    rig.core.irq_set_irq_type(desc.irq, IRQF_TRIGGER_RISING)
    assert shown == desc.state & IRQD_TRIGGER_MASK
    assert not desc.is_level


def test_set_type_nonsense_is_refused():
    """A chip that returns what is no IRQ_SET_MASK_* is told so; one without the callback takes anything."""
    rig = Rig()
    desc = rig.requested(1, irq_set_type=lambda desc, trigger: 9)
    with pytest.raises(IrqError, match="irq_set_type returned 9"):
        rig.core.irq_set_irq_type(desc.irq, IRQF_TRIGGER_RISING)
    plain = rig.requested(2, irq_set_type=None)
    rig.core.irq_set_irq_type(plain.irq, IRQF_TRIGGER_RISING)
    assert 0 == plain.state & IRQD_TRIGGER_MASK

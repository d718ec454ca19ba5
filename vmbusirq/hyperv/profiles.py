"""Where implementations of the SynIC differ: one field per difference, one record per implementation (synic.md 15).

Code asks the record for a field, never for a name. D21, whether the guest's top level counts every vector, is not the
hypervisor's to choose: it is a design's (``Design.hyp_count``). D2, the order of a message header's size and flags, is
nobody's: the text of the TLFS has it the other way round, code never, and C lays it out (``struct vi_message``).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from functools import cache
from typing import Final, Literal, get_args, get_origin, get_type_hints

from vmbusirq.errors import IrqError

__all__ = ["PROFILES", "Profile", "find_profile"]


@dataclass(frozen=True, slots=True)
class Profile:
    """One implementation's choices; the defaults are those of the TLFS.

    Attributes:
        name: its name in :data:`PROFILES`.
        scontrol_reset: D1, SCONTROL of a fresh VP; where activation is asked for, from then on.
        flag_to_masked: D3, an event flag for a masked SINT: refused; set without an interrupt; silently not set.
        message_to_masked: D4, a message for a masked SINT: in the slot without an interrupt; the same but taken for
            undelivered (timers); dropped.
        polling_silences: D5, the polling bit keeps the SINT from interrupting.
        scontrol_gates_messages: D6, SCONTROL disabled: no message is taken.
        masked_low_vector_faults: D7, SINT write with vector 0 to 15 and masked: #GP.
        unmasked_low_vector_faults: D8, the same without the masked bit.
        page_on_enable: D9, what a guest finds when it enables SIM or SIEF: the overlay's own bytes; guest memory,
            zeroed by each write with enable set; guest memory, as it is.
        page_outside_faults: D10, enabling a SIM or SIEF page outside guest memory: #GP.
        stimer_sint0: D11, message mode with SINT 0: timer disabled; only if it was enabled before; allowed.
        busy_periodic_tick: D12, a periodic tick that finds the slot busy.
        late_periodic: D13, the tick after a late one: in phase; one period from now; sooner until caught up.
        stimer_lazy: D13, what the lazy bit does: nothing; a timer that is late has one deferred signal, none when the
            next is almost due; its next period begins now.
        stimer_queues: an expiry joins the SynIC's queue with the timer's own buffer; False: it is tried at once, and a
            timer that could not deliver keeps an undelivered mark.
        stimer_retry: when that is tried again: at an EOI or EOM of the SINT; whenever the VP is entered.
        stimer_zero_count_disables: a COUNT of 0 clears enable; False: it only stops the timer.
        stimer_lost_vector_is_delivered: a direct expiry that a disabled APIC drops is over; False: the timer is stuck
            with it.
        stimer_enabled_until_delivered: a one-shot keeps enable until its message is in the slot.
        tsc_rounding: how the scale of the reference TSC page is rounded down: to its 64 bits; to what a clock
            multiplier of 32 bits gives; to its high half.
        tsc_sequence_from: where the page's next sequence comes from: a count of the partition's; the guest's page.
        tsc_enable_clears: enabling the page clears it, so that its sequence begins at 1 again.
        tsc_skips_all_ones: 0xFFFFFFFF is never published as a sequence: old readers take it for invalid.
        tsc_emulation_keeps_page: while the guest has TSC emulation, its page stays as it is.
        posted_depth: D14, undelivered messages of a port, None without bound.
        unknown_connection_status: D15, SignalEvent to nobody.
        wide_connection_status: SignalEvent by an id with more than 24 bits.
        oversized_payload_status: D16, PostMessage with more than 240 bytes.
        straddling_input_status: D17, hypercall input across a page.
        eom_scans_queues: D18, EOM delivers what waits; False: it would be delivered anyway.
        shared_vector_eoi: D19, an EOI acknowledges all SINTs of its vector, or the one programmed last.
        tsc_sequence_invalid: D20, the sequence that tells a reader not to use the reference TSC page.
        needs_activation: SynIC and timer registers fault until the VMM activates the SynIC of a VP (KVM_ENABLE_CAP).
        host_inactive_write: what a host may write to a SynIC that is not active.
        host_writes_sversion: a host's write replaces the version.
        page_preserve_faults: bits below the address and above enable must be 0 in page registers, or #GP.
        os_id_gates_hypercall: HYPERCALL written enabled while GUEST_OS_ID is 0: the enable bit stays 0; the whole
            write is dropped; nobody looks.
        os_id_zero_disables: GUEST_OS_ID written 0 clears the enable bit of HYPERCALL.
        page_zero_is_none: a SIM or SIEF page enabled at address 0 counts as disabled.
        locked_faults: HYPERCALL locked: a write is #GP; False: it changes nothing.
        assist_cleared_bytes: of an assist page in guest memory, when a guest enables it.
        overlays: hypercall, reference TSC and assist pages lie over guest memory; False: they are written into it.

    Raises:
        ValueError: a field has a value that is none of its choices.
    """

    name: str = "tlfs"
    scontrol_reset: int = 0
    flag_to_masked: Literal["refused", "set", "dropped"] = "refused"
    message_to_masked: Literal["deposited", "undelivered", "dropped"] = "deposited"
    polling_silences: bool = True
    scontrol_gates_messages: bool = True
    masked_low_vector_faults: bool = False
    unmasked_low_vector_faults: bool = True
    page_on_enable: Literal["overlay", "zeroed", "ram"] = "overlay"
    page_outside_faults: bool = False
    stimer_sint0: Literal["disabled", "disabled-if-enabled", "allowed"] = "disabled"
    busy_periodic_tick: Literal["dropped", "kept"] = "kept"
    late_periodic: Literal["phase", "now", "catch-up"] = "catch-up"
    stimer_lazy: Literal["ignored", "skip", "drift"] = "skip"
    stimer_queues: bool = True
    stimer_retry: Literal["ack", "entry"] = "ack"
    stimer_zero_count_disables: bool = True
    stimer_lost_vector_is_delivered: bool = True
    stimer_enabled_until_delivered: bool = False
    tsc_rounding: Literal["exact", "multiplier", "high-half"] = "exact"
    tsc_sequence_from: Literal["partition", "page"] = "partition"
    tsc_enable_clears: bool = False
    tsc_skips_all_ones: bool = True
    tsc_emulation_keeps_page: bool = True
    posted_depth: int | None = 16
    unknown_connection_status: int = 0x12
    wide_connection_status: int = 0x12
    oversized_payload_status: int = 5
    straddling_input_status: int = 4
    eom_scans_queues: bool = True
    shared_vector_eoi: Literal["all", "last"] = "all"
    tsc_sequence_invalid: int = 0
    needs_activation: bool = False
    host_inactive_write: Literal["any", "zero"] = "any"
    host_writes_sversion: bool = False
    page_preserve_faults: bool = False
    os_id_gates_hypercall: Literal["enable", "write", "unchecked"] = "enable"
    os_id_zero_disables: bool = True
    page_zero_is_none: bool = False
    locked_faults: bool = True
    assist_cleared_bytes: int = 4
    overlays: bool = True

    def __post_init__(self) -> None:
        for field, choices in _choices().items():
            value = getattr(self, field)
            if value not in choices:
                raise ValueError(f"profile {self.name!r}: {field}: no {value!r}; choose from {', '.join(choices)}")


@cache
def _choices() -> dict[str, tuple[str, ...]]:
    """Return the fields that choose by word, and their words."""
    hints = get_type_hints(Profile).items()
    return {field: get_args(hint) for field, hint in hints if get_origin(hint) is Literal}


_TLFS: Final = Profile()
_KVM: Final = Profile(
    name="kvm",
    scontrol_reset=1,
    flag_to_masked="set",
    message_to_masked="undelivered",
    polling_silences=False,
    scontrol_gates_messages=False,
    page_on_enable="zeroed",
    page_outside_faults=True,
    stimer_sint0="disabled-if-enabled",
    busy_periodic_tick="dropped",
    late_periodic="phase",
    stimer_lazy="ignored",
    stimer_queues=False,
    stimer_lost_vector_is_delivered=False,
    stimer_enabled_until_delivered=True,
    tsc_rounding="multiplier",
    tsc_sequence_from="page",
    unknown_connection_status=0x11,
    wide_connection_status=3,
    needs_activation=True,
    host_inactive_write="zero",
    host_writes_sversion=True,
    os_id_gates_hypercall="write",
    overlays=False,
)

PROFILES: Final[dict[str, Profile]] = {
    profile.name: profile
    for profile in (
        _TLFS,
        _KVM,  # v6.16, KVM_CAP_HYPERV_SYNIC
        replace(_KVM, name="kvm-synic2", page_on_enable="ram", page_outside_faults=False),  # KVM_CAP_HYPERV_SYNIC2
        replace(
            _KVM,
            name="kvm-4.5",
            scontrol_reset=0,
            masked_low_vector_faults=True,
            host_inactive_write="any",
            assist_cleared_bytes=4096,
        ),
        replace(
            _KVM,
            name="qemu",  # over KVM_CAP_HYPERV_SYNIC2: pages of its own, mapped over guest memory
            page_on_enable="overlay",
            page_outside_faults=False,
            page_zero_is_none=True,
            posted_depth=1,
            unknown_connection_status=0x12,
            oversized_payload_status=3,
        ),
        Profile(
            name="openvmm",  # 2026
            scontrol_reset=1,
            flag_to_masked="dropped",
            message_to_masked="dropped",
            scontrol_gates_messages=False,
            unmasked_low_vector_faults=False,
            page_outside_faults=True,
            stimer_sint0="allowed",
            late_periodic="now",
            stimer_lazy="ignored",
            stimer_queues=False,
            stimer_retry="entry",
            stimer_zero_count_disables=False,
            stimer_enabled_until_delivered=True,
            tsc_skips_all_ones=False,
            posted_depth=None,
            straddling_input_status=3,
            eom_scans_queues=False,
            page_preserve_faults=True,
            os_id_gates_hypercall="unchecked",
            os_id_zero_disables=False,
        ),
        Profile(
            name="xen",  # 4.17
            polling_silences=False,
            scontrol_gates_messages=False,
            masked_low_vector_faults=True,
            page_on_enable="zeroed",
            stimer_lazy="drift",
            stimer_queues=False,
            tsc_rounding="high-half",
            tsc_sequence_from="page",
            tsc_enable_clears=True,
            tsc_skips_all_ones=False,
            shared_vector_eoi="last",
            overlays=False,
        ),
    )
}
"""By name; ``tlfs`` is the default."""


def find_profile(profile: str | Profile) -> Profile:
    """Return a profile by name, or the one given. EINVAL: there is no such name."""
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise IrqError(errno.EINVAL, f"profile: no {profile!r} (EINVAL); choose from {', '.join(PROFILES)}")
    return PROFILES[profile]

"""The whole machine: scenarios run to the table they promise, in every design, engine and shape."""

from __future__ import annotations

import errno
import threading

import pytest

from vmbusirq import DESIGNS, GENERATIONS, IrqError, Machine, parse_interrupts
from vmbusirq._ffi import ffi, lib
from vmbusirq.scenario.schema import builtin_names, load_scenario, parse_scenario

# IRQ -> (hwirq, name, {cpu: count}) of the RFC's cover letter; it leaves CPUs 2 to 5 out
RFC_TABLE = {
    24: (7, "heartbeat", {0: 16841}),
    25: (9, "shutdown", {0: 1}),
    26: (10, "timesync", {0: 6752}),
    27: (11, "vss", {0: 1}),
    28: (14, "pri@storvsc1", {0: 22095}),
    29: (15, "pri@storvsc0", {1: 85}),
    30: (1, "balloon", {0: 3}),
    31: (3, "mouse", {0: 106}),
    32: (4, "keyboard", {0: 73}),
    33: (5, "framebuffer", {0: 6}),
    34: (13, "netvsc", {}),
    35: (8, "kvp", {0: 1}),
    36: (16, "netvsc", {}),
    37: (17, "netvsc", {}),
    38: (18, "netvsc", {}),
    39: (19, "netvsc", {6: 2375}),
    40: (20, "netvsc", {7: 1178}),
    41: (21, "netvsc", {0: 1003}),
    42: (22, "netvsc", {1: 4337}),
    43: (23, "sub@storvsc1", {}),
    44: (24, "sub@storvsc0", {}),
}
SHOWN_CPUS = (0, 1, 6, 7)
TARGET_CPUS = {34: 2, 36: 3, 37: 4, 38: 5, 43: 2, 44: 3}


def run(**options: object) -> Machine:
    machine = Machine.load("rfc-gen2-8vcpu", **options)  # type: ignore[arg-type]
    machine.run()
    return machine


def rows(machine: Machine) -> dict[str, list[int]]:
    table = parse_interrupts(machine.fs.read("/proc/interrupts"))
    return {row.label: list(row.counts) for row in table.rows}


@pytest.mark.parametrize("engine", ["fast", "linux"])
def test_default_scenario_gives_the_cover_letters_table(engine: str) -> None:
    """RFC 00/12: IRQ, hwirq, name and the counts of CPUs 0, 1, 6 and 7, reached by driving that many interrupts."""
    table = parse_interrupts(run(engine=engine).fs.read("/proc/interrupts"))
    vmbus = {int(row.label): row for row in table.rows if row.irq is not None and row.irq.chip == "VMBus"}

    assert sorted(RFC_TABLE) == sorted(vmbus)
    for irq, (hwirq, name, counts) in RFC_TABLE.items():
        row = vmbus[irq]
        assert row.irq is not None
        assert (hwirq, (name,)) == (row.irq.hwirq, tuple(row.irq.actions))
        assert [counts.get(cpu, 0) for cpu in SHOWN_CPUS] == [row.counts[cpu] for cpu in SHOWN_CPUS]


def test_channels_of_the_hidden_columns_interrupt_the_cpus_that_init_vp_index_gives() -> None:
    """CPUs 2 to 5, which the letter leaves out: targets by init_vp_index, figures of the scenario's own."""
    machine = run()

    for irq, cpu in TARGET_CPUS.items():
        counts = machine.irq.counts[irq]
        assert counts[cpu] > 0
        assert counts[cpu] == counts.sum()


def test_hyp_row_counts_control_messages_only_in_design_rfc() -> None:
    """RFC patch 09: 71 control messages on CPU 0, 0 elsewhere."""
    assert [71, 0, 0, 0, 0, 0, 0, 0] == rows(run())["HYP"]


@pytest.mark.parametrize("engine", ["fast", "linux"])
def test_design_legacy_has_no_channel_rows_and_counts_everything_on_hyp(engine: str) -> None:
    """v6.10: every callback is counted on HYP; nothing else knows about channels."""
    legacy, rfc = (Machine.load("rfc-gen2-8vcpu", design=design, engine=engine) for design in ("legacy", "rfc"))
    for machine in (legacy, rfc):
        machine.boot()
    booted, channels_at_boot = rows(legacy)["HYP"], rfc.irq.counts[24:45].sum(axis=0)
    for machine in (legacy, rfc):
        machine.run()
    channels = rfc.irq.counts[24:45].sum(axis=0) - channels_at_boot

    assert not any(row.irq is not None and row.irq.chip == "VMBus" for row in _table(legacy).rows)
    traffic = [after - before for after, before in zip(rows(legacy)["HYP"], booted, strict=True)]
    assert channels.tolist() == traffic
    # at boot a message and a channel's flag may share a vector
    assert int(channels_at_boot[0]) < booted[0] <= int(channels_at_boot[0]) + 71
    assert channels_at_boot[1:].tolist() == booted[1:]


def _table(machine: Machine):  # type: ignore[no-untyped-def]
    return parse_interrupts(machine.fs.read("/proc/interrupts"))


def test_every_packet_the_host_sent_was_read_unaltered() -> None:
    """Packets, bytes and checksums agree per channel; every counted interrupt was a flag that went 0 -> 1."""
    machine = run()

    for relid, channel in machine.vmbus.channels.items():
        sent, read = machine.host.channels[relid].stats, channel.stats
        assert (sent.packets, sent.bytes, sent.checksum) == (read.packets, read.bytes, read.checksum)
        assert sent.edges == read.interrupts
        assert int(machine.irq.counts[channel.irq].sum()) == read.interrupts


@pytest.mark.parametrize("name", [name for name in builtin_names() if not load_scenario(name).events])
def test_every_builtin_scenario_delivers_what_it_says(name: str) -> None:
    """Each channel's interrupts, all on its target CPU; nothing lost or altered on the way."""
    machine = Machine.load(name)
    machine.run()

    for spec in machine.scenario.channels:
        if spec.relid not in machine.vmbus.channels:  # a class that Linux never binds
            assert not spec.interrupts
            continue
        channel, sent = machine.vmbus.channels[spec.relid], machine.host.channels[spec.relid].stats
        counts = machine.irq.counts[channel.irq]
        assert spec.interrupts == int(counts[channel.target_cpu]) == int(counts.sum()) == sent.edges
        assert (sent.packets, sent.bytes, sent.checksum) == (
            channel.stats.packets,
            channel.stats.bytes,
            channel.stats.checksum,
        )
    assert machine.host.messages_posted == sum(machine.vmbus.messages_received.values())
    assert _table(machine).exact


def test_stress_scenario_uses_every_relid_and_widens_the_number_column() -> None:
    """2047 channels on x86 reach IRQ 2070 (genirq.md trap 3): nr_irqs grows past 1000 while the machine runs."""
    machine = Machine.load("stress-2047")
    machine.run()

    assert list(range(1, 2048)) == sorted(machine.vmbus.channels)
    assert 2070 == max(channel.irq for channel in machine.vmbus.channels.values())
    assert 4 == _table(machine).prec


def test_presets_of_ipi_rows_are_part_of_the_total() -> None:
    """arm64 IPIs are hidden IRQs: /proc/stat counts them (genirq.md 1.7)."""
    machine = Machine.load("arm64-8vcpu")
    machine.run()
    ipis = sum(sum(counts) for counts in machine.scenario.presets.values())
    channels = sum(spec.interrupts for spec in machine.scenario.channels)

    assert ipis + channels + machine.host.messages_posted == _total(machine)


def test_engines_and_simd_levels_give_the_same_files() -> None:
    """One truth: every counter and file is the same in both engines on one thread, at every SIMD level."""
    paths = ("/proc/interrupts", "/proc/stat", "/proc/softirqs")
    reference = [run(engine="linux").fs.read(path) for path in paths]
    levels = ["scalar", "avx2", "avx512"][: lib.vi_simd_best() + 1]

    for simd in levels:
        machine = run(engine="fast", simd=simd)
        assert reference == [machine.fs.read(path) for path in paths]


def test_same_seed_gives_the_same_bytes_and_another_seed_the_same_counts() -> None:
    """Deterministic by default: scenario, seed and version fix every byte."""
    one, two, other = run(seed=7), run(seed=7), run(seed=8)

    for path in ("/proc/interrupts", "/proc/stat", "/proc/softirqs"):
        assert one.fs.read(path) == two.fs.read(path)
    assert str(one.log) == str(two.log)
    assert one.fs.read("/proc/interrupts") == other.fs.read("/proc/interrupts")


@pytest.mark.parametrize("generation", sorted(GENERATIONS))
def test_run_is_parsed_exactly_in_every_generation(generation: str) -> None:
    """Our own file is an exact file of the generation that printed it."""
    text = run(generation=generation).fs.read("/proc/interrupts")
    table = parse_interrupts(text)

    assert table.exact
    assert generation in table.generations
    assert text == table.render()


def test_rows_that_cannot_occur_are_left_out_by_the_generation_that_does_so() -> None:
    """genirq.md 9: since v7.1 a row whose cause cannot occur on this machine is not shown."""
    shown = {name: set(rows(run(generation=name))) for name in ("v6.18", "v7.1")}

    assert {"TRM", "THR", "DFR", "PIN", "NPI", "PIW"} == shown["v6.18"] - shown["v7.1"]


def test_presets_are_named_and_are_only_what_nothing_models() -> None:
    """RES, CAL and their like are given by the scenario; no row that is driven may be preset."""
    machine = run()

    assert ("IWI", "RES", "CAL", "MCP") == machine.preset_rows
    assert "HYP" not in machine.scenario.presets


# ---- moving an interrupt


def test_write_to_smp_affinity_moves_where_the_next_interrupt_is_counted() -> None:
    """RFC patch 10: MODIFYCHANNEL retargets the channel; old counts stay where they are."""
    machine = run()
    before = machine.irq.counts[28].copy()

    assert 2 == machine.fs.write("/proc/irq/28/smp_affinity", b"4\n")
    machine.host.send(relid=14, packets=100)
    machine.settle()

    assert [0, 0, 1, 0, 0, 0, 0, 0] == (machine.irq.counts[28] - before).tolist()
    assert (b"04\n", b"2\n") == (
        machine.fs.read("/proc/irq/28/smp_affinity"),
        machine.fs.read("/proc/irq/28/effective_affinity_list"),
    )
    assert b"01\n" == machine.fs.read("/proc/irq/28/affinity_hint")
    assert 2 == machine.host.channels[14].target_vp


def test_mask_with_the_present_target_keeps_it() -> None:
    """RFC patch 10: a target that the mask allows stays; smp_affinity shows the request, effective the one CPU."""
    machine = run()
    machine.fs.write("/proc/irq/29/smp_affinity", b"ff")

    assert b"ff\n" == machine.fs.read("/proc/irq/29/smp_affinity")
    assert b"1\n" == machine.fs.read("/proc/irq/29/effective_affinity_list")


def test_one_cursor_chooses_for_all_channels() -> None:
    """RFC patch 10: five IRQs on CPUs 0 to 3, each written f0 after a fresh boot, go to 4, 5, 6, 7, 4."""
    machine = Machine(8)
    channels = [machine.attach("netvsc", relid) for relid in (1, 2, 3, 4)] + [machine.attach("heartbeat", 5)]
    for channel in channels:
        machine.fs.write(f"/proc/irq/{channel.irq}/smp_affinity", b"f0")

    assert [4, 5, 6, 7, 4] == [channel.target_cpu for channel in channels]


def test_signal_to_the_old_cpu_is_still_handled_and_counted_there() -> None:
    """An interrupt that lands on a CPU other than the target is normal and must be handled (vmbus.md 4.4)."""
    machine = Machine(4)
    channel = machine.attach("netvsc", 9)
    machine.fs.write(f"/proc/irq/{channel.irq}/smp_affinity", b"8")
    before = machine.irq.counts[channel.irq].copy()
    machine.synic.signal(0, 9)
    machine.settle()

    assert [1, 0, 0, 0] == (machine.irq.counts[channel.irq] - before).tolist()


def test_isolated_cpus_are_no_target() -> None:
    """isolcpus=managed_irq: a mask of isolated CPUs only is EINVAL (vmbus.md 4.3 row 5), and offers avoid them."""
    text = '[cpus]\npossible = 4\nisolated = "2-3"\n[[device]]\nname = "n"\nclass = "netvsc"\n'
    text += "".join(f'[[channel]]\ndevice = "n"\nrelid = {1 + sub}\nsub = {sub}\n' for sub in range(4))
    machine = Machine.load(parse_scenario(text, "isolated"))
    machine.run()

    assert {0, 1} == {channel.target_cpu for channel in machine.vmbus.channels.values()}
    with pytest.raises(IrqError) as error:
        machine.fs.write("/proc/irq/24/smp_affinity_list", b"2-3")
    assert errno.EINVAL == error.value.errno


def test_announced_cpus_that_never_come_have_no_column_but_count_as_possible() -> None:
    """Possible > present: columns and targets are the present CPUs; masks and softirq columns have room for all."""
    text = '[cpus]\npossible = 6\npresent = 4\n[[device]]\nname = "n"\nclass = "netvsc"\n'
    text += "".join(f'[[channel]]\ndevice = "n"\nrelid = {1 + sub}\nsub = {sub}\ninterrupts = 9\n' for sub in range(4))
    machine = Machine.load(parse_scenario(text, "sparse"))
    machine.run()

    assert (0, 1, 2, 3) == _table(machine).cpus
    assert b"CPU5" in machine.fs.read("/proc/softirqs")
    assert b"01\n" == machine.fs.read("/proc/irq/24/smp_affinity")
    assert b"3f\n" == machine.fs.read("/proc/irq/default_smp_affinity")
    assert 36 == int(machine.irq.counts.sum())
    with pytest.raises(IrqError) as error:
        machine.fs.write("/proc/irq/24/smp_affinity_list", b"4-5")
    assert errno.EINVAL == error.value.errno
    with pytest.raises(IrqError) as error:
        machine.synic.signal(5, 1)
    assert errno.ENXIO == error.value.errno


# ---- designs


@pytest.mark.parametrize("engine", ["fast", "linux"])
@pytest.mark.parametrize("arch", ["x86", "arm64"])
@pytest.mark.parametrize("design", sorted(DESIGNS))
def test_every_design_handles_each_event_once(design: str, arch: str, engine: str) -> None:
    """Nothing lost, nothing handled twice, and the total of /proc/stat explained by who counts."""
    machine = Machine(4, arch=arch, design=design, engine=engine)
    for relid, device_class in ((3, "netvsc"), (4, "scsi"), (5, "heartbeat")):
        machine.attach(device_class, relid, scsi_host=0)
    before = {relid: channel.stats for relid, channel in machine.vmbus.channels.items()}
    messages, total = sum(machine.vmbus.messages_received.values()), _total(machine)
    for _ in range(5):
        for relid in (3, 4, 5):
            assert 2 == machine.host.send(relid, packets=2)
        machine.settle()
    for _ in range(7):
        machine.host.post_message(b"\x04" + bytes(7))
        machine.settle()
    record = DESIGNS[design]

    assert 7 == sum(machine.vmbus.messages_received.values()) - messages
    for relid, channel in machine.vmbus.channels.items():
        was, now = before[relid], channel.stats
        assert (5, 10) == (now.interrupts - was.interrupts, now.packets - was.packets)
    assert _expected_total(record, machine) == _total(machine) - total


def _total(machine: Machine) -> int:
    line = next(line for line in machine.fs.read("/proc/stat").split(b"\n") if line.startswith(b"intr "))
    return int(line.split()[1])


def _expected_total(record, machine: Machine) -> int:  # type: ignore[no-untyped-def]
    """15 channel interrupts, 7 messages; the scan takes channels of one CPU together, so vectors are fewer."""
    together = 5 if len({channel.target_cpu for channel in machine.vmbus.channels.values()}) == 2 else 0
    toplevel = 15 - together + 7
    channels = 15 if record.channel_irqs else 0
    messages = 7 if record.message_irq else 0
    counted_at_top = {
        "legacy": toplevel,
        "rfc": 7,
        "mgmt-irq": toplevel,
        "mgmt-irq-nostat": 0,
        "mgmt-irq-hidden": 0,
        "redirect": 0,
        "mainline-6.16": toplevel,
        "rfc-pick": 7,
        "rfc-handover": 7,
    }[record.name]
    return channels + messages + counted_at_top


def test_message_irq_is_hwirq_0_and_made_before_the_first_channel() -> None:
    """design.md 6: name vmbus-msg, simple flow, lowest dynamic IRQ."""
    machine = Machine(2, design="mgmt-irq")
    machine.attach("heartbeat", 5)

    assert b"vmbus-msg\n" == machine.fs.read("/sys/kernel/irq/24/actions")
    assert b"0\n" == machine.fs.read("/sys/kernel/irq/24/hwirq")
    assert 25 == machine.vmbus.channels[5].irq


# ---- channels coming and going


def test_first_vmbus_irq_is_24_because_dynamic_irqs_begin_above_the_io_apic() -> None:
    """arch/x86: the lower bound of allocation is the end of the GSI space, whatever the hint (genirq.md 4.2)."""
    machine = Machine(2)

    assert [24, 25] == [machine.attach("heartbeat", 2000).irq, machine.attach("shutdown", 3).irq]


def test_relid_borders() -> None:
    """1 and 2047 are channels; 0 and 2048 are EINVAL, and nothing is left behind."""
    machine = Machine(2)
    for relid in (0, 2048, -1):
        with pytest.raises(IrqError) as error:
            machine.attach("heartbeat", relid)
        assert errno.EINVAL == error.value.errno
    for relid in (1, 2047):
        machine.attach("mouse", relid)
        machine.host.send(relid)
    machine.settle()

    assert [1, 1] == [int(machine.irq.counts[24].sum()), int(machine.irq.counts[25].sum())]


def test_detach_frees_relid_and_irq_and_a_late_flag_is_consumed() -> None:
    """RFC patch 08: the mapping goes with the channel; a flag that comes later is cleared and lost, silently."""
    machine = Machine(2)
    machine.attach("heartbeat", 7)
    machine.detach(7)
    assert machine.synic.signal(0, 7)
    machine.settle()

    assert () == machine.synic.flags_set(0)
    assert 1 == machine.core.lost().unmapped
    assert not machine.fs.exists("/proc/irq/24")
    assert 24 == machine.attach("shutdown", 9).irq


def test_close_and_reopen_of_one_channel() -> None:
    """Closing frees the IRQ, so that a re-open does not meet EBUSY, which the RFC as posted would."""
    machine = Machine(2)
    channel = machine.attach("mouse", 7)
    machine.host.send(7)
    machine.settle()
    machine.vmbus.close(channel)
    machine.vmbus.open(channel)
    machine.host.send(7)
    machine.settle()

    assert 2 == int(machine.irq.counts[channel.irq].sum())


def test_affinity_of_a_closed_channel_is_eio() -> None:
    """vmbus.md 4.3 row 6: another CPU while the channel is not open."""
    machine = Machine(4)
    channel = machine.attach("heartbeat", 7)
    machine.vmbus.close(channel)
    with pytest.raises(IrqError) as error:
        machine.fs.write(f"/proc/irq/{channel.irq}/smp_affinity", b"4")

    assert errno.EIO == error.value.errno
    assert "not open" in str(error.value)


def test_relid_in_use_is_eexist() -> None:
    """A second offer with the same relid."""
    machine = Machine(2)
    machine.attach("heartbeat", 7)
    with pytest.raises(IrqError) as error:
        machine.attach("shutdown", 7)

    assert errno.EEXIST == error.value.errno
    assert "heartbeat" in str(error.value)


def test_python_callback_runs_in_the_mode_of_its_channel_and_its_error_comes_out_of_settle() -> None:
    """An exception cannot cross C: it is kept and raised where the caller can see it."""
    machine = Machine(2)
    channel = machine.attach("heartbeat", 7)
    machine.vmbus.close(channel)
    seen: list[int] = []

    def callback(ch) -> None:  # type: ignore[no-untyped-def]
        seen.append(ch.relid)
        if len(seen) == 2:
            raise RuntimeError("the driver is broken")

    machine.vmbus.open(channel, callback)
    machine.host.send(7)
    machine.settle()
    machine.host.signal(7)
    with pytest.raises(RuntimeError, match="the driver is broken"):
        machine.settle()
    assert [7, 7] == seen


def test_handler_that_raises_itself_for_ever_is_eloop_and_no_hang() -> None:
    """A storm that would hang a kernel ends here with an error."""
    machine = Machine(1)
    channel = machine.attach("netvsc", 7)
    machine.vmbus.close(channel)
    machine.vmbus.open(channel, lambda ch: machine.host.signal(ch.relid))
    machine.host.signal(7)
    with pytest.raises(IrqError) as error:
        machine.settle()

    assert errno.ELOOP == error.value.errno


def test_control_plane_belongs_to_the_thread_that_made_the_machine() -> None:
    """Attach, close and a write to a file from another thread are EBUSY, and nothing happens."""
    machine = Machine(2, design="legacy")
    channel = machine.attach("heartbeat", 7)
    cpu_file = f"/sys/bus/vmbus/devices/{channel_dir(machine)}/channels/7/cpu"
    errors: list[int | None] = []

    def other_thread() -> None:
        for call in (
            lambda: machine.attach("shutdown", 8),
            lambda: machine.vmbus.close(channel),
            lambda: machine.fs.write(cpu_file, b"1"),
        ):
            try:
                call()
            except IrqError as error:
                errors.append(error.errno)

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()

    assert [errno.EBUSY] * 3 == errors
    assert (0, {7}) == (channel.target_cpu, set(machine.vmbus.channels))


def channel_dir(machine: Machine) -> str:
    """Return the one device's directory name below /sys/bus/vmbus/devices."""
    (name,) = machine.fs.listdir("/sys/bus/vmbus/devices")
    return name


def test_guest_writes_and_host_reads_the_out_ring() -> None:
    """The other direction: the first packet into an empty ring asks for a signal, the second does not."""
    machine = Machine(2)
    channel = machine.attach("heartbeat", 7)
    out, host = lib.vi_channel_out(channel.c), lib.vi_vsp_out(machine.host.channels[7].handle)
    assert [1, 0] == [lib.vi_ring_write(out, lib.VI_PKT_DATA_INBAND, 0, n, b"to host!", 8) for n in (1, 2)]
    buffer, actual, trans_id = ffi.new("char[64]"), ffi.new("uint32_t *"), ffi.new("uint64_t *")

    for _ in range(2):
        assert 0 == lib.vi_ring_read(host, buffer, 64, 0, actual, trans_id)
        assert b"to host!" == ffi.buffer(buffer, actual[0])[:]
    assert 0 == lib.vi_ring_read(host, buffer, 64, 0, actual, trans_id) == actual[0]


def test_control_messages_queue_behind_a_busy_slot_in_order() -> None:
    """One undelivered message per CPU and SINT; the host retries after EOM (vmbus.md 2.2)."""
    machine = Machine(2)
    for msgtype in (4, 17, 4, 99):
        machine.host.post_message(msgtype.to_bytes(4, "little") + bytes(4))
    assert 3 == machine.host.messages_waiting
    machine.settle()

    assert {4: 2, 17: 1} == machine.vmbus.messages_received
    assert 4 == machine.core.arch_row(0, lib.VI_ROW_HYP)
    assert any("unknown msgtype=99" in entry.text for entry in machine.log)


def test_largest_machine_runs() -> None:
    """2048 CPUs, one channel on the last relid: masks of 64 groups, five-digit numbers."""
    machine = Machine(2048)
    channel = machine.attach("netvsc", 2047)
    machine.fs.write(f"/proc/irq/{channel.irq}/smp_affinity_list", b"2047")
    before = int(machine.irq.counts.sum())
    machine.host.send(2047)
    machine.settle()

    assert 1 == int(machine.irq.counts[channel.irq, 2047])
    assert 1 == int(machine.irq.counts.sum()) - before
    assert machine.fs.read("/proc/interrupts").startswith(b" " * 13 + b"CPU0")


def test_builtin_scenario_loads_by_name_and_is_the_default() -> None:
    """The command line's default is the RFC's machine."""
    assert "rfc-gen2-8vcpu" == load_scenario("rfc-gen2-8vcpu").name

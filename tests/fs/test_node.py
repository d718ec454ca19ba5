"""Nodes, paths and open files: what system calls on procfs and sysfs give (genirq.md 2.1, 3.1; real-clients.md 2.3)."""

from __future__ import annotations

import io
import stat
from errno import (
    EACCES,
    EBADF,
    EEXIST,
    EINVAL,
    EIO,
    EISDIR,
    ELOOP,
    ENAMETOOLONG,
    ENODEV,
    ENOENT,
    ENOTDIR,
    EPERM,
    ESPIPE,
)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fs.kernel import refused
from vmbusirq.errors import IrqError
from vmbusirq.fs import PROCFS, SYSFS, Directory, File, FileSystem, StaticDirectory, Symlink


class Clock:
    """A text that is another one each time it is made, and an object that can go."""

    def __init__(self):
        self.shown = 0
        self.stored = []
        self.alive = True

    def show(self):
        self.shown += 1
        return b"%04d " % self.shown * 100

    def store(self, data):
        if data == b"bad":
            raise IrqError(EINVAL, "bad value")
        self.stored.append(data)
        return len(data)


@pytest.fixture
def clock():
    """A source of texts."""
    return Clock()


@pytest.fixture
def fs(clock):
    """A tree with every kind of node, over one clock."""
    files = FileSystem()
    files.add("/proc", File("interrupts", 0o444, PROCFS, clock.show, alive=lambda: clock.alive))
    files.add("/proc/irq", File("smp_affinity", 0o644, PROCFS, clock.show, clock.store, alive=lambda: clock.alive))
    files.add("/proc/irq", Directory("24", PROCFS))
    files.add("/sys/kernel", File("hwirq", 0o444, SYSFS, clock.show, alive=lambda: clock.alive))
    files.add("/sys/kernel", File("online", 0o644, SYSFS, clock.show, clock.store))
    files.add("/sys/kernel", File("uevent", 0o200, SYSFS, None, clock.store))
    files.add("/sys", Symlink("link", SYSFS, "kernel"))
    files.add("/sys", Symlink("far", SYSFS, "/proc/irq/../irq/smp_affinity"))
    files.add("/sys", Symlink("loop", SYSFS, "loop"))
    return files


# ---- what ls shows


def test_a_procfs_file_has_size_0_and_blksize_1024(fs):
    """Real-clients.md 2.3, rule 1; genirq.md 2.1."""
    shown = fs.stat("/proc/interrupts")
    assert stat.S_IFREG | 0o444 == shown.st_mode
    assert (0, 1024, 0, 0) == (shown.st_size, shown.st_blksize, shown.st_uid, shown.st_gid)


def test_a_sysfs_file_has_size_4096_and_blksize_4096(fs):
    """Real-clients.md 2.3, rule 1; genirq.md 3.1."""
    shown = fs.stat("/sys/kernel/hwirq")
    assert (stat.S_IFREG | 0o444, 4096, 4096) == (shown.st_mode, shown.st_size, shown.st_blksize)


def test_directories_are_0555_in_procfs_and_0755_in_sysfs(fs):
    """Genirq.md 2.1 and 3.1."""
    assert stat.S_IFDIR | 0o555 == fs.stat("/proc/irq").st_mode
    assert stat.S_IFDIR | 0o755 == fs.stat("/sys/kernel").st_mode


def test_stat_follows_a_symlink_and_lstat_does_not(fs):
    """Stat(2), lstat(2), readlink(2)."""
    assert stat.S_ISDIR(fs.stat("/sys/link").st_mode)
    assert stat.S_IFLNK | 0o777 == fs.lstat("/sys/link").st_mode
    assert "kernel" == fs.readlink("/sys/link")
    with refused(EINVAL, "/sys/kernel"):
        fs.readlink("/sys/kernel")


@given(st.sets(st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=6)))
def test_procfs_lists_by_length_then_bytes_and_sysfs_by_bytes(names):
    """Directories of procfs are sorted so (fs/proc/generic.c, v6.10); sysfs has hash order, ours is stable."""
    in_proc = StaticDirectory("p", PROCFS, [Directory(name, PROCFS) for name in names])
    in_sys = StaticDirectory("s", SYSFS, [Directory(name, SYSFS) for name in names])
    assert sorted(names, key=lambda name: (len(name.encode()), name.encode())) == in_proc.listdir()
    assert sorted(names, key=str.encode) == in_sys.listdir()
    assert in_proc.listdir() == [node.name for node in in_proc.entries()]


def test_walk_yields_a_directory_before_what_is_in_it_and_does_not_follow_symlinks(fs):
    """A loop of symlinks cannot trap it."""
    assert [
        "/sys/far",
        "/sys/kernel",
        "/sys/kernel/hwirq",
        "/sys/kernel/online",
        "/sys/kernel/uevent",
        "/sys/link",
        "/sys/loop",
    ] == [path for path, _ in fs.walk("/sys")]
    assert "<File 'hwirq' -r--r--r-->" == repr(dict(fs.walk())["/sys/kernel/hwirq"])


def test_walk_leaves_out_what_vanishes_meanwhile():
    """A name that was listed may be gone when it is looked up."""

    class Leaky(Directory):
        def names(self):
            return ["gone"]

    files = FileSystem()
    files.add("/proc", Leaky("irq", PROCFS))
    assert ["/proc", "/proc/irq"] == [path for path, _ in files.walk()]


# ---- paths


@pytest.mark.parametrize(
    "path", ["/proc/irq/smp_affinity", "//proc/./irq/24/../smp_affinity", "/../proc/irq/smp_affinity", "/sys/far"]
)
def test_a_path_may_be_written_in_many_ways(fs, path):
    """Path_resolution(7): empty and dot components, the root's parent, symlinks."""
    assert "/proc/irq/smp_affinity" == fs.realpath(path)
    assert fs.exists(path)


def test_dot_dot_after_a_symlink_is_the_parent_of_its_target(fs):
    """Path_resolution(7): symlinks are followed before the rest is looked at."""
    assert "/sys/kernel/hwirq" == fs.realpath("/sys/link/../link/hwirq")
    assert ["far", "kernel", "link", "loop"] == fs.listdir("/sys/link/..")


@pytest.mark.parametrize(
    ("path", "errno", "words"),
    [
        ("/proc/nosuch", ENOENT, "/proc/nosuch: no such file or directory (ENOENT); there is: irq interrupts"),
        ("/nosuch/file", ENOENT, "/nosuch: no such file or directory (ENOENT); there is: proc sys"),
        ("/proc/irq/24/name", ENOENT, "there is: nothing"),
        ("/proc/interrupts/x", ENOTDIR, "/proc/interrupts is not a directory"),
        ("/proc/interrupts/..", ENOTDIR, "/proc/interrupts is not a directory"),
        ("/proc/interrupts/", ENOTDIR, "leave the last / out"),
        ("/sys/loop/x", ELOOP, "symbolic links"),
        ("/proc/" + "x" * 256, ENAMETOOLONG, "longer than 255 bytes"),
        ("/proc/" + "x" * 255, ENOENT, "no such file"),
        ("proc/interrupts", EINVAL, "not an absolute path"),
        ("", EINVAL, "not an absolute path"),
        ("/proc/\0", EINVAL, "NUL"),
    ],
)
def test_a_bad_path_gives_the_errno_of_the_system_call(fs, path, errno, words):
    """Path_resolution(7), and a message that says what there is."""
    for call in (fs.read, fs.stat, fs.listdir, fs.unlink, fs.open):
        with refused(errno, words):
            call(path)


def test_a_long_hint_is_cut(fs):
    """A message stays one line."""
    for number in range(20):
        fs.add("/sys/many", Directory(f"{number:02}", SYSFS))
    with refused(ENOENT, "there is: 00 01 02 03 04 05 06 07 08 09 10 11 ..."):
        fs.stat("/sys/many/x")


def test_exists_says_no_and_passes_on_what_is_no_answer(fs):
    """ENOENT and ENOTDIR mean no."""
    assert not fs.exists("/proc/nosuch")
    assert not fs.exists("/proc/interrupts/x")
    with refused(ELOOP):
        fs.exists("/sys/loop")


def test_a_directory_cannot_be_read_and_a_file_cannot_be_listed(fs):
    """EISDIR from read(2) and open(2), ENOTDIR from getdents(2)."""
    for call in (fs.read, lambda path: fs.write(path, b"1")):
        with refused(EISDIR, "/proc/irq"):
            call("/proc/irq")
    with refused(ENOTDIR, "/proc/interrupts"):
        fs.listdir("/proc/interrupts")


def test_nothing_can_be_removed_or_made(fs):
    """Real-clients.md 2.3, rule 7: unlink EPERM; mkdir ENOENT in procfs, EPERM in sysfs."""
    for path in ("/proc/interrupts", "/proc/irq", "/sys/kernel/hwirq", "/sys/loop"):
        with refused(EPERM, path):
            fs.unlink(path)
    for path, errno in [("/proc/irq/new", ENOENT), ("/sys/kernel/new", EPERM), ("/proc/irq", EEXIST)]:
        with refused(errno, path):
            fs.mkdir(path)


def test_opening_a_missing_name_for_writing_gives_what_creating_it_gives(fs):
    """Real-clients.md 2.3, rule 7: ENOENT in procfs, EACCES in sysfs."""
    with refused(ENOENT, "/proc/irq/new"):
        fs.open("/proc/irq/new", "w")
    with refused(EACCES, "/sys/kernel/new"):
        fs.open("/sys/kernel/new", "w")
    with refused(ENOENT, "/sys/kernel/new"):
        fs.open("/sys/kernel/new", "r+")
    with refused(ENOENT, "/sys/nosuch"):
        fs.open("/sys/nosuch/new", "w")


def test_other_rooms_add_nodes_but_not_inside_live_directories_and_not_twice(fs):
    """A live directory decides by itself what is in it."""
    with refused(EEXIST, "interrupts"):
        fs.add("/proc", Directory("interrupts", PROCFS))
    with refused(EPERM, "24"):
        fs.add("/proc/irq/24", Directory("new", PROCFS))


# ---- reading and writing


def test_a_procfs_file_without_write_function_opens_for_writing_and_write_gives_eio(fs):
    """Genirq.md 2.1: root's capability opens it."""
    with fs.open("/proc/interrupts", "w") as handle, refused(EIO, "interrupts"):
        handle.write(b"0")


def test_a_sysfs_file_without_write_function_cannot_be_opened_for_writing(fs):
    """Genirq.md 3.1: EACCES even for root."""
    for mode in ("w", "r+"):
        with refused(EACCES, "/sys/kernel/hwirq"):
            fs.open("/sys/kernel/hwirq", mode)


def test_a_file_without_read_function(fs):
    """A write-only attribute of sysfs cannot be opened, even by root (kernfs_fop_open); in procfs read(2) fails."""
    for mode in ("r", "r+"):
        with refused(EACCES, "uevent"):
            fs.open("/sys/kernel/uevent", mode)
    with refused(EIO, "uevent"):
        fs.lookup("/sys/kernel/uevent").read()
    fs.add("/proc", File("trigger", 0o200, PROCFS, None, len))
    with fs.open("/proc/trigger", "r+") as handle, refused(EIO, "trigger"):
        handle.read()


def test_a_write_takes_bytes_and_text_and_is_one_value_even_when_it_is_empty(fs, clock):
    """Genirq.md 2.3: a write(2) of 0 bytes reaches the parser."""
    assert 2 == fs.write("/proc/irq/smp_affinity", "4\n")
    assert 1 == fs.write("/proc/irq/smp_affinity", bytearray(b"f"))
    assert 0 == fs.write("/proc/irq/smp_affinity", b"")
    assert [b"4\n", b"f", b""] == clock.stored


def test_every_write_is_a_value_of_its_own_wherever_the_position_is(fs, clock):
    """Genirq.md 2.3: the offset is ignored."""
    with fs.open("/proc/irq/smp_affinity", "w") as handle:
        handle.write(b"1")
        handle.write("0\n")
        assert 3 == handle.position
        with refused(EINVAL, "bad value"):
            handle.write(b"bad")
        assert 3 == handle.position
    assert [b"1", b"0\n"] == clock.stored


def test_pwrite_gives_espipe_on_procfs_and_is_a_write_on_sysfs(fs, clock):
    """Genirq.md 1.10: seq files have no pwrite."""
    with fs.open("/proc/irq/smp_affinity", "r+") as handle, refused(ESPIPE):
        handle.pwrite(b"1", 0)
    with fs.open("/sys/kernel/online", "w") as handle:
        assert 1 == handle.pwrite(b"1", 7)
        assert 0 == handle.position
    assert [b"1"] == clock.stored


def test_the_text_is_made_at_offset_0_and_later_reads_come_from_it(fs):
    """Real-clients.md 2.3, rule 2: seek to 0 for fresh counters."""
    with fs.open("/proc/interrupts") as handle:
        first = handle.read(7)
        assert b"0001 00" == first
        assert b"01 " == handle.pread(3, 7)
        assert b"0001 " * 100 == first + handle.read()
        assert b"" == handle.read()
        assert b"0002" == handle.pread(4, 0)
        assert b"2 0002" == handle.pread(6, 3)
        handle.seek(0)
        assert b"0003 " * 100 == handle.read()


def test_a_first_read_past_the_start_makes_the_text_too(fs, clock):
    """Real-clients.md 2.3, rule 2: a first pread."""
    with fs.open("/proc/interrupts") as handle:
        assert b"01 0" == handle.pread(4, 2)
        assert b"" == handle.pread(4, 5000)
    assert 1 == clock.shown


@given(st.lists(st.integers(1, 200), min_size=1, max_size=12))
def test_pieces_of_any_size_make_one_untorn_text(sizes):
    """Real-clients.md 2.3, rule 2: a table never tears between two reads."""
    files = FileSystem()
    files.add("/proc", File("interrupts", 0o444, PROCFS, Clock().show))
    with files.open("/proc/interrupts") as handle:
        text = b"".join(handle.read(size) for size in sizes) + handle.read()
    assert b"0001 " * 100 == text


def test_seeking_moves_the_position_but_knows_no_end(fs):
    """Real-clients.md 2.3, rule 13: SEEK_END gives EINVAL on procfs."""
    with fs.open("/proc/interrupts") as handle:
        assert 10 == handle.seek(10)
        assert 8 == handle.seek(-2, io.SEEK_CUR)
        assert 8 == handle.position
        for offset, whence in [(-1, io.SEEK_SET), (-9, io.SEEK_CUR), (0, io.SEEK_END)]:
            with refused(EINVAL, "/proc/interrupts"):
                handle.seek(offset, whence)
        with refused(EINVAL, "offset -1"):
            handle.pread(1, -1)


def test_a_handle_does_only_what_it_was_opened_for(fs):
    """EBADF from read(2) and write(2), EINVAL for a mode that is none."""
    with fs.open("/proc/irq/smp_affinity", "w") as handle, refused(EBADF, "reading"):
        handle.read()
    with fs.open("/proc/irq/smp_affinity") as handle, refused(EBADF, "writing"):
        handle.write(b"1")
    handle.close()
    for call in (handle.read, lambda: handle.seek(0), lambda: handle.write(b"1")):
        with refused(EBADF, "closed"):
            call()
    with refused(EINVAL, "'a'"):
        fs.open("/proc/irq/smp_affinity", "a")


def test_an_open_file_of_a_gone_object_gives_eio_in_procfs_and_enodev_in_sysfs(fs, clock):
    """Text already made does not help (fs/proc/inode.c proc_reg_read, fs/kernfs/file.c kernfs_seq_start; v6.10)."""
    in_proc, in_sys = fs.open("/proc/irq/smp_affinity", "r+"), fs.open("/sys/kernel/hwirq")
    in_proc.read(3)
    in_sys.read(3)
    clock.alive = False
    with refused(EIO, "smp_affinity"):
        in_proc.read(3)
    with refused(EIO, "smp_affinity"):
        in_proc.write(b"1")
    with refused(ENODEV, "hwirq"):
        in_sys.read(3)

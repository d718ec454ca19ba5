"""Emulated kernel files: text in, text out, errno.

:func:`kernel_files` makes the tree of one machine; other rooms add theirs with :meth:`FileSystem.add`.
"""

from __future__ import annotations

from vmbusirq.fs.filesystem import FileSystem, Handle
from vmbusirq.fs.node import PROCFS, SYSFS, Directory, File, FsType, Node, StaticDirectory, Symlink
from vmbusirq.fs.procfs.interrupts import InterruptsText
from vmbusirq.fs.procfs.irq import ProcIrqDir
from vmbusirq.fs.procfs.softirqs import SoftirqsText
from vmbusirq.fs.procfs.stat import StatText
from vmbusirq.fs.sysfs.cpu import CpuRootDir
from vmbusirq.fs.sysfs.kernel_irq import SysKernelIrqDir
from vmbusirq.fs.view import CpuTimes, KernelView, StatPresets

__all__ = [
    "PROCFS",
    "SYSFS",
    "CpuTimes",
    "Directory",
    "File",
    "FileSystem",
    "FsType",
    "Handle",
    "KernelView",
    "Node",
    "StatPresets",
    "StaticDirectory",
    "Symlink",
    "kernel_files",
]


def kernel_files(view: KernelView) -> FileSystem:
    """Return /proc and /sys of a kernel, as far as interrupts show there.

    Its VMBus, if it has one, is added by add_vmbus_files() of vmbusirq/fs/sysfs/vmbus.py.
    """
    files = FileSystem()
    files.add("/proc", File("interrupts", 0o444, PROCFS, InterruptsText(view).show))
    files.add("/proc", ProcIrqDir(view))
    files.add("/proc", File("stat", 0o444, PROCFS, StatText(view).show))
    files.add("/proc", File("softirqs", 0o444, PROCFS, SoftirqsText(view).show))
    files.add("/sys/kernel", SysKernelIrqDir(view))
    files.add("/sys/devices/system", CpuRootDir(view))
    return files

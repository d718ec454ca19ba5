"""Nodes of the emulated file systems: files, directories and symlinks, and what procfs and sysfs do differently.

A node is made when it is looked up and holds no text: a file is a name, a mode and two functions. Everything belongs to
root, and everybody who calls is root.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from vmbusirq.errors import IrqError

__all__ = ["PROCFS", "SYSFS", "Directory", "File", "FsType", "Node", "StaticDirectory", "Symlink"]

_HINT_NAMES: Final = 12


@dataclass(frozen=True, slots=True)
class FsType:
    """What a caller can tell one kind of kernel file system from another by (fs/proc/generic.c, fs/kernfs; v6.10).

    Attributes:
        name: as in /proc/filesystems.
        file_size: st_size of a regular file; says nothing about its text.
        blksize: st_blksize.
        dir_mode: permission bits of a directory.
        by_length: directories list short names first, then by bytes; else by bytes alone (sysfs has hash order, which
            no reader can rely on).
        open_errno: refuses to open a file without write function for writing, or one without read function for
            reading, even to root (KERNFS_ROOT_EXTRA_OPEN_PERM_CHECK); None: opens it, and the call gives EIO.
        gone_errno: what a file that is still open gives once its object is gone.
        pwrite_errno: what pwrite(2) gives; None: the offset is ignored.
        create_errno: what opening a missing name for writing gives.
        mkdir_errno: what mkdir(2) gives.
    """

    name: str
    file_size: int
    blksize: int
    dir_mode: int
    by_length: bool
    open_errno: int | None
    gone_errno: int
    pwrite_errno: int | None
    create_errno: int
    mkdir_errno: int

    def listing_order(self, name: str) -> tuple[int, bytes]:
        """Return the sort key of a name in a directory listing."""
        raw = os.fsencode(name)
        return (len(raw) if self.by_length else 0, raw)


PROCFS: Final = FsType(
    name="proc",
    file_size=0,
    blksize=1024,
    dir_mode=0o555,
    by_length=True,
    open_errno=None,
    gone_errno=errno.EIO,
    pwrite_errno=errno.ESPIPE,
    create_errno=errno.ENOENT,
    mkdir_errno=errno.ENOENT,
)
SYSFS: Final = FsType(
    name="sysfs",
    file_size=4096,
    blksize=4096,
    dir_mode=0o755,
    by_length=False,
    open_errno=errno.EACCES,
    gone_errno=errno.ENODEV,
    pwrite_errno=None,
    create_errno=errno.EACCES,
    mkdir_errno=errno.EPERM,
)


def _always() -> bool:
    return True


class Node:
    """Something with a name in a directory.

    Attributes:
        name: last component of its path.
        mode: st_mode, type and permission bits.
        fstype: procfs or sysfs.
        size: st_size.
        alive: tells whether what the node speaks for still exists.
    """

    __slots__ = ("alive", "fstype", "mode", "name", "size")

    def __init__(self, name: str, mode: int, fstype: FsType, size: int, alive: Callable[[], bool] = _always) -> None:
        self.name = name
        self.mode = mode
        self.fstype = fstype
        self.size = size
        self.alive = alive

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {stat.filemode(self.mode)}>"

    def stat(self) -> os.stat_result:
        """Return what stat(2) shows: mode, size and blksize as in the kernel, owner root, every number else 0."""
        links = 2 if stat.S_ISDIR(self.mode) else 1
        base = (self.mode, 0, 0, links, 0, 0, self.size, 0, 0, 0)
        return os.stat_result(base, {"st_blksize": self.fstype.blksize, "st_blocks": 0})


class File(Node):
    """A regular file: ``show`` makes its whole text, ``store`` takes the bytes of one write(2).

    Args:
        name: last component of its path.
        perm: permission bits.
        fstype: procfs or sysfs.
        show: returns the text; may raise IrqError. None: not readable (EIO).
        store: returns how many bytes were taken, or raises IrqError. None: not writable.
        alive: false once its object is gone; then reads and writes of an open file give ``fstype.gone_errno``.
    """

    __slots__ = ("_show", "_store")

    def __init__(
        self,
        name: str,
        perm: int,
        fstype: FsType,
        show: Callable[[], bytes] | None,
        store: Callable[[bytes], int] | None = None,
        alive: Callable[[], bool] = _always,
    ) -> None:
        super().__init__(name, stat.S_IFREG | perm, fstype, fstype.file_size, alive)
        self._show = show
        self._store = store

    @property
    def readable(self) -> bool:
        """True if the kernel has a read function for it."""
        return self._show is not None

    @property
    def writable(self) -> bool:
        """True if the kernel has a write function for it, whatever the mode says."""
        return self._store is not None

    def check_alive(self, path: str | None = None) -> None:
        """Raise IrqError(fstype.gone_errno) if what the file speaks for is gone; ``path`` is for the message."""
        if not self.alive():
            raise IrqError(
                self.fstype.gone_errno, f"{path or self.name}: what this open file belongs to is gone; open it anew"
            )

    def read(self, path: str | None = None) -> bytes:
        """Return the text as of now. Raises IrqError: EIO without read function, ``fstype.gone_errno``."""
        self.check_alive(path)
        if self._show is None:
            raise IrqError(errno.EIO, f"{path or self.name}: cannot be read; it can only be written")
        return self._show()

    def write(self, data: bytes, path: str | None = None) -> int:
        """Take one write(2), which is one whole value; return the bytes taken. ``path`` is for messages.

        Raises:
            IrqError: EIO without write function, ``fstype.gone_errno``; else what the kernel returns for ``data``.
        """
        self.check_alive(path)
        if self._store is None:
            raise IrqError(errno.EIO, f"{path or self.name}: cannot be written; it can only be read")
        return self._store(data)


class Directory(Node):
    """A directory: what is in it is asked for each time. Subclasses say which names there are and what they mean."""

    __slots__ = ()

    def __init__(self, name: str, fstype: FsType, alive: Callable[[], bool] = _always) -> None:
        super().__init__(name, stat.S_IFDIR | fstype.dir_mode, fstype, 0, alive)

    def names(self) -> Iterable[str]:
        """Return the names in it, in any order."""
        return ()

    def lookup(self, name: str) -> Node | None:
        """Return the node of that name, None when there is none."""
        return None

    def missing(self, name: str) -> str:
        """Say why there is no such name, and what there is instead."""
        names = self.listdir()
        more = " ..." if len(names) > _HINT_NAMES else ""
        there = " ".join(names[:_HINT_NAMES]) + more if names else "nothing"
        return f"no such file or directory (ENOENT); there is: {there}"

    def listdir(self) -> list[str]:
        """Return the names in the order in which the file system lists them."""
        return sorted(self.names(), key=self.fstype.listing_order)

    def entries(self) -> list[Node]:
        """Return the nodes in listing order, leaving out what vanishes meanwhile."""
        return [node for name in self.listdir() if (node := self.lookup(name)) is not None]


class StaticDirectory(Directory):
    """A directory whose entries are put there once; they may be live directories themselves."""

    __slots__ = ("children",)

    def __init__(self, name: str, fstype: FsType, children: Iterable[Node] = ()) -> None:
        super().__init__(name, fstype)
        self.children: dict[str, Node] = {child.name: child for child in children}

    def names(self) -> Iterable[str]:
        """Return the names in it."""
        return self.children

    def lookup(self, name: str) -> Node | None:
        """Return the node of that name, None when there is none."""
        return self.children.get(name)

    def add(self, node: Node) -> None:
        """Put a node there. Raises IrqError(EEXIST)."""
        if node.name in self.children:
            raise IrqError(errno.EEXIST, f"{self.name}/{node.name}: exists already")
        self.children[node.name] = node


class Symlink(Node):
    """A symbolic link; ``target`` is absolute or relative to the directory that holds it."""

    __slots__ = ("target",)

    def __init__(self, name: str, fstype: FsType, target: str, alive: Callable[[], bool] = _always) -> None:
        super().__init__(name, stat.S_IFLNK | 0o777, fstype, 0, alive)
        self.target = target

"""Paths and open files: the tree of one machine as a program sees it through system calls."""

from __future__ import annotations

import errno
import io
import os
import posixpath
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import Final

from vmbusirq.errors import IrqError
from vmbusirq.fs.node import SYSFS, Directory, File, Node, StaticDirectory, Symlink

__all__ = ["FileSystem", "Handle"]

_NAME_MAX: Final = 255
_SYMLINKS_MAX: Final = 40
_MODES: Final = {"r": (True, False), "w": (False, True), "r+": (True, True)}


class Handle:
    """An open file.

    Its text is made when a read begins at offset 0, or when there is none yet; other reads come from that text, so that
    a table never tears between two reads (fs/seq_file.c).
    """

    __slots__ = ("_node", "_readable", "_text", "_writable", "closed", "path", "position")

    def __init__(self, path: str, node: File, readable: bool, writable: bool) -> None:
        self.path = path
        self.position = 0
        self.closed = False
        self._node = node
        self._readable = readable
        self._writable = writable
        self._text: bytes | None = None

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file up; a second call does nothing."""
        self.closed = True
        self._text = None

    def _check(self, allowed: bool, what: str) -> None:
        if self.closed:
            raise IrqError(errno.EBADF, f"{self.path}: is closed")
        if not allowed:
            raise IrqError(errno.EBADF, f"{self.path}: was not opened for {what}")

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes from the position on, all of them when it is negative.

        Raises:
            IrqError: EBADF when not open for reading; EIO (sysfs: ENODEV) when its object is gone; what making the text
                raises.
        """
        data = self.pread(size, self.position)
        self.position += len(data)
        return data

    def pread(self, size: int, offset: int) -> bytes:
        """Return up to ``size`` bytes from ``offset`` on; the position stays.

        Raises:
            IrqError: EINVAL for a negative offset; else as read().
        """
        self._check(self._readable, "reading")
        if offset < 0:
            raise IrqError(errno.EINVAL, f"{self.path}: cannot read at offset {offset}")
        self._node.check_alive(self.path)
        if offset == 0 or self._text is None:
            self._text = self._node.read(self.path)
        return self._text[offset:] if size < 0 else self._text[offset : offset + size]

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position and return it. Raises IrqError(EINVAL): before the start, or relative to the end."""
        self._check(True, "")
        if whence not in (io.SEEK_SET, io.SEEK_CUR):
            raise IrqError(
                errno.EINVAL, f"{self.path}: has no end to seek from; its size is not known before it is read"
            )
        position = offset + (self.position if whence == io.SEEK_CUR else 0)
        if position < 0:
            raise IrqError(errno.EINVAL, f"{self.path}: cannot seek to {position}")
        self.position = position
        return position

    def write(self, data: bytes | str) -> int:
        """Hand over one whole value, wherever the position is; return the bytes taken.

        Raises:
            IrqError: EBADF when not open for writing, EIO when the file cannot be written or its object is gone; else
                what the kernel returns for ``data``.
        """
        self._check(self._writable, "writing")
        raw = data.encode() if isinstance(data, str) else bytes(memoryview(data))  # a number is no data
        taken = self._node.write(raw, self.path)
        self.position += taken
        return taken

    def pwrite(self, data: bytes | str, offset: int) -> int:
        """Write at an offset: ESPIPE on procfs, where files are seq files; elsewhere as write()."""
        self._check(self._writable, "writing")
        refused = self._node.fstype.pwrite_errno
        if refused is not None:
            raise IrqError(refused, f"{self.path}: cannot be written at an offset; use write")
        position = self.position
        try:
            return self.write(data)
        finally:
            self.position = position


class FileSystem:
    """The emulated files of one machine, by absolute path.

    Errors are :class:`IrqError` with the errno of the system call: ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG for the path,
    EINVAL for one that is not absolute; for the rest see each call.
    """

    def __init__(self, root: StaticDirectory | None = None) -> None:
        self.root = StaticDirectory("", SYSFS) if root is None else root

    def add(self, path: str, node: Node) -> None:
        """Put ``node`` into directory ``path``, which is made if need be, of the node's file system type.

        Raises:
            IrqError(EEXIST): the name is taken.
            IrqError(EPERM): ``path`` leads through a live directory, which decides by itself what is in it.
        """
        directory = self.root
        for name in _components(path):
            if directory.lookup(name) is None:
                directory.add(StaticDirectory(name, node.fstype))
            child = directory.lookup(name)
            if not isinstance(child, StaticDirectory):
                raise IrqError(errno.EPERM, f"{path}: cannot add {node.name}: {name} is not a directory one can add to")
            directory = child
        directory.add(node)

    def lookup(self, path: str, *, follow: bool = True) -> Node:
        """Return the node of ``path``; a symlink at its end is followed, or not. Raises IrqError for the path."""
        return self._resolve(path, follow)[0]

    def _resolve(self, path: str, follow: bool = True) -> tuple[Node, str]:
        """Return the node and its path without symlinks."""
        left = _components(path)[::-1]
        trail: list[Directory] = [self.root]
        node: Node = self.root
        links = 0
        while left:
            name = left.pop()
            here = "/" + "/".join(directory.name for directory in trail[1:])
            if not isinstance(node, Directory):
                raise IrqError(errno.ENOTDIR, f"{path}: {posixpath.join(here, node.name)} is not a directory")
            if name == "..":
                if len(trail) > 1:
                    trail.pop()
                node = trail[-1]
                continue
            node = self._step(path, here, node, name)
            if isinstance(node, Symlink) and (left or follow):
                links += 1
                if links > _SYMLINKS_MAX:
                    raise IrqError(errno.ELOOP, f"{path}: more than {_SYMLINKS_MAX} symbolic links")
                if node.target.startswith("/"):
                    trail = [self.root]
                left += _split(node.target)[::-1]
                node = trail[-1]
            elif isinstance(node, Directory):
                trail.append(node)
        if path.endswith("/") and not isinstance(node, Directory):
            raise IrqError(errno.ENOTDIR, f"{path}: is not a directory; leave the last / out")
        names = [directory.name for directory in trail[1:]]
        return node, "/" + "/".join(names if isinstance(node, Directory) else [*names, node.name])

    @staticmethod
    def _step(path: str, here: str, directory: Directory, name: str) -> Node:
        if len(os.fsencode(name)) > _NAME_MAX:
            raise IrqError(errno.ENAMETOOLONG, f"{path[:64]}...: a name is longer than {_NAME_MAX} bytes")
        child = directory.lookup(name)
        if child is None:
            raise IrqError(errno.ENOENT, f"{posixpath.join(here, name)}: {directory.missing(name)}")
        return child

    def open(self, path: str, mode: str = "r") -> Handle:
        """Open a file: ``r``, ``w`` (as a shell's > does: create, truncate, which changes nothing here) or ``r+``.

        Raises:
            IrqError: for the path; EISDIR for a directory, EACCES for a sysfs file that cannot be written or read
                so, or that does not exist and would have to be created; EINVAL for another ``mode``.
        """
        if mode not in _MODES:
            raise IrqError(errno.EINVAL, f"{path}: cannot be opened as {mode!r}; use 'r', 'w' or 'r+'")
        readable, writable = _MODES[mode]
        try:
            node = self.lookup(path)
        except IrqError as error:
            if mode == "w" and error.errno == errno.ENOENT:
                self._check_create(path)
            raise
        if not isinstance(node, File):
            raise IrqError(errno.EISDIR, f"{path}: is a directory; list it instead")
        refused = node.fstype.open_errno
        if writable and not node.writable and refused is not None:
            raise IrqError(refused, f"{path}: cannot be opened for writing; it can only be read")
        if readable and not node.readable and refused is not None:
            raise IrqError(refused, f"{path}: cannot be opened for reading; it can only be written")
        return Handle(path, node, readable, writable)

    def _check_create(self, path: str) -> None:
        """Raise what creating a missing file gives where the directory has an errno of its own for that."""
        parent = self.lookup(_parent(path))
        if parent.fstype.create_errno != errno.ENOENT:
            raise IrqError(parent.fstype.create_errno, f"{path}: does not exist and cannot be created")

    def read(self, path: str) -> bytes:
        """Return a file's whole text. Raises IrqError as open(), and what making the text raises."""
        with self.open(path) as handle:
            return handle.read()

    def write(self, path: str, data: bytes | str) -> int:
        """Write one whole value, in one write(2) even when it is empty; return the bytes taken, which is all of them.

        Raises IrqError as open(), and what the kernel returns for ``data``.
        """
        with self.open(path, "w") as handle:
            return handle.write(data)

    def listdir(self, path: str) -> list[str]:
        """Return the names in a directory: in procfs short ones first, then by bytes; in sysfs by bytes.

        Raises IrqError for the path.
        """
        return self._directory(path).listdir()

    def _directory(self, path: str) -> Directory:
        node = self.lookup(path)
        if not isinstance(node, Directory):
            raise IrqError(errno.ENOTDIR, f"{path}: is not a directory; read it instead")
        return node

    def stat(self, path: str) -> os.stat_result:
        """Return mode, size and block size as the kernel shows them; times and inode numbers are 0."""
        return self.lookup(path).stat()

    def lstat(self, path: str) -> os.stat_result:
        """Return stat() of the path itself, be it a symlink."""
        return self.lookup(path, follow=False).stat()

    def readlink(self, path: str) -> str:
        """Return the target of a symlink. Raises IrqError(EINVAL): it is none."""
        node = self.lookup(path, follow=False)
        if not isinstance(node, Symlink):
            raise IrqError(errno.EINVAL, f"{path}: is not a symbolic link")
        return node.target

    def realpath(self, path: str) -> str:
        """Return the path with every symlink followed."""
        return self._resolve(path)[1]

    def exists(self, path: str) -> bool:
        """Tell whether the path leads to something."""
        try:
            self.lookup(path)
        except IrqError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return False
            raise
        return True

    def walk(self, path: str = "/") -> Iterator[tuple[str, Node]]:
        """Yield (path, node) of everything below a directory, in listing order, a directory before what is in it.

        Symlinks are yielded, not followed. What vanishes meanwhile is left out.
        """
        for node in self._directory(path).entries():
            below = posixpath.join(path, node.name)
            yield below, node
            if stat.S_ISDIR(node.mode) and self.exists(below):
                yield from self.walk(below)

    def unlink(self, path: str) -> None:
        """Fail: EPERM, or what the path raises. No file of these file systems can be removed."""
        self.lookup(path, follow=False)
        raise IrqError(errno.EPERM, f"{path}: cannot be removed; it goes when the kernel object goes")

    def mkdir(self, path: str) -> None:
        """Fail: EEXIST, ENOENT in procfs, EPERM in sysfs, or what the path raises."""
        if self.exists(path):
            raise IrqError(errno.EEXIST, f"{path}: exists already")
        fstype = self._directory(_parent(path)).fstype
        raise IrqError(fstype.mkdir_errno, f"{path}: no directory can be made in {fstype.name}")


def _parent(path: str) -> str:
    return posixpath.dirname(path.rstrip("/")) or "/"


def _components(path: str) -> list[str]:
    if not path.startswith("/"):
        raise IrqError(errno.EINVAL, f"{path!r}: is not an absolute path; paths begin with /")
    if "\0" in path:
        raise IrqError(errno.EINVAL, f"{path!r}: holds a NUL")
    return _split(path)


def _split(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]

"""One file or block device of the host: transfers that are never short, fsync, holes, advisory locks.

The locks are open-file-description locks on the byte ranges that QEMU's image locking uses (permission p held: byte
100 + p; permission p denied to others: byte 200 + p), so that two machines, or a machine and a QEMU tool, cannot open
one image in conflicting ways.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ringfence.core.errors import ImageError, UserError
from ringfence.core.late import LateModule

if TYPE_CHECKING:
    import tempfile
else:  # for snapshots
    tempfile = LateModule("tempfile")

BytesLike = bytes | bytearray | memoryview

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE = 0x01, 0x02, 0x10
_NOT_OFFERED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL, errno.EPERM)
_NO_LOCKS_HERE = (errno.ENOLCK, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_HELD, _DENIED = 100, 200
_READ, _WRITE, _RESIZE = 0, 1, 3
_FLOCK = "hhqqi4x"  # struct flock on 64-bit Linux
_ZEROES = bytes(1 << 20)
_MOST_PARTS = os.sysconf("SC_IOV_MAX")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class DamagedImage(ImageError, OSError):
    """Metadata found damaged: an ImageError for who opens the image, an input/output error for the device that uses it."""

    def __init__(self, name: str, what: str) -> None:
        ImageError.__init__(self, f"The disk image {name} is damaged: {what}.", "Look at it with `qemu-img check`, or take a backup.")
        self.errno = errno.EIO

    def __str__(self) -> str:
        return f"{self.cause}\n{self.remedy}"


class HostFile:
    """Made by `HostFile.open` or `HostFile.temporary`.  A `volatile` file is never synced: nobody reads it after this process."""

    def __init__(self, fd: int, name: str, readonly: bool, volatile: bool = False) -> None:
        self.fd = fd
        self.name = name
        self.readonly = readonly
        self.volatile = volatile
        self._can_punch = True
        self._can_zero = True
        self._can_tell = True

    @classmethod
    def open(cls, path: str | os.PathLike[str], readonly: bool) -> HostFile:
        """Opens and locks an existing file.  Raises UserError: missing, no permission, not a file, in use."""
        name = os.fspath(path)
        try:
            # O_NONBLOCK: a named pipe given as a disk must not hang here
            fd = os.open(name, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise _explain(name, readonly, error) from error
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISDIR(mode):
                raise UserError(f"The disk {name} is a directory.", "Give an image file or a block device.")
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise UserError(f"The disk {name} is neither a regular file nor a block device.", "Give an image file or a block device.")
            _lock(fd, name, readonly)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, name, readonly)

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> HostFile:
        """A new, empty, locked file.  Raises UserError when the path exists or cannot be made."""
        name = os.fspath(path)
        try:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except (OSError, ValueError) as error:
            raise _explain(name, False, error) from error
        _lock(fd, name, False)
        return cls(fd, name, False)

    @classmethod
    def temporary(cls, directory: str | None = None) -> HostFile:
        """A file without a name in `directory` (default: the system's temporary directory); gone when closed or killed."""
        directory = directory or tempfile.gettempdir()
        try:
            try:
                fd = os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                    raise
                fd, path = tempfile.mkstemp(dir=directory, prefix="ringfence-")
                os.unlink(path)
        except OSError as error:
            raise UserError(
                f"No temporary file can be made in {directory}: {error.strerror}.", "Set TMPDIR to a directory that can be written."
            ) from error
        return cls(fd, f"(temporary file in {directory})", False, volatile=True)

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode: equal for two names of one file."""
        info = os.fstat(self.fd)
        return (info.st_dev, info.st_ino)

    def end(self) -> int:
        """Size in bytes, of block devices too."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills the buffer; what lies beyond the end of the file reads as zeroes."""
        done = 0
        while done < len(buffer):
            count = os.preadv(self.fd, [buffer[done:]], offset + done)
            if count == 0:
                buffer[done:] = bytes(len(buffer) - done)
                return
            done += count

    def read_into_vector(self, offset: int, buffers: Sequence[memoryview], total_bytes: int, wait: bool = True) -> bool:
        """The same for several buffers of `total_bytes`, in as few calls as the host allows.

        Without `wait`: False, and a part of it done perhaps, where not all of it is in the host's page cache.  A host that cannot
        tell (preadv2(2), RWF_NOWAIT) waits.
        """
        if not wait and self._can_tell and len(buffers) <= _MOST_PARTS:
            try:
                return os.preadv(self.fd, buffers, offset, os.RWF_NOWAIT) == total_bytes
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return False
                if error.errno not in _NOT_OFFERED:
                    raise
                self._can_tell = False
        for first in range(0, len(buffers), _MOST_PARTS):
            some = buffers[first : first + _MOST_PARTS]
            done = os.preadv(self.fd, some, offset)
            if done == total_bytes:
                return True
            for buffer in some:
                if done < len(buffer):
                    self.read_into(offset + max(done, 0), buffer[max(done, 0) :])
                done -= len(buffer)
                offset += len(buffer)
        return True

    def read(self, offset: int, size_bytes: int) -> bytearray:
        """`size_bytes` bytes, zeroes beyond the end.  The caller bounds the size."""
        data = bytearray(size_bytes)
        self.read_into(offset, memoryview(data))
        return data

    def data_ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Offset and size of the parts of this range that hold data (lseek(2), SEEK_DATA), ascending; holes read as zeroes."""
        while start < end:
            try:
                first = os.lseek(self.fd, start, os.SEEK_DATA)
                hole = os.lseek(self.fd, first, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole from here on
                    return
                if error.errno not in _NOT_OFFERED:
                    raise
                first, hole = start, end  # a block device, or a file system that cannot tell
            if first >= end:
                return
            yield first, min(hole, end) - first
            start = hole

    def write(self, offset: int, data: BytesLike) -> None:
        done = os.pwrite(self.fd, data, offset)
        view = memoryview(data)
        while done < len(view):
            done += os.pwrite(self.fd, view[done:], offset + done)

    def write_vector(self, offset: int, parts: Sequence[BytesLike], total_bytes: int = -1) -> None:
        """Writes the parts (of `total_bytes`, if that is known) one behind the other, in one call where the host takes it whole."""
        for first in range(0, len(parts), _MOST_PARTS):
            some = parts[first : first + _MOST_PARTS]
            done = os.pwritev(self.fd, some, offset)
            if done == total_bytes:
                return
            for part in some:
                if done >= len(part):
                    done -= len(part)
                else:
                    self.write(offset + done, memoryview(part)[done:])
                    done = 0
                offset += len(part)

    def sync(self) -> None:
        """Returns when everything written is on stable storage."""
        if not self.volatile:
            os.fdatasync(self.fd)

    def punch_hole(self, offset: int, size_bytes: int) -> bool:
        """Gives the range's storage back; it reads as zeroes then.  False, with nothing done, where the host cannot."""
        if self._can_punch:
            self._can_punch = self._fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size_bytes)
        return self._can_punch

    def write_zeroes(self, offset: int, size_bytes: int, may_unmap: bool) -> None:
        if may_unmap and self.punch_hole(offset, size_bytes):
            return
        if self._can_zero:
            self._can_zero = self._fallocate(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, size_bytes)
            if self._can_zero:
                return
        for start in range(offset, offset + size_bytes, len(_ZEROES)):
            self.write(start, _ZEROES[: offset + size_bytes - start])

    def _fallocate(self, mode: int, offset: int, size_bytes: int) -> bool:
        while _libc.fallocate(self.fd, mode, offset, size_bytes):
            code = ctypes.get_errno()
            if code in _NOT_OFFERED:
                return False
            if code != errno.EINTR:
                raise OSError(code, os.strerror(code), self.name)
        return True

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


def _explain(name: str, readonly: bool, error: OSError | ValueError) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"The disk image {name!r} does not exist.", "Check the path, or create the image first.")
    if isinstance(error, FileExistsError):
        return UserError(f"The file {name!r} exists already.", "Choose another name, or remove the file.")
    if isinstance(error, IsADirectoryError):
        return UserError(f"The disk {name!r} is a directory.", "Give an image file or a block device.")
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        what = "read" if readonly else "write"
        remedy = "Change its permissions." if readonly else "Change its permissions, or open the disk readonly."
        return UserError(f"This user may not {what} the disk image {name!r}: {error.strerror}.", remedy)
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return UserError(f"The disk image {name!r} cannot be opened: {reason}.", "Check the path and the file.")


def _lock(fd: int, name: str, readonly: bool) -> None:
    held = (_READ,) if readonly else (_READ, _WRITE, _RESIZE)
    denied = (_WRITE, _RESIZE)
    try:
        for byte in [_HELD + p for p in held] + [_DENIED + p for p in denied]:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
        for byte in [_DENIED + p for p in held] + [_HELD + p for p in denied]:
            probe = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
            if struct.unpack(_FLOCK, probe)[0] != fcntl.F_UNLCK:
                break
        else:
            return
    except OSError as error:
        if error.errno in _NO_LOCKS_HERE:  # a file system without locks: as safe as the user makes it
            return
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
    use = "for writing elsewhere" if readonly else "by another machine or tool"
    raise UserError(
        f"The disk image {name} is opened {use}.",
        "Stop the other user, or give each machine an overlay of its own on a base that nobody writes.",
    )

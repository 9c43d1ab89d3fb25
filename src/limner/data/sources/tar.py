"""The members of a tar, by its headers alone: nothing is extracted and no content is read."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import IO, NamedTuple

BLOCK = 512
MAX_SAID_BYTES = 2**16
"""Bytes of a header about the next member (a name, a size) that are read, at most."""
MAX_NAME_BYTES = 4096
PIECE = 2**20
"""Bytes that are looked at together, of those behind the end of the archive."""
NOT_A_FILE = "shard member that is not a plain file"


class Member(NamedTuple):
    """A plain file in a tar."""

    name: str
    offset: int
    """Where its content begins, in bytes."""
    size: int


class CutShort(Exception):
    """A tar that ends, or stops to be one, before its end."""


def members(file: IO[bytes], noted: Counter[str]) -> Iterator[Member]:
    """The plain files of a tar (USTAR, GNU or PAX), in their order; links, devices, sparse members are counted.

    tarfile would do, but a header can lead it in circles or into reading gigabytes, and it takes three times as long.
    Raises `CutShort` where the rest cannot be read.
    """
    descriptor, length = file.fileno(), os.fstat(file.fileno()).st_size
    offset, told = 0, dict[str, bytes]()  # what a header before the member's own said about it
    while offset < length:
        header = os.pread(descriptor, BLOCK, offset)
        if offset and len(header) == BLOCK and not header.strip(b"\0"):
            if any(os.pread(descriptor, PIECE, at).strip(b"\0") for at in range(offset, length, PIECE)):
                noted["shard with more after the end of its archive (not read)"] += 1
            return
        kind, content, size = header[156:157], offset + BLOCK, _size(header)
        if size is None:
            raise CutShort(f"no tar header at byte {offset:,}")
        if kind in b"123456" and kind:  # links, devices and folders have no content, whatever the header says
            size = 0
        if kind not in (b"x", b"g", b"L", b"K") and "size" in told:
            size = _octets(told["size"], 10)
            if size is None:
                raise CutShort(f"no size at byte {offset:,}")
        offset = content + -(-size // BLOCK) * BLOCK
        if content + size > length:
            raise CutShort(f"{length:,} bytes, and a member that ends at {content + size:,}")
        if kind in (b"x", b"L"):  # the next member has a longer name than fits, or more
            said = os.pread(descriptor, min(size, MAX_SAID_BYTES), content)
            told |= _pax(said) if kind == b"x" else {"path": said.rstrip(b"\0")}
            told |= {"unread": b""} if size > MAX_SAID_BYTES else {}
            continue
        if kind in (b"g", b"K"):  # about the whole archive; a link's target
            continue
        if kind in (b"0", b"\0", b"7") and "sparse" not in told:
            name = told.get("path", _name(header))
            if "unread" in told or len(name) > MAX_NAME_BYTES:
                noted["shard member with a name or header that is too long"] += 1
            elif not (kind == b"\0" and name.endswith(b"/")):  # an old way to write folders
                yield Member(name.decode("utf-8", errors="backslashreplace"), content, size)
        elif kind != b"5":
            noted[NOT_A_FILE] += 1
            more = kind == b"S" and header[482]
            while more:  # blocks of a sparse member's map, between header and content
                block = os.pread(descriptor, BLOCK, content)
                content, offset = content + BLOCK, offset + BLOCK
                more = len(block) == BLOCK and block[504]
        told = {}
    if offset == 0:
        raise CutShort("an empty file")
    noted["shard without the mark of its end (cut short there, or written so)"] += 1


def _size(header: bytes) -> int | None:
    """The size that a header states; None if it is no header."""
    stated = _octets(header[148:156], 8)
    if len(header) < BLOCK or stated != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        return None
    if header[124] & 0x80:  # binary, for what eleven octal digits cannot say
        return int.from_bytes(header[125:136], "big") if header[124] == 0x80 else None
    return _octets(header[124:136], 8)


def _octets(digits: bytes, base: int) -> int | None:
    digits = digits.split(b"\0")[0].strip() or b"0"
    if len(digits) > 20 or not digits.isdigit() or (base == 8 and digits.strip(b"01234567")):
        return None
    return int(digits, base)


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        return header[345:500].split(b"\0")[0] + b"/" + name
    return name


def _pax(said: bytes) -> dict[str, bytes]:
    """What a PAX header, records of "LENGTH NAME=VALUE\\n", says of path and size, and whether the member is sparse."""
    told, at = dict[str, bytes](), 0
    while at < len(said):
        digits, _, _ = said[at : at + 20].partition(b" ")
        if not digits.isdigit() or int(digits) <= len(digits):
            break
        name, _, value = said[at + len(digits) + 1 : at + int(digits) - 1].partition(b"=")
        if name in (b"path", b"size"):
            told[name.decode()] = value
        elif name.startswith(b"GNU.sparse"):
            told["sparse"] = b""
        at += int(digits)
    return told

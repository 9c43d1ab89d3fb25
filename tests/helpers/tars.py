"""Tars made for tests."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path


def tar(path: Path, members: dict[str, bytes], format: int = tarfile.USTAR_FORMAT) -> Path:
    """Write a tar of these members, in their order. Raises `ValueError` if the format cannot hold their names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as writer:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            writer.addfile(member, io.BytesIO(content))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return path


def pairs(picture: Callable[..., bytes], first: int, number: int) -> dict[str, bytes]:
    """The members of some pairs of three-digit keys."""
    members: dict[str, bytes] = {}
    for i in range(first, first + number):
        members |= {f"{i:03d}.png": picture(seed=i), f"{i:03d}.txt": f"picture number {i}".encode()}
    return members

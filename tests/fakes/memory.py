"""Memory of the device and page-locked memory of the host: real memory that the fake owns, so addresses are real.

Freed memory is kept, poisoned, for a while: its addresses are not handed out again, and a use after free is told from
a wild address.
"""

from __future__ import annotations

import bisect
import ctypes
import dataclasses
from collections import deque
from collections.abc import Callable

ALIGNMENT = 512
POISON = 0xDB
QUARANTINE = 64 << 20
POISONED = 1 << 20  # so many bytes of an allocation at most: a large one stays untouched, so costs nothing


@dataclasses.dataclass
class Block:
    """One allocation: `size` bytes at `address`."""

    address: int
    size: int
    raw: ctypes.Array[ctypes.c_char]
    purpose: str
    free: bool = False


class Heap:
    """Allocations of one kind, at most `limit()` bytes at once (None: no limit)."""

    def __init__(self, name: str, limit: Callable[[], int | None]) -> None:
        self.name = name
        self.limit = limit
        self.used = 0
        self.peak = 0
        self._blocks: list[Block] = []  # by address, freed ones too
        self._quarantine: deque[Block] = deque()

    def allocate(self, size: int, purpose: str = "allocations") -> int | None:
        """Address of `size` new bytes filled with rubbish; None where memory does not suffice."""
        limit = self.limit()
        if limit is not None and self.used + size > limit:
            return None
        raw = ctypes.create_string_buffer(size + ALIGNMENT)
        start = ctypes.addressof(raw)
        address = start + -start % ALIGNMENT
        ctypes.memset(address, POISON, min(size, POISONED))
        bisect.insort(self._blocks, Block(address, size, raw, purpose), key=lambda block: block.address)
        self.used += size
        self.peak = max(self.peak, self.used)
        return address

    def release(self, address: int) -> bool:
        """Give an allocation back; False where `address` begins none, or one already freed."""
        block = self.find(address)
        if block is None or block.address != address or block.free:
            return False
        block.free = True
        self.used -= block.size
        ctypes.memset(address, POISON, min(block.size, POISONED))
        self._quarantine.append(block)
        while sum(old.size for old in self._quarantine) > QUARANTINE:
            self._blocks.remove(self._quarantine.popleft())
        return True

    def live(self) -> dict[str, int]:
        """Bytes in use by purpose."""
        found: dict[str, int] = {}
        for block in self._blocks:
            if not block.free:
                found[block.purpose] = found.get(block.purpose, 0) + block.size
        return found

    def find(self, address: int) -> Block | None:
        """The allocation in which `address` lies, a freed one too."""
        index = bisect.bisect_right(self._blocks, address, key=lambda block: block.address) - 1
        if index < 0:
            return None
        block = self._blocks[index]
        return block if address < block.address + block.size else None

    def problem(self, address: int, size: int) -> str:
        """Why `size` bytes at `address` must not be touched; empty if they may."""
        block = self.find(address)
        if block is None:
            return f"address {address:#x} is not {self.name} memory"
        if block.free:
            return f"address {address:#x} is {self.name} memory that was freed"
        beyond = address + size - block.address - block.size
        return (
            f"{size} bytes at {address:#x} end {beyond} bytes behind their {self.name} allocation" if beyond > 0 else ""
        )

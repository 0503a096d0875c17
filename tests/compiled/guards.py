"""Memory that ends, or begins, where nobody may read or write, for the arrays of kernels.

A kernel that leaves an array touches a page without permission. The fault is recorded, the page is made accessible, and
the kernel goes on, so that the test says what was touched. An index that leaves one row of an array for another row is
not seen: it stays within the array.
"""

from __future__ import annotations

import ctypes
import mmap
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from numba.core.registry import CPUDispatcher, cpu_target
from numba.core.runtime import _nrt_python, rtsys

GUARD = 16 << 20
"""The bytes without permission before and after a room: no index that is wrong by a few rows passes over them."""

LEAST_ROOM = 1 << 20

SA_SIGINFO, ADDRESS = 4, 2  # <signal.h>; the word of siginfo_t that has the address of a fault
FAULT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.POINTER(ctypes.c_size_t), ctypes.c_void_p)
ALLOCATE = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint)
RELEASE = ctypes.CFUNCTYPE(None, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t)

ALLOCATOR = "NRT_MemInfo_alloc_aligned"
"""What compiled code calls to make an array."""

_call = CPUDispatcher.__call__
_libc = ctypes.CDLL(None, use_errno=True)
_allocate = ALLOCATE(_nrt_python.c_helpers["MemInfo_alloc_aligned"])


class Room:
    """Bytes between guards, for one array at a time.

    Attributes:
        name: What is in it.
        start: Where the array begins.
        stop: Where it ends.
    """

    def __init__(self, size: int) -> None:
        self.name, self.start, self.stop = "nothing", 0, 0
        self.size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._map = mmap.mmap(-1, 2 * GUARD + self.size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map)) + GUARD
        self.close()

    def close(self) -> None:
        """Take every permission from the guards."""
        for address in (self.address - GUARD, self.address + self.size):
            protect(address, GUARD, 0)

    def contains(self, address: int) -> bool:
        return -GUARD <= address - self.address < self.size + GUARD

    def reserve(self, name: str, size: int, at_end: bool) -> int:
        """Return the address of this many bytes beside a guard."""
        self.name = name
        self.start = self.address + (self.size - size if at_end else 0)
        self.stop = self.start + size
        return self.start

    def copy(self, name: str, array: np.ndarray[Any, Any], at_end: bool) -> np.ndarray[Any, Any]:
        """Return a copy of an array beside a guard."""
        offset = self.reserve(name, array.nbytes, at_end) - self.address + GUARD
        copy = np.ndarray(array.shape, array.dtype, self._map, offset)
        copy[...] = array
        copy.flags.writeable = array.flags.writeable
        return copy


def protect(address: int, size: int, permission: int) -> None:
    assert _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), permission) == 0, ctypes.get_errno()


class _Action(ctypes.Structure):
    """``struct sigaction`` of Linux's C libraries on 64 bits."""

    _fields_ = (
        ("handler", ctypes.c_void_p), ("mask", ctypes.c_byte * 128), ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )  # fmt: skip


class _MemInfo(ctypes.Structure):
    """What Numba knows of the memory of an array that a kernel makes."""

    _fields_ = (
        ("references", ctypes.c_size_t), ("destructor", ctypes.c_void_p), ("of_destructor", ctypes.c_void_p),
        ("data", ctypes.c_void_p), ("size", ctypes.c_size_t),
    )  # fmt: skip


class Guards:
    """Guards around the arrays of every kernel that the thread which made them calls.

    Attributes:
        called: The names of the kernels that were called.
    """

    def __init__(self) -> None:
        self.called: set[str] = set()
        self._thread = threading.get_ident()
        self._rooms: list[Room] = []
        self._scratch: dict[int, Room] = {}  # by where it begins
        self._free: list[Room] = []
        self._faults: list[str] = []
        self._at_end = True
        self._kernel = ""
        self._others = _Action()
        self._on_fault = FAULT(self._note)
        self._allocate, self._release = ALLOCATE(self._make_scratch), RELEASE(self._end_scratch)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Call each kernel with copies of its arrays beside guards, at their ends and again at their beginnings."""
        ours = _Action(ctypes.cast(self._on_fault, ctypes.c_void_p), flags=SA_SIGINFO)

        def call(function: Any, *arguments: Any) -> Any:
            if threading.get_ident() != self._thread or not any(isinstance(a, np.ndarray) for a in arguments):
                return _call(function, *arguments)
            return self._call(function, arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CPUDispatcher, "__call__", call)
            _libc.sigaction(signal.SIGSEGV, ctypes.byref(ours), ctypes.byref(self._others))
            try:
                yield
            finally:
                _libc.sigaction(signal.SIGSEGV, ctypes.byref(self._others), None)

    def take_scratch(self) -> None:
        """Let all code that is loaded from now on have the arrays that it makes beside guards."""
        rtsys.initialize(cpu_target.target_context)  # which adds Numba's own symbol
        llvm.add_symbol(ALLOCATOR, ctypes.cast(self._allocate, ctypes.c_void_p).value)

    @staticmethod
    def give_scratch_back() -> None:
        """Undo it for code that is loaded later."""
        llvm.add_symbol(ALLOCATOR, ctypes.cast(_allocate, ctypes.c_void_p).value)

    def _call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        self._kernel = function.py_func.__name__
        self.called.add(self._kernel)
        names = function.py_func.__code__.co_varnames
        arrays = [position for position, argument in enumerate(arguments) if isinstance(argument, np.ndarray)]
        copies, found = list(arguments), []
        for self._at_end in (True, False):
            for number, position in enumerate(arrays):
                room = self._room(number, arguments[position].nbytes)
                copies[position] = room.copy(names[position], arguments[position], self._at_end)
            result = _call(function, *copies)
            found.append((result, [copies[position].tobytes() for position in arrays]))
        for position in arrays:
            if arguments[position].flags.writeable:
                arguments[position][...] = copies[position]
        if self._faults:
            faults = ", ".join(dict.fromkeys(self._faults))
            self._faults.clear()
            for room in (*self._rooms, *self._free):
                room.close()
            pytest.fail(f"{self._kernel} leaves {faults}")
        if found[0] != found[1]:
            pytest.fail(f"what {self._kernel} computes depends on what lies outside its arrays")
        return result

    def _room(self, number: int, size: int) -> Room:
        while number >= len(self._rooms):
            self._rooms.append(Room(LEAST_ROOM))
        if size > self._rooms[number].size:
            self._rooms[number] = Room(size)
        return self._rooms[number]

    def _make_scratch(self, size: int, alignment: int) -> int:
        if threading.get_ident() != self._thread:
            return _allocate(size, alignment)
        info = _allocate(0, alignment)
        room = self._free.pop() if self._free and self._free[-1].size >= size else Room(max(size, LEAST_ROOM))
        address = room.reserve(f"an array of {size} bytes that it makes", size, self._at_end)
        ctypes.memset(address, 0xFF if self._at_end else 0, size)  # NaN
        self._scratch[address] = room
        fields = _MemInfo.from_address(info)
        fields.data, fields.size = address, size
        fields.destructor = ctypes.cast(self._release, ctypes.c_void_p)
        return info

    def _end_scratch(self, address: int, size: int, _: int) -> None:
        self._free.append(self._scratch.pop(address))

    def _note(self, number: int, info: Any, _: Any) -> None:
        """Record a fault at a guard, and let what was tried succeed. Other faults are handled as always."""
        address = info[ADDRESS]
        for room in (*self._rooms, *self._scratch.values()):
            if room.contains(address):
                beyond = address - room.stop if address >= room.stop else address - room.start
                self._faults.append(f"{room.name} at byte {beyond:+d} from its {'end' if beyond >= 0 else 'beginning'}")
                protect(address & -mmap.PAGESIZE, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE)
                return
        _libc.sigaction(signal.SIGSEGV, ctypes.byref(self._others), None)

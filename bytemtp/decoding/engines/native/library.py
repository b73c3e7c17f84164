"""step.cpp, draws.cpp, choices.cpp and loop.cpp, compiled for this machine when they are first needed (some five
seconds), kept in the user's cache folder.

The structures below are those of step.cpp and loop.cpp: whoever changes one changes both.

Try:  python -c "from bytemtp.decoding.engines.native.library import library; print(library())"
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from ctypes import POINTER, addressof, c_char, c_char_p, c_double, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from bytemtp.common.errors import UserError
from bytemtp.common.files import cache_folder

SOURCE = Path(__file__).with_name("step.cpp")
OTHERS = [SOURCE.with_name(name) for name in ("draws.cpp", "choices.cpp", "loop.cpp")]
FLAGS = ("-std=c++20", "-O3", "-fno-math-errno", "-shared", "-fPIC", "-pthread")
PROCESSOR = ("-march=native",) if platform.machine() in ("x86_64", "AMD64") else ("-mcpu=native",)
"""What the code may use.  step.cpp takes the widest vectors among it."""
GCC = ("--param=avoid-fma-max-bits=0",)
"""Without it, GCC leaves products and sums apart where they are a loop's only chain, on some processors, and fuses them
elsewhere: then a pass over one id has other bits than one over several."""


# What step.cpp and loop.cpp have as well.  `check_layout` compares when the library is loaded.


class Shape(ctypes.Structure):
    """Sizes of all layers; `head_dim` and `ffn` as they lie in memory."""

    _fields_ = [
        (name, c_int)
        for name in ("dim", "heads", "kv_heads", "head_dim", "ffn", "true_head_dim", "slots", "bfloat16", "int8")
    ]


class Layer(ctypes.Structure):
    """Where the packed matrices, the cache and the norms of queries and keys of a layer lie."""

    _fields_ = [
        (name, c_void_p) for name in ("qkv", "attention_out", "gate_up", "ffn_out", "k", "v", "q_norm", "k_norm")
    ]


class Tokens(ctypes.Structure):
    """The ids of a pass and what each of them sees."""

    _fields_ = [(name, c_int) for name in ("count", "chunk")] + [
        (name, c_void_p) for name in ("row", "slot", "position", "first", "oldest", "above", "angles")
    ]


class Pass(ctypes.Structure):
    """One call of `run_stack` or `run_side_by_side`."""

    _fields_ = [
        ("shape", POINTER(Shape)),
        ("layers", POINTER(Layer)),
        ("layer_count", c_int),
        ("tokens", POINTER(Tokens)),
        ("query_count", c_int),
        *((name, c_void_p) for name in ("queries", "x", "y", "qkv", "attended", "inner", "scores")),
    ]


class Chunk(ctypes.Structure):
    """One call of `verify_chains`."""

    _fields_ = [
        ("shape", POINTER(Shape)),
        ("layers", POINTER(Layer)),
        *((name, c_int) for name in ("layer_count", "kept", "threads", "window", "outputs", "vocabulary")),
        *((name, c_void_p) for name in ("embed", "unembed", "angles")),
        *((name, c_int) for name in ("rows", "length")),
        *((name, c_char_p) for name in ("start", "lengths", "ids")),
        *((name, c_void_p) for name in ("hidden", "logits")),
    ]


class LoopRow(ctypes.Structure):
    """A row of `run_passes`: what drafts for it, and what it decided."""

    _fields_ = [
        *((name, c_void_p) for name in ("chooser", "copies", "uniforms", "ids", "laws", "decided", "passes")),
        *((name, c_int64) for name in ("start", "left")),
        ("temperature", c_double),
        *((name, c_int) for name in ("copied", "depth", "drafts", "are_copied", "drawn")),
        *((name, c_int) for name in ("used", "count", "done", "ended")),
    ]


class Loop(ctypes.Structure):
    """One call of `run_passes`."""

    _fields_ = [
        *((name, c_void_p) for name in ("team", "chunk", "layer", "heads", "transitions")),
        ("row", POINTER(LoopRow)),
        *((name, c_int) for name in ("bfloat16", "rows", "most", "passes")),
        *((name, c_int) for name in ("dim", "kept", "head_count", "outputs", "vocabulary", "window", "refills")),
        ("margin", c_float),
    ]


STRUCTURES = {"layout": (Shape, Layer, Tokens, Pass, Chunk), "loop_layout": (LoopRow, Loop)}
"""By the arrays of sizes that step.cpp and loop.cpp have."""


FUNCTIONS: dict[str, list[Any]] = {
    # step.cpp
    "team_new": [c_void_p, c_int],
    "score_floats": [c_int64, c_int],
    "run_stack": [None, c_void_p, POINTER(Pass), c_int, c_int],
    "run_side_by_side": [None, c_void_p, POINTER(Pass), c_int],
    "run_product": [None, c_void_p, c_void_p, *[c_int] * 6, c_void_p, c_void_p],
    "verify_chains": [None, c_void_p, POINTER(Chunk)],
    # loop.cpp
    "run_passes": [c_int, POINTER(Loop)],
    # draws.cpp
    "leads": [None, c_void_p, c_int, c_int, c_int, c_float, c_void_p],
    "softmax": [None, c_void_p, c_int, c_int, c_double, c_void_p],
    "sample_ids": [None, c_void_p, c_int, c_int, c_void_p, c_void_p],
    "verify_chain": [c_int64, c_void_p, c_int, c_int, c_void_p, c_void_p, c_double, c_double, POINTER(c_int64)],
    # choices.cpp
    "copies_new": [c_void_p, c_void_p, c_void_p, c_int64, c_int],
    "copies_free": [None, c_void_p],
    "copies_junk": [None, c_void_p, c_int],
    "copies_extend": [None, c_void_p, c_char_p, c_int64],
    "copies_continuation": [None, c_void_p, c_int, c_void_p, c_void_p],
    "chooser_new": [c_void_p, c_void_p, c_void_p, c_int, c_void_p, c_int, c_void_p, c_int],
    "chooser_free": [None, c_void_p],
    "chooser_begin": [c_int, c_void_p, c_int, c_char_p, c_int64, c_int, c_void_p],
    "chooser_worth": [c_int, c_void_p, c_int, c_void_p, c_int, c_int, c_int],
}
"""Result and arguments of each."""


@dataclass(frozen=True)
class Library:
    """The compiled functions, and the widths that they were compiled with."""

    name: str
    """of the file, which differs wherever its code does"""
    functions: ctypes.CDLL
    lanes: int
    """floats of a vector"""
    panel: int
    """outputs of a panel of a packed matrix"""


def compiler() -> str | None:
    """Path of a C++ compiler: the environment's CXX, or the first of the usual names that exists."""
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


@cache
def library() -> Library:
    """The library for this processor.  UserError if there is no compiler, or if it fails."""
    program = compiler()
    if program is None:
        raise UserError("no C++ compiler (c++, g++ or clang++) was found; install one, or decode with --engine torch")
    command = [program, *FLAGS, *PROCESSOR]
    macros = _macros(command)
    command += () if b"__clang__" in macros else GCC
    path = cache_folder() / f"step-{_fingerprint(command, macros)}.so"
    if not path.exists():
        _compile(command, path)
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:  # cut off by a power failure, or in a folder where nothing may be executed
        path.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be loaded ({error}); try again, or decode with --engine torch") from None
    lanes, panel = check_layout(lib)
    for name, (result, *arguments) in FUNCTIONS.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return Library(path.name, lib, lanes, panel)


def address(array: Shaped[np.ndarray, "..."]) -> int:
    """Of its first number, as `array.ctypes.data`, in a tenth of the time: for arrays that lie together."""
    return addressof(c_char.from_buffer(array.data))


def check_layout(lib: ctypes.CDLL) -> tuple[int, int]:
    """Lanes and panel.  UserError unless the sources were compiled with the structures of this file."""
    for name, structures in STRUCTURES.items():
        there = (c_int64 * len(structures)).in_dll(lib, name)
        here = [(structure.__name__, ctypes.sizeof(structure)) for structure in structures]
        wrong = [f"size of {name} is {b}, not {a}" for (name, a), b in zip(here, there, strict=True) if a != b]
        if wrong:
            raise UserError(f"the C++ sources do not fit library.py: {', '.join(wrong)}; decode with --engine torch")
    *_, lanes, panel = (c_int64 * (len(STRUCTURES["layout"]) + 2)).in_dll(lib, "layout")
    return lanes, panel


@cache
def team(threads: int) -> int:
    """Threads that all engines of the process use in turn: new ones would need milliseconds to find a core each."""
    return int(library().functions.team_new(threads))


os.register_at_fork(after_in_child=team.cache_clear)  # a forked process has none of them


def _compile(command: list[str], path: Path) -> None:
    """Written beside and renamed: another process may be doing the same."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder, path.name)
        words = [*command, "-o", str(part), str(SOURCE), *map(str, OTHERS)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            first = next(iter(done.stderr.strip().splitlines()), f"exit status {done.returncode}")
            raise UserError(f"{command[0]} cannot compile {SOURCE.name}: {first}; decode with --engine torch")
        part.replace(path)


def _fingerprint(command: list[str], macros: bytes) -> str:
    """Of all that the code depends on: source, flags, compiler, and the processor that it is for."""
    parts = [*(path.read_bytes() for path in (SOURCE, *OTHERS)), " ".join(command).encode(), macros]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _macros(command: list[str]) -> bytes:
    """Those that the compiler defines: they tell its version, and what "native" means here."""
    return subprocess.run([*command, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True).stdout

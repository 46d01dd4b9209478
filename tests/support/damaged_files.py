"""Read damaged files to the end, each in a process of its own.

``read_all`` opens, prints, tables and reads each file in a fork, so that a crash or a hang
costs one file, and returns what was raised. `Sample` is a small file to damage.
"""

from __future__ import annotations

import faulthandler
import json
import struct
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from forks import PATIENCE, in_fork
from forkserver import run_python


def list_groups(filename: str) -> list[str]:
    found = ["/"]
    with h5py.File(filename) as file:
        file.visititems(
            lambda name, item: found.append(name) if isinstance(item, h5py.Group) else None
        )
    return found


def exercise(filename: str, groups: list[str]) -> list[str]:
    """Do all that a user may with a file; return what was raised, step by step."""
    import xarray as xr

    import xref

    raised = []

    def attempt(step: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # noqa: BLE001 - reported and judged by the tests
            kind = "XrefError" if isinstance(error, xref.XrefError) else "other"
            raised.append(f"{step}: {kind}: {type(error).__name__}: {error}")
            if kind == "other":
                traceback.print_exception(error)
        return None

    for group in groups:
        ds = attempt(
            f"open {group}", lambda g=group: xr.open_dataset(filename, engine="h5ref", group=g)
        )
        if ds is None:
            continue
        attempt("str", lambda ds=ds: str(ds))
        for name in ds.variables:
            array = ds[name]
            if not isinstance(array.variable._data, xref.ReferenceArray):
                attempt(f"load {name}", array.load)
                continue
            attempt(f"repr {name}", lambda a=array: repr(a.data))
            attempt(f"table {name}", array.h5ref.table)
            attempt(
                f"resolve {name}",
                lambda a=array: a.h5ref.resolve("ragged", on_null="fill").load(),
            )
            for row in range(min(array.size, 20)):
                step = f"element {row} of {name}"
                element = attempt(step, lambda a=array, r=row: a.data.reshape(a.size)[r])
                if element:
                    attempt(step, lambda e=element: (repr(e), e.kind, e.path))
                    resolved = attempt(step, element.resolve)
                    if hasattr(resolved, "load"):
                        attempt(step, resolved.load)
        ds.close()
    return raised


def warm_up() -> None:
    """Import what is imported on first use, so that each fork finds it imported."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "warm.h5")
        Sample(path)
        exercise(str(path), ["/"])


def main() -> None:
    """Read the files named on standard input; print what was raised, file by file."""
    import dask

    import xref

    faulthandler.enable()
    warnings.simplefilter("ignore")
    answers = []
    # No thread is started before the forks.
    with dask.config.set(scheduler="synchronous"), xref.set_options(threads=1):
        for filename in json.load(sys.stdin):
            # HDF5 itself may fail to list a file; then its root is tried alone.
            groups = in_fork(lambda f=filename: list_groups(f)).get("result", ["/"])
            answers.append(in_fork(lambda f=filename, g=groups: exercise(f, g)))
            if "died" in answers[-1]:
                print(f"{filename}: {answers[-1]}", file=sys.stderr)  # noqa: T201
    json.dump(answers, sys.stdout)


def read_all(filenames: list[Path]) -> dict[str, list[str]]:
    """Return what reading each file raised; fail if one crashed, hung or ran out of memory."""
    done = run_python(
        "import damaged_files; damaged_files.main()",
        text=json.dumps([str(f) for f in filenames]),
        timeout=2 * PATIENCE * len(filenames) + 60,
    )
    assert not done.returncode, done.stderr[-5000:]
    answers = dict(zip([f.name for f in filenames], json.loads(done.stdout), strict=True))
    bad = {
        name: answer
        for name, answer in answers.items()
        if "result" not in answer or any(": MemoryError: " in r for r in answer["result"])
    }
    assert not bad, f"{bad}\n{done.stderr[-5000:]}"
    return {name: answer["result"] for name, answer in answers.items()}


def only_xref_errors(raised: dict[str, list[str]]) -> dict[str, list[str]]:
    """Fail if an exception came from elsewhere; HDF5 alone may refuse to open a group."""
    other = {
        name: strange
        for name, errors in raised.items()
        if (strange := [e for e in errors if ": other: " in e and not refused_by_hdf5(e)])
    }
    assert not other, json.dumps(other, indent=1)[:5000]
    return raised


def refused_by_hdf5(error: str) -> bool:
    """Whether a group did not open, by an exception that h5py makes of HDF5's errors."""
    return error.startswith("open ") and ": other: OSError: " in error


PACKED = np.arange(2000).reshape(40, 50)


class Sample:
    """A small file with every kind of selection, and where its bytes lie."""

    def __init__(self, path: Path, libver: Any = None) -> None:
        with h5py.File(path, "w", libver=libver) as file:
            plain = file.create_dataset(
                "plain", data=np.arange(600, dtype="i4").reshape(20, 30)
            )
            packed = file.create_dataset(
                "packed",
                data=np.arange(2000, dtype="i4").reshape(40, 50),
                chunks=(10, 10),
                compression="gzip",
                shuffle=True,
                maxshape=(None, 50),
            )
            holes = np.zeros((40, 50), dtype=bool)
            holes[2:9, 3:7] = holes[5:12, 20] = True
            points = packed.regionref[np.eye(40, 50, dtype=bool)]
            regions = [
                packed.regionref[2:6, 10:30],
                packed.regionref[1:30:3, ::7],
                points,
                packed.regionref[:, [1, 5, 9, 30]],
                plain.regionref[...],
                plain.regionref[4:5, 6:7],
                packed.regionref[holes],
            ]
            file.create_group("group")["inside"] = np.arange(3)
            file["type"] = np.dtype("f8")
            file.create_dataset("regions", (8,), dtype=h5py.regionref_dtype)
            file["regions"][:7] = np.array(regions, dtype=h5py.regionref_dtype)
            file.create_dataset("objects", (5,), dtype=h5py.ref_dtype)
            targets = [plain.ref, packed.ref, file["group"].ref, file["type"].ref]
            file["objects"][:4] = np.array(targets, dtype=h5py.ref_dtype)
            file.flush()
            self.regions_at = file["regions"].id.get_offset()
            self.objects_at = file["objects"].id.get_offset()
            self.plain_at = plain.id.get_offset()
            chunks = [packed.id.get_chunk_info(i) for i in range(packed.id.get_num_chunks())]
            self.chunks = [(c.byte_offset, c.size) for c in chunks]
        self.path = path
        self.data = path.read_bytes()
        self.heap_at = self.unpack("<Q", self.regions_at)[0]
        self.heap_nbytes = self.unpack("<Q", self.heap_at + 8)[0]

    def unpack(self, form: str, at: int) -> tuple[Any, ...]:
        return struct.unpack_from(form, self.data, at)

    def encoded_at(self, element: int) -> int:
        """Byte where the selection of an element begins, behind its target's address."""
        heap, wanted = self.unpack("<QI", self.regions_at + 12 * element)
        at = heap + 16
        while True:
            index, _, nbytes = self.unpack("<HH4xQ", at)
            if index == wanted:
                return at + 16 + 8
            at += 16 + (nbytes + 7) // 8 * 8

    def changed(self, name: str, *changes: tuple[int, bytes]) -> Path:
        data = bytearray(self.data)
        for at, new in changes:
            assert len(data[at : at + len(new)]) == len(new)
            data[at : at + len(new)] = new
        path = self.path.with_name(f"{name}.h5")
        path.write_bytes(data)
        return path

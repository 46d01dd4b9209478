"""Elements of every type that holds references, and files of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
from h5py import h5t
from typed import (
    Form,
    Ref,
    array,
    boolean,
    compound,
    fixed_text,
    number,
    reference,
    sequence,
    text,
    write_dataset,
)

OBJECT, REGION, STD = (reference(kind) for kind in ("object", "region", "std"))

Make = Callable[[int], Any]
"""Gives the value of element i."""


def box(k: int) -> Ref:
    return Ref("/data", ((k % 9, k % 9 + 2), (k % 7, k % 7 + 3)))


def an_object(k: int) -> Ref | None:
    return (
        Ref("/data"),
        Ref("/group"),
        None,
        Ref("/group/inner"),
        Ref("/gone", dangling=True),
    )[k % 5]


def a_region(k: int) -> Ref | None:
    return None if k % 4 == 2 else box(k)


def any_reference(k: int) -> Ref | None:
    return (Ref("/data"), box(k), None, Ref("/data", attribute="units"), Ref("/group"))[k % 5]


PAIR = compound(number=number("<i4"), of=OBJECT)


def a_pair(k: int) -> dict[str, Any]:
    return {"number": k, "of": an_object(k)}


def several(make: Make, n: int) -> Make:
    return lambda k: [make(k + i) for i in range(n)]


def some(make: Make) -> Make:
    """Sequences of none to three."""
    return lambda k: [make(k + i) for i in range(k % 4)]


COLOUR = h5py.enum_dtype({"RED": 0, "GREEN": 1, "BLUE": 300}, basetype="i2")
MOMENT = h5py.opaque_dtype(np.dtype("M8[s]"))

FORMS: dict[str, tuple[Form, Make]] = {
    "object": (
        compound(n=number("<f8"), of=OBJECT),
        lambda k: {"n": k / 4, "of": an_object(k)},
    ),
    "region": (compound(n=number(">i2"), of=REGION), lambda k: {"n": k, "of": a_region(k)}),
    "std": (compound(n=number("u1"), of=STD), lambda k: {"n": k, "of": any_reference(k)}),
    "all three": (
        compound(a=OBJECT, b=REGION, c=STD),
        lambda k: {"a": an_object(k), "b": a_region(k), "c": any_reference(k)},
    ),
    "nested": (
        compound(a=compound(b=compound(c=PAIR, d=REGION), e=number("i8")), f=OBJECT),
        lambda k: {
            "a": {"b": {"c": a_pair(k), "d": a_region(k)}, "e": -k},
            "f": an_object(k + 1),
        },
    ),
    "array of objects": (array(OBJECT, 2, 3), several(an_object, 6)),
    "array of regions": (array(REGION, 2), several(a_region, 2)),
    "array of std": (array(STD, 3), several(any_reference, 3)),
    "array of compounds": (array(PAIR, 2), several(a_pair, 2)),
    "array in a compound": (
        compound(n=number("i4"), each=array(OBJECT, 2), pairs=array(PAIR, 2, 1)),
        lambda k: {"n": k, "each": several(an_object, 2)(k), "pairs": several(a_pair, 2)(k)},
    ),
    "sequence of objects": (sequence(OBJECT), some(an_object)),
    "sequence of regions": (sequence(REGION), some(a_region)),
    "sequence of std": (sequence(STD), some(any_reference)),
    "sequence of compounds": (sequence(PAIR), some(a_pair)),
    "sequence of sequences": (sequence(sequence(OBJECT)), some(some(an_object))),
    "sequence of arrays": (sequence(array(REGION, 2)), some(several(a_region, 2))),
    "sequence in a compound": (
        compound(many=sequence(REGION), one=OBJECT, numbers=sequence(number("<i2"))),
        lambda k: {"many": some(a_region)(k), "one": an_object(k), "numbers": [k] * (k % 3)},
    ),
    "text": (
        compound(name=text(), of=OBJECT, ascii=text(h5t.CSET_ASCII)),
        lambda k: {
            "name": (b"", "é".encode() * k, None, b"\xff\x80")[k % 4],
            "of": an_object(k),
            "ascii": b"%d" % k,
        },
    ),
    "fixed text": (
        compound(
            ended=fixed_text(6, h5t.STR_NULLTERM),
            nulls=fixed_text(6, h5t.STR_NULLPAD),
            spaces=fixed_text(6, h5t.STR_SPACEPAD),
            of=OBJECT,
        ),
        lambda k: {
            "ended": (b"ab\0cd", b"ab"),
            "nulls": (b"%d\xff" % k, b"%d\xff" % k),
            "spaces": (b" a b", b" a b"),
            "of": an_object(k),
        },
    ),
    "enum and bool": (
        compound(colour=number(COLOUR), yes=boolean(), of=OBJECT),
        lambda k: {"colour": (0, 1, 300)[k % 3], "yes": k % 2 == 1, "of": an_object(k)},
    ),
    "complex": (
        compound(z=number("<c16"), w=number(">c8"), of=OBJECT),
        lambda k: {"z": k - 2j, "w": 1j * k, "of": an_object(k)},
    ),
    "opaque and moments": (
        compound(raw=number("V3"), when=number(MOMENT), of=OBJECT),
        lambda k: {"raw": b"\1\0\2", "when": np.datetime64(k, "s"), "of": an_object(k)},
    ),
    "numbers in an array": (
        compound(grid=array(number(">f4"), 2, 2), of=OBJECT),
        lambda k: {"grid": [k, k + 1, k + 2, k + 3], "of": an_object(k)},
    ),
}


def targets(file: h5py.File) -> None:
    data = file.create_dataset("data", data=np.arange(600, dtype="f4").reshape(20, 30))
    data.attrs["units"] = "K"
    data.attrs["scale_factor"] = np.float32(0.5)
    file.create_dataset("group/inner", data=np.arange(5))
    file["gone"] = [1]


def written(
    file: h5py.File, form: Form, make: Make, shape: tuple[int, ...] = (11,), **storage: Any
) -> list[Any]:
    """Write the dataset ``held`` and what it refers to; return its values."""
    if "data" not in file:
        targets(file)
    values = [make(k) for k in range(math.prod(shape))]
    write_dataset(file, "held", form, values, shape, **storage)
    return values


STORAGES: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "compact": {"compact": True},
    "chunked": {"chunks": (3, 2)},
    "gzip": {"chunks": (3, 2), "filters": ["deflate"]},
    "shuffle": {"chunks": (3, 2), "filters": ["shuffle", "deflate"]},
    "fletcher32": {"chunks": (4, 4), "filters": ["fletcher32"]},
}
SHAPE = (7, 4)

"""Names of stored references in messages: the file, the variable or attribute, the element.

In: a dataset or an attribute, and the elements that were read from it. Out: `ElementNames`, one
row for each reference. The names go along when references are selected, joined, pickled or made
into objects, so that a later error can say where the reference is stored. Names are made only
for messages; they take no part in comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xref.arrays import FrozenColumns, IntArray, digest
from xref.objects import StoredObject


def box_of_shape(shape: Iterable[int]) -> tuple[tuple[int, int, int], ...]:
    """Return (start, count, step) of all elements along each axis of a shape."""
    return tuple((0, n, 1) for n in shape)


@dataclass(frozen=True, slots=True)
class Owner:
    """A dataset or an attribute that has elements, and a box of these elements.

    Attributes
    ----------
    filename : str
        Path or URL of the file.
    label : str or StoredObject
        Text that names the owner, or an object whose path is looked up for a message.
    noun : str
        What an element is, such as "region reference".
    slices : tuple of (start, count, step)
        The elements along each axis; empty for a scalar.
    attribute : str, optional
        Name of an attribute of the object, if the attribute has the elements.
    member : str
        Name of a member of compound elements, with dots between nested names.
    """

    filename: str
    label: str | StoredObject
    noun: str = "element"
    slices: tuple[tuple[int, int, int], ...] = ()
    attribute: str | None = None
    member: str = ""

    @classmethod
    def of(
        cls,
        stored: StoredObject,
        path: str | None,
        noun: str = "element",
        slices: tuple[tuple[int, int, int], ...] = (),
        attribute: str | None = None,
        member: str = "",
    ) -> Owner:
        """Name an object by the path by which it was opened, or else by its own path."""
        label = stored.without_open_file() if path is None else repr(path)
        return cls(stored.filename, label, noun, slices, attribute, member)

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis."""
        return tuple(count for _, count, _ in self.slices)

    def __str__(self) -> str:
        """Name the owner without an element."""
        return f"{self.filename}: {self._own_text()}"

    def _own_text(self) -> str:
        label = self.label
        if isinstance(label, StoredObject):
            path = label.label
            label = repr(path) if path.startswith("/") else f"the {path}"
        text = label if self.attribute is None else f"attribute {self.attribute!r} of {label}"
        return f"{text}, member {self.member!r}" if self.member else text

    def describe(self, element: int) -> str:
        """Name one element, counted in C order of the box."""
        if not 0 <= element < math.prod(self.shape):
            return str(self)  # a message about an array without elements
        if not self.slices and self.attribute is not None:
            return str(self)
        text = f"{self.filename}: {self.noun}"
        if self.slices:
            ordinals = np.unravel_index(element, self.shape)
            index = tuple(
                start + int(i) * step
                for (start, _, step), i in zip(self.slices, ordinals, strict=True)
            )
            text += f" {index[0] if len(index) == 1 else index}"
        return f"{text} of {self._own_text()}"


class ElementName(NamedTuple):
    """The stored element that one reference was read from."""

    owner: Owner
    element: int

    def __str__(self) -> str:
        return self.owner.describe(self.element)


_make_name = partial(tuple.__new__, ElementName)
"""Makes a name of its fields, three times as fast as the class."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ElementNames(FrozenColumns):
    """The stored elements that n references were read from."""

    owners: tuple[Owner | None, ...]  # None: not stored, made in memory
    owner: IntArray | None  # (n,), row of `owners`; None: all of the first one
    element: IntArray | range  # (n,), element of the owner in C order

    @classmethod
    def of_owner(cls, owner: Owner | None, element: IntArray | range) -> ElementNames:
        """Name elements of one owner."""
        return cls(owners=(owner,), owner=None, element=element)

    @classmethod
    def of_each(cls, names: Sequence[ElementName | None]) -> ElementNames | None:
        """Name elements one by one; None if none has a name."""
        if not any(names):
            return None
        owners = tuple(dict.fromkeys(name and name.owner for name in names))
        number = {owner: i for i, owner in enumerate(owners)}
        return cls(
            owners=owners,
            owner=np.array([number[name and name.owner] for name in names], dtype=np.int64),
            element=np.array([name.element if name else 0 for name in names], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.element)

    @property
    def token(self) -> tuple[str, str]:
        """Equal for equal names."""
        return repr(self.owners), digest(self.owner, _as_array(self.element))

    def take(self, index: npt.NDArray[np.intp] | slice) -> ElementNames:
        """Return the rows that ``index`` selects."""
        owner, own = None if self.owner is None else self.owner[index], self.element
        if not isinstance(own, range):
            return ElementNames(owners=self.owners, owner=owner, element=own[index])
        element = own[index] if isinstance(index, slice) else own.start + index * own.step
        return ElementNames(owners=self.owners, owner=owner, element=element)

    def within(self, member: str) -> ElementNames:
        """Name a member of each compound element."""
        owners = tuple(
            owner and replace(owner, member=f"{owner.member}.{member}".lstrip("."))
            for owner in self.owners
        )
        return replace(self, owners=owners)

    def with_noun(self, noun: str) -> ElementNames:
        """Name the elements by a noun; ``noun`` is within elements that are sequences."""
        owners = tuple(
            owner and replace(owner, noun=noun + owner.noun.removeprefix("element"))
            for owner in self.owners
        )
        return replace(self, owners=owners)

    def items(self, index: npt.NDArray[np.intp]) -> ElementNames:
        """Name the items of elements that are arrays or sequences, by the row of each item."""
        names = self.take(index)
        nouns = (owner and replace(owner, noun="element in element") for owner in self.owners)
        return replace(names, owners=tuple(nouns))

    def name(self, row: int) -> ElementName | None:
        """Return the name of one row; None for a reference that is not stored."""
        owner = self.owners[0 if self.owner is None else int(self.owner[row])]
        return None if owner is None else ElementName(owner, int(self.element[row]))

    def each(self) -> list[ElementName | None]:
        """Return the name of each row."""
        owner = self.owners[0]
        if self.owner is None and owner is not None:
            return list(map(_make_name, zip(repeat(owner), self._elements(), strict=False)))
        return [self.name(row) for row in range(len(self))]

    def _elements(self) -> Iterable[int]:
        own = self.element
        return own if isinstance(own, range) else own.tolist()

    def describe(self, row: int) -> str:
        """Name one row in a message; rows that were not stored are counted."""
        if not 0 <= row < len(self):
            return str(self.owners[0]) if self.owners else f"element {row}"
        return str(self.name(row) or f"element {row}")


def concat_names(
    parts: Sequence[ElementNames | None], sizes: Sequence[int]
) -> ElementNames | None:
    """Join the names of several parts, each of a number of rows; None if no part has names."""
    if all(part is None for part in parts):
        return None
    known = [
        ElementNames.of_owner(None, range(n)) if part is None else part
        for part, n in zip(parts, sizes, strict=True)
    ]
    owners = tuple(dict.fromkeys(owner for part in known for owner in part.owners))
    number = {owner: i for i, owner in enumerate(owners)}
    rows = []
    for part in known:
        numbers = np.array([number[owner] for owner in part.owners])
        one = np.broadcast_to(numbers[:1], len(part))
        rows.append(one if part.owner is None else numbers[part.owner])
    return ElementNames(
        owners=owners,
        owner=None if len(owners) == 1 else np.concatenate(rows),
        element=np.concatenate([_as_array(part.element) for part in known]),
    )


def _as_array(element: IntArray | range) -> IntArray:
    if isinstance(element, range):  # ten times as fast as np.asarray
        return np.arange(element.start, element.stop, element.step, dtype=np.int64)
    return element

"""An object of a file as one value: the file and the address of the object header.

In: a `FileLocation` and an address. Out: a `StoredObject`, which opens, reads and names the
object, and caches of functions of a `StoredObject`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from xref.storage import FileLocation, cached_by_location, without_open_file

if TYPE_CHECKING:
    from xref.hdf5 import DatasetLayout
    from xref.objects.datasets import DatasetMetadata

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A dataset, a group or a named datatype of a file.

    The file stays open as long as the value lives, as with a `FileLocation`. Converting the
    value to text looks up the path of the object; nothing else does.
    """

    location: FileLocation
    address: int  # of the object header, bytes from the base address

    def __str__(self) -> str:
        return f"{self.filename}: {self.label}"

    def __dask_tokenize__(self) -> tuple[Hashable, ...]:
        return self.token

    @property
    def token(self) -> tuple[Hashable, ...]:
        """Equal for equal objects; unlike the value, the token keeps no file open."""
        return self.location.token, self.address

    def without_open_file(self) -> StoredObject:
        """Return an equal value that keeps no file open, for caches and errors."""
        return StoredObject(without_open_file(self.location), self.address)

    @property
    def filename(self) -> str:
        """Path or URL of the file."""
        return self.location.filename

    @property
    def where(self) -> str:
        """Label of a dataset in messages that must not search the file for its path."""
        return f"{self.filename}: dataset at {self.address:#x}"

    @property
    def named(self) -> str:
        """Label of a dataset in an error about its data: path and address."""
        from xref.objects.paths import near_path

        path, text = near_path(self), f"dataset at {self.address:#x}"
        return f"{self.filename}: {f'{path} ({text})' if path else text}"

    @property
    def path(self) -> str | None:
        """The canonical path (`xref.objects.paths`); None if no hard link leads here."""
        from xref.objects.paths import object_path

        return object_path(self)

    @property
    def label(self) -> str:
        """Label in a repr or a message: the path, or the address if no path is found soon."""
        from xref.objects.paths import near_path

        return near_path(self) or f"object at {self.address:#x}"

    @property
    def metadata(self) -> DatasetMetadata:
        """Layout and attributes of a dataset; the first use opens the dataset."""
        from xref.objects.datasets import dataset_facts

        return dataset_facts(self)

    @property
    def layout(self) -> DatasetLayout:
        """Shape, type and storage of a dataset."""
        return self.metadata.layout


@dataclass(frozen=True, slots=True)
class NamedDataset:
    """The label of a dataset in errors about its data; the path is looked up for the text."""

    dataset: StoredObject

    def __str__(self) -> str:
        return self.dataset.named


OfObject: TypeAlias = Callable[[StoredObject], R]


def cached_by_object(maxsize: int) -> Callable[[OfObject[R]], OfObject[R]]:
    """Cache a function of a stored object; the cache keeps no file open."""

    def decorate(function: OfObject[R]) -> OfObject[R]:
        @cached_by_location(maxsize)
        def cached(location: FileLocation, address: int) -> R:
            return function(StoredObject(location, address))

        return wraps(function)(lambda stored: cached(stored.location, stored.address))

    return decorate

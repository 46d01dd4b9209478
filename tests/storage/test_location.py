"""Identity of a file, links to other files, user blocks and short addresses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from samples import DATA, add_regions, open_h5
from strategies import write_references

import xref
from xref import UnreadableMemberWarning


def test_a_file_that_changed_after_opening_raises(make: Callable[..., Path]) -> None:
    path = make(lambda f: add_regions(f, "refs", (3,)))
    ds = open_h5(path)
    resolved = ds["refs"].h5ref.resolve()
    element = ds["refs"].values[0]
    ds.close()
    with h5py.File(path, "r+") as file:
        file["more"] = np.arange(1000)
    for action in (
        lambda: ds["data"].load(),
        lambda: ds["refs"].h5ref.resolve().load(),
        resolved.compute,
        element.resolve,
    ):
        with pytest.raises(xref.FileChangedError, match=r"file\.h5 has changed"):
            action()
    path.unlink()
    with pytest.raises(xref.FileChangedError, match="was deleted"):
        ds["data"].load()
    add = make(lambda f: add_regions(f, "refs", (3,)))
    with open_h5(add) as again:
        np.testing.assert_array_equal(again["refs"].h5ref.resolve()[1], DATA[1:3, 1:4])


def test_a_closed_dataset_opens_its_file_again_when_read(make: Callable[..., Path]) -> None:
    path = make(lambda f: add_regions(f, "refs", (3,)))
    ds = open_h5(path)
    ds.close()
    np.testing.assert_array_equal(ds["data"].values, DATA)
    np.testing.assert_array_equal(ds["refs"].h5ref.resolve()[1], DATA[1:3, 1:4])
    ds.close()


def linked(tmp_path: Path) -> dict[str, Path]:
    """Write a file with links to, and virtual data of, files in several folders."""
    (tmp_path / "home" / "below").mkdir(parents=True)
    places = {
        "beside": tmp_path / "home" / "other.h5",
        "below": tmp_path / "home" / "below" / "other.h5",
        "outside": tmp_path / "other.h5",
    }
    for number, path in enumerate(places.values()):
        with h5py.File(path, "w") as file:
            file["d"] = np.arange(5) + 10 * number
            file["decoy"] = np.zeros(1000)
            file.create_dataset("r", data=np.array([file["d"].ref], h5py.ref_dtype))
    with h5py.File(tmp_path / "home" / "main.h5", "w") as file:
        file["own"] = 1
        for name, path in places.items():
            relative = (
                str(Path("..") / path.name)
                if name == "outside"
                else str(path.relative_to(tmp_path / "home"))
            )
            file[f"link_{name}"] = h5py.ExternalLink(relative, "/d")
            file[f"refs_{name}"] = h5py.ExternalLink(str(path), "/r")
            layout = h5py.VirtualLayout((5,), "i8")
            layout[...] = h5py.VirtualSource(relative, "d", shape=(5,))
            file.create_virtual_dataset(f"virtual_{name}", layout)
    return places


@pytest.mark.parametrize(
    ("external", "allowed"),
    [
        ("none", set()),
        ("same-dir", {"beside", "below"}),
        ("all", {"beside", "below", "outside"}),
    ],
)
def test_other_files_are_read_only_where_allowed(
    tmp_path: Path, external: str, allowed: set[str]
) -> None:
    places = linked(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ds = open_h5(tmp_path / "home" / "main.h5", external=external)
    with ds:
        kinds = ("link", "refs", "virtual")
        wanted = {f"{kind}_{place}" for kind in kinds for place in allowed}
        assert set(ds.variables) == wanted | {"own"}
        denied = [w for w in caught if "external=" in str(w.message)]
        assert len(denied) == 9 - len(wanted)
        for number, place in enumerate(places):
            if place in allowed:
                assert ds[f"link_{place}"].values.tolist() == list(
                    range(10 * number, 10 * number + 5)
                )
                assert ds[f"virtual_{place}"].values.tolist() == list(
                    range(10 * number, 10 * number + 5)
                )
                # References resolve in the file that they are stored in.
                reference = ds[f"refs_{place}"].values[0]
                assert reference.filename == str(places[place])
                assert (
                    reference.resolve().values.tolist() == ds[f"link_{place}"].values.tolist()
                )
    for location in places.values():
        open_h5(location).close()  # closes the handles that following links opened


def test_raw_external_storage_is_read_only_when_asked_for(make: Callable[..., Path]) -> None:
    def fill(file: h5py.File) -> None:
        raw = Path(file.filename).with_name("raw.bin")
        raw.write_bytes(np.arange(4, dtype="i4").tobytes())
        file.create_dataset("d", (4,), "i4", external=[(str(raw), 0, 16)])
        file.create_dataset("secret", (8,), "S1", external=[("/etc/passwd", 0, 8)])

    path = make(fill)
    with pytest.warns(UnreadableMemberWarning, match="external="), open_h5(path) as ds:
        assert not ds.variables
    with open_h5(path, external="all") as ds:
        assert ds["d"].values.tolist() == [0, 1, 2, 3]


def test_files_with_hard_link_cycles_and_duplicates_open(make: Callable[..., Path]) -> None:
    def fill(file: h5py.File) -> None:
        add_regions(file, "refs", (2,))
        file["again"] = file["data"]
        file.create_group("g")["up"] = file["/"]
        file.create_dataset("objects", data=np.array([file["g"].ref, file.ref], h5py.ref_dtype))

    with open_h5(make(fill)) as ds:
        np.testing.assert_array_equal(ds["again"], DATA)
        assert ds["refs"].values[0].path in ("/data", "/again")
        assert [r.path for r in ds["objects"].values] == ["/g", "/"]
        assert set(ds["objects"].values[1].resolve().variables) == set(ds.variables)


def test_addresses_count_from_the_end_of_the_user_block(make: Callable[..., Path]) -> None:
    path = make(lambda f: add_regions(f, "refs", (4,), chunks=(2,)), userblock_size=1024)
    with open_h5(path) as ds:
        np.testing.assert_array_equal(ds["refs"].h5ref.resolve()[3], DATA[3:5, 3:6])
        assert ds["refs"].data[0].path == "/data"


@pytest.mark.parametrize("offset_size", [2, 4])
def test_files_with_short_addresses_are_read_completely(
    tmp_path: Path, offset_size: int
) -> None:
    path = tmp_path / "short.h5"
    properties = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    properties.set_sizes(offset_size, offset_size)
    identifier = h5py.h5f.create(bytes(path), h5py.h5f.ACC_TRUNC, fcpl=properties)
    values = np.arange(20).reshape(4, 5)
    with h5py.File(identifier) as file:
        d = file.create_dataset("d", data=values)
        for axis, name in enumerate("yx"):
            file[name] = np.arange(values.shape[axis])
            file[name].make_scale(name)
            d.dims[axis].attach_scale(file[name])
        for name, options in {"r": {}, "packed": {"chunks": (2,), "compression": 4}}.items():
            regions = [d.regionref[1:3, 2:4], d.regionref[0:2, 0:2], None]
            write_references(file, name, regions, **options)
        file.create_dataset("o", (2,), dtype=h5py.ref_dtype)[0] = d.ref
        d.attrs["region"], d.attrs["object"] = d.regionref[0:2], file["y"].ref
        record = np.dtype([("n", "i4"), ("target", h5py.ref_dtype)])
        file.create_dataset("record", (1,), dtype=record)[0] = (3, d.ref)
    identifier.close()
    for reader in ("auto", "h5py"):
        with xr.open_dataset(path, engine="h5ref", reader=reader) as ds:
            assert ds["d"].dims == ("y", "x")
            for name in ("r", "packed"):
                patches = ds[name][:2].h5ref.resolve()
                np.testing.assert_array_equal(patches, [values[1:3, 2:4], values[0:2, 0:2]])
                assert not ds[name].values[2]
            assert ds["o"].values[0].path == "/d"
            assert ds["d"].attrs["region"].bounds == ((0, 0), (2, 5))
            assert ds["d"].attrs["object"].path == "/y"
            assert ds["record"].values["target"][0].path == "/d"

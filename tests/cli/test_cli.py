"""The command line: what it prints, what it writes, its exit codes."""

from __future__ import annotations

import builtins
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from elements import FORMS, targets
from typed import write_attribute, write_dataset

import xref
from xref.cli.main import main

PROGRAM = [sys.executable, "-c", "from xref.cli.main import main; raise SystemExit(main())"]


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample.h5"
    with h5py.File(path, "w") as file:
        image = file.create_dataset("image", data=np.arange(80).reshape(8, 10))
        regions = file.create_dataset("regions", (2, 2), dtype=h5py.regionref_dtype)
        regions[0, 0] = image.regionref[0:2, 0:3]
        regions[0, 1] = image.regionref[4:6, 7:10]
        mask = np.zeros(image.shape, dtype=bool)
        mask[[0, 3], [1, 2]] = True
        regions[1, 0] = image.regionref[mask]
        group = file.create_group("group")
        objects = group.create_dataset("objects", (4,), dtype=h5py.ref_dtype)
        objects[0], objects[1] = image.ref, group.ref
        gone = file.create_dataset("gone", data=np.arange(3))
        objects[2] = gone.ref
        gone.attrs["image"] = image.ref
        group.attrs["source"] = image.ref
        group.attrs["corner"] = image.regionref[0:1, 0:1]
        pair = np.dtype([("n", "i4"), ("of", h5py.ref_dtype)])
        file.create_dataset("pairs", (3,), dtype=pair)
        group["loop"] = file["/"]
        group["nowhere"] = h5py.SoftLink("/not/there")
    return path


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["info", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"xref {importlib.metadata.version('xref')}\n"


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "info" in text
    assert "demo" in text


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["info"], ["info", "a", "--nothing"]])
def test_wrong_arguments_exit_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: xref" in capsys.readouterr().err


# --- info --------------------------------------------------------------------------


def test_info_describes_region_references(
    sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (regions,) = [
        holder
        for holder in report(capsys, str(sample))["references"]
        if holder["path"] == "/regions"
    ]
    assert (regions["kind"], regions["attribute"]) == ("region", None)
    assert (regions["shape"], regions["count"], regions["null"]) == ([2, 2], 4, 1)
    assert regions["selections"] == {"hyperslab": 2, "points": 1}
    (target,) = regions["targets"]
    assert (target["path"], target["kind"], target["count"]) == ("/image", "dataset", 3)
    assert (target["shape"], target["outside"]) == ([8, 10], 0)
    assert (target["start"], target["stop"]) == ([0, 0], [6, 10])


def test_info_describes_object_references_of_any_target(
    sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holders = report(capsys, str(sample))["references"]
    (objects,) = [h for h in holders if h["path"] == "/group/objects"]
    assert (objects["count"], objects["null"], objects["dangling"]) == (4, 1, 0)
    found = {t["path"]: (t["kind"], t["shape"]) for t in objects["targets"]}
    assert found == {
        "/image": ("dataset", [8, 10]),
        "/group": ("group", None),
        "/gone": ("dataset", [3]),
    }


def test_info_finds_references_in_attributes(
    sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holders = report(capsys, str(sample))["references"]
    found = {(h["path"], h["attribute"]): h["kind"] for h in holders if h["attribute"]}
    assert found == {
        ("/gone", "image"): "object",
        ("/group", "source"): "object",
        ("/group", "corner"): "region",
    }


def test_info_names_what_is_not_read(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, str(sample))
    assert found["not_read"] == []
    assert "/pairs['of']" in [h["path"] for h in found["references"]]
    assert found["notes"] == ["/group/nowhere: not followed, or leads nowhere"]
    assert found["groups"] == 2


def test_further_names_of_objects_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["z/x"] = np.arange(3)
        file["b"] = file["z"]
        file["b/self"] = h5py.SoftLink("/b")
    assert main(["info", str(tmp_path / "f.h5")]) == 0
    out = capsys.readouterr().out
    assert "2 groups, 1 dataset" in out
    assert "further names of groups and datasets:" in out
    assert "  /z: /b" in out
    assert "  /b/self: /b" in out


def test_info_describes_new_style_references(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(capsys, str(corpus / "hdf5" / "trefer_attr.h5"))
    (holder,) = found["references"]
    assert (holder["path"], holder["kind"], holder["count"]) == ("/Dataset3", "std", 4)
    assert {t["path"]: t["kind"] for t in holder["targets"]} == {
        "/Group1/Dataset1": "dataset",
        "/Group1/Dataset2": "dataset",
        "/Group1": "group",
        "/Group1/Datatype1": "datatype",
    }


def test_info_counts_dangling_references(
    sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(sample, "r+") as file:
        del file["gone"]
    holders = report(capsys, str(sample))["references"]
    (objects,) = [h for h in holders if h["path"] == "/group/objects"]
    assert objects["dangling"] == 1
    assert {t["path"]: t["kind"] for t in objects["targets"]}[None] == "dangling"


def test_info_counts_regions_beyond_the_extent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "shrunk.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", data=np.arange(10), maxshape=(None,), chunks=(5,))
        regions = file.create_dataset("regions", (2,), dtype=h5py.regionref_dtype)
        regions[0], regions[1] = data.regionref[0:3], data.regionref[6:9]
        data.resize((5,))
    assert main(["info", str(path)]) == 0
    assert "1 BEYOND THE EXTENT" in capsys.readouterr().out


def test_info_looks_at_one_group_only(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(sample, "r+") as file:
        del file["group/loop"]
    found = report(capsys, str(sample), "--group", "group")
    assert (found["group"], found["groups"], found["datasets"]) == ("/group", 1, 1)
    assert {h["path"] for h in found["references"]} == {"/group", "/group/objects"}
    assert main(["info", str(sample), "--group", "/none"]) == 1
    assert "'/none' not found" in capsys.readouterr().err


def test_info_prints_text(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(sample)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "/regions: 4 region references, shape (2, 2), 1 null" in out
    assert "  -> /image  3 x dataset (8, 10), within [0:6, 0:10]" in out
    assert "/group, attribute 'source': 1 object reference" in out
    assert max(map(len, out.splitlines())) <= 100


def test_info_escapes_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "names.h5"
    with h5py.File(path, "w") as file:
        evil = file.create_dataset("evil\x1b[31m\n", data=1)
        refs = file.create_dataset(b"caf\xe9", (1,), dtype=h5py.ref_dtype)
        refs[0] = evil.ref
    assert main(["info", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"/evil\x1b[31m\n" in out
    out.encode("utf-8")


def test_info_on_a_file_without_references(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["a"] = 1
    assert main(["info", str(tmp_path / "plain.h5")]) == 0
    assert "no references" in capsys.readouterr().out


def test_info_reads_no_target(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with xref.count_reads() as reads:
        report(capsys, str(sample))
    assert reads.nbytes == 4 * 12 + 4 * 8  # regions and objects, nothing else


def test_info_on_what_is_no_hdf5_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.h5"
    path.write_text("no HDF5")
    for name in (path, tmp_path / "missing.h5", tmp_path):
        assert main(["info", str(name)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"xref: {name}: ")
        assert err.count("\n") == 1


def test_info_finds_references_within_elements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "within.h5"
    with h5py.File(path, "w") as file:
        for name in ("nested", "sequence in a compound", "array of std", "sequence of regions"):
            form, make = FORMS[name]
            if "data" not in file:
                targets(file)
            write_dataset(file, name, form, [make(k) for k in range(4)], (4,))
            write_attribute(file["group"], name, form, [make(k) for k in range(4)], (4,))
    found = {
        (h["path"], h["attribute"]): (h["kind"], h["count"], h["null"])
        for h in report(capsys, str(path))["references"]
    }
    members = {
        ("nested", "a.b.c.of"): ("object", 4, 1),
        ("nested", "a.b.d"): ("region", 4, 1),
        ("nested", "f"): ("object", 4, 1),
        ("sequence in a compound", "many"): ("region", 6, 1),
        ("sequence in a compound", "one"): ("object", 4, 1),
        ("array of std", ""): ("std", 12, 3),
        ("sequence of regions", ""): ("region", 6, 1),
    }
    expected = {}
    for (name, member), value in members.items():
        dataset = f"/{name}[{member!r}]" if member else f"/{name}"
        attribute = f"{name}.{member}" if member else name
        expected |= {(dataset, None): value, ("/group", attribute): value}
    assert found == expected


def test_info_reports_damage_and_shows_the_rest(
    sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = sample.read_bytes()
    assert b"GCOL" in data
    sample.write_bytes(data.replace(b"GCOL", b"LOCG"))
    assert main(["info", str(sample)]) == 1
    out, err = capsys.readouterr()
    assert "/group/objects: 4 object references" in out
    assert "xref: /regions: CorruptFileError: " in err


@pytest.mark.slow
def test_info_as_a_program_survives_a_crash_of_hdf5(corpus: Path) -> None:
    # This file makes HDF5 1.14 and 2.0 crash; a later one may refuse it.
    path = corpus / "cve_hdf5" / "cve-2024-32609.h5"
    done = subprocess.run(
        [*PROGRAM, "info", str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_info_stops_quietly_when_a_pipe_closes(sample: Path) -> None:
    with subprocess.Popen(
        [*PROGRAM, "info", str(sample)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        _, err = process.communicate(timeout=60)
        assert err == b""
        assert process.returncode == 0


# --- demo --------------------------------------------------------------------------


@pytest.mark.slow
def test_demo_makes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "new" / "folder"
    assert main(["demo", "--folder", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "equal values" in out
    assert "678 of them null" in out
    assert [p.name for p in folder.iterdir()] == ["demo.png"]
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    lines = [line for line in out.splitlines() if "Completed" not in line]
    assert max(map(len, lines)) <= 100


@pytest.mark.slow
def test_demo_without_matplotlib_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert main(["demo", "--folder", str(tmp_path), "--keep"]) == 0
    assert 'pip install "xref[plots]"' in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["demo.h5"]
    assert main(["info", str(tmp_path / "demo.h5")]) == 0
    assert "/cells: 2880 region references, shape (48, 60), 678 null" in capsys.readouterr().out


def test_demo_in_a_folder_that_cannot_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--folder", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("xref: ")

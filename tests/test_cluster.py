"""A cluster of processes: results, and how often its workers decode a chunk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from strategies import write_references

from xref.counts import ReadCounts, count_reads

distributed = pytest.importorskip("distributed")

SIDE, CHUNK, BOX, N = 512, 64, 16, 600
IMAGE = np.random.default_rng(0).integers(0, 60_000, (SIDE, SIDE), dtype="u2")
CORNERS = np.random.default_rng(1).integers(0, SIDE - BOX, (N, 2))
PATCHES = np.stack([IMAGE[y : y + BOX, x : x + BOX] for y, x in CORNERS])
N_CHUNKS = (SIDE // CHUNK) ** 2

_counting: list[tuple[ExitStack, ReadCounts]] = []


def begin_counting() -> None:
    stack = ExitStack()
    _counting.append((stack, stack.enter_context(count_reads())))


def end_counting() -> int:
    stack, counts = _counting.pop()
    stack.close()
    return counts.chunks_decoded


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    cluster = distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        silence_logs=40,
    )
    with cluster, distributed.Client(cluster) as client:
        client.run(__import__, "xref")
        yield client


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cluster") / "image.h5"
    with h5py.File(path, "w") as file:
        image = file.create_dataset(
            "image", data=IMAGE, chunks=(CHUNK, CHUNK), compression="gzip", shuffle=True
        )
        boxes = [image.regionref[y : y + BOX, x : x + BOX] for y, x in CORNERS]
        write_references(file, "rois", boxes)
    return path


@pytest.mark.parametrize("blocks", [8, 50])
def test_workers_decode_each_chunk_once_between_them(
    client: Any, path: Path, blocks: int
) -> None:
    with xr.open_dataset(path, engine="h5ref") as ds:
        patches = ds["rois"].h5ref.resolve(chunks={ds["rois"].dims[0]: -(-N // blocks)})
        for wanted, expected in (
            (patches.data, PATCHES),
            (patches.data.sum(axis=(1, 2)), PATCHES.sum(axis=(1, 2))),
        ):
            client.run(begin_counting)
            result = client.compute(wanted).result()
            decoded = sum(client.run(end_counting).values())
            np.testing.assert_array_equal(result, expected)
            assert N_CHUNKS <= decoded <= 1.1 * N_CHUNKS


def test_results_stay_on_the_cluster_until_they_are_asked_for(client: Any, path: Path) -> None:
    with xr.open_dataset(path, engine="h5ref") as ds:
        kept = ds["rois"].h5ref.resolve(chunks={ds["rois"].dims[0]: 100}).persist()
        np.testing.assert_array_equal(kept[17], PATCHES[17])
        np.testing.assert_array_equal(kept.mean(), PATCHES.mean())
        means = ds["rois"].h5ref.mean(chunks={ds["rois"].dims[0]: 100})
        np.testing.assert_allclose(means.compute(), PATCHES.mean(axis=(1, 2)))

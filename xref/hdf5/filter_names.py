"""Names of the filters that are registered with The HDF Group, and where to get them.

In: the number of a filter, from a Filter Pipeline message. Out: its name, and what to install
so that HDF5 can undo the filter.

Source: "Registered Filter Plugins", The HDF Group. Numbers below 256 are HDF5's own; 256 to 511
are free for tests, apart from two early registrations.
"""

from __future__ import annotations

REGISTERED = {
    1: "deflate",
    2: "shuffle",
    3: "fletcher32",
    4: "szip",
    5: "nbit",
    6: "scaleoffset",
    305: "LZO",
    307: "bzip2",
    32000: "lzf",
    32001: "blosc",
    32002: "MAFISC",
    32003: "Snappy",
    32004: "lz4",
    32005: "APAX",
    32006: "CBF",
    32007: "JPEG-XR",
    32008: "bitshuffle",
    32009: "SPDP",
    32010: "LPC-Rice",
    32011: "CCSDS-123",
    32012: "JPEG-LS",
    32013: "zfp",
    32014: "fpzip",
    32015: "zstd",
    32016: "B3D",
    32017: "SZ",
    32018: "FCIDECOMP",
    32019: "JPEG",
    32020: "VBZ",
    32021: "FAPEC",
    32022: "BitGroom",
    32023: "Granular BitRound",
    32024: "SZ3",
    32025: "Delta-Rice",
    32026: "blosc2",
    32027: "FLAC",
    32028: "SPERR",
    32029: "TERSE/PROLIX",
    32030: "FFMPEG",
}

_IN_HDF5PLUGIN = frozenset(
    {307, 32001, 32004, 32008, 32013, 32015, 32017, 32018, 32024, 32026, 32028}
)

_OTHER_PACKAGES = {
    305: "PyTables (the package 'tables') reads this filter",
    32020: "the plugin VBZ of Oxford Nanopore has this filter",
}


def filter_name(number: int, stored: str = "") -> str:
    """Return the registered name of a filter, else the name that the file has for it."""
    return REGISTERED.get(number) or stored or "without a name"


def install_hint(number: int) -> str:
    """Say what to install so that a filter can be undone."""
    if number in _IN_HDF5PLUGIN:
        return "pip install 'xref[codecs]', and import hdf5plugin before reading"
    if number in _OTHER_PACKAGES:
        return f"{_OTHER_PACKAGES[number]}; h5py needs a plugin of HDF5 in HDF5_PLUGIN_PATH"
    return "no package that is known here has it; h5py needs a plugin in HDF5_PLUGIN_PATH"

"""Names of attributes and variables that HDF5, netCDF-4 and the CF conventions prescribe.

Sources: HDF5 Dimension Scale Specification 1.0; the netCDF C library, "netCDF-4 File Format";
CF Conventions 1.11, sections 2.5 and 8.1.
"""

SCALE_ATTRIBUTES = DIMENSION_LIST, REFERENCE_LIST = ("DIMENSION_LIST", "REFERENCE_LIST")
"""References of a dataset to its dimension scales; of a scale to the datasets along it."""

DIMENSION_ID, COORDINATE_IDS = ("_Netcdf4Dimid", "_Netcdf4Coordinates")
"""Number of a dimension; numbers of the dimensions of a coordinate variable."""

HIDDEN_ATTRIBUTES = {"CLASS", "NAME", *SCALE_ATTRIBUTES, DIMENSION_ID, COORDINATE_IDS}
HIDDEN_ATTRIBUTES |= {"_NCProperties", "_nc3_strict"}
"""Attributes that organise the file; a Dataset does not show them."""

NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable"
"""NAME of a dimension scale without values; its length follows (`NO_VARIABLE_OF_LENGTH`)."""

NO_VARIABLE_OF_LENGTH = NO_VARIABLE + ".%10d"

NAME_CLASH = "_nc4_non_coord_"
"""Prefix of a variable in the file that has the name of a dimension and lies along others."""

FILL_ATTRIBUTES = ("_FillValue", "missing_value")

_SCALING = ("scale_factor", "add_offset")
CF_ATTRIBUTES = (*FILL_ATTRIBUTES, *_SCALING, "units", "calendar", "_Unsigned", "dtype")
"""Attributes that say how stored numbers are decoded."""

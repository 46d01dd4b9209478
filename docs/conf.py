from importlib.metadata import metadata

project = "xref"
author = "the xref developers"
copyright = f"2026, {author}"
release = metadata("xref")["Version"]

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
nitpicky = False  # annotations name NumPy, Dask and xarray, whose indexes need a network

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the Parameters sections say it in words

# Members are listed by autodoc; numpydoc would list them a second time.
numpydoc_show_class_members = False
# What is documented must agree with the signature; short docstrings may leave
# parameters out, so PR01 is not among them.
numpydoc_validation_checks = {"PR02", "PR03", "PR04", "PR05", "PR10", "GL03", "GL06", "GL07"}

html_theme = "alabaster"
html_theme_options = {
    "description": "HDF5 references in xarray, lazily and in parallel",
}

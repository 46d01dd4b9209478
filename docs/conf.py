from importlib.metadata import metadata

from sphinx.util import logging

import xref

project = "xref"
author = "the xref developers"
copyright = f"2026, {author}"
release = metadata("xref")["Version"]

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
nitpicky = True  # a link without a target is a warning, and `nox -s docs` takes none
myst_heading_anchors = 3  # pages link to each other's headings

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the Parameters sections say it in words

# Members are listed by autodoc; numpydoc would list them a second time.
numpydoc_show_class_members = False
# What is documented must agree with the signature; short docstrings may leave
# parameters out, so PR01 is not among them. Nor is PR04, a type for each parameter: options
# that are xarray's are listed together and have the types that xarray documents.
numpydoc_validation_checks = {"PR02", "PR03", "PR05", "PR10", "GL03", "GL06", "GL07"}
numpydoc_validation_exclude = {r"\.set_options$"}  # it documents the keywords of **options

html_theme = "alabaster"
html_theme_options = {"description": "HDF5 references in xarray, lazily and in parallel"}


def check_public_names(app, env):
    """Warn if a public name is on no page; `nox -s docs` takes warnings for errors."""
    shown = env.get_domain("py").objects
    for name in xref.__all__:
        if f"xref.{name}" not in shown:
            logging.getLogger(__name__).warning("xref.%s is on no page", name)


def setup(app):
    """Register the check."""
    app.connect("env-check-consistency", check_public_names)

"""The command ``xref``: the references of a file, and a demonstration."""

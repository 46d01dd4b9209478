"""The command ``xref``: what a file holds, and a demonstration."""

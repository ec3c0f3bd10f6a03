"""The command line, holdfast."""

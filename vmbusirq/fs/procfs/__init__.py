"""The files of /proc."""

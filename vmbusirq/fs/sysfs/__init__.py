"""The files of /sys."""

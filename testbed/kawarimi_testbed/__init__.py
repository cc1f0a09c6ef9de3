"""Guests with a hot-pluggable soft-RoCE HCA under plain QEMU, on any Linux machine."""

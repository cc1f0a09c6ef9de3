"""The rank shim's Python side: its build, its binding and the launcher wrapper."""

"""The contract between guests and hosts: errors, results, messages. Imports nothing of ours."""

__version__ = "0.1.0"
"""Of the whole distribution; the guests' copies of these packages have no metadata to ask."""

"""The contract between guests and hosts: errors, results, messages. Imports nothing of ours."""

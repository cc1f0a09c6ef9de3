"""The guest image: built once from the machine's own Debian, cached, shared by all guests."""

"""One operation on guests: planned, carried out phase by phase, undone where it fails."""

"""The guest agent: leads its local ranks, and speaks with the host bridge."""

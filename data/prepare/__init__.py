"""The parts of ``helios-prepare``: sources of clips, their encoding, and the division of the work."""

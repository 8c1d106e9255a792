"""The job behind ``helios-prepare``: where clips come from, how they are encoded, how the work is divided."""

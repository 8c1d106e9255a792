"""What ``helios-prepare`` does: where clips come from, how they are encoded, how the work is divided."""

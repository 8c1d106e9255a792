"""Training: batches, methods (what is learnt) and the trainer (how it is run)."""

"""Data sets: TFDS builders for the format, random-access sources for grain. Nothing here imports TensorFlow."""

"""Ablations of the small model: what each idea of Helios does to videos of 40 chunks.

rows       the variants: settings of the experiments, and how each is trained and sampled
run        trains, samples and scores rows; one JSON file for each
compare    differences between rows with intervals, as a table, a page and plots
"""

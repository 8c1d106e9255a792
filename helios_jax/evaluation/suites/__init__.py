"""Suites: which videos are evaluated, by which metrics, and what their records add up to.

moving_shapes    captions of the small world against what the videos show
drift            statistics and similarities along long videos
heliosbench      the benchmark's metrics, ratings and total
"""

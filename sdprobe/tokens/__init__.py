"""Batches, token coordinates, token groups, keys of numbers, and views of images."""

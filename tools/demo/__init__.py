"""Trains the embedded demo model: a small Stable Diffusion on procedurally drawn scenes (`python -m tools.demo.train`)."""

"""What to do about position, corners and high-norm tokens: maps of activation grids, one idea per file."""

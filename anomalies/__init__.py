"""What is wrong with tokens: masks of corner, border, interior and high-norm tokens."""

"""What is fitted or counted on tensors without a trainer: heads, closed forms, matching, statistics of a layer."""

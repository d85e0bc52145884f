"""Image files → batches on the accelerator."""

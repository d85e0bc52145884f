"""What a batch is, where a token lies, which group it is in, how a number is called, how an image is shown."""

"""Many runs below a folder: which there are, and answers to ``ls``, ``best``, ``show``, ``diff`` and ``export``."""

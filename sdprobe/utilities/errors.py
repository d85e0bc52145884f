"""The exception for input that cannot be used."""


class InputError(ValueError):
    """The user's input cannot be used. The message is one or two sentences that tell the user what to do.

    Form: ``Expected <argument> to be <constraint>, but got <value>. <Fix>.`` ``train.py`` prints the message without a
    traceback and exits with code 1. Any other exception is a bug in this project and keeps its traceback.
    """

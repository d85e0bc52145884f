"""The one exception for input that cannot be used."""


class InputError(ValueError):
    """The user's input cannot be used; the message is one sentence or two that a user can act on.

    Form: ``Expected <argument> to be <constraint>, but got <value>. <Fix>.`` ``train.py`` prints the message without a
    traceback and exits with 1; any other exception is a defect of this project and keeps its traceback.
    """

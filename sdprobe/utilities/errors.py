"""Exceptions for input that cannot be used."""

from sdprobe.utilities.foreign import shown

LONGEST = 8000  # characters of a message


class InputError(ValueError):
    """The user's input cannot be used. The message is one or two sentences that tell the user what to do.

    Form: ``Expected <argument> to be <constraint>, but got <value>. <Fix>.`` ``train.py`` prints the message without a
    traceback and exits with code 1. Any other exception is a bug in this project and keeps its traceback.
    """

    def __str__(self) -> str:
        """The message in one line. What it quotes may come from others, so control characters are replaced."""
        return shown(self.message(), LONGEST)

    def message(self) -> str:
        """Return the message as it was raised."""
        return super().__str__()


class Unfit(ValueError):
    """The content of a file is not what this program writes. The message is a reason for the user, as a part of a sentence."""

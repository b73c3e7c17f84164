"""The one exception that means "your input, not our bug": commands print it as one line and exit with 2."""


class UserError(ValueError):
    """Bad input or wrong usage.  The message names the value, what is allowed and what to do."""

"""Errors that end a job without a traceback, and their exit status."""

from densewalk.core.text.quoting import one_line


class UserError(Exception):
    """Bad input. The message says in one line what was found, what is allowed and what to do.

    Attributes:
        found: the first part of the message.
        todo: the last part; empty where the rest says it.

    Example:
        from densewalk.core.errors import UserError

        try:
            dw.load("dinov2_vits15")
        except UserError as error:
            print(error)
    """

    exit_status = 2

    def __init__(self, found: str, *, allowed: str = "", todo: str = "") -> None:
        self.found, self.todo = found, todo
        parts = [found, f"allowed: {allowed}" if allowed else "", f"to do: {todo}" if todo else ""]
        super().__init__(one_line("; ".join(part for part in parts if part)))


class TrainingError(Exception):
    """Numbers are not finite; the message says where, and what was saved for inspection."""

    exit_status = 1


RESUME = "interrupted; run the same command to go on"


class Interrupted(Exception):
    """A signal asked the job to stop; its state has been saved. The message says where, and what to do."""

    exit_status = 75  # sysexits' EX_TEMPFAIL: the scheduler shall start the job again

    def __init__(self, after: str, state: object) -> None:
        super().__init__(f"interrupted after {after}: state saved in {state}, run the same command to go on")

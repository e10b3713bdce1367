"""What stops a job, without a traceback, and the exit status that says so."""


class UserError(Exception):
    """Bad input. One message: what was found, what is allowed, what to do."""

    exit_status = 2

    def __init__(self, found: str, *, allowed: str = "", todo: str = "") -> None:
        parts = [found, f"allowed: {allowed}" if allowed else "", f"to do: {todo}" if todo else ""]
        super().__init__("; ".join(part for part in parts if part))


class TrainingError(Exception):
    """The numbers went wrong; the message says where and what was saved for inspection."""

    exit_status = 1


class Interrupted(Exception):
    """A signal asked the job to stop; its state has been saved."""

    # sysexits' EX_TEMPFAIL, "try again later": what a saved and interrupted job wants from the scheduler
    exit_status = 75

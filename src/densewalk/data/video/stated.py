"""What a video file says of its own length; nothing is decoded."""

from pathlib import Path

import av


def stated_length(path: str | Path) -> tuple[float, float] | None:
    """Seconds and frames a second that the file's head states; None if there is no such file, or it states none."""
    if not Path(path).is_file():
        return None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                return None
            stream = container.streams.video[0]
            rate = stream.average_rate
            if stream.duration is not None and stream.time_base is not None:
                seconds = float(stream.duration * stream.time_base)
            else:
                seconds = (container.duration or 0) / av.time_base
    except av.FFmpegError:  # the job says what is wrong with a file
        return None
    return (seconds, float(rate)) if rate and seconds > 0 else None

"""Decode a video from any of its key frames on, whatever its container's index says."""

from collections.abc import Generator, Iterator
from pathlib import Path

import av

from densewalk.data.video.streams import open_container, video_stream
from densewalk.data.video.timeline import Key, time_base

# seconds before a key frame that seeking aims at, one after the other: containers such as MPEG-TS land anywhere near
BACKS = (0.0, 2.0, 15.0)


class PacketReader:
    """Packets and frames from a key frame on.

    A container's seeking is only trusted to come near. Packets are skipped up to the key frame's own, which its stamps tell. If none
    of the tries lands before it, the file is read from its beginning.

    Args:
        threads: of the decoder, FFmpeg's choice by default.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        self.path, self.threads = Path(path), threads
        self._open()

    def _open(self) -> None:
        self.container = open_container(self.path)
        self.stream = video_stream(self.container, self.path)
        if self.threads:
            self.stream.codec_context.thread_count = self.threads

    def packets(self, key: Key) -> Iterator[av.Packet]:
        """Yield the key frame's packet and all that follow, or nothing if the file no longer has it."""
        unit = time_base(self.stream)
        target = key.stamp if key.dts is None else min(key.stamp, key.dts)
        for back in BACKS:
            try:
                self.container.seek(target - int(back / unit), stream=self.stream)
            except av.FFmpegError:
                continue
            found = yield from self._from(key)
            if found:
                return
        self.close()
        self._open()
        yield from self._from(key)

    def _from(self, key: Key) -> Generator[av.Packet, None, bool]:
        """Yield packets from the key frame's on; return whether it came."""
        found = False
        for packet in self.container.demux(self.stream):
            if not found:
                if packet.dts is not None and packet.dts > key.stamp:  # decoded after it
                    return False
                stamp = packet.dts if packet.pts is None else packet.pts
                found = packet.size > 0 and packet.is_keyframe and stamp == key.stamp
            if found:
                yield packet
        return found

    def frames(self, key: Key) -> Iterator[av.VideoFrame]:
        """Yield the frames from a key frame on."""
        for packet in self.packets(key):
            yield from packet.decode()

    def close(self) -> None:
        """Close the file."""
        self.container.close()

"""One file per protocol; `densewalk.settings` holds what may be set and the protocol's name and version."""

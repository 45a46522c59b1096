"""Where the data directory may be: on a disk of this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from batchline.domain.errors import ConfigError

# SQLite's WAL needs shared memory and locks that hold, which these do not give between machines.
# 9p is not among them: sandboxes and WSL use it for disks of the same machine.
_NETWORK_TYPES: Final = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "ceph", "lustre"),
        *("gpfs", "beegfs", "glusterfs", "orangefs", "davfs"),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.davfs2"),
        *("fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.juicefs", "fuse.mount-s3"),
    }
)


def network_file_system(mountinfo: str, path: Path) -> str | None:
    """The type of the network file system that holds `path`, or None when it is a local one.

    `mountinfo` is the text of `/proc/self/mountinfo` (proc(5)); `path` is absolute and resolved.
    """
    deepest, kind = -1, None
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        fields, types_ = mount.split(" "), source.split(" ")
        if len(fields) < 5 or not types_[0]:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4]))
        # A later mount on the same point hides the earlier one.
        if path.is_relative_to(point) and len(point.parts) >= deepest:
            deepest, kind = len(point.parts), types_[0]
    return kind if kind in _NETWORK_TYPES else None


def on_this_machine(path: Path) -> Path:
    """`path`, absolute; it need not exist yet.

    Raises:
        ConfigError: it is on a network file system.
    """
    absolute = path.absolute()
    try:
        mountinfo = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return absolute  # not Linux: nothing to read it from
    kind = network_file_system(mountinfo, absolute.resolve())
    if kind is not None:
        raise ConfigError(
            f"server.data_dir: {absolute} is on a network file system ({kind}), where SQLite can"
            " lose data; use a local disk"
        )
    return absolute

"""The processes that come from this one."""

import os
import re
from pathlib import Path


def children(name):
    """The processes of a name that come from this one."""
    parents, named = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status, command = (entry / "status").read_text(), (entry / "cmdline").read_bytes()
            except OSError:
                continue
            parents[int(entry.name)] = int(re.search(r"PPid:\s+(\d+)", status)[1])
            if name.encode() in command:
                named.append(int(entry.name))

    def is_ours(pid):
        return pid == os.getpid() or (pid in parents and is_ours(parents[pid]))

    return [pid for pid in named if is_ours(pid)]

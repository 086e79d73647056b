"""The control groups of this process: what containers and batch systems limit."""

from pathlib import Path


def control_groups(controller, root=Path("/sys/fs/cgroup"), membership=Path("/proc/self/cgroup")):
    """Yield (version, folder) of each group whose limit holds for this process, the innermost first."""
    try:
        lines = membership.read_text().splitlines()
        groups = [(controllers, path) for _, controllers, path in (line.split(":", 2) for line in lines)]
    except (OSError, ValueError):
        return
    for controllers, path in groups:
        if controllers == "":
            version, top = 2, root
        elif controller in controllers.split(","):
            version, top = 1, root / controller
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):  # a limit holds for all groups below it
            if not folder.is_relative_to(top):
                break
            yield version, folder


MEMORY_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"),
    2: ("memory.max", "memory.current", "memory.stat"),
}


def memory_limits(*places):
    """Bytes that each group allows, the file that tells what it uses, and the one that tells what that is."""
    limits = []
    for version, folder in control_groups("memory", *places):
        limit, usage, stat = (folder / name for name in MEMORY_FILES[version])
        try:
            limits.append((int(limit.read_text()), usage, stat))
        except (OSError, ValueError):
            continue  # not there, not for us to read, or "max"
    return limits

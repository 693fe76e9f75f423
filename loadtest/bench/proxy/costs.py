"""What a proxy costs. In: its process. Out: CPU time, memory, calls of the kernel, allocations."""

import contextlib
import mmap
import os
import re
import signal
import struct
import subprocess
import time
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
HERE = Path(__file__).resolve().parent


def family(pid):
    """The process and all that descend from it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found.extend(map(int, task.read_text().split()))
    return found


def cpu(pid):
    """User and system time so far, seconds."""
    user = system = 0
    for process in family(pid):
        # the second field may hold anything: count from its last bracket
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        user, system = user + int(fields[11]), system + int(fields[12])
    return user / TICK, system / TICK


def memory(pid):
    """Bytes, what is shared divided among those who share it (PSS)."""
    total = 0
    for process in family(pid):
        rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
        total += int(re.search(r"^Pss:\s+(\d+) kB", rollup, re.M)[1]) * 1024
    return total


@contextlib.contextmanager
def kernel_calls(pid, into):
    """Counts the calls of the kernel while the block runs, by name, into this dictionary."""
    tracer = subprocess.Popen(["strace", "-f", "-c", "-q", "-p", str(pid)], stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(1)  # strace says nothing once it is attached
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        _, report = tracer.communicate()
        for line in report.splitlines():
            fields = line.split()
            if len(fields) >= 5 and fields[3].isdigit() and fields[-1] != "total":
                into[fields[-1]] = int(fields[3])


class Allocations:
    """Counts calls of malloc and its like in a process that was started with `environment`."""

    def __init__(self, directory):
        library, self._file = directory / "allocations.so", directory / "allocations"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, HERE / "allocations.c", "-ldl"], check=True)
        self._file.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(library), "ALLOCATIONS": str(self._file)}

    def count(self):
        with open(self._file, "r+b") as file, mmap.mmap(file.fileno(), 8) as page:
            return struct.unpack("=Q", page[:8])[0]

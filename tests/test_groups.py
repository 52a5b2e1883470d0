"""The control group of the processes that models come into, in a tree of files that looks like the kernel's.

The kernel itself takes the group where these tests are root on a machine with version 2 and its memory controller.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from strongroom.groups import Group, Place, find, make

GB = 1 << 30


class Tree:
    """A cgroup file system with one group, as `/service`. What is written stays to be read; folders are there before,
    because files of the kernel's do not appear by themselves here.
    """

    def __init__(self, root: Path) -> None:
        self.mount, self.own, self.machine = root / "cgroup", root / "own", root / "meminfo"
        self.service = self.mount / "service"
        self.own.write_text("4:memory:/elsewhere\n0::/service\n")
        self.machine.write_text("MemTotal:       16777216 kB\nMemFree: 1 kB\n")
        for folder in (self.mount, self.service, self.service / "server", self.service / "models"):
            folder.mkdir()
            for name in ("procs", "subtree_control", "controllers"):
                (folder / f"cgroup.{name}").write_text("")
        for folder in (self.mount, self.service):
            (folder / "cgroup.controllers").write_text("cpu memory pids\n")
        (self.service / "cgroup.procs").write_text(f"{os.getpid()}\n")
        for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max"):
            (self.service / "models" / name).write_text("")  # a written file is longer or shorter: see `said`
        (self.service / "memory.max").write_text("max\n")

    def find(self) -> Place | str:
        """`groups.find`, here."""
        return find(mount=self.mount, own=self.own)

    def make(self, memory_bytes: int = GB, processes: int = 64) -> Group | str:
        """`groups.make`, here."""
        return make(
            memory_bytes=memory_bytes,
            processes=processes,
            mount=self.mount,
            own=self.own,
            machine=self.machine,
        )

    def said(self, name: str) -> str:
        """What lies in a file of the service's group."""
        return (self.service / name).read_text()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """One that was delegated."""
    return Tree(tmp_path)


def test_the_group_has_its_limits_and_takes_processes(tree: Tree) -> None:
    """The server moves first, then its group gives its children controllers, then there are limits: memory, no swap,
    processes, and one process that ends at a time.
    """
    made = tree.make()
    assert isinstance(made, Group)
    assert (made.memory_bytes, made.processes) == (GB, 64) and made.folder == tree.service / "models"
    assert tree.said("server/cgroup.procs") == str(os.getpid())
    assert tree.said("cgroup.subtree_control").startswith("+pids")  # over "+memory", which was written before
    assert tree.said("models/memory.swap.max") == "0" and tree.said("models/memory.oom.group") == "0"
    assert made.take(4711) and tree.said("models/cgroup.procs") == "4711"


def test_a_server_that_starts_again_finds_its_group(tree: Tree) -> None:
    """An earlier start moved the process into `server`; the groups are those of before."""
    tree.own.write_text("0::/service/server\n")
    assert isinstance(found := tree.find(), Place) and found.folder == tree.service
    assert isinstance(tree.make(), Group)


@pytest.mark.parametrize(
    ("machine_kb", "above", "own", "most"),
    [
        (16 << 20, "max\n", "max\n", 14 * GB),
        (16 << 20, "max\n", f"{8 * GB}\n", 7 * GB),
        (16 << 20, f"{4 * GB}\n", f"{8 * GB}\n", GB * 7 // 2),
        (2 << 20, "max\n", f"{8 * GB}\n", GB * 7 // 4),
    ],
)
def test_without_a_setting_the_service_keeps_an_eighth(
    tree: Tree, machine_kb: int, above: str, own: str, most: int
) -> None:
    """Of the least that the machine, its own group or one above has."""
    tree.machine.write_text(f"MemTotal: {machine_kb} kB\n")
    (tree.mount / "memory.max").write_text(above)
    (tree.service / "memory.max").write_text(own)
    made = tree.make(0)
    assert isinstance(made, Group) and made.memory_bytes == most


def test_without_the_controller_of_processes_memory_is_limited(tree: Tree) -> None:
    """And the group says that it counts no processes."""
    (tree.service / "cgroup.controllers").write_text("memory\n")
    (tree.service / "models" / "pids.max").unlink()
    made = tree.make()
    assert isinstance(made, Group) and made.processes is None
    assert tree.said("cgroup.subtree_control") == "+memory"


@pytest.mark.parametrize(
    ("why", "spoil"),
    [
        ("no cgroup version 2", lambda t: t.own.write_text("4:memory:/service\n")),
        ("no cgroup version 2", lambda t: (t.mount / "cgroup.controllers").unlink()),
        ("no cgroup version 2", lambda t: t.own.unlink()),
        ("outside of what is mounted", lambda t: t.own.write_text("0::/../other\n")),
        ("cannot limit memory", lambda t: (t.service / "cgroup.controllers").write_text("cpu pids\n")),
        ("cannot limit memory", lambda t: t.own.write_text("0::/nowhere\n")),
        ("not delegated", lambda t: (t.service / "cgroup.subtree_control").unlink()),
        ("other processes", lambda t: (t.service / "cgroup.procs").write_text(f"{os.getpid()}\n1\n")),
    ],
)
def test_where_there_can_be_no_group_nothing_changes(tree: Tree, why: str, spoil: object) -> None:
    """And it says why."""
    assert callable(spoil)
    spoil(tree)
    said = tree.make()
    assert isinstance(said, str) and why in said
    assert tree.said("server/cgroup.procs") == "" and tree.said("models/memory.max") == ""


@pytest.mark.parametrize(
    ("why", "spoil"),
    [
        ("cannot be moved", lambda t: (t.service / "server" / "cgroup.procs").unlink()),
        ("take the limits", lambda t: (t.service / "models" / "memory.max").unlink()),
        ("take the limits", lambda t: (t.service / "models" / "memory.max").write_text(f"{GB * 1000}")),
    ],
)
def test_limits_that_do_not_hold_are_no_group(tree: Tree, why: str, spoil: object) -> None:
    """They are read back; the process is where it was before."""
    assert callable(spoil)
    spoil(tree)
    said = tree.make()
    assert isinstance(said, str) and why in said
    assert tree.said("cgroup.procs").startswith(str(os.getpid()))


def test_too_little_memory_is_no_group(tree: Tree) -> None:
    """A zygote and a model would not fit into it, and the server would not start for what nobody demands."""
    said = tree.make(200 << 20)
    assert isinstance(said, str) and "too little" in said and tree.said("server/cgroup.procs") == ""


def test_a_group_that_is_gone_takes_nobody(tree: Tree) -> None:
    """As where the process has ended; whoever asked goes on."""
    made = tree.make()
    assert isinstance(made, Group)
    (made.folder / "cgroup.procs").unlink()
    assert not made.take(os.getpid()) and not (made.folder / "cgroup.procs").exists()


_EATS = """
import os, sys
sys.path.insert(0, sys.argv[2])
from strongroom.groups import Group, make
group = make(memory_bytes=256 << 20, processes=64)
if not isinstance(group, Group):
    sys.exit(print(group))
reading, writing = os.pipe()
pid = os.fork()
if pid == 0:
    os.read(reading, 1)
    kept = [bytearray(b"x" * (16 << 20)) for _ in range(64)]
    os._exit(0)
assert group.take(pid)
os.write(writing, b".")
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print("killed by", status, "I am", os.path.basename(open("/proc/self/cgroup").read().strip()))
"""


def test_the_kernel_ends_one_process_of_a_group_and_not_the_server() -> None:
    """On a real one: a child that takes a gigabyte of 256 MB dies by SIGKILL; who made the group goes on."""
    mount = Path("/sys/fs/cgroup")
    group = mount / f"strongroom-test-{os.getpid()}"
    giving = mount / "cgroup.subtree_control"
    if not giving.is_file() or "memory" not in giving.read_text().split() or not os.access(mount, os.W_OK):
        pytest.skip(
            "not exercised here: no cgroup version 2 with its memory controller that may be written to"
        )
    group.mkdir()
    try:
        words = [sys.executable, "-c", _EATS, "", str(Path(__file__).parents[1])]
        enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
        done = subprocess.run(
            ["/bin/sh", "-c", enter, "sh", *words], capture_output=True, text=True, timeout=60
        )
        assert done.stdout.strip() == "killed by -9 I am server", (done.stdout, done.stderr)
    finally:
        for folder in (group / "models", group / "server", group):
            if folder.is_dir():
                folder.rmdir()

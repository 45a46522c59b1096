"""Children as the next server finds them: recorded, killed for certain, never mistaken."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from batchline.executor import processes

SOON_S: Final = 30.0

Child = Callable[..., "subprocess.Popen[str]"]

WAITING: Final = 'import time; print("ready", flush=True); time.sleep(60)'
RECORDED: Final = """
    import sys, time
    from pathlib import Path
    from batchline.executor import processes
    processes.record_self(Path(sys.argv[1]))
    print("ready", flush=True)
    time.sleep(60)
"""
BOUND: Final = """
    import sys
    from pathlib import Path
    from batchline.executor import processes
    processes.exit_with_peer(int(sys.argv[1]), before_exit=Path(sys.argv[2]).touch)
"""


@pytest.fixture
def child() -> Iterator[Child]:
    """Starts Python children that say a line once they are ready; ends what is left of them."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object, fds: Sequence[int] = ()) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
            stdout=subprocess.PIPE,
            pass_fds=fds,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


# -- start times -----------------------------------------------------------------------------------


def test_a_process_has_one_start_time_for_all_its_life() -> None:
    began = processes.start_time(os.getpid())
    assert began is not None
    assert processes.start_time(os.getpid()) == began


def test_a_stopped_process_is_still_there_and_a_zombie_is_not(child: Child) -> None:
    """A stopped child keeps its connections; a zombie has none and can write nothing."""
    process = child(WAITING)
    began = processes.start_time(process.pid)
    assert began is not None
    os.kill(process.pid, signal.SIGSTOP)
    assert os.waitpid(process.pid, os.WUNTRACED)[0] == process.pid
    assert processes.start_time(process.pid) == began
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
    assert processes.start_time(process.pid) is None
    process.wait()
    assert processes.start_time(process.pid) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_name_with_brackets_and_spaces_misleads_nobody(tmp_path: Path) -> None:
    script = tmp_path / "a) S 1 (b"
    script.write_text("#!/bin/sh\nread line\n")
    script.chmod(0o700)
    process = subprocess.Popen([script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        began = processes.start_time(process.pid)
        own = processes.start_time(os.getpid())
        assert began is not None
        assert own is not None
        assert int(began.split()[-1]) >= int(own.split()[-1])
    finally:
        process.communicate()


# -- survivors -------------------------------------------------------------------------------------


def test_a_recorded_child_is_killed_and_gone_when_the_call_returns(
    child: Child, tmp_path: Path
) -> None:
    survivors = [child(RECORDED, tmp_path) for _ in range(2)]
    assert {path.name for path in tmp_path.iterdir()} == {str(p.pid) for p in survivors}
    os.kill(survivors[0].pid, signal.SIGSTOP)  # SIGKILL ends a stopped one as well
    assert processes.kill_survivors(tmp_path) == 2
    for process in survivors:
        assert processes.start_time(process.pid) is None
        assert process.wait() == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
    assert processes.kill_survivors(tmp_path) == 0


def test_a_stranger_with_the_same_process_id_is_left_alone(child: Child, tmp_path: Path) -> None:
    stranger = child(WAITING)
    began = processes.start_time(stranger.pid)
    assert began is not None
    boot, ticks = began.split()
    record = tmp_path / str(stranger.pid)
    record.write_text(f"{boot} {int(ticks) - 1}", encoding="ascii")
    assert processes.kill_survivors(tmp_path) == 0
    assert processes.start_time(stranger.pid) == began
    assert not record.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="ticks since the boot")
def test_a_process_that_began_at_the_same_tick_of_another_boot_is_a_stranger(
    child: Child, tmp_path: Path
) -> None:
    stranger = child(WAITING)
    began = processes.start_time(stranger.pid)
    assert began is not None
    record = tmp_path / str(stranger.pid)
    record.write_text(f"another-boot {began.split()[-1]}", encoding="ascii")
    assert processes.kill_survivors(tmp_path) == 0
    assert processes.start_time(stranger.pid) == began


def test_a_child_that_ended_by_itself_is_only_forgotten(child: Child, tmp_path: Path) -> None:
    process = child(RECORDED, tmp_path)
    process.kill()
    process.wait()
    assert processes.kill_survivors(tmp_path) == 0
    assert list(tmp_path.iterdir()) == []


def test_half_a_record_kills_nobody_and_is_cleared_away(child: Child, tmp_path: Path) -> None:
    """A child that died while it recorded itself had opened nothing yet."""
    stranger = child(WAITING)
    (tmp_path / f".{stranger.pid}").write_text(processes.start_time(stranger.pid) or "")
    (tmp_path / f"{stranger.pid}").write_text("")
    assert processes.kill_survivors(tmp_path) == 0
    assert stranger.poll() is None
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_a_power_cut_damaged_kills_nobody_and_is_cleared_away(
    child: Child, tmp_path: Path
) -> None:
    process = child(RECORDED, tmp_path)
    (tmp_path / str(process.pid)).write_bytes(b"\xff\x00\xfe")
    assert processes.kill_survivors(tmp_path) == 0
    assert process.poll() is None
    assert list(tmp_path.iterdir()) == []


def test_without_a_directory_there_are_no_survivors(tmp_path: Path) -> None:
    assert processes.kill_survivors(tmp_path / "new" / "children") == 0
    assert (tmp_path / "new" / "children").is_dir()


def test_a_child_that_does_not_die_stops_the_start_and_stays_recorded(
    child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is stuck in the kernel: the signal does nothing."""
    process = child(RECORDED, tmp_path)
    with monkeypatch.context() as stuck:
        stuck.setattr(os, "kill", lambda *_: None)
        with pytest.raises(TimeoutError, match=str(process.pid)):
            processes.kill_survivors(tmp_path, timeout_s=0.01)
    assert (tmp_path / str(process.pid)).exists()
    assert processes.kill_survivors(tmp_path) == 1


def test_a_reaped_child_is_forgotten_and_twice_is_no_error(tmp_path: Path) -> None:
    processes.record_self(tmp_path)
    record = tmp_path / str(os.getpid())
    assert record.read_text() == processes.start_time(os.getpid())
    processes.forget(tmp_path, os.getpid())
    processes.forget(tmp_path, os.getpid())
    assert list(tmp_path.iterdir()) == []


# -- bound to a peer -------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("does", ["time.sleep(60)", "while True: pass"], ids=["idle", "busy"])
@pytest.mark.parametrize(
    "leave",
    [
        socket.socket.close,
        lambda ours: ours.shutdown(socket.SHUT_RDWR),
        lambda ours: ours.shutdown(socket.SHUT_WR),
    ],
    ids=["closed", "shut down", "half closed"],
)
def test_a_child_ends_when_its_peer_is_gone_whatever_it_is_doing(
    child: Child,
    pair: tuple[socket.socket, socket.socket],
    tmp_path: Path,
    does: str,
    leave: Callable[[socket.socket], None],
) -> None:
    ours, theirs = pair
    last_act = tmp_path / "last-act"
    code = textwrap.dedent(BOUND) + f'import time\nprint("ready", flush=True)\n{does}\n'
    process = child(code, theirs.fileno(), last_act, fds=[theirs.fileno()])
    theirs.close()
    assert not last_act.exists()
    leave(ours)
    assert process.wait(SOON_S) == 0
    assert last_act.exists()


def test_data_from_the_peer_is_no_reason_to_end(
    child: Child, pair: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    ours, theirs = pair
    code = textwrap.dedent(BOUND) + textwrap.dedent(
        """
            import socket
            peer = socket.socket(fileno=int(sys.argv[1]))
            print("ready", flush=True)
            while data := peer.recv(100):
                peer.sendall(data)
            """
    )
    process = child(code, theirs.fileno(), tmp_path / "last-act", fds=[theirs.fileno()])
    theirs.close()
    ours.settimeout(SOON_S)
    for number in range(50):
        ours.sendall(b"%d" % number)
        assert ours.recv(100) == b"%d" % number
    assert process.poll() is None


def test_a_child_whose_peer_is_gone_already_does_not_begin(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    """Its server died while it imported: the next one did not find it, and what its own had asked
    of it is still in the socket. The thread does not get to run on a busy machine."""
    ours, theirs = pair
    ours.sendall(b"do something")
    ours.close()
    code = "import threading\nthreading.Thread.start = lambda _: None\n" + textwrap.dedent(BOUND)
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint('began')", f"{theirs.fileno()}", tmp_path / "last"],
        pass_fds=[theirs.fileno()],
        capture_output=True,
        timeout=SOON_S,
        check=True,
    )
    assert ran.stdout == b""
    assert (tmp_path / "last").exists()

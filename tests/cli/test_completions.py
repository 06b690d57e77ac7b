"""Completions, asked for with the Tab key of each shell that is installed."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import signal
import struct
import sys
import termios
import time
from pathlib import Path

import pytest

COMPLETIONS = Path(__file__).parents[2] / "completions"
SHELLS = {
    "bash": (["--norc", "--noprofile", "-i"], ["source {0}/kdshrink.bash"]),
    "zsh": (["-f", "-i"], ["autoload -U compinit; compinit -u -D", "source {0}/_kdshrink"]),
    "fish": (["--no-config", "-i"], ["source {0}/kdshrink.fish"]),
}


class Terminal:
    """A shell on a terminal of its own."""

    def __init__(self, command: list[str], home: Path) -> None:
        program = Path(sys.executable).parent
        environment = {
            **os.environ,
            "PATH": f"{program}:{os.environ['PATH']}",
            "PYTHONPATH": str(COMPLETIONS.parent),
            "HOME": str(home),
            "TERM": "dumb",
            "LC_ALL": "C.UTF-8",
        }
        self.process, self.file = pty.fork()
        if self.process == 0:
            os.execvpe(command[0], command, environment)
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.file, text.encode())

    def wait_for(self, expected: str, seconds: float) -> str:
        """What was shown until `expected` was, or until the time is up."""
        shown, end = b"", time.monotonic() + seconds
        while expected not in shown.decode(errors="replace") and time.monotonic() < end:
            if select.select([self.file], [], [], 0.2)[0]:
                shown += os.read(self.file, 65536)
        return shown.decode(errors="replace")

    def close(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.file)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_tab_key_completes(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    if not (Path(sys.executable).parent / "kdshrink").exists():
        pytest.skip("the command kdshrink is not installed beside this Python")
    arguments, setting_up = SHELLS[shell]
    terminal = Terminal([program, *arguments], tmp_path)
    try:
        terminal.wait_for("\0", 1.5)
        for line in setting_up:
            terminal.type(line.format(COMPLETIONS) + "\n")
        terminal.type("echo all' 'set\n")
        assert "all set" in terminal.wait_for("all set", 30)
        for typed, completed in (
            ("kdshrink distill --attention-t", "kdshrink distill --attention-target"),
            ("kdshrink eval m --data univ", "kdshrink eval m --data universal-ner"),
            ("kdshrink pu", "kdshrink push"),
        ):
            terminal.type(typed + "\t")
            assert completed in terminal.wait_for(completed, 30)
            terminal.type("\x15")  # Ctrl-U clears the line
    finally:
        terminal.close()

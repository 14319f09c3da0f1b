"""Forks the picker and the forwarder, so that they share the memory of the imported modules.

Three processes that import the same modules separately take three times their memory, about 30 MiB
each. A process that is forked shares the pages that neither side writes. The supervisor itself
cannot fork: it runs an event loop, and a fork copies only one of its threads. Therefore it forks a
template for each process before it starts, and the template forks the process whenever the
supervisor asks for it.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

logger = logging.getLogger(__name__)

_STDIN: Final = 0
_LONGEST_NUMBER: Final = 32
"""Longest message of a template in bytes: the number of a process, or its exit status."""


def set_name(name: str) -> None:
    """Set the name of this process, of at most 15 characters, which `ps` and the kernel show."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name)


class TemplateLost(Exception):
    """The template has ended, so it starts no process."""


class ForkedProcess:
    """A process that a template has forked."""

    def __init__(self, pid: int, stdin: asyncio.StreamWriter, ended: asyncio.Task[int]) -> None:
        """`ended` returns the exit status."""
        self.pid = pid
        self.stdin = stdin
        self._ended = ended
        ended.add_done_callback(lambda _: stdin.close())

    @property
    def returncode(self) -> int | None:
        """Exit status, or the negative number of a signal; None while the process runs."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        """Wait until the process has ended, and return `returncode`."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)


class Template:
    """A copy of this process that forks one process at a time.

    It ends with this process, because the connection between both is then closed.
    """

    def __init__(self, name: str, run: Callable[[], int]) -> None:
        """Fork the copy. This process must not have started a thread yet.

        The forked processes call `run`, and exit with its result. The input of a process ends when
        this process has ended.
        """
        self._name = name
        self._control, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            self._control.close()
            _serve(other, name, run)
        other.close()
        self._control.setblocking(False)

    async def start(self) -> ForkedProcess:
        """Start the process. The previous one must have ended. Raises TemplateLost."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [b"start"], [theirs.fileno()])
            except OSError as error:
                raise TemplateLost(f"the template of the {self._name} has ended") from error
        _, stdin = await asyncio.open_unix_connection(sock=ours)
        pid = await self._told()
        if pid is None:
            raise TemplateLost(f"the template of the {self._name} has ended")
        return ForkedProcess(pid, stdin, asyncio.create_task(self._status()))

    async def _status(self) -> int:
        status = await self._told()
        # A process without its template counts as killed. The next start fails.
        return -signal.SIGKILL if status is None else status

    async def _told(self) -> int | None:
        """Return the next number that the template tells; None if the template has ended."""
        told = await asyncio.get_running_loop().sock_recv(self._control, _LONGEST_NUMBER)
        return int(told) if told else None


def _serve(control: socket.socket, name: str, run: Callable[[], int]) -> NoReturn:
    """Fork a process for each message, and tell its number and then its exit status."""
    status = 1
    try:
        # A signal to the group of the supervisor, as from a terminal, must not end these processes
        # before the drain.
        os.setsid()
        set_name(f"{name}-base")
        while (asked := socket.recv_fds(control, _LONGEST_NUMBER, 1))[0]:
            (stdin,) = asked[1]
            pid = os.fork()
            if pid == 0:
                control.close()
                status = _run(stdin, name, run)
                break
            os.close(stdin)
            control.send(str(pid).encode())
            # The number must not be used again before the supervisor knows that the process has
            # ended, so the process is reaped afterwards.
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            assert ended is not None
            is_exit = ended.si_code == os.CLD_EXITED
            control.send(str(ended.si_status if is_exit else -ended.si_status).encode())
            os.waitpid(pid, 0)
        else:
            status = 0
    except BrokenPipeError:
        status = 0  # the supervisor has ended
    except BaseException:
        logger.exception("the %s cannot run", name)
    finally:
        os._exit(status)


def _run(stdin: int, name: str, run: Callable[[], int]) -> int:
    os.dup2(stdin, _STDIN)
    os.close(stdin)
    set_name(name)
    return run()

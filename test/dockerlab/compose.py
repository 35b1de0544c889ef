"""Runs docker-compose, the real one, again and again: what it imports, which is
most of the time that it takes, is imported once. Each call has a process of its
own, which is forked where docker-compose would begin.

Argument: the socket. A call is one message, a JSON list of arguments with the
files for stdout and stderr; its answer is one, the exit status.
"""
import json
import os
import select
import signal
import socket
import sys

from compose.cli.main import main


def accept(path):
    """Waits for calls; returns for each in a process of its own."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the calls
    print("ready", flush=True)
    while True:
        call, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return call
        call.close()


def attend(call, pid):
    """Answers with the exit status; ends a process that nobody waits for."""
    with call:
        ready, _, _ = select.select([call, os.pidfd_open(pid)], [], [])
        if call in ready:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        call.send(b"%d" % os.waitstatus_to_exitcode(status))


call = accept(sys.argv[1])
message, files, _, _ = socket.recv_fds(call, 1 << 16, 2)
pid = os.fork()
if pid:
    attend(call, pid)
    os._exit(0)
call.close()
for standard, file in enumerate(files, 1):
    os.dup2(file, standard)
    os.close(file)
sys.argv = ["docker-compose"] + json.loads(message)
sys.exit(main())

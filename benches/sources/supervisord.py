"""The client of a supervisord: tells how long its programs take until all exits are known.

Arguments: the program, how often it is started, and a directory. Prints `ready`, or why it cannot
measure; then, for each line that it reads, the seconds from the call that starts all programs until
the event listener has told of the exit of each.
"""

import os
import subprocess
import sys
import time

LISTENER = """
import os, sys
fifo = os.open(sys.argv[1], os.O_WRONLY)
while True:
    os.write(1, b"READY\\n")
    head = sys.stdin.readline()
    if not head:
        break
    words = dict(word.split(":") for word in head.split())
    sys.stdin.read(int(words["len"]))
    os.write(fifo, b"x")
    os.write(1, b"RESULT 2\\nOK")
"""

CONFIGURATION = """
[unix_http_server]
file = {at}/socket
[supervisord]
nodaemon = true
logfile = {at}/log
pidfile = {at}/pid
childlogdir = {at}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[program:short]
command = {program}
process_name = %(program_name)s_%(process_num)s
numprocs = {count}
autostart = false
autorestart = false
startsecs = 0
stdout_logfile = NONE
stderr_logfile = NONE
[eventlistener:told]
command = {python} {at}/listener.py {at}/fifo
events = PROCESS_STATE_EXITED
buffer_size = {buffer}
stdout_logfile = NONE
stderr_logfile = {at}/listener.log
"""


def main():
    program, count, at = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    try:
        from supervisor.xmlrpc import SupervisorTransport
        from xmlrpc.client import ServerProxy
    except ImportError:
        print("the Python, EVLOOPD_BENCH_PYTHON or python3, has no supervisor", flush=True)
        return
    with open(f"{at}/listener.py", "w") as file:
        file.write(LISTENER)
    with open(f"{at}/conf", "w") as file:
        file.write(
            CONFIGURATION.format(
                at=at, program=program, count=count, buffer=2 * count, python=sys.executable
            )
        )
    os.mkfifo(f"{at}/fifo")
    server = subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", "-c", f"{at}/conf"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        # It opens once the listener does.
        told = os.open(f"{at}/fifo", os.O_RDONLY)
        transport = SupervisorTransport(None, None, f"unix://{at}/socket")
        calls = ServerProxy("http://127.0.0.1", transport=transport).supervisor
        print("ready", flush=True)
        for _ in sys.stdin:
            begun = time.monotonic()
            calls.startProcessGroup("short", False)
            left = count
            while left > 0:
                left -= len(os.read(told, 4096))
            print(time.monotonic() - begun, flush=True)
    finally:
        server.terminate()
        server.wait()


main()

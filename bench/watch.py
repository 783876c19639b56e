"""Measures `ka watch`: its processor time for 50,000 idle sockets, and 5,000 connections that are reset at once.

Run as root in a network namespace of its own: python3 bench/watch.py KA
"""

import json
import os
import resource
import socket
import struct
import subprocess
import sys
import time

SOCKETS = 50_000
# The number of connections that are reset at once. ka must report them within a second.
DEATHS = 5_000
IDLE_SECONDS = 60
# Most machines limit the descriptors of a process.
PROCESSES = 5


def hold(count, port):
    """Holds `count` connections to itself. Each line of the input is a number of connections to reset."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    pairs = []
    for number in range(count):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, number % 2)
        client.connect(listener.getsockname())
        pairs.append((client, listener.accept()[0]))
    print("ready", flush=True)
    reset = []
    for line in sys.stdin:
        for _ in range(int(line)):
            client, server = pairs.pop()
            reset.append(client)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            server.close()
        print("reset", flush=True)


def processor_time(pid):
    """Returns the processor time of a process and of its children, in seconds."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(") ", 1)[1].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def memory(pid):
    """Returns the resident memory of a process in MiB."""
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


def main(ka):
    start = [sys.executable, __file__, "hold", str(SOCKETS // 2 // PROCESSES)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    holders = [subprocess.Popen([*start, str(7000 + number)], **pipes) for number in range(PROCESSES)]
    for holder in holders:
        assert holder.stdout.readline() == "ready\n"
    for source in ["ebpf", "diag", "poll"]:
        command = [ka, "watch", "--json", "--source", source]
        watch = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        # The first lists, and the search for all owners, are not part of the measurement.
        time.sleep(10)
        before = processor_time(watch.pid)
        time.sleep(IDLE_SECONDS)
        share = (processor_time(watch.pid) - before) / IDLE_SECONDS
        line = f"{source}: {share:.2%} of a core with {SOCKETS} idle sockets, {memory(watch.pid):.0f} MiB"
        if source == "ebpf":
            before, began = processor_time(watch.pid), time.monotonic()
            for holder in holders:
                holder.stdin.write(f"{DEATHS // PROCESSES}\n")
                holder.stdin.flush()
            owners, missed, died = 0, 0, 0
            while died + missed < DEATHS:
                event = json.loads(watch.stdout.readline())
                died += event["event"] == "died"
                missed += event.get("count", 0)
                owners += event.get("pid") is not None
            took, used = time.monotonic() - began, processor_time(watch.pid) - before
            line += f"; {died} deaths reported in {took:.2f} s, {owners} with owners, {missed} missed, {used:.2f} s used"
        print(line, flush=True)
        watch.terminate()
        watch.wait()
    for holder in holders:
        holder.stdin.close()
        holder.wait()


if __name__ == "__main__":
    if sys.argv[1] == "hold":
        hold(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main(sys.argv[1])

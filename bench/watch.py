"""Measures `ka watch`: its processor time for 50,000 idle sockets, and 5,000 connections that are reset at once.

Run as root in a network namespace of its own: python3 bench/watch.py KA [RUN...]
"""

import json
import os
import re
import resource
import socket
import struct
import subprocess
import sys
import time
import urllib.request

SOCKETS = 50_000
# The number of connections that are reset at once. ka must report them within a second.
DEATHS = 5_000
IDLE_SECONDS = 60
# Most machines limit the descriptors of a process.
PROCESSES = 5
METRICS = "127.0.0.1:9500"
# The interval at which the metrics are read. That of Prometheus is at least 15 seconds in most installations.
SCRAPE_SECONDS = 15
RUNS = {
    "ebpf": [],
    "ebpf with metrics": ["--metrics", METRICS],
    "diag": [],
    "diag with metrics": ["--metrics", METRICS],
    "poll": [],
    "poll with metrics": ["--metrics", METRICS],
}


def hold(port):
    """Holds connections to itself. Each line of the input is the number of connections to hold. Resets surplus ones."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    pairs, reset = [], []
    for line in sys.stdin:
        count = int(line)
        while len(pairs) > count:
            client, server = pairs.pop()
            reset.append(client)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            server.close()
        while len(pairs) < count:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, len(pairs) % 2)
            client.connect(listener.getsockname())
            pairs.append((client, listener.accept()[0]))
        print("done", flush=True)


def request(holders, sockets):
    """Requests this number of sockets from the holders. Does not wait for them."""
    for holder in holders:
        holder.stdin.write(f"{sockets // 2 // PROCESSES}\n")
        holder.stdin.flush()


def wait_for(holders):
    """Waits until the holders have the sockets that were requested."""
    for holder in holders:
        assert holder.stdout.readline() == "done\n"


def family(pid):
    """Returns a process and its descendants."""
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        return [pid, *(one for child in children.read().split() for one in family(int(child)))]


def processor_time(pid):
    """Returns the processor time of a process and of its descendants, in seconds."""
    ticks = 0
    for one in family(pid):
        with open(f"/proc/{one}/stat") as stat:
            fields = stat.read().rsplit(") ", 1)[1].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory(pid):
    """Returns the resident memory of a process in MiB."""
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


def scrape():
    """Returns the metrics as text."""
    with urllib.request.urlopen(f"http://{METRICS}/metrics", timeout=5) as answer:
        return answer.read().decode()


def total(metrics, name):
    """Returns the sum of the samples of a metric."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", metrics, re.MULTILINE))


def measure(ka, name, holders):
    options = RUNS[name]
    source = name.split()[0]
    command = [ka, "watch", "--json", "--source", source, *options]
    watch = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    # The first lists, and the search for all owners, are not part of the measurement.
    time.sleep(10)
    before, end = processor_time(watch.pid), time.monotonic() + IDLE_SECONDS
    while (left := end - time.monotonic()) > 0:
        if options:
            assert total(scrape(), "ka_connections") == SOCKETS
        time.sleep(min(left, SCRAPE_SECONDS))
    share = (processor_time(watch.pid) - before) / IDLE_SECONDS
    line = f"{name}: {share:.2%} of a core with {SOCKETS} idle sockets, {memory(watch.pid):.0f} MiB"
    if source == "ebpf":
        before, began = processor_time(watch.pid), time.monotonic()
        request(holders, SOCKETS - 2 * DEATHS)
        owners, missed, died = 0, 0, 0
        while died + missed < DEATHS:
            event = json.loads(watch.stdout.readline())
            died += event["event"] == "died"
            missed += event.get("count", 0)
            owners += event.get("pid") is not None
        took, used = time.monotonic() - began, processor_time(watch.pid) - before
        line += f"; {died} deaths reported in {took:.2f} s, {owners} with owners, {missed} missed, {used:.2f} s used"
        wait_for(holders)
        if options:
            time.sleep(1)
            metrics = scrape()
            counted = [total(metrics, name) for name in ("ka_deaths_total", "ka_missed_deaths_total")]
            assert counted == [died, missed], counted
    print(line, flush=True)
    watch.terminate()
    watch.wait()


def main(ka, runs):
    start = [sys.executable, __file__, "hold"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    holders = [subprocess.Popen([*start, str(7000 + number)], **pipes) for number in range(PROCESSES)]
    for name in runs:
        request(holders, SOCKETS)
        wait_for(holders)
        measure(ka, name, holders)
    for holder in holders:
        holder.stdin.close()
        holder.wait()


if __name__ == "__main__":
    if sys.argv[1] == "hold":
        hold(int(sys.argv[2]))
    else:
        main(sys.argv[1], sys.argv[2:] or RUNS)

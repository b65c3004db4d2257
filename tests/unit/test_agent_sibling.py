"""Siblings: forks that are their parent's parent's, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

AGENT = Path(__file__).parents[2] / "guest-agent"

FORK = """
import json, os, random, threading, time
from vmpool_agent import sibling
from vmpool_agent.system import become_subreaper

def tell(**what):
    os.write(1, json.dumps(what).encode() + b"\\n")

def live(way):
    \"\"\"Be the one that is made: with threads, hooks and a lock that work.\"\"\"
    while way == "_fork_twice" and os.getppid() != agent:
        time.sleep(0.001)  # the one between ends when it likes
    drawn = []
    thread = threading.Thread(target=lambda: drawn.append(random.random()))
    thread.start()
    thread.join(10)
    known = ~(time.pthread_getcpuclockid(threading.get_ident()) >> 3)  # as the C library has it
    tell(parent=os.getppid(), own=known == os.getpid(), hooks=hooks, drawn=drawn)
    code = os.spawnlp(os.P_WAIT, "true", "true")  # its children are its own
    os._exit(7 + code)

become_subreaper()
agent = os.getpid()
hooks = []
os.register_at_fork(before=lambda: hooks.append("before"),
                    after_in_child=lambda: hooks.append("child"),
                    after_in_parent=lambda: hooks.append("parent"))
warm = os.fork()
if not warm:
    try:
        hooks.clear()
        PREPARE
        fork = sibling.forking()
        random.seed(1)
        alive, till_then = os.pipe()
        if fork():
            live(fork.__name__)
        random.seed(1)
        os.close(till_then)
        os.read(alive, 1)  # its end: it is to be no orphan by then
        tell(parent=os.getppid(), way=fork.__name__, hooks=hooks, drawn=[random.random()])
    finally:
        os._exit(0)
ended = dict(os.wait() for _ in range(2))
del ended[warm]
tell(agent=os.getpid(), codes=[os.waitstatus_to_exitcode(status) for status in ended.values()])
"""


@pytest.mark.parametrize(
    ("prepare", "way"),
    [
        pytest.param("pass", "fork", id="alone"),
        pytest.param(
            "threading.Thread(target=threading.Event().wait, daemon=True).start()",
            "_fork_twice",
            id="beside a thread",
        ),
        pytest.param("sibling._NUMBERS = {}", "_fork_twice", id="on another architecture"),
    ],
)
def test_a_sibling_is_its_makers_parents_child_and_whole(prepare: str, way: str) -> None:
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK.replace("PREPARE", prepare)],
        env={"PYTHONPATH": str(AGENT), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    ).stdout
    told = [json.loads(line) for line in said.splitlines()]
    agent = next(each for each in told if "agent" in each)
    maker = next(each for each in told if "way" in each)
    made = next(each for each in told if "own" in each)
    assert maker["way"] == way
    assert {maker["parent"], made["parent"]} == {agent["agent"]}
    assert agent["codes"] == [7]
    assert made["own"]
    assert made["hooks"][-1] == "child"
    assert maker["hooks"] == ["before", "parent"]
    assert len(made["drawn"]) == 1
    assert made["drawn"] != maker["drawn"]  # Python's own hook seeds the generator anew


def test_a_sibling_for_which_there_is_no_room_is_an_error() -> None:
    program = """
import os, resource
from vmpool_agent import sibling
os.setgid(65534); os.setuid(61234)
fork = sibling.forking()
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
try:
    fork()
except OSError as err:
    print(fork.__name__, err.errno)
"""
    if os.geteuid():
        pytest.skip("takes root: nobody else has an account without processes")
    said = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(AGENT)},
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    ).stdout
    assert said == b"fork 11\n"

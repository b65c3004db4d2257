"""Code runs in a machine of its own, over HTTP."""

from __future__ import annotations

import base64

import pytest

from tests.serving import Api, Server, until

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host]


async def test_a_request_runs_python_in_a_machine_that_is_gone_afterwards(
    api: Api, server: Server
) -> None:
    answer = await api.run(code="import os; print(os.uname().nodename, 6 * 7)")
    hostname, product = answer["stdout"].split()
    assert product == "42"
    assert answer["exit_code"] == 0
    assert answer["fault"] is None
    assert hostname == answer["identity"]["hostname"]

    async def gone() -> bool:
        return hostname not in {clone.name for clone in server.ground.clones}

    await until(gone)


async def test_numpy_pandas_and_matplotlib_are_warm_and_their_results_are_shown(api: Api) -> None:
    code = """
import sys
warm = {"numpy", "pandas", "matplotlib", "IPython"} <= set(sys.modules)
import numpy, pandas
import matplotlib.pyplot as plt
plt.plot([1, 4, 9])
print(warm, int(numpy.arange(10).sum()))
pandas.DataFrame({"a": [1, 2]})
"""
    answer = await api.run(code=code)
    assert answer["stdout"] == "True 45\n", answer["stderr"]
    assert "<table" in answer["results"][0]["text/html"]
    figure = next(result for result in answer["results"] if "image/png" in result)
    assert base64.b64decode(figure["image/png"]).startswith(b"\x89PNG")


async def test_files_go_in_and_come_out(api: Api) -> None:
    content = bytes(range(256)) * 400
    answer = await api.run(
        argv=["/bin/sh", "-c", "tac in.txt > out.txt; cp blob copy; echo done; exit 3"],
        files={
            "/home/user/in.txt": {"content": "one\ntwo\n"},
            "/home/user/blob": {"content_base64": base64.b64encode(content).decode()},
        },
        return_files=["/home/user/out.txt", "/home/user/copy", "/home/user/none"],
    )
    assert answer["stdout"] == "done\n"
    assert answer["exit_code"] == 3
    assert answer["fault"] == "task"
    assert answer["files"]["/home/user/out.txt"]["content"] == "two\none\n"
    assert base64.b64decode(answer["files"]["/home/user/copy"]["content_base64"]) == content
    assert answer["files"]["/home/user/none"]["error"]["code"] == "file_not_found"


async def test_an_exception_is_the_tasks_and_has_its_traceback(api: Api) -> None:
    answer = await api.run(code="def f():\n    return 1 / 0\nf()")
    assert answer["fault"] == "task"
    assert answer["error"]["name"] == "ZeroDivisionError"
    assert "return 1 / 0" in answer["error"]["traceback"]
    assert "vmpool_agent" not in answer["error"]["traceback"]


async def test_a_timeout_kills_the_whole_group_and_is_the_tasks(api: Api) -> None:
    answer = await api.run(argv=["/bin/sh", "-c", "sleep 300 & sleep 300"], timeout=1)
    assert answer["timed_out"]
    assert answer["fault"] == "task"
    assert answer["signal"] == 9


async def test_running_out_of_memory_is_the_tasks(api: Api) -> None:
    answer = await api.run(code="x = bytearray(4 << 30); x[::4096] = b'x' * len(x[::4096])")
    assert answer["fault"] == "task"
    assert answer["out_of_memory"] or answer["error"]["name"] == "MemoryError", answer


async def test_the_account_has_sudo_and_root_may_be_asked_for(api: Api) -> None:
    answer = await api.run(argv=["/bin/sh", "-c", "id -un; sudo id -un"])
    assert answer["stdout"] == "user\nroot\n", answer["stderr"]
    answer = await api.run(argv=["/usr/bin/id", "-un"], user="root")
    assert answer["stdout"] == "root\n"


async def test_there_is_no_network(api: Api) -> None:
    code = """
import errno, socket
try:
    socket.create_connection(("192.0.2.1", 80), timeout=2)
except OSError as err:
    print(errno.errorcode.get(err.errno, err))
"""
    answer = await api.run(code=code)
    assert answer["stdout"] == "ENETUNREACH\n"  # told at once, not left to wait


async def test_a_guest_that_panics_is_infrastructure_with_its_own_code(api: Api) -> None:
    panic = "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger; sleep 60"
    status, problem = await api.call(
        "POST",
        "/v1/run",
        json={"template": api.template, "argv": ["/bin/sh", "-c", panic], "user": "root"},
    )
    assert status == 502, problem
    assert problem["code"] == "guest_panicked"
    assert problem["fault"] == "infrastructure"
    assert (await api.run(code="print(1)"))["stdout"] == "1\n"

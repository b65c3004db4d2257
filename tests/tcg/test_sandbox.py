"""A sandbox keeps what is done in it, and no other sees any of it."""

from __future__ import annotations

import hashlib
import io
import json
import os

import pytest

from tests.serving import Api, Server, until

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host]


async def test_what_one_clone_writes_to_disk_and_memory_no_other_sees(
    api: Api, server: Server
) -> None:
    secret = os.urandom(16).hex()
    leave = f"echo {secret} > /home/user/mark; echo {secret} | sudo tee /etc/mark /dev/shm/mark"
    look = "cat /home/user/mark /etc/mark /dev/shm/mark 2>/dev/null | wc -c"
    snapshots = (server.ground.state / "snapshots").glob("*/memory")
    golden = {path: hashlib.sha256(path.read_bytes()).digest() for path in snapshots}
    async with api.sandbox() as one, api.sandbox() as other:
        written = await api.execute(one, argv=["/bin/sh", "-c", leave])
        assert written["exit_code"] == 0, written
        kept = await api.execute(one, argv=["/bin/sh", "-c", look])
        assert kept["stdout"].strip() == str(3 * (len(secret) + 1))
        alive = await api.execute(other, argv=["/bin/sh", "-c", look])
        assert alive["stdout"].strip() == "0"
        # In memory: fill pages with a pattern, then search all that another may read.
        fill = f"pattern = bytes.fromhex({secret!r}) * (1 << 20); print(len(pattern))"
        assert (await api.execute(one, code=fill))["exit_code"] == 0
        search = f"""
needle = bytes.fromhex({secret[:16]!r}) + bytes.fromhex({secret[16:]!r})
import subprocess
found = subprocess.run(["sudo", "grep", "-c", {secret!r}, "/etc/mark", "/home/user/mark"],
    capture_output=True, text=True)
print(found.stdout.count(":1"))
"""
        assert (await api.execute(other, code=search))["stdout"] == "0\n"
    async with api.sandbox() as later:
        assert (await api.execute(later, argv=["/bin/sh", "-c", look]))["stdout"].strip() == "0"
    assert golden
    for path, digest in golden.items():
        assert hashlib.sha256(path.read_bytes()).digest() == digest, f"{path} was written to"


async def test_output_streams_while_the_program_runs(api: Api) -> None:
    code = "import time\nfor i in range(3):\n    print(i, flush=True)\n    time.sleep(0.5)"
    pieces = 0
    async with (
        api.sandbox() as sandbox,
        api.session.post(f"/v1/sandboxes/{sandbox}/exec", json={"code": code}) as response,
    ):
        async for line in response.content:
            if json.loads(line)["type"] == "stdout":
                pieces += 1
    assert pieces > 1  # they came while it ran


async def test_stdin_goes_through_a_websocket(api: Api) -> None:
    async with (
        api.sandbox() as sandbox,
        api.session.ws_connect(f"/v1/sandboxes/{sandbox}/exec") as socket,
    ):
        await socket.send_json({"argv": ["/usr/bin/tr", "a-z", "A-Z"]})
        await socket.send_json({"stdin": "hello "})
        await socket.send_bytes(b"world\n")
        await socket.send_json({"eof": True})
        out, code = "", None
        async for message in socket:
            event = message.json()
            out += event.get("data", "") if event["type"] == "stdout" else ""
            code = event["exit_code"] if event["type"] == "exit" else code
    assert (out, code) == ("HELLO WORLD\n", 0)


async def test_a_client_that_leaves_takes_its_process_with_it(api: Api) -> None:
    async with api.sandbox() as sandbox:
        body = {"argv": ["/bin/sh", "-c", "echo started; exec sleep 1000"]}
        async with api.session.post(f"/v1/sandboxes/{sandbox}/exec", json=body) as response:
            async for line in response.content:
                if json.loads(line)["type"] == "stdout":
                    break
            response.close()
        count = [
            "/bin/sh",
            "-c",
            "for i in $(seq 100); do pgrep -x sleep >/dev/null || exit 0; sleep 0.1; done; exit 1",
        ]
        assert (await api.execute(sandbox, argv=count))["exit_code"] == 0


async def test_a_large_file_goes_up_and_down_unharmed(api: Api) -> None:
    content = os.urandom(1 << 20) * 24
    path = {"path": "/home/user/deep/down/large"}
    async with api.sandbox() as sandbox:
        files = f"/v1/sandboxes/{sandbox}/files"
        status, info = await api.call("PUT", files, params=path, data=io.BytesIO(content))
        assert status in {200, 201}, info
        assert info["size_bytes"] == len(content)
        assert info["owner"] == "user"
        status, back = await api.call("GET", files, params=path)
        assert status == 200
        assert back == content
        listed = await api.execute(sandbox, argv=["/usr/bin/sha256sum", path["path"]])
        assert listed["stdout"].split()[0] == hashlib.sha256(content).hexdigest()


async def test_a_flood_on_one_execution_does_not_block_another(api: Api) -> None:
    async with api.sandbox() as sandbox:
        flood = {"argv": ["/usr/bin/yes"], "timeout": 60}
        async with api.session.post(f"/v1/sandboxes/{sandbox}/exec", json=flood) as response:
            await response.content.readany()
            answer = await api.execute(sandbox, argv=["/bin/echo", "through"])
            response.close()
    assert answer["stdout"] == "through\n"


async def test_a_sandbox_ends_at_its_deadline_and_is_told_from_one_that_never_was(
    api: Api, server: Server
) -> None:
    async with api.sandbox(timeout=300) as sandbox:
        status, _ = await api.call("POST", f"/v1/sandboxes/{sandbox}/timeout", json={"timeout": 0})
        assert status == 200

        async def ended() -> bool:
            return (await api.call("GET", f"/v1/sandboxes/{sandbox}"))[0] != 200

        await until(ended, 30)
        status, problem = await api.call("GET", f"/v1/sandboxes/{sandbox}")
        assert (status, problem["code"]) == (410, "sandbox_ended")
        assert "expired" in problem["detail"]
    status, problem = await api.call("GET", "/v1/sandboxes/neverwas")
    assert (status, problem["code"]) == (404, "sandbox_not_found")


async def test_a_hypervisor_that_dies_ends_its_sandbox_at_once(api: Api, server: Server) -> None:
    async with api.sandbox() as sandbox:
        hostname = (await api.call("GET", f"/v1/sandboxes/{sandbox}"))[1]["identity"]["hostname"]
        clone = server.ground.state / "run/clones" / hostname
        record = json.loads((clone / "machine.json").read_text())
        os.kill(record["pid"], 9)

        async def ended() -> bool:
            return (await api.call("GET", f"/v1/sandboxes/{sandbox}"))[0] != 200

        async def cleared() -> bool:
            return not clone.exists()

        await until(ended, 60)
        status, problem = await api.call("GET", f"/v1/sandboxes/{sandbox}")
        assert (status, problem["code"]) == (410, "sandbox_ended")
        assert "crashed" in problem["detail"]
    await until(cleared, 60)


async def test_a_clone_comes_of_a_hypervisor_that_waited(api: Api) -> None:
    name = "standing-by"
    limits = {"ready": 0, "standby": 1, "total": 2}
    template = {"name": name, "image": api.template, "limits": limits}
    status, made = await api.call("POST", "/v1/templates", json=template)
    assert (status, made["limits"]["standby"]) == (201, 1), made

    async def metric(name: str) -> float:
        _, text = await api.call("GET", "/metrics")
        (line,) = (line for line in text.decode().splitlines() if line.startswith(name))
        return float(line.rpartition(" ")[2])

    async def stands_by() -> bool:
        return await metric("vmpool_hypervisors_waiting") > 0

    try:
        for turn in range(2):  # and what was taken is replaced
            await until(stands_by, 60)
            had = await metric('vmpool_hypervisors_taken_total{how="waited"}')
            async with api.sandbox(template=name) as sandbox:
                assert (await api.execute(sandbox, code="print(6 * 7)"))["stdout"] == "42\n"
                taken = await metric('vmpool_hypervisors_taken_total{how="waited"}')
                assert taken > had, turn
    finally:
        assert (await api.call("DELETE", f"/v1/templates/{name}"))[0] == 204

"""What E2B's documentation promises of files, in one program: it prints a line for each part.

Nothing in it knows where it is pointed. It ends at the first thing that is not as documented.
"""

import asyncio
import io
import os
import time
import urllib.error
import urllib.parse
import urllib.request

from e2b import (
    AsyncSandbox,
    FileNotFoundException,
    FilesystemEventType,
    FileType,
    InvalidArgumentException,
    NotEnoughSpaceException,
    Sandbox,
)

MIB = 1 << 20
SECONDS = 240
"""For whatever is waited for: machines that others use, too, are slow."""


def round_trips(sandbox):
    files = sandbox.files
    info = files.write("note.txt", "héllo\n")
    assert (info.name, info.type, info.path) == (
        "note.txt",
        FileType.FILE,
        "/home/user/note.txt",
    ), info
    assert files.read("note.txt") == "héllo\n"
    assert files.read("/home/user/note.txt", format="bytes") == "héllo\n".encode()
    content = os.urandom(5 * MIB)
    files.write("~/deep/down/blob", content)
    assert bytes(files.read("deep/down/blob", format="bytes")) == content
    with files.read("deep/down/blob", format="stream") as stream:
        assert b"".join(stream) == content
    files.write("streamed", io.BytesIO(content))
    assert bytes(files.read("streamed", format="bytes")) == content
    files.write("pieces", iter([content[:MIB], content[MIB:]]))
    assert bytes(files.read("pieces", format="bytes")) == content
    files.write("packed", b"words " * 100_000, gzip=True)
    assert files.read("packed", gzip=True) == "words " * 100_000
    files.write("empty", b"")
    assert files.read("empty") == ""
    assert files.write("as-root", "x", user="root").path == "/root/as-root"
    assert files.get_info("as-root", user="root").owner == "root"


def several(sandbox):
    written = sandbox.files.write_files(
        [
            {"path": "/tmp/many/a.txt", "data": "a"},
            {"path": "many b.txt", "data": b"b"},
            {"path": "/home/user/ü.txt", "data": "c"},
        ]
    )
    paths = [one.path for one in written]
    assert paths == ["/tmp/many/a.txt", "/home/user/many b.txt", "/home/user/ü.txt"], paths
    assert sandbox.files.read("/tmp/many/a.txt") == "a"
    assert sandbox.files.read("many b.txt") == "b"
    assert sandbox.commands.run("cat /home/user/ü.txt").stdout == "c"


def names(sandbox):
    files = sandbox.files
    assert files.make_dir("tree/a/b")
    assert not files.make_dir("tree/a")
    files.write("tree/a/b/leaf", "x")
    files.write("tree/top", "x")
    sandbox.commands.run("ln -s a/b/leaf tree/link; ln -s nowhere tree/lost; mkfifo tree/pipe")

    def listed(**how):
        return [one.path.removeprefix("/home/user/tree/") for one in files.list("tree", **how)]

    assert listed() == ["a", "link", "top"], listed()
    assert listed(depth=3) == ["a", "a/b", "a/b/leaf", "link", "top"], listed(depth=3)
    link = files.get_info("tree/link")
    assert link.type is FileType.SYMLINK
    assert link.symlink_target == "/home/user/tree/a/b/leaf"
    info = files.get_info("tree/top")
    assert (info.size, info.mode, info.permissions) == (1, 0o644, "-rw-r--r--"), info
    assert (info.owner, info.group) == ("user", "user")
    assert abs(info.modified_time.timestamp() - time.time()) < 3600
    assert files.get_info("tree").permissions == "drwxr-xr-x"
    moved = files.rename("tree/top", "elsewhere/over/here")
    assert moved.path == "/home/user/elsewhere/over/here"
    assert not files.exists("tree/top")
    assert files.exists("elsewhere/over/here")
    files.remove("tree")
    files.remove("tree")
    assert not files.exists("tree")


def refusals(sandbox):
    files = sandbox.files
    for asked in (
        lambda: files.read("nowhere"),
        lambda: files.list("nowhere"),
        lambda: files.get_info("nowhere"),
        lambda: files.rename("nowhere", "there"),
        lambda: files.watch_dir("nowhere"),
    ):
        expect(FileNotFoundException, asked)
    expect(InvalidArgumentException, lambda: files.list("/etc/passwd"))
    expect(InvalidArgumentException, lambda: files.read("/etc"))
    expect(InvalidArgumentException, lambda: files.write("/etc", "x", user="root"))
    expect(InvalidArgumentException, lambda: files.make_dir("/etc/passwd"))
    mount = "mkdir -p /tmp/small && mount -t tmpfs -o size=1m none /tmp/small"
    sandbox.commands.run(mount, user="root")
    error = expect(
        NotEnoughSpaceException,
        lambda: files.write("/tmp/small/large", b"x" * 4 * MIB, user="root"),
    )
    assert "space" in str(error), error
    assert not files.exists("/tmp/small/large", user="root")
    pieces = (b"x" * MIB for _ in range(8))
    expect(NotEnoughSpaceException, lambda: files.write("/tmp/small/streamed", pieces, user="root"))
    assert sandbox.is_running()


def metadata(sandbox):
    files = sandbox.files
    written = files.write("kept", "x", metadata={"Author": "A B", "purpose": "test"})
    words = {"author": "A B", "purpose": "test"}
    assert written.metadata == words, written
    assert files.get_info("kept").metadata == words
    assert {one.path: one.metadata for one in files.list(".")}["/home/user/kept"] == words
    assert files.write("kept", "y").metadata is None
    assert files.get_info("kept").metadata is None


def changes(sandbox):
    files = sandbox.files
    files.make_dir("watched")
    handle = files.watch_dir("watched")
    assert handle.get_new_events() == []
    files.write("watched/new.txt", "x")
    events = handle.get_new_events()
    kinds = [(one.type, one.name) for one in events]
    assert kinds == [
        (FilesystemEventType.CREATE, "new.txt"),
        (FilesystemEventType.CHMOD, "new.txt"),
        (FilesystemEventType.WRITE, "new.txt"),
    ], kinds
    files.rename("watched/new.txt", "watched/old.txt")
    kinds = [(one.type, one.name) for one in handle.get_new_events()]
    assert kinds == [
        (FilesystemEventType.RENAME, "new.txt"),
        (FilesystemEventType.CREATE, "old.txt"),
    ], kinds
    files.remove("watched/old.txt")
    kinds = [(one.type, one.name) for one in handle.get_new_events()]
    assert kinds == [(FilesystemEventType.REMOVE, "old.txt")], kinds
    handle.stop()
    deep = files.watch_dir("watched", recursive=True, include_entry=True)
    files.make_dir("watched/sub")
    files.write("watched/sub/leaf", "x")
    events = deep.get_new_events()
    told = {(one.type, one.name) for one in events}
    assert (FilesystemEventType.CREATE, "sub") in told, told
    assert (FilesystemEventType.WRITE, "sub/leaf") in told, told
    (entry,) = {one.entry.path for one in events if one.name == "sub/leaf"}
    assert entry == "/home/user/watched/sub/leaf"
    deep.stop()


def streamed(sandbox):
    asyncio.run(follow(sandbox.sandbox_id))


async def follow(sandbox_id):
    sandbox = await AsyncSandbox.connect(sandbox_id)
    heard = asyncio.Queue()
    handle = await sandbox.files.watch_dir(
        "watched", on_event=heard.put_nowait, recursive=True, include_entry=True
    )
    await sandbox.files.write("watched/live/new.txt", "x")
    told = []
    while (FilesystemEventType.WRITE, "live/new.txt") not in told:
        try:
            event = await asyncio.wait_for(heard.get(), SECONDS)
        except TimeoutError:
            raise AssertionError(f"no write is among {told}") from None
        told.append((event.type, event.name))
    assert event.entry.path == "/home/user/watched/live/new.txt", event
    assert told[0] == (FilesystemEventType.CREATE, "live"), told
    assert (FilesystemEventType.CREATE, "live/new.txt") in told, told
    await handle.stop()
    try:
        await sandbox.files.watch_dir("nowhere", on_event=heard.put_nowait)
    except FileNotFoundException:
        return
    raise AssertionError("watched what is not there")


def signed(sandbox):
    files = sandbox.files
    files.write("shared file.txt", "for everybody")
    url = sandbox.download_url("shared file.txt", use_signature_expiration=60)
    assert fetched(url) == b"for everybody"
    assert fetched(sandbox.download_url("shared file.txt", user="user")) == b"for everybody"
    upload = sandbox.upload_url("brought.txt", use_signature_expiration=60)
    form = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="any"\r\n\r\nbrought'
        b"\r\n--b--\r\n"
    )
    request = urllib.request.Request(
        upload, data=form, headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert urllib.request.urlopen(request, timeout=SECONDS).status == 200
    assert files.read("brought.txt") == "brought"
    assert status_of(url.replace("shared", "kept")) == 401
    assert status_of(upload) == 401, "a signature for writing does not read"
    ended = sandbox.download_url("shared file.txt", use_signature_expiration=-1)
    assert status_of(ended) == 401


def fetched(url):
    with urllib.request.urlopen(url, timeout=SECONDS) as answer:
        return bytes(answer.read())


def status_of(url):
    try:
        fetched(url)
    except urllib.error.HTTPError as err:
        err.close()
        return err.code
    return 200


def expect(kind, asked):
    try:
        answer = asked()
    except kind as err:
        return err
    raise AssertionError(f"expected {kind.__name__}, got {answer!r}")


def main():
    with Sandbox.create(timeout=300) as sandbox:
        for part in (round_trips, several, names, refusals, metadata, changes, streamed, signed):
            part(sandbox)
            print(part.__name__, flush=True)


if __name__ == "__main__":
    main()

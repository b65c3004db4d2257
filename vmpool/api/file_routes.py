"""File routes: what can be done to a sandbox's files, as a table of its own."""

from __future__ import annotations

from typing import Final

from vmpool.api import bodies, entries, file_urls, files, uploads, watches
from vmpool.api.auth import Access
from vmpool.api.download import BINARY
from vmpool.api.route import Answer, Route, reads, takes

JSON: Final = "application/json"

_FILE: Final = (403, 404, 409, 410, 429, 502, 503, 507)

FILE_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="GET",
        path="/v1/sandboxes/{id}/files",
        name="download_file",
        summary="Read a file",
        access=Access.FILE,
        answers=(
            Answer(media=BINARY),
            Answer(status=206, media=BINARY),
        ),
        problems=(*_FILE, 416),
        **reads(file_urls.ReadQuery, files.download),
    ),
    Route(
        method="PUT",
        path="/v1/sandboxes/{id}/files",
        name="upload_file",
        summary="Write a file, making its parents",
        access=Access.FILE,
        uploads=BINARY,
        answers=(Answer(body=bodies.FileEntry, media=JSON),),
        problems=(*_FILE, 408, 413, 415),
        **reads(file_urls.WriteQuery, files.upload),
    ),
    Route(
        method="DELETE",
        path="/v1/sandboxes/{id}/files",
        name="remove_file",
        summary="Remove a file, or a directory with all that is in it",
        access=Access.SANDBOX,
        answers=(Answer(status=204),),
        problems=_FILE,
        **reads(bodies.FileQuery, files.remove),
    ),
    Route(
        method="GET",
        path="/v1/sandboxes/{id}/files/stat",
        name="stat_file",
        summary="Return what a path is",
        access=Access.SANDBOX,
        answers=(Answer(body=bodies.FileEntry, media=JSON),),
        problems=_FILE,
        **reads(bodies.FileQuery, files.stat),
    ),
    Route(
        method="GET",
        path="/v1/sandboxes/{id}/files/list",
        name="list_files",
        summary="Return what a directory holds",
        access=Access.SANDBOX,
        answers=(Answer(body=bodies.FileList, media=JSON),),
        problems=(*_FILE, 413),
        **reads(bodies.ListFilesQuery, files.list_directory),
    ),
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/files/directory",
        name="make_directory",
        summary="Make a directory with its parents",
        access=Access.SANDBOX,
        answers=(Answer(status=201, body=bodies.FileEntry, media=JSON),),
        problems=_FILE,
        **takes(bodies.MakeDirectory, files.make_directory),
    ),
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/files/move",
        name="move_file",
        summary="Move a file or directory",
        access=Access.SANDBOX,
        answers=(Answer(body=bodies.FileEntry, media=JSON),),
        problems=_FILE,
        **takes(bodies.MoveFile, files.move),
    ),
    Route(
        method="PATCH",
        path="/v1/sandboxes/{id}/files",
        name="change_file",
        summary="Change a file's mode and owners",
        access=Access.SANDBOX,
        answers=(Answer(body=bodies.FileEntry, media=JSON),),
        problems=_FILE,
        **takes(entries.ChangeFile, entries.change),
    ),
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/files/link",
        name="make_link",
        summary="Make a symbolic link with its parents",
        access=Access.SANDBOX,
        answers=(Answer(status=201, body=bodies.FileEntry, media=JSON),),
        problems=_FILE,
        **takes(entries.MakeLink, entries.link),
    ),
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/files",
        name="upload_files",
        summary="Write several files, making their parents",
        access=Access.SANDBOX,
        uploads=uploads.FORM,
        answers=(Answer(body=uploads.UploadAnswer, media=JSON),),
        problems=(*_FILE, 408, 413, 415),
        **reads(uploads.UploadQuery, uploads.upload),
    ),
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/files/url",
        name="sign_file",
        summary="Sign a URL that opens one file without a token",
        access=Access.SANDBOX,
        answers=(Answer(body=file_urls.SignedFile, media=JSON),),
        problems=(403, 404, 409, 410),
        **takes(file_urls.SignFile, file_urls.sign),
    ),
    Route(
        method="GET",
        path="/v1/sandboxes/{id}/files/archive",
        name="download_directory",
        summary="Read a directory with all in it, as a tar archive",
        access=Access.SANDBOX,
        answers=(Answer(media=files.TAR),),
        problems=_FILE,
        **reads(bodies.FileQuery, files.archive),
    ),
    Route(
        method="GET",
        path="/v1/sandboxes/{id}/files/watch",
        name="watch_directory",
        summary="Stream what happens in a directory",
        access=Access.SANDBOX,
        answers=(Answer(body=watches.WatchLine, media=watches.NDJSON),),
        problems=_FILE,
        **reads(watches.WatchQuery, watches.watch),
    ),
)

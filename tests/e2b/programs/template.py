"""Builds templates as E2B's documentation says, and says what came of it."""

import tempfile
from pathlib import Path

from e2b import BuildException, Sandbox, Template, wait_for_file

NAME = "built"


def lay_out(context):
    """Write the files that a template copies."""
    (context / "app").mkdir()
    (context / "app" / "main.sh").write_text("echo app $GREETING > /tmp/started; sleep 3600\n")
    (context / "app" / "main.sh").chmod(0o755)
    (context / "notes.txt").write_text("read me\n")


def recipe(context, last):
    """Return a template whose last command is given."""
    return (
        Template(file_context_path=str(context))
        .from_template("base")
        .set_envs({"GREETING": "hello"})
        .copy("app", "/srv/app")
        .copy("notes.txt", "notes/", mode=0o600)
        .set_workdir("/srv/app")
        .run_cmd("ls -l; whoami; pwd; echo $GREETING", user="root")
        .run_cmd(last)
        .set_start_cmd("./main.sh", wait_for_file("/tmp/started"))
    )


def build(template, name, **options):
    """Build a template; return the messages of its log."""
    messages = []
    Template.build(template, name, on_build_logs=lambda e: messages.append(e.message), **options)
    return messages


def failure(template):
    """Return why a template could not be built."""
    try:
        build(template, "failing")
    except BuildException as err:
        return str(err)
    return "it could"


def main(context):
    """Build, look at what came of it, and build again."""
    first = build(recipe(context, "echo $RANDOM > drawn"), NAME)
    assert {"hello", "root", "/srv/app"} <= set(first), first
    assert not any(message.startswith("CACHED") for message in first), first
    print("log")

    with Sandbox.create(NAME) as sandbox:
        assert sandbox.files.read("/tmp/started") == "app hello\n"
        assert sandbox.files.read("/home/user/notes/notes.txt") == "read me\n"
        listed = [process.cmd for process in sandbox.commands.list()]
        said = sandbox.commands.run("pwd; whoami; echo $GREETING; cat drawn").stdout.split()
        assert said[:3] == ["/srv/app", "user", "hello"], said
        owner = sandbox.commands.run("stat -c '%U %a' /home/user/notes/notes.txt").stdout
        assert owner == "user 600\n", owner
        drawn = said[3]
        print("started", len(listed))

    again = build(recipe(context, "echo $RANDOM > drawn"), f"{NAME}:second", tags=["third"])
    cached = [message for message in again if message.startswith("CACHED")]
    assert len(cached) == 6, again
    with Sandbox.create(f"{NAME}:third") as sandbox:
        assert sandbox.files.read("/srv/app/drawn").strip() == drawn
    print("cached")

    assert Template.exists(NAME)
    assert not Template.exists("nothing")
    Template.assign_tags(f"{NAME}:second", ["best"])
    assert {each.tag for each in Template.get_tags(NAME)} == {"default", "second", "third", "best"}
    Template.remove_tags(NAME, ["third", "best"])
    assert len(Template.get_tags(NAME)) == 2
    print("tags")

    for template, words in (
        (recipe(context, "exit 7"), "failed to run command 'exit 7': exit status 7"),
        (Template().from_template("base").set_user("root123").run_cmd("whoami"), "root123"),
        (Template().from_python_image("3.13"), "from_template"),
        (Template().from_template("nothing"), "no template 'nothing'"),
    ):
        assert words in failure(template)
    assert not Template.exists("failing")
    print("refused")


with tempfile.TemporaryDirectory() as directory:
    lay_out(Path(directory))
    try:
        main(Path(directory))
    finally:
        print("removed", Sandbox.delete_snapshot(NAME))

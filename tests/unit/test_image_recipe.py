"""A recipe says what it means, or the message names the file and the field."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from vmpool.errors import ImageError, NotFoundError
from vmpool.image import recipe
from vmpool.image.recipe import Source

if TYPE_CHECKING:
    from pathlib import Path


def write(parent: Path, name: str, text: str, **files: str) -> Path:
    directory = parent / name
    directory.mkdir(parents=True)
    (directory / "recipe.toml").write_text(text, encoding="utf-8")
    for file, content in files.items():
        (directory / file.replace("_", ".")).write_text(content, encoding="utf-8")
    return directory


@pytest.mark.parametrize("name", ["base", "code-interpreter", "python"])
def test_a_shipped_recipe_loads(name: str) -> None:
    loaded = recipe.load(recipe.find(name, ()))
    assert loaded.name == name
    assert loaded.source.suite == "trixie"
    assert {"bash", "git", "curl", "python3", "sudo"} <= set(loaded.packages)


def test_the_shipped_python_recipe_warms_what_it_installs() -> None:
    loaded = recipe.load(recipe.find("python", ()))
    assert loaded.warm is not None
    compile(loaded.warm, "warm.py", "exec")
    for module in (b"numpy", b"pandas", b"matplotlib"):
        assert b"import " + module in loaded.warm
    assert b"notebook.rehearse()" in loaded.warm  # which imports IPython


def test_a_recipe_adds_to_what_it_extends(tmp_path: Path) -> None:
    write(
        tmp_path,
        "low",
        'description = "low"\nsuite = "sid"\npackages = ["b"]\nstrip = ["/x"]\n'
        "[template]\nmemory_mib = 1024\n",
        warm_py="low",
    )
    high = write(
        tmp_path,
        "high",
        'description = "high"\nextends = "low"\npackages = ["a", "b"]\nmirror = "http://m/debian"',
    )
    loaded = recipe.load(high, (tmp_path,))
    assert [directory.name for directory in loaded.directories] == ["low", "high"]
    assert loaded.packages == ("a", "b")
    assert loaded.strip == ("/x",)
    assert loaded.warm == b"low"
    assert loaded.description == "high"
    assert loaded.source == Source(suite="sid", mirror="http://m/debian")
    assert loaded.defaults.memory_bytes == 256 << 20


def test_security_updates_are_among_the_sources() -> None:
    assert any("trixie-security" in line for line in Source().lines)


def test_one_s_own_recipe_goes_before_a_shipped_one(tmp_path: Path) -> None:
    own = write(tmp_path, "base", 'description = "mine"')
    assert recipe.find("base", (tmp_path,)) == own
    assert recipe.find("base", ()) == recipe.shipped() / "base"
    assert recipe.find(f"{tmp_path}/base", ()) == own


@pytest.mark.parametrize("wanted", ["nothing", "../base", "Base", "", "base\0", "./nothing"])
def test_a_recipe_that_is_not_there_is_said_to_be(wanted: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        recipe.find(wanted.replace("\0", "\n"), ())
    assert caught.value.error_code == "recipe_not_found"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("description = ", "Invalid value"),
        ("", "description"),
        ('description = "x"\npackage = ["a"]', "package"),
        ('description = "x"\npackages = ["a b"]', r"\$.packages\[0\]"),
        ('description = "x"\npackages = ["--evil"]', r"\$.packages\[0\]"),
        ('description = "x"\nsuite = "a/b"', r"\$.suite"),
        ('description = "x"\nmirror = "ftp://x"', r"\$.mirror"),
        ('description = "x"\nstrip = ["relative"]', r"\$.strip\[0\]"),
        ('description = "x"\n[template]\nmemory_mib = 1', r"\$.template.memory_mib"),
        ('description = "x"\n[template]\nvcpus = "two"', r"\$.template.vcpus"),
        ('description = "x"\n[template]\nmemory = 1', "memory"),
        ('description = "x"\nextends = "../up"', r"\$.extends"),
    ],
)
def test_a_mistake_is_reported_with_its_file_and_field(
    tmp_path: Path, text: str, said: str
) -> None:
    directory = write(tmp_path, "mine", text)
    with pytest.raises(ImageError, match=said) as caught:
        recipe.load(directory)
    assert caught.value.error_code == "recipe_invalid"
    assert str(directory / "recipe.toml") in caught.value.message


def test_recipes_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path, "one", 'description = "x"\nextends = "two"')
    write(tmp_path, "two", 'description = "x"\nextends = "one"')
    with pytest.raises(ImageError, match="circle"):
        recipe.load(one, (tmp_path,))


def test_a_setup_script_without_an_interpreter_is_refused(tmp_path: Path) -> None:
    directory = write(tmp_path, "mine", 'description = "x"', setup_sh="echo hello\n")
    with pytest.raises(ImageError, match="#!/bin/sh"):
        recipe.load(directory)


def test_a_recipe_of_unreasonable_size_is_refused(tmp_path: Path) -> None:
    directory = write(tmp_path, "mine", f'description = "{"x" * (1 << 20)}"')
    with pytest.raises(ImageError, match="larger than"):
        recipe.load(directory)

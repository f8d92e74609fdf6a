"""Which files are restored, and where to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from restort.errors import RestortError, UsageError
from restort.imaging import folder
from restort.imaging.decode import read
from restort.imaging.folder import Job, beside, collect, expand


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder to fill with `make`."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def pairs(jobs: list[Job]) -> list[tuple[str, str]]:
    return [(job.source.as_posix(), job.target.as_posix()) for job in jobs]


def test_one_file_to_a_file(tree: Path) -> None:
    make("a.png")
    assert pairs(collect(["a.png"], "b.jpg")) == [("a.png", "b.jpg")]
    with pytest.raises(UsageError, match="use one of"):
        collect(["a.png"], "b.xyz")


@pytest.mark.parametrize("output", ["out", "out/", "out.d/"])
def test_one_file_to_a_folder_that_is_not_there(tree: Path, output: str) -> None:
    make("a.png")
    assert pairs(collect(["a.png"], output)) == [("a.png", output.rstrip("/") + "/a.png")]


def test_one_file_to_a_folder_that_is_there(tree: Path) -> None:
    make("a.png")
    Path("with.dot").mkdir()
    assert pairs(collect(["a.png"], Path("with.dot"))) == [("a.png", "with.dot/a.png")]


def test_folders_are_searched_recursively(tree: Path) -> None:
    make(
        "in/b.PNG", "in/a.jpeg", "in/deep/er/c d 写真.tif", "in/notes.txt", "in/.hidden.png", "in/.git/d.png"
    )
    assert pairs(collect(["in"], "out")) == [
        ("in/a.jpeg", "out/a.jpeg"),
        ("in/b.PNG", "out/b.PNG"),
        ("in/deep/er/c d 写真.tif", "out/deep/er/c d 写真.tif"),
    ]
    assert pairs(collect(["./in/"], "out/", suffix=".webp"))[0][1] == "out/a.webp"
    with pytest.raises(UsageError, match="use one of"):
        collect(["in"], "out", suffix=".xyz")


def test_several_inputs(tree: Path) -> None:
    make("x/a.png", "y/a.png", "c.gif")
    assert pairs(collect(["x", "y", "c.gif"], "out")) == [
        ("x/a.png", "out/x/a.png"),
        ("y/a.png", "out/y/a.png"),
        ("c.gif", "out/c.png"),
    ]


def test_a_file_given_twice_is_restored_once(tree: Path) -> None:
    make("x/a.png")
    Path("link.png").symlink_to("x/a.png")
    assert pairs(collect(["x/a.png", "./x/../x/a.png", "link.png"], "out")) == [("x/a.png", "out/a.png")]


def test_names_that_clash_keep_their_suffix(tree: Path) -> None:
    make("in/a.gif", "in/a.png", "in/a.jpg", "in/b.gif")
    assert pairs(collect(["in"], "out")) == [
        ("in/a.gif", "out/a.gif.png"),
        ("in/a.jpg", "out/a.jpg"),
        ("in/a.png", "out/a.png"),
        ("in/b.gif", "out/b.png"),
    ]
    forced = dict(pairs(collect(["in"], "out", suffix=".jpg")))
    assert forced == {
        "in/a.gif": "out/a.gif.jpg",
        "in/a.jpg": "out/a.jpg",
        "in/a.png": "out/a.png.jpg",
        "in/b.gif": "out/b.jpg",
    }


def test_names_that_cannot_be_told_apart(tree: Path) -> None:
    make("x/a.png", "y/a.png")
    first, second = collect(["x/a.png", "y/a.png"], "out")
    assert first.problem is None
    assert second.problem is not None
    assert second.problem.startswith("x/a.png and y/a.png would both be written to out/a.png")


def test_an_input_under_another_path_is_not_overwritten(tree: Path) -> None:
    """As behind a bind mount: other paths, one device and inode."""
    make("in/sub/a.png", "in/b.png")
    Path("out").mkdir()
    os.link("in/sub/a.png", "out/b.png")
    with pytest.raises(UsageError, match=r"the output out/b\.png would overwrite the input in/sub/a\.png"):
        collect(["in"], "out")


def test_a_mounted_folder_of_the_inputs_is_no_output(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bind mount of in/sub at out: the pictures there are inputs, and --overwrite would replace them."""
    make("in/sub/a.png", "in/a.png")
    Path("out").mkdir()
    identity = folder._identity
    monkeypatch.setattr(
        folder, "_identity", lambda path: identity(Path("in/sub" if path == Path("out") else path))
    )
    with pytest.raises(
        UsageError, match=r"the output out is in/sub, a folder of the inputs, under another path"
    ):
        collect(["in"], "out")
    assert pairs(collect(["in"], "in/sub")) == [("in/a.png", "in/sub/a.png")], "named as what it is: results"


def test_known_suffixes_that_cannot_be_read_are_listed(tree: Path) -> None:
    make("in/a.png", "in/b.PSD", "in/deep/c.exr", "in/notes.txt", "in/.hidden.psd", "in/d.jp2")
    left_out: list[Path] = []
    assert pairs(collect(["in"], "out", left_out=left_out)) == [("in/a.png", "out/a.png")]
    assert sorted(map(str, left_out)) == ["in/b.PSD", "in/d.jp2", "in/deep/c.exr"]


def test_patterns(tree: Path) -> None:
    make("a.png", "b.png", "c.jpg", "x[1].png", "deep/er/d.png")
    assert [str(path) for path in expand(["*.jpg", "?.png", "x[1].png", "**/d.png"])] == [
        *("c.jpg", "a.png", "b.png", "x[1].png", "deep/er/d.png")
    ]
    with pytest.raises(UsageError, match=r"no file matches \*\.webp"):
        expand(["*.webp"])


def test_beside_the_input(tree: Path) -> None:
    make("in/a.png", "a.b.JPG", "c.gif", "scan")
    jobs, root = beside([Path("a.b.JPG"), Path("in/a.png"), Path("c.gif"), Path("scan")], "x4")
    assert root is None
    assert [target for _, target in pairs(jobs)] == ["a.b_x4.JPG", "in/a_x4.png", "c_x4.png", "scan_x4.png"]
    jobs, root = beside([Path("in")], "denoised", suffix=".webp")
    assert (pairs(jobs), str(root)) == ([("in/a.png", "in_denoised/a.webp")], "in_denoised")
    with pytest.raises(UsageError, match="in is a folder among several inputs"):
        beside([Path("in"), Path("c.gif")], "x4")


def test_names_without_a_picture_suffix(tree: Path) -> None:
    make("scan", "shot 1.5", "page.txt")
    assert [target for _, target in pairs(collect(["scan", "shot 1.5", "page.txt"], "out"))] == [
        "out/scan.png",
        "out/shot 1.5.png",
        "out/page.txt.png",
    ]


def test_very_long_names(tree: Path) -> None:
    name = "n" * 251 + ".png"
    make("in/" + name)
    assert pairs(collect(["in"], "out")) == [("in/" + name, "out/" + name)]


def test_links(tree: Path) -> None:
    make("in/a.png", "elsewhere/b.png")
    Path("in/loop").symlink_to("..", target_is_directory=True)
    Path("in/self").symlink_to(".", target_is_directory=True)
    Path("in/there").symlink_to(tree / "elsewhere", target_is_directory=True)
    Path("in/broken.png").symlink_to("nowhere.png")
    found = [source for source, _ in pairs(collect(["in"], "/tmp/restort-out"))]
    assert len(found) == 2
    assert {Path(source).resolve() for source in found} == {tree / "in/a.png", tree / "elsewhere/b.png"}


def test_output_inside_the_input(tree: Path) -> None:
    make("in/a.png", "in/out/a.png", "in/out/old.png", "in/outer/c.png")
    assert pairs(collect(["in"], "in/out")) == [
        ("in/a.png", "in/out/a.png"),
        ("in/outer/c.png", "in/out/outer/c.png"),
    ]


def test_output_that_is_the_input(tree: Path) -> None:
    make("in/a.png", "b.png")
    for output in ("in", "in/", "./in/../in"):
        with pytest.raises(UsageError, match="is the input folder itself"):
            collect(["in"], output)
    Path("same").symlink_to("in", target_is_directory=True)
    with pytest.raises(UsageError, match="is the input folder itself"):
        collect(["in"], "same")
    Path("again.png").symlink_to("b.png")
    os.link("b.png", "hard.png")
    for output in ("b.png", "./b.png", "again.png", "hard.png"):
        with pytest.raises(UsageError, match=r"would overwrite the input b\.png"):
            collect(["b.png"], output)
    with pytest.raises(UsageError, match="would overwrite the input"):
        collect(["b.png", "in/a.png"], ".")


def test_nothing_to_do(tree: Path) -> None:
    make("in/notes.txt", "in/.hidden/a.png")
    with pytest.raises(UsageError, match="there is no picture in in; these are read: PNG, JPEG"):
        collect(["in"], "out")
    with pytest.raises(UsageError, match="there is no input"):
        collect([], "out")


def test_several_inputs_and_a_file(tree: Path) -> None:
    make("a.png", "b.png", "out.png")
    with pytest.raises(UsageError, match=r"out\.png is a file"):
        collect(["a.png", "b.png"], "out.png")
    with pytest.raises(UsageError, match=r"new\.png is a file"):
        collect(["a.png", "b.png"], "new.png")
    assert pairs(collect(["a.png", "b.png"], "new.png/"))[0] == ("a.png", "new.png/a.png")
    assert pairs(collect(["a.png", "b.png"], "v1.5"))[0] == ("a.png", "v1.5/a.png")


def test_a_missing_file_is_left_to_the_reader(tree: Path) -> None:
    make("a.png")
    jobs = collect(["a.png", "gone.png"], "out")
    assert pairs(jobs)[1] == ("gone.png", "out/gone.png")
    with pytest.raises(RestortError, match="there is no such file"):
        read(jobs[1].source)


def test_a_folder_that_cannot_be_opened(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("in/a.png", "in/locked/b.png")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    jobs = collect(["in"], "out")
    assert [source for source, _ in pairs(jobs)] == ["in/a.png", "in/locked"]
    with pytest.raises(RestortError, match="in/locked"):
        read(jobs[1].source)


def test_a_file_in_a_folder_that_cannot_be_entered(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = os.stat

    def refuse(path, *arguments, **named):
        if Path(os.fsdecode(path)).parent.name == "locked":
            raise PermissionError(13, "Permission denied", path)
        return stat(path, *arguments, **named)

    monkeypatch.setattr("os.stat", refuse)
    assert pairs(collect(["locked/a.png"], "b.png")) == [("locked/a.png", "b.png")]

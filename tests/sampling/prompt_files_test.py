"""Files with the prompts of many videos."""

import csv
import pathlib

import pytest

from helios_jax.sampling.prompt_files import PromptedVideo, read_prompt_file


def read(folder: pathlib.Path, content: str | bytes, name: str = "prompts.csv") -> tuple[PromptedVideo, ...]:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return read_prompt_file(folder / name)


def texts(videos: tuple[PromptedVideo, ...]) -> dict[str, tuple[str, ...]]:
    return {video.name: video.prompts for video in videos}


def test_text_file_is_one_prompt_per_line(tmp_path):
    content = "\ufeffa fox, running\n\n  a boat \u2028 at sea\r\nlast\rlines".encode()
    videos = read(tmp_path, content, "prompts.TXT")
    assert texts(videos) == {
        "1": ("a fox, running",),
        "3": ("a boat \u2028 at sea",),
        "4": ("last",),
        "5": ("lines",),
    }
    assert [video.line for video in videos] == [1, 3, 4, 5]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_groups_by_id_in_the_order_of_the_index(tmp_path, end, mark):
    lines = ["id, prompt_index,prompt,refined_prompt", "cat,2,third,", "", 'sea,0,"a wave, ""blue""",', ",,,"]
    lines += ["cat,0,first,better first", "cat,1,second", ""]
    videos = read(tmp_path, mark + end.join(lines))
    assert texts(videos) == {"cat": ("better first", "second", "third"), "sea": ('a wave, "blue"',)}
    assert [video.line for video in videos] == [2, 4]


def test_columns_override_flags(tmp_path):
    videos = read(
        tmp_path,
        "seed,id,prompt,prompt_index,image,video,negative_prompt\n"
        "18446744073709551615,a,sun,0,x.png,,fog\n,a,rain,1,,,fog\n-1,b,snow,0,,/clips/y.mp4,\n,c,hail,0,,,\n",
    )
    assert videos == (
        PromptedVideo(
            name="a",
            line=2,
            prompts=("sun", "rain"),
            negative_prompt="fog",
            image=tmp_path / "x.png",
            seed=2**64 - 1,
        ),
        PromptedVideo(name="b", line=4, prompts=("snow",), video=pathlib.Path("/clips/y.mp4"), seed=-1),
        PromptedVideo(name="c", line=5, prompts=("hail",)),
    )


def test_long_fields_are_read_and_the_limit_of_other_readers_stays(tmp_path):
    limit = csv.field_size_limit()
    assert texts(read(tmp_path, f"id,prompt\n1,{'x' * 200_000}\n")) == {"1": ("x" * 200_000,)}
    assert csv.field_size_limit() == limit


def test_a_text_with_line_breaks_is_read_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="line 2 has a text that continues to line 3"):
        videos = read(tmp_path, 'id,prompt\n1,"sun\nrain"\n2,snow\n')
    assert texts(videos) == {"1": ("sun\nrain",), "2": ("snow",)}
    assert videos[1].line == 4


def test_columns_without_a_meaning_are_named_once(tmp_path):
    with pytest.warns(UserWarning, match=r"the columns \['duration'\] are ignored") as warned:
        assert texts(read(tmp_path, "id,prompt,duration\n1,a,5\n2,b,6\n")) == {"1": ("a",), "2": ("b",)}
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\n1,x\n", r"prompts.csv, line 1: missing columns \['prompt'\], found \['id', 'text'\]"),
        ("id,promt\n1,x\n", r"missing columns \['prompt'\].*did you mean promt"),
        ("id;prompt\n1;x\n", "separate columns with commas"),
        ("", r"line 1: missing columns \['id', 'prompt'\]"),
        ("id,prompt\n", "holds no prompts"),
        ("id,prompt\n\n,\n", "holds no prompts"),
        ("id,prompt,prompt\n1,a,b\n", r"line 1: the columns \['prompt'\] appear twice"),
        ("id,prompt,Seed\n1,a,3\n", "line 1: unknown column 'Seed'; did you mean seed"),
        ("id,prompt,negative prompt\n1,a,b\n", "did you mean negative_prompt"),
        ("id,prompt\n1,a\n2,a fox, running\n", "line 3: more than 2 fields; put quotes"),
        ("id,prompt\n1,a\n2, \n", "line 3: the prompt is empty"),
        ("id,prompt\n1\n", "line 2: the prompt is empty"),
        ("id,prompt_index,prompt\n1,one,a\n", "line 2: prompt_index='one'"),
        ("id,prompt_index,prompt\n1,,a\n", "line 2: prompt_index=''"),
        (f"id,prompt_index,prompt\n1,{'9' * 5000},a\n", "line 2: prompt_index='9999"),
        ("id,prompt_index,prompt\n1,0,a\n1,2,b\n", "line 2: id '1' has prompt_index 2 and no 1"),
        ("id,prompt_index,prompt\n1,1,a\n", "line 2: id '1' has prompt_index 1 and no 0"),
        ("id,prompt_index,prompt\n1,0,a\n1,0,b\n", "line 3: id '1' has prompt_index 0 twice"),
        ("id,prompt\n1,a\n1,b\n", "line 3: .*column prompt_index"),
        # Ids become names of files.
        ("id,prompt\n../../escaped,a\n", "line 2: id='../../escaped' must be the plain name"),
        ("id,prompt\na/b,a\n", "line 2: id='a/b'"),
        ("id,prompt\na\\b,a\n", "line 2: id="),
        ("id,prompt\n.,a\n", "line 2: id='.'"),
        ("id,prompt\n..,a\n", "line 2: id='..'"),
        ("id,prompt\n,a\n", "line 2: id=''"),
        ("id,prompt\n a,a\n", "line 2: id=' a' must be a plain name"),
        ("id,prompt\na\tb,a\n", "line 2: id="),
        ("id,prompt\na\u200bb,a\n", "line 2: id="),
        (f"id,prompt\n{'a' * 256},a\n", "line 2: id=.*longer than 255 bytes"),
        ("id,prompt\nFox,a\nfox,b\n", "line 3: the id 'fox' differs from 'Fox' in line 2 only by case"),
        ("id,prompt\n\u00e9,a\ne\u0301,b\n", "line 3: the id .* in line 2 only by case or accents"),
        # Quotes.
        ('id,prompt\n1,"a fox\n2,a boat\n', "row that begins in line 2 cannot be read.*never closed"),
        ('id,prompt\n1,"a fox\n2,"a boat"\n', "row that begins in line 2 cannot be read"),
        ('id,prompt\n1,b\n2,"a fox" runs\n', "row that begins in line 3 cannot be read"),
        # Not text.
        (b"id,prompt\n1,a\n2,caf\xe9\n", "line 3: byte 19 is not UTF-8"),
        ("id,prompt\n1,a\n".encode("utf-16"), "line 1: byte 0 is not UTF-8"),
        (b"id,prompt\n1,a\0b\n", "line 2: holds a NUL"),
        (b"\x89PNG\r\n\x1a\n\0\0", "line 1: byte 0 is not UTF-8"),
        # Values.
        ("id,prompt,seed\n1,a,1.5\n", "line 2: seed='1.5' must be a whole number"),
        ("id,prompt,seed\n1,a,-2\n", "line 2: seed=-2 must be"),
        ("id,prompt,seed\n1,a,18446744073709551616\n", "line 2: seed=18446744073709551616 must be"),
        ("id,prompt,image,video\n1,a,x.png,y.mp4\n", "line 2: image and video are both given"),
        ("id,prompt_index,prompt,seed\n1,0,a,3\n1,1,b,4\n", "line 3: id '1' has seed='4' here and '3' before"),
    ],
)
def test_bad_csv_files_are_named_with_their_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"(?s){message}") as raised:
        read(tmp_path, content)
    assert str(raised.value).startswith(str(tmp_path / "prompts.csv"))


def test_what_is_no_prompt_file(tmp_path):
    with pytest.raises(ValueError, match=r"not from '\.json'"):
        read_prompt_file(tmp_path / "prompts.json")
    with pytest.raises(FileNotFoundError, match=r"prompts\.csv does not exist"):
        read_prompt_file(tmp_path / "prompts.csv")
    with pytest.raises(ValueError, match="holds no prompts"):
        read(tmp_path, "\n", "empty.txt")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match=r"folder\.csv is not a file"):
        read_prompt_file(tmp_path / "folder.csv")
    with open(tmp_path / "huge.txt", "wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(ValueError, match="65 MiB; a prompt file has at most 64"):
        read_prompt_file(tmp_path / "huge.txt")

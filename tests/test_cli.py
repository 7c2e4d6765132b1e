import json
import os
import pty
import re
import subprocess
import sys

import pytest
from samples import ANSWER, CAPITALS, QUESTION

CPRS = [sys.executable, "-c", "from cprs_integrations.cli import main; main()"]


def cprs(*arguments, stdin=b"", **options):
    done = subprocess.run([*CPRS, *arguments], input=stdin, capture_output=True, **options)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def files(tmp_path):
    paths = []
    for number, text in enumerate(CAPITALS):
        path = tmp_path / f"{number}.txt"
        path.write_text(text, encoding="utf-8")
        paths.append(str(path))
    return paths


def test_files_are_compressed_to_plain_text_in_a_pipe(files):
    code, out, err = cprs("compress", *files, "-q", QUESTION, "--max-ratio", "0.3")
    assert (code, err) == (0, "")
    assert ANSWER in out
    assert len(out.rstrip("\n")) <= 0.3 * sum(map(len, CAPITALS))


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_standard_input_is_read(arguments):
    code, out, _ = cprs("compress", *arguments, "-q", QUESTION, "--max-tokens", "40", stdin="\n\n".join(CAPITALS).encode())
    assert code == 0
    assert ANSWER in out


def test_a_prefilter_leaves_windows_unread():
    text = "\n".join(f"Page {number} tells of the weather." for number in range(400)) + "\n" + "\n\n".join(CAPITALS)
    code, out, _ = cprs("compress", "-q", QUESTION, "--prefilter", "0.1", "--json", stdin=text.encode())
    assert code == 0
    assert json.loads(out)["stats"]["skipped_windows"] > 0


def test_json_has_files_spans_and_statistics(files):
    code, out, _ = cprs("compress", *files, "-q", QUESTION, "--json", "--max-ratio", "0.3", "--protect", "flour")
    found = json.loads(out)
    assert code == 0
    assert found["files"] == files
    assert found["documents"][1]["text"] == "flour"
    assert found["stats"]["kept_chars"] == len(found["text"])


def test_html_is_written_and_escaped(tmp_path):
    target = tmp_path / "view.html"
    code, _, _ = cprs(
        "compress", "-q", "<b>Paris</b>?", "--threshold", "0", "--html", str(target), stdin=b"Paris <script> is big."
    )
    assert code == 0
    html = target.read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "<mark" in html


def test_a_terminal_gets_names_scores_and_sizes(files):
    leader, follower = pty.openpty()
    done = subprocess.Popen([*CPRS, "compress", *files, "-q", QUESTION, "--max-ratio", "0.3"], stdout=follower)
    os.close(follower)
    shown = b""
    while True:
        try:
            data = os.read(leader, 4096)
        except OSError:
            break
        if not data:
            break
        shown += data
    assert done.wait() == 0
    assert b"3.txt" in shown
    assert ANSWER.encode() in shown
    assert b"x fewer" in shown
    assert b"\x1b[" in shown


def test_nothing_kept_ends_with_1():
    assert cprs("compress", "-q", QUESTION, stdin=b"  \n")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere/a.txt", "-q", "x"], "No such file or directory: '/nowhere/a.txt'"),
        ([], "query and instruction are both empty"),
        (["-q", "x", "--max-ratio", "7"], "max_ratio must be a number above 0 and up to 1, not 7.0"),
        (["-q", "x", "--granularity", "word"], "granularity must be None or one of 'keyword'"),
        (["-q", "x", "--critic", "/nowhere"], "no folder '/nowhere'"),
        (["-q", "x", "--nonsense"], "No such option"),
    ],
)
def test_errors_end_with_2_and_one_line_on_standard_error(arguments, message):
    code, out, err = cprs("compress", *arguments, stdin=b"Paris.")
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_bytes_that_are_no_text_are_refused_by_name(tmp_path):
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe\x00")
    code, _, err = cprs("compress", str(path), "-q", "x")
    assert code == 2
    assert f"{path} is not text in UTF-8" in err


def test_the_demo_answers_from_pythons_own_reference():
    code, out, _ = cprs("demo", "Which keyword defines a coroutine function?", "--max-tokens", "60")
    assert code == 0
    assert "464," in out or "characters" in out
    original, kept, ratio = re.search(r"([\d,]+) → ([\d,]+) tokens, ([\d,]+)x fewer", out).groups()
    original, kept, ratio = (int(number.replace(",", "")) for number in (original, kept, ratio))
    assert kept <= 60
    assert ratio == round(original / kept)

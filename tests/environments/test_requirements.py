"""Requirements: the same in whatever form they stand; what cannot be used is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from snakepit_kernel.environments.requirements import Requirements, check_requirements


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_the_same_requirements_written_in_another_way_are_equal(tmp_path):
    file = write(
        tmp_path / "r.txt",
        "# what we need",
        "",
        "Scikit_Learn >= 1.5,",
        "pandas == 2.2.*   # the one that we test with",
        "pandas==2.2.*",
    )
    file.write_text(file.read_text().replace("1.5,", "1.5, \\\n   != 1.6"))

    of_file = check_requirements("requirements", file)
    of_list = check_requirements("requirements", ["pandas==2.2.*", "scikit-learn!=1.6,>=1.5"])

    assert of_file == of_list
    assert of_file.key == of_list.key
    assert of_file.lines == ("pandas==2.2.*", "scikit-learn!=1.6,>=1.5")
    assert of_file.key != check_requirements("requirements", ["pandas==2.1.*"]).key


def test_a_file_may_name_others_constraints_and_options(tmp_path):
    (tmp_path / "more").mkdir()
    write(tmp_path / "more" / "m.txt", "six", "-c c.txt", "-f wheels")
    write(tmp_path / "more" / "c.txt", "six<2")
    file = write(tmp_path / "r.txt", "numpy", "-r more/m.txt", "--index-url=https://h/simple")

    found = Requirements.of_file(file)

    assert found.lines == ("numpy", "six")
    assert found.constraints == ("six<2",)
    assert found.options == (
        f"--find-links {tmp_path}/more/wheels",
        "--index-url https://h/simple",
    )


def test_constraints_and_options_make_other_requirements(tmp_path):
    keys = {
        Requirements.of_file(write(tmp_path / "r.txt", "six", *lines)).key
        for lines in ([], ["-c c.txt"], ["-f wheels"])
        if write(tmp_path / "c.txt", "six<2")
    }

    assert len(keys) == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-e .", "line 2: -e is not supported: an environment is shared"),
        ("six --hash=sha256:0", "line 2: --hash is not supported"),
        ("--pre", "line 2: option --pre is not supported"),
        ("./six.whl", "line 2: './six.whl' is no requirement such as"),
        ("six=1", "line 2: 'six=1' is no requirement such as"),
        ("Snakepit.Kernel==1", "line 2: snakepit-kernel cannot be required"),
        ("-r r.txt", "refers to itself"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, line, said):
    file = write(tmp_path / "r.txt", "numpy", line)

    with pytest.raises(ValueError, match="r.txt") as caught:
        check_requirements("requirements", file)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        ("pandas", FileNotFoundError, "no requirements file 'pandas'; .* such as \\['pandas'\\]"),
        (["six=="], ValueError, "'six==' is no requirement"),
        ([b"six"], TypeError, "texts such as 'pandas==2.2.\\*', not b'six'"),
        (3, TypeError, "requirements must be a list .* not int 3"),
    ],
)
def test_a_value_that_means_no_requirements_says_what_would(value, error, said):
    with pytest.raises(error, match=said):
        check_requirements("requirements", value)


def test_a_file_that_another_one_names_and_that_is_missing_is_named(tmp_path):
    file = write(tmp_path / "r.txt", "-r missing.txt")

    with pytest.raises(FileNotFoundError, match="missing.txt"):
        check_requirements("requirements", str(file))


def test_passwords_in_urls_are_not_shown():
    found = Requirements.of_list(["six @ https://me:verysecret@host/six-1-py3-none-any.whl"])

    assert "verysecret" in found.lines[0]
    assert "verysecret" not in f"{found} {found!r} {found.shown}"


def test_many_requirements_are_shown_in_short():
    assert str(Requirements.of_list(["e", "d", "c", "b", "a"])) == "a, b, c and 2 more"

"""Text of the user's in what it is written into; hypothesis looks for text that comes through."""

import csv
import html
import io
import re
import shlex
import subprocess

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from snakemake.utils import format as snakemake_format

from densewalk.core.text.quoting import (
    for_csv,
    for_double_quotes,
    for_latex,
    for_latex_label,
    for_markdown,
    for_markdown_code,
    for_shell,
    for_snakemake,
    from_csv,
    one_line,
)
from densewalk.results.formats import latex, markdown
from densewalk.results.tables import read_table, write_csv

TEXT = st.text(st.sampled_from("ab=+-@'\"\\ \t\r\n|`*_<>&$%#{}^~[]()é±–1.e"), max_size=12)


@given(TEXT)
def test_a_word_of_a_shell_s_is_one_word(text):
    assert shlex.split(f"echo {for_shell(text)} end") == ["echo", text, "end"]


def test_the_real_shell_agrees():
    text = '-it\'s $(touch x) `y` "z" \\ ; & * \n #'
    assert subprocess.run(f"printf %s {for_shell(text)}", shell=True, capture_output=True, text=True, check=True).stdout == text


def test_double_quotes_around_a_command_change_nothing():
    text = '-it\'s $(touch x) $HOME `y` "z" \\ \\" ; & * \n #'
    inner = for_double_quotes(f"printf %s {for_shell(text)}").replace('"', '\\"')
    assert subprocess.run(f'sh -c "{inner}"', shell=True, capture_output=True, text=True, check=True).stdout == text


@given(TEXT)
def test_snakemake_s_formatting_leaves_text_alone(text):
    assert snakemake_format(for_snakemake(text)) == text


@given(st.lists(TEXT, min_size=1, max_size=3))
def test_a_spreadsheet_sees_no_formula_and_the_text_comes_back(cells):
    quoted = [for_csv(cell) for cell in cells]
    assert [from_csv(cell) for cell in quoted] == cells
    assert not any(cell[:1] in tuple("=+-@\t\r\n") and cell.strip("+-.0123456789eE") for cell in quoted if cell)
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerow(quoted)
    assert next(csv.reader(io.StringIO(buffer.getvalue(), newline=""))) == quoted


@pytest.mark.parametrize("number", ["-3.25", "+0.5", "-1e-05", "12", ".5", "-7", "1E+3"])
def test_numbers_stay_as_they_are(number):
    assert for_csv(number) == number


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-1+1", "@SUM(A1)", "\t=1", "'=1", "-", "+", "-1.2.3", "＝1"])
def test_text_that_looks_like_a_formula_is_marked(text):
    assert for_csv(text) == f"'{text}"


def test_tables_survive_their_files(tmp_path):
    table = pd.DataFrame({"=m": ["-1.5", "=1+1"], "run": ["'x", "a|b\nc"]}, dtype=str)
    write_csv(table, tmp_path / "t.csv")
    assert read_table(tmp_path / "t.csv").equals(table)
    assert (tmp_path / "t.csv").read_text().splitlines()[0] == "'=m,run"


@given(TEXT)
def test_a_markdown_table_keeps_its_shape(text):
    lines = markdown(pd.DataFrame({"a": [text], "b": ["1"]}, dtype=str)).splitlines()
    assert len(lines) == 3
    assert lines[2].replace("\\\\", "").replace("\\|", "").count("|") == 3
    assert "<" not in for_markdown(text)
    assert re.sub(r"\\(.)", r"\1", html.unescape(for_markdown(text))) == one_line(text)
    assert for_markdown_code(text).count("`") == 2


def test_markdown_in_a_terminal_shows_an_ampersand_as_it_is():
    assert for_markdown("J&F & a;") == "J&F & a;"
    assert for_markdown("&amp; &#38;") == "&amp;amp; &amp;\\#38;"


def test_latex_s_signs_are_text():
    assert for_latex("a_b & 5 % of #1 {x} $y$") == r"a\_b \& 5 \% of \#1 \{x\} \$y\$"
    assert for_latex("\\input{x}~^<>|") == (
        r"\textbackslash{}input\{x\}\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{}"
    )
    assert for_latex("[x]* --- 1 – 2 ± 3") == r"{[}x{]}{*} -{}-{}- 1 -- 2 $\pm$ 3"
    assert for_latex_label("tab:a b%c}") == "tab:a-b-c-"


@given(TEXT)
def test_a_latex_table_keeps_its_rows(text):
    lines = latex(pd.DataFrame({"a": [text], "b": ["1"]}, dtype=str), label="tab:x").splitlines()
    assert lines[8] == f"{for_latex(text)} & 1 \\\\"
    assert lines[9] == r"\bottomrule"
    plain = for_latex(text).replace(r"\{", "").replace(r"\}", "")
    assert plain.count("{") == plain.count("}")


def test_one_line_is_one_line():
    assert one_line("a\r\nb\u2028c\x00d") == "a b c d"

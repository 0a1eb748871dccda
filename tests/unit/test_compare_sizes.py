"""`scripts/compare_sizes.py`: its page has a section for each model, and the real one stays what the script makes."""

from pathlib import Path

from scripts.compare_sizes import TITLE, with_section

TABLE = "    a command\n\n| a table |\n|---|\n"


def test_a_page_grows_by_a_section_for_each_model():
    page = with_section(with_section("", "one", TABLE), "two", TABLE)
    assert page == TITLE + "\n## `one`\n\n" + TABLE + "\n## `two`\n\n" + TABLE


def test_a_table_measured_anew_leaves_the_words_below_it_and_the_other_sections():
    page = TITLE + "\n## `one`\n\n" + TABLE + "\nWhat it says.\n" + "\n## `two`\n\n" + TABLE + "\nMore.\n"
    anew = "    a command\n\n| another |\n|---|\n| row |\n"
    assert with_section(page, "one", anew) == page.replace(TABLE, anew, 1)
    assert with_section(page, "two", TABLE) == page


def test_the_shipped_page_has_the_sections_that_the_script_knows():
    page = (Path(__file__).parents[2] / "evals" / "results" / "sizes.md").read_text()
    told = page.partition("## `colouring`\n\n")[2].partition("|\n\n")[0] + "|\n"
    assert with_section(page, "colouring", told) == page

import json

import numpy as np
import pytest
from scans import refused, run, write_set

import dataset
from reading.participants import Covariate, Participants, read_participants

pytestmark = pytest.mark.usefixtures("own_cache")
HEAD = "participant_id\tage\n"
PEOPLE = ["case_001", "case_002", "case_003"]


def read(folder, table: str | bytes, description: str | None = None, people=PEOPLE) -> Participants | None:
    (folder / "participants.tsv").write_bytes(table if isinstance(table, bytes) else table.encode())
    if description is not None:
        (folder / "participants.json").write_text(description)
    return read_participants(folder, people)


def test_numbers_categories_units_and_what_is_left_out(tmp_path):
    rows = [["participant_id", "age", "sex", "site", "remark", "empty"]]
    rows += [[f"sub-{i:02}", str(60.5 + i), "MF"[i % 2], "2", f"text {i}", "n/a"] for i in range(1, 13)]
    rows[2][1:3] = ["n/a", ""]
    described = json.dumps({"age": {"Units": "years"}, "sex": {"Levels": {"M": "male", "F": "female", "X": "other"}}})
    table, people = "\ufeff" + "\r\n".join(map("\t".join, rows)), [f"sub-{i:02}" for i in range(14)]
    found = read(tmp_path, table, described, people)
    assert found.covariates == [Covariate("age", "years", None), Covariate("sex", None, ("M", "F"))]
    some = [found.values[person] for person in ("sub-01", "sub-02", "sub-12")]
    np.testing.assert_array_equal(some, [[61.5, 1], [np.nan, np.nan], [72.5, 0]])
    left_out, missing = found.notes
    assert "site (the same for everybody), remark (12 different texts, such as text 9), empty (nobody has" in left_out
    assert missing == "participants.tsv: no row for 2 of 14 people, such as sub-00"
    assert found.summary({"train": ["sub-01", "sub-02"]})[0] == "age (years): 61.5 to 72.5; of 1 of 2 train people"


def test_levels_make_categories_of_numbers(tmp_path):
    table = "participant_id\tgroup\ncase_001\t2\ncase_002\t10\ncase_003\t1\n"
    found = read(tmp_path, table, '{"group": {"Levels": {"10": "a", "2": "b"}}}')
    assert found.covariates == [Covariate("group", None, ("10", "2", "1"))]
    assert found.values == {"case_001": [1], "case_002": [0], "case_003": [2]}


def test_rows_find_their_people(tmp_path):
    rows = ["case_1", "sub-case002", "7", "sub-008", "sub-OAS10061", "100307"]
    people = ["case_001", "case_002", "sub-07", "sub-08", "OAS1_0061", "100307"]
    table = HEAD + "".join(f"{row}\t{i}\n" for i, row in enumerate(rows))
    assert read(tmp_path, table, people=people).values == {person: [i] for i, person in enumerate(people)}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("", "line 1: no column participant_id, only an empty line"),
        ("id\tage\ncase_001\t5\n", "line 1: no column participant_id, only id, age"),
        ("participant_id,age\ncase_001,5\n", "line 1: the columns must be separated by tabs, not as in"),
        ("participant_id\tage\tage\n", "line 1: column age is there twice"),
        ("participant_id\tage\t\n", "line 1: column 3 has no name"),
        (HEAD, "has no rows of people"),
        (HEAD + "case_001\t5\t6\n", "line 2: 3 columns, where line 1 has 2"),
        (HEAD + "n/a\t5\n", "line 2, column participant_id: no person"),
        (HEAD + "case_001\t5\n\ncase_1\t6\n", "case_1 has two rows that differ, in lines 2 and 4"),
        (HEAD + "case_001\t5\ncase_002\t-inf\n", "column age, line 3: -inf is no finite number"),
        (HEAD + 'case_001\t"5\n', "line 2: unexpected end of data"),
        (HEAD.encode("utf-16"), "isn't UTF-8 at byte 0"),
    ],
)
def test_unsound_tables_are_one_line_that_names_the_place(tmp_path, table, says):
    line = refused(read, tmp_path, table)
    assert line.startswith(str(tmp_path / "participants.tsv"))
    assert says in line


@pytest.mark.parametrize(
    ("description", "says"),
    [("{", "Invalid JSON"), ("[]", "must be an object"), ('{"age": {"Units": 5}}', "age.Units must be a valid string")],
)
def test_unsound_descriptions_are_one_line(tmp_path, description, says):
    line = refused(read, tmp_path, HEAD + "case_001\t5\n", description)
    assert line.startswith(f"{tmp_path / 'participants.json'}: ")
    assert says in line


def test_a_data_set_has_the_table_beside_its_splits_or_one_above_that_knows_its_people(tmp_path, monkeypatch, capsys):
    root = write_set(tmp_path / "above/set")
    assert dataset.load(str(root)).participants is None
    (root.parent / "participants.tsv").write_text("participant_id\tage\nsomebody\t5\n")
    assert dataset.load(str(root)).participants is None
    (root.parent / "participants.tsv").write_text("participant_id\tage\ncase_001\t5\ncase_004\t6\n")
    before = dataset.load(str(root), ("test",))
    assert before.participants.values["case_004"] == [6]
    [note] = before.splits["test"].notes
    assert note == "participants.tsv: no row for 2 of 4 people, such as case_002"
    (root / "participants.tsv").write_text("participant_id\tage\ncase_001\t5\ncase_004\t7\n")
    after = dataset.load(str(root), ("test",))
    assert after.participants.values["case_004"] == [7]  # the set's own table, read anew
    assert after.fingerprint == before.fingerprint

    assert run(monkeypatch, "check", str(root)) == 0
    out = capsys.readouterr().out
    assert "age: 5 to 7; of 1 of 2 train, 0 of 1 validate, 1 of 1 test people" in out
    assert f"note: {note}" in out
    (root / "participants.tsv").write_text("participant_id\n")
    assert run(monkeypatch, "check", str(root)) == 1
    assert "participants.tsv has no rows of people" in capsys.readouterr().out
    (root / "participants.tsv").unlink()
    (root / "participants.tsv").symlink_to("nothing")
    assert "No such file" in refused(dataset.load, str(root))

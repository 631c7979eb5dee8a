"""What the readers of all releases share."""

import pytest

from medimg_utils.errors import InputError
from medimg_utils.release import DatasetError, describe_release, read_table, read_truth


@pytest.mark.parametrize("end", ["", ","])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_columns_stay_where_rows_end_in_a_comma(tmp_path, end, mark):
    file = tmp_path / "table.csv"
    rows = f"{mark}Case ,Age\na, 60{end}\r\nb,{end}\r\n"
    file.write_bytes(rows.encode())
    table = read_table(file)
    assert table.to_dict("list") == {"case": ["a", "b"], "age": ["60", ""]}


def test_cells_that_no_column_names_are_refused(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("ImageId,EncodedPixels\na,1 2, 3 4\nb,-1, \n")
    with pytest.raises(DatasetError, match=r"table\.csv: row 2 has 3 cells"):
        read_table(file)


def test_a_table_may_have_no_header(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("0000,1\n0001, 0\n")
    table = read_table(file, header=False)
    assert table.to_dict("list") == {0: ["0000", "0001"], 1: ["1", "0"]}


def test_a_real_release_below_a_simulated_one_is_real(tmp_path):
    (tmp_path / "simulation.json").write_text("{}")
    for name, simulated in (("siim", False), ("MRNet-v1.0", True), ("HGG", True)):
        (tmp_path / name).mkdir()
        described = describe_release(tmp_path / name)
        assert described["simulated"] is simulated, name
    assert describe_release(tmp_path)["simulated"] is True


@pytest.mark.parametrize(
    ("rows", "what"),
    [("a,left\nb,", None), ("a,left\nb", "row 3 has not"), ("a,x\na,y", "a again")],
)
def test_a_truth_file_that_was_cut_off_is_refused(tmp_path, rows, what):
    file = tmp_path / "truth.csv"
    file.write_text(f"ImageId,side\n{rows}")
    if what is None:
        assert read_truth(file, "ImageId")["b"] == {"side": ""}
        return
    with pytest.raises(InputError, match=what):
        read_truth(file, "ImageId")


def test_a_truth_file_may_begin_with_a_mark(tmp_path):
    file = tmp_path / "truth.csv"
    file.write_text("\ufeffImageId,side\na,left\n", encoding="utf-8")
    assert read_truth(file, "ImageId") == {"a": {"side": "left"}}

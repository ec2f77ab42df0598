"""`hf-rec prepare` speaks of flags, and tells what it read."""

from hf_rec.cli import main as cli


LOG = "".join(f"u{user},{item},{1500000000000 + item}\n" for user in range(3) for item in range(4))


def run(tmp_path, header, *words):
    (tmp_path / "log.csv").write_text(header + LOG)
    return cli.main(
        ["prepare", "--source", "table", "--path", f"{tmp_path}/log.csv", "--out", f"{tmp_path}/out", *words]
    )


def test_errors_name_flags(tmp_path, capsys):
    header = "user_id,item_id,timestamp\n"
    assert run(tmp_path, header) == cli.BAD_INPUT
    assert "--timestamp-unit must be 'ms' or 'auto'" in capsys.readouterr().err
    assert run(tmp_path, header.replace("user", "buyer")) == cli.BAD_INPUT
    assert "Name your columns in --user-column, --item-column" in capsys.readouterr().err
    assert run(tmp_path, header, "--timestamp-unit", "ms", "--items-id-column", "id") == cli.BAD_INPUT
    assert "--items-id-column is 'id', but no table --items is given" in capsys.readouterr().err


def test_what_was_read_is_printed(tmp_path, capsys):
    assert run(tmp_path, "user_id,item_id,timestamp\n", "--timestamp-unit", "ms", "--min-count", "2") == 0
    out = capsys.readouterr().out
    assert "log.csv: 12 rows read of 13 lines, 0 refused" in out
    assert "items without a title: 4 of 4" in out

"""`dpwatch keys`."""

import stat

from dpwatch.cli import main


def keys(capsys, *options):
    code = main(["keys", *options])
    return code, *capsys.readouterr()


def test_made_once_then_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DPWATCH_KEYS", str(tmp_path / "keys"))
    assert keys(capsys, "--show")[0] == 3
    code, made, _ = keys(capsys)
    assert code == 0
    assert made.startswith(f"made keys in {tmp_path}")
    files = list((tmp_path / "keys").iterdir())
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    code, again, _ = keys(capsys, "--show")
    assert code == 0
    fingerprints = again.splitlines()[1:]
    assert fingerprints == made.splitlines()[1:3]
    assert not any(word in made + again for file in files for word in _secrets(file))


def _secrets(file):
    return [file.read_text().split('"secret":"')[1][:40]]


def test_keys_that_others_can_read_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DPWATCH_KEYS", str(tmp_path))
    keys(capsys)
    (tmp_path / "head.json").chmod(0o644)
    code, _, errors = keys(capsys, "--show")
    assert code == 2
    assert errors.count("\n") == 1
    assert "is readable by others: chmod 600 it" in errors

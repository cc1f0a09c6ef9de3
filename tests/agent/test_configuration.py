"""Keys and settings: what is made, what is taken, and what is refused in which words."""

from __future__ import annotations

import json
import stat
from importlib import metadata
from pathlib import Path

import pytest

import kawarimi_wire
from kawarimi_agent.settings import load
from kawarimi_bridge.cli.main import main
from kawarimi_wire.errors import ExitCode, Slug, UsageError
from kawarimi_wire.keys import generate, load_pair, load_public

LISTEN = "tcp://127.0.0.1:7117"


def test_the_version_is_that_of_the_distribution() -> None:
    assert kawarimi_wire.__version__ == metadata.version("kawarimi")


def test_keys_generate_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a/keys"
    assert main(["keys", "generate", "vm1", "--dir", str(folder), "--json"]) == ExitCode.COMPLETED
    made = json.loads(capsys.readouterr().out)
    pair = load_pair(Path(made["secret"]))
    assert made["public"] == pair.public.decode() == load_public(Path(made["file"])).decode()
    assert stat.S_IMODE(Path(made["secret"]).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert pair.secret.decode() not in Path(made["file"]).read_text()

    before = Path(made["secret"]).read_text()
    assert main(["keys", "generate", "vm1", "--dir", str(folder)]) == ExitCode.USAGE
    assert Slug.BAD_CONFIGURATION in capsys.readouterr().err
    Path(made["file"]).unlink()  # half a pair is not replaced either
    assert main(["keys", "generate", "vm1", "--dir", str(folder)]) == ExitCode.USAGE
    assert Path(made["secret"]).read_text() == before

    generate(folder, "vm2")
    assert main(["keys", "show", "--dir", str(folder), "--json"]) == ExitCode.COMPLETED
    said = capsys.readouterr().out
    assert [key["name"] for key in json.loads(said)] == ["vm2"]
    assert load_pair(folder / "vm2.key_secret").secret.decode() not in said


@pytest.mark.parametrize("name", ["../x", ".x", ""])
def test_a_key_has_a_decent_name(name: str, tmp_path: Path) -> None:
    code = main(["keys", "generate", name, "--dir", str(tmp_path)]) if name else ExitCode.USAGE
    assert code == ExitCode.USAGE
    assert list(tmp_path.iterdir()) == []


def test_key_files_that_cannot_be_used(tmp_path: Path) -> None:
    generate(tmp_path, "vm1")
    secret = tmp_path / "vm1.key_secret"
    secret.chmod(0o640)
    with pytest.raises(UsageError, match="others than its owner"):
        load_pair(secret)
    with pytest.raises(UsageError, match="no secret key"):
        load_pair(tmp_path / "vm1.key")
    with pytest.raises(UsageError, match="No such file"):
        load_public(tmp_path / "vm2.key")
    (tmp_path / "bad.key").write_text("nothing")
    with pytest.raises(UsageError, match="no ZeroMQ certificate"):
        load_public(tmp_path / "bad.key")
    (tmp_path / "short.key").write_text('curve\n    public-key = "short"\n')
    with pytest.raises(UsageError, match="40 characters"):
        load_public(tmp_path / "short.key")


def configured(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "agent.toml"
    file.write_text(text)
    return file


def test_the_command_line_goes_before_the_environment_before_the_file(tmp_path: Path) -> None:
    file = configured(
        tmp_path,
        f'listen = "{LISTEN}"\nguest = "file"\nbridges = "{tmp_path}"\nsecret_key = "file"\n',
    )
    environment = {"KAWARIMI_AGENT_GUEST": "env", "KAWARIMI_AGENT_SECRET_KEY": "env"}
    settings = load({"secret_key": "flag", "guest": None}, environment, file=file)
    assert settings.listen == LISTEN
    assert settings.guest == "env"
    assert settings.secret_key == Path("flag")


def test_nothing_need_be_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kawarimi_agent.settings.FILE", tmp_path / "none.toml")
    settings = load({}, {})
    assert settings.listen == ""
    assert settings.guest


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ('listem = "x"', "listem", "no such key. Allowed: one of listen"),
        ("guest = 7", "guest", "7 is no text"),
        ("guest = ", "the file", "TOML"),
        ('listen = "ipc:///tmp/x"', "listen", "no such endpoint. Allowed: an endpoint such as"),
        (f'listen = "{LISTEN}"', "secret_key", "missing"),
        (f'listen = "{LISTEN}"\nsecret_key = "x"', "bridges", "missing"),
        (f'listen = "{LISTEN}"\nsecret_key = "x"\nbridges = "/none"', "bridges", "no folder"),
    ],
)
def test_what_is_wrong_in_the_file(tmp_path: Path, text: str, key: str, words: str) -> None:
    file = configured(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load({}, {}, file=file)
    assert caught.value.slug is Slug.BAD_CONFIGURATION
    assert caught.value.facts["key"] == key
    assert words in caught.value.what
    assert str(file) in caught.value.what or "the configuration" in caught.value.what


@pytest.mark.parametrize("listen", ["tcp://*:7117", "tcp://0.0.0.0:7117", "tcp://eth0:7117"])
def test_insecure_is_for_the_loopback(listen: str) -> None:
    with pytest.raises(UsageError, match="--insecure"):
        load({"listen": listen}, {}, insecure=True)
    assert load({"listen": LISTEN}, {}, insecure=True).insecure
    assert load({"listen": "tcp://[::1]:7117"}, {}, insecure=True).insecure


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["agent", "--run-directory", str(tmp_path), "--listen", "nonsense"]
    assert main(words) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert Slug.BAD_CONFIGURATION in said
    assert "--listen: listen: 'nonsense'" in said

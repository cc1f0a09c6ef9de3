"""`kawarimi report`, on operations as they are left behind."""

from __future__ import annotations

import html.parser
import json
import subprocess
import sys

import pytest
from msgspec import structs
from operation_files import FORWARD, folder, journal, phases, record, rolled_back, samples

from kawarimi_bridge.cli.main import main
from kawarimi_bridge.operations import JOURNAL, LOCK, RECORD
from kawarimi_bridge.report import tables
from kawarimi_bridge.report.account import account
from kawarimi_bridge.report.traffic import traffic
from kawarimi_wire.errors import ExitCode
from kawarimi_wire.phases import Mode, Phase, PhaseState, Result
from kawarimi_wire.record import Entry, GuestRecord, Move, PhaseRecord, RankRow, Sample, SwitchRow

PNG = b"\x89PNG\r\n\x1a\n"
FIRST, SECOND = "20260102-030405-aaaa", "20260102-040506-bbbb"


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("KAWARIMI_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "86")


def text_of(capsys, *words: str) -> str:
    assert main(["report", *words]) == ExitCode.COMPLETED
    return capsys.readouterr().out


def test_without_operations_it_says_so(capsys):
    assert text_of(capsys) == "no operations yet\n"
    assert json.loads(text_of(capsys, "--json")) == {"operations": []}


def test_operations_are_listed_the_oldest_first(capsys):
    journal(SECOND)
    record(FIRST)
    lines = text_of(capsys).splitlines()
    assert lines[2].split() == f"{FIRST} migrate vm1 hosta → hostb completed 9.00 s".split()
    assert lines[3].split() == f"{SECOND} migrate vm1 hosta → hostb no record 5.50 s".split()
    listed = json.loads(text_of(capsys, "--json"))["operations"]
    assert [(one["operation"], one["result"]) for one in listed] == [
        (FIRST, "completed"),
        (SECOND, None),
    ]


def test_a_completed_operation_as_text(capsys):
    samples(record(FIRST))
    text = text_of(capsys, "last", "--text")
    assert text.startswith(f"{FIRST}  migrate (live): completed in 9.00 s")
    assert "vm1  hosta (fabrica) → hostb (Ethernet only)" in text
    assert "6 migrate    done   5.000 s   1.000 s" in text
    assert "QEMU: downtime 48.0 ms, total 950.0 ms, 312.4 MB moved" in text
    assert "job 4711 → tcp, at 1.00 s, in 2.00 s" in text
    assert "drain    1.750 s  0.250 s       0.002 s" in text
    assert "4711     0       6.0 ms       4.1 ms" in text
    assert not (folder(FIRST).folder / "report.html").exists()


def test_the_bars_stand_over_each_other(capsys):
    """72 columns for 9 s: eight a second, and QEMU's downtime in the column of 5.5 s."""
    samples(record(FIRST))
    lines = text_of(capsys, "last", "--text").splitlines()
    bars = {line.split()[0]: line[14:] for line in lines if len(line) > 14 and line[2:3] != " "}
    bar = "".join(number * 8 for number in "123456789")
    assert bars["phases"] == bar
    assert " " * 14 + bar in lines
    assert bars["fabric"].rstrip() == "█" * 24
    assert bars["ethernet"] == " " * 24 + "█" * 48
    assert bars["downtime"] == " " * 44 + "▼"
    assert [line.strip() for line in lines if "most" in line] == [
        *("most 100.0 MB/s", "most 10.0 MB/s")
    ]


def test_preflight_lies_before_the_start(capsys):
    """As the coordinator writes it: what begins at 0 is what preflight has allowed."""
    first, second, *_ = phases()
    before = structs.replace(first, started_s=-1.0)
    during = structs.replace(second, started_s=0.0, duration_s=1.0)
    pending = PhaseRecord(Phase.DRAIN, PhaseState.PENDING)
    guests = (GuestRecord(FORWARD, (before, during, pending)),)
    samples(record(FIRST, guests=guests, duration_s=1.0))
    lines = text_of(capsys, "last").splitlines()
    assert " " * 14 + "1" * 36 + "2" * 36 in lines
    assert "  3 drain      pending" in lines
    assert " " * 14 + "-1.00 s" + "1.00 s".rjust(65) in lines


def test_a_counter_that_begins_again_is_another_device():
    rows = [Sample(0.0, "vm1", 0, 500), Sample(1.0, "vm1", 10, 0), Sample(2.0, "vm1", 30, 70)]
    fabric, ethernet = traffic(rows)
    assert fabric.rates() == [0.0, 70.0]
    assert ethernet.rates() == [10.0, 20.0]
    assert ethernet.mean_rate(0.5, 1.5) == 15.0
    assert ethernet.mean_rate(2.0, 3.0) is None


def test_samples_of_one_moment_or_none_make_no_rates(capsys):
    made = record(FIRST)
    made.write_sample(Sample(1.0, "vm1", 0, 0))
    made.write_sample(Sample(1.0, "vm1", 5, 0))
    assert traffic(made.samples()) == []
    assert "throughput: no samples" in text_of(capsys, "last")
    written = sorted(path.name for path in made.folder.glob("*.*") if path.suffix != ".json")
    assert written == ["phases.png", "report.html", "samples.jsonl"]


def test_a_rolled_back_operation_tells_its_error(capsys):
    rolled_back(FIRST)
    text = text_of(capsys, "last", "--text")
    assert "migrate (live): rolled-back in 9.00 s" in text
    assert "error [unplug-timeout] The guest vm1 did not let its HCA go." in text
    for line in ("untouched: the job runs on openib", "hint: look at its console", "waited_s: 60"):
        assert f"  {line}\n" in text
    assert "3 drain      undone" in text
    assert "5 unplug     failed" in text
    assert "QEMU" not in text


def test_a_degraded_operation(capsys):
    states = {Phase.REPROBE: PhaseState.FAILED, Phase.RESELECT: PhaseState.SKIPPED}
    record(FIRST, result=Result.DEGRADED, guests=(GuestRecord(FORWARD, phases(**states)),))
    text = text_of(capsys, "last", "--text")
    assert "degraded" in text
    assert "8 reprobe    failed" in text
    assert "  9 reselect   skipped\n" in text  # without times: it never was


def test_the_longest_gap_of_a_rank_is_over_all_switches(capsys):
    there = SwitchRow("1", "tcp", 0.0, 1.0, (), (RankRow(0, 0.010, 0.003),))
    back = SwitchRow("1", "openib", 5.0, 1.0, (), (RankRow(0, 0.020, 0.008),))
    one = account(record(FIRST, switches=(there, back)))
    table = tables.rank_table(one)
    assert table is not None
    assert table.rows == [["1", "0", "30.0 ms", "8.0 ms"]]


def test_an_operation_without_a_record_is_rebuilt_from_its_journal(capsys):
    made = journal(FIRST)
    text = text_of(capsys, "last", "--text")
    assert "no record. It was killed; its journal" in text
    assert "11 entries, ends 5.50 s after its start, which was 2026-01-02T03:04:05Z" in text
    assert "device_del; id: hca0" in text
    one = account(made)
    assert (one.command, one.mode, one.result) == ("migrate", Mode.LIVE, None)
    (guest,) = one.guests
    assert guest.move == FORWARD
    assert [(row.phase, row.state, row.started_s, row.duration_s) for row in guest.phases] == [
        (Phase.PREFLIGHT, PhaseState.DONE, 1.0, 1.0),
        (Phase.PREPARE, PhaseState.DONE, 2.0, 1.0),
        (Phase.DRAIN, PhaseState.DONE, 3.0, 1.0),
        (Phase.RELEASE, PhaseState.DONE, 4.0, 1.0),
        (Phase.UNPLUG, PhaseState.RUNNING, 5.0, 0.5),
    ]


HOLD = """
import sys
from pathlib import Path
from kawarimi_bridge.locks import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_an_operation_that_still_runs(capsys):
    made = journal(FIRST)
    words = [sys.executable, "-c", HOLD, str(made.folder / LOCK)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as performer:
        assert performer.stdout.readline() == "held\n"
        text = text_of(capsys, "last", "--text")
        assert json.loads(text_of(capsys, "last", "--json"))["process"] == performer.pid
    assert f"no record. It still runs, as process {performer.pid}; its journal" in text
    assert "was killed" in text_of(capsys, "last", "--text")


def test_an_undone_phase_keeps_the_time_that_it_took():
    made = journal(FIRST)
    made.write_entry(Entry(6.0, Phase.UNPLUG, PhaseState.FAILED, "vm1"))
    made.write_entry(Entry(9.0, Phase.DRAIN, PhaseState.UNDONE))
    (guest,) = account(made).guests
    drain, _, unplug = guest.phases[2:]
    assert (drain.state, drain.started_s, drain.duration_s) == (PhaseState.UNDONE, 3.0, 1.0)
    assert (unplug.state, unplug.duration_s) == (PhaseState.FAILED, 1.0)


def test_a_guest_that_nothing_is_told_of_but_its_samples():
    made = folder(FIRST)
    made.write_entry(Entry(0.0, Phase.PREFLIGHT, PhaseState.RUNNING, facts={"command": 7}))
    made.write_sample(Sample(2.0, "vm9", 1, 1))
    one = account(made)
    assert one.command == ""
    assert [guest.move.guest for guest in one.guests] == ["vm9"]
    assert one.guests[0].phases[0].duration_s == 2.0


def test_a_journal_cut_off_by_a_crash(capsys):
    made = journal(FIRST)
    with (made.folder / JOURNAL).open("ab") as file:
        file.write(b'{"at_s":6.0,"phase":"unpl')
    assert len(account(made).journal) == 11
    assert "unplug running" in text_of(capsys, "last")


def test_a_damaged_operation_is_listed_and_refused(capsys):
    made = record(SECOND)
    (made.folder / RECORD).write_text('{"operation": 5}')
    record(FIRST)
    assert f"{SECOND}" in text_of(capsys)
    assert json.loads(text_of(capsys, "--json"))["operations"][1] == {"operation": SECOND}
    assert main(["report", "last", "--json"]) == ExitCode.REFUSED
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["slug"] == "operation-damaged"
    assert error["facts"]["file"] == str(made.folder / RECORD)


def test_a_damaged_line_within_a_journal_is_refused(capsys):
    made = journal(FIRST)
    with (made.folder / JOURNAL).open("ab") as file:
        file.write(b'{"at_s":6.0,"phase":"unpl{"at_s":7.0}\n')
    assert main(["report", "last", "--json"]) == ExitCode.REFUSED
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["facts"]["file"] == str(made.folder / JOURNAL)


@pytest.mark.parametrize("name", ["2025", "20260102-0", "x", "../operations"])
def test_an_unknown_or_ambiguous_operation(capsys, name):
    record(FIRST)
    record(SECOND)
    assert main(["report", name, "--json"]) == ExitCode.USAGE
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["slug"] == "unknown-operation"
    assert error["facts"]["candidates"] == ([FIRST, SECOND] if name == "20260102-0" else [])
    assert main(["report", "20260102-03", "--json"]) == ExitCode.COMPLETED


def test_json_is_the_record_and_writes_nothing(capsys):
    made = record(FIRST)
    printed = json.loads(text_of(capsys, "last", "--json"))
    assert printed == json.loads((made.folder / RECORD).read_bytes())
    assert [path.name for path in made.folder.iterdir()] == [RECORD]


class Page(html.parser.HTMLParser):
    """Which elements a page has, and what text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        if tag == "img":
            assert (dict(attributes)["src"] or "").startswith("data:image/png;base64,iVBOR")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_files(capsys, tmp_path):
    samples(record(FIRST))
    text = text_of(capsys, "last", "--out", str(tmp_path / "a/b"))
    paths = [tmp_path / "a/b" / name for name in ("report.html", "phases.png", "throughput.png")]
    assert text.splitlines()[-3:] == [str(path) for path in paths]
    assert all(path.read_bytes().startswith(PNG) for path in paths[1:])
    page = Page()
    page.feed(paths[0].read_text())
    assert "6 migrate" in page.text
    assert "QEMU: downtime 48.0 ms" in page.text
    assert "http" not in paths[0].read_text().replace("http-equiv", "")


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=y>&amp;\x1b[2J\u202e$\\frac{$"


def test_hostile_names_stay_names(capsys):
    """They come from guests and from job names: neither HTML, nor a terminal's command, nor TeX."""
    error = {"slug": HOSTILE, "what": HOSTILE, "hint": HOSTILE, "facts": {HOSTILE: HOSTILE}}
    move = Move(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE)
    made = record(
        FIRST,
        command=HOSTILE,
        began=HOSTILE,
        guests=(GuestRecord(move, phases(), downtime_at_s=(1.0, 1.1)),),
        switches=(SwitchRow(HOSTILE, HOSTILE, 0.0, 1.0, (), (RankRow(0, 0.1, 0.1),)),),
        error=error,
    )
    samples(made, guest=HOSTILE)
    for text in (text_of(capsys, "last"), text_of(capsys)):
        assert "\x1b" not in text
        assert "\u202e" not in text
    page = Page()
    page.feed((made.folder / "report.html").read_text())
    assert page.tags == {
        *("html", "head", "meta", "title", "style", "body", "h1", "p", "div", "img"),
        *("table", "caption", "tr", "th", "td"),
    }
    assert page.attributes == {*("lang", "charset", "http-equiv", "content", "src", "alt", "class")}
    assert "<script>alert(1)</script>" in page.text


def test_without_matplotlib_the_text_is_there_and_the_error_says_what_to_do(capsys, monkeypatch):
    made = record(FIRST)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", "last"]) == ExitCode.REFUSED
    captured = capsys.readouterr()
    assert "6 migrate" in captured.out
    assert "error [library-missing]" in captured.err
    assert "kawarimi[report]" in captured.err
    assert [path.name for path in made.folder.iterdir()] == [RECORD]


def test_a_folder_that_cannot_be_written(capsys, tmp_path):
    record(FIRST)
    (tmp_path / "file").write_text("")
    assert main(["report", "last", "--out", str(tmp_path / "file/x")]) == ExitCode.USAGE
    assert "error [bad-usage]: The report cannot be written" in capsys.readouterr().err


def test_an_empty_journal(capsys):
    made = folder(FIRST)
    made.folder.mkdir(parents=True)
    (made.folder / JOURNAL).write_bytes(b"")
    text = text_of(capsys, "last")
    assert "of 0 entries" in text
    assert text.endswith("report.html\n")

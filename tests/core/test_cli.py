"""The command line: config files that do not load, the flags of a job, and how programs end."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest
from absl import flags
from ml_collections import config_flags

from configs import lcr_ser
from core import cli
from core.errors import Preempted, UserError
from experiments.resolve import resolve

CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs"


@pytest.fixture
def parse(monkeypatch):
    def of(*words):
        values = flags.FlagValues()
        # A file loaded before in this process would lend its get_config.
        monkeypatch.delitem(sys.modules, "config_config", raising=False)
        # Where ml_collections looks for --config.NAME.
        monkeypatch.setattr(sys, "argv", ["program", *words])
        config_flags.DEFINE_config_file("config", None, "A file.", flag_values=values)
        cli.parse(sys.argv, values)
        return values.config

    return of


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("datasets.py", r"with a get_config\(\), found one without; pass --config="),
        ("lcr_ser_qilin.py:foo", r"found a choice after its colon that the file does not take; l"),
        (
            "baseline.py:sasrec,amazon_kindle",
            r"^expected configs/baseline.py:METHOD,DATASET .* a data set of amazon_beauty, "
            r"amazon_raw, .*, found 'sasrec,amazon_kindle'; pass one of them$",
        ),
        (
            "retrieval.py:bm25",
            r"^expected configs/retrieval.py:DATASET\[,VARIANT\] .*found 'bm25'; ",
        ),
        ("sasrec.py:amazon_beuty", r"found 'amazon_beuty' \(did you mean amazon_beauty\?\); pass"),
        (
            "sasrec.py:kuaisar,cee",
            r"a variant of bce, ce, tuned, found 'kuaisar,cee' \(did you mean ce\?\)",
        ),
        ("no.py", "expected a config file, found none that loads"),
        (
            "lcr_ser_qilim.py",
            r"found none that loads at .*lcr_ser_qilim.py \(.*No such file or .*\); did you "
            r"mean .*configs/lcr_ser_qilin.py\? pass --config=configs/METHOD.py:DATASET$",
        ),
        ("nowhere/unisra.py", r"did you mean configs/unisar.py\?"),
        ("unisar_qilin.py", r"did you mean .*configs/unisar.py:qilin( or .*)?\? pass"),
        (
            "gensar_identifiers_x.py",
            r"did you mean .*configs/gensar_identifiers.py\? pass",
        ),
    ],
)
@pytest.mark.parametrize("more", [[], ["--config.seed=1"]])
def test_a_config_file_that_does_not_load_is_told_in_one_line(parse, file, words, more):
    with pytest.raises(UserError, match=words):
        parse(f"--config={CONFIGS / file}", *more)


def test_keys_and_their_types(parse):
    file = f"--config={CONFIGS / 'lcr_ser_qilin.py'}"
    assert parse(file, "--config.seed=3").seed == 3
    with pytest.raises(UserError, match=r"a key of the config file, found 'wings'; see the file"):
        parse(file, "--config.wings=3")
    words = r"found 'max_epoch'; did you mean max_epochs\? see the file for its keys$"
    with pytest.raises(UserError, match=words):
        parse(file, "--config.train.max_epoch=3")
    with pytest.raises(UserError, match=r"found --confg; did you mean --config\? see --help$"):
        parse(file, "--confg=3")
    with pytest.raises(UserError, match=r"known flags with fitting values, found: .*seed"):
        parse(file, "--config.seed=three")


def test_a_config_without_a_data_set_is_no_run():
    config = lcr_ser.method()
    for folder in ("", "/somewhere"):
        config.data_dir = folder
        with pytest.raises(UserError, match="names its data set, found none in it; pass --config="):
            resolve(config)


def job(*given):
    """What a program with these flags runs as."""
    values = flags.FlagValues()
    cli.define_job_flags(values)
    values(["program", *given])
    ran = []
    cli.run_job(lambda: ran.append("alone"), lambda: ran.append("together"), values)
    return ran


@pytest.mark.parametrize(
    "given", [("--processes=4", "--process=1"), ("--processes=2",), ("--process=1",)]
)
def test_processes_are_not_numbered_without_a_coordinator(given):
    with pytest.raises(UserError, match="expected --coordinator=HOST:PORT with --processes and "):
        job(*given)


def test_one_process_needs_no_coordinator():
    assert job("--processes=1", "--process=0") == ["alone"]


class Watch:
    finished = False

    def finish(self):
        self.finished = True


def test_a_stop_with_an_exit_code_is_no_lost_process():
    watch = Watch()
    with pytest.raises(SystemExit) as end:
        cli.run_watched(watch, lambda: cli.stopped(Preempted("Ctrl-C: saved step 3", 130)))
    assert end.value.code == 130 and watch.finished


ROOT = CONFIGS.parent
PROGRAMS = sorted(
    f"{path.parent.name}.{path.stem}"
    for folder in ("launch", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
    if "\ncli.begin(" in path.read_text("utf-8")
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_mistake_in_a_flag_is_told_before_anything_slow_is_imported(name):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['x', '--confg=x']\n"
        "try:\n"
        f"    runpy.run_module('{name}', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    print(stop.code, [n for n in ('jax', 'numpy', 'tensorflow') if n in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "2 []\n", done.stderr
    assert done.stderr.startswith("error: expected a known flag, found --confg;")
    assert done.stderr.count("\n") == 1


def test_every_program_parses_first():
    assert len(PROGRAMS) >= 18
    for folder in ("launch", "benchmarks"):
        for path in (ROOT / folder).glob("*.py"):
            begins = f"{folder}.{path.stem}" in PROGRAMS
            assert ("cli.run(main)" in path.read_text("utf-8")) == begins, path


def test_the_names_that_flags_spell_out_are_those_there_are():
    from benchmarks import suites
    from input_pipelines import protocols
    from lcrsr import search_evaluation
    from studies import strata

    def help_of(name, flag):
        text = (ROOT / "launch" / f"{name}.py").read_text("utf-8")
        return text[text.index(f'"{flag}"') :][:500]

    for word in (*protocols.PROTOCOLS, *search_evaluation.PROTOCOLS):
        assert word in help_of("evaluate", "protocols")
    for word in strata.KINDS:
        assert f'"{word}"' in help_of("compare", "split")
    for word in suites.SUITES:
        assert word in help_of("benchmark", "suite")
    for word in suites.SCALES:
        assert f'"{word}"' in help_of("benchmark", "scale")


def program(body, *, continues=False, imports=""):
    """A program with this body, and with this among its imports."""
    code = (
        "import sys, time\n"
        "from core import cli\n"
        f"cli.begin(__name__, lambda: None, continues={continues})\n"
        f"{imports}\n"
        f"def main():\n    {body}\n"
        "cli.run(main)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# A signal between two bytecodes and a sleep is heard after the sleep: short ones, then.
WAITS = "print('here', flush=True); [time.sleep(.05) for _ in range(600)]"
AGAIN = "the same command begins again"
NOTHING = (
    "nothing was trained since the last checkpoint, if there is one; the same command begins or "
    "continues"
)


@pytest.mark.parametrize("where", ["imports", "main"])
@pytest.mark.parametrize(
    ("number", "continues", "code", "line"),
    [
        (signal.SIGTERM, True, 0, f"SIGTERM: {NOTHING}"),
        (signal.SIGINT, True, 130, f"Ctrl-C: {NOTHING}"),
        (signal.SIGTERM, False, 143, f"terminated by SIGTERM; {AGAIN}"),
        (signal.SIGINT, False, 130, f"interrupted; {AGAIN}"),
    ],
)
def test_a_signal_ends_a_program_in_one_line(where, number, continues, code, line):
    bodies = {"imports": WAITS} if where == "imports" else {}
    process = program("pass" if bodies else WAITS, continues=continues, **bodies)
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    output, error = process.communicate(timeout=20)
    assert (process.returncode, output, error) == (code, "", line + "\n")


def test_what_is_half_written_goes_and_a_second_signal_does_not_wait_for_it():
    tidies = (
        f"try:\n        {WAITS}\n"
        "    finally:\n        print('tidy', flush=True); [time.sleep(.05) for _ in range(COUNT)]"
    )
    process = program(tidies.replace("COUNT", "0"))
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=20)
    assert (process.returncode, output, error.count("\n")) == (130, "tidy\n", 1)
    process = program(tidies.replace("COUNT", "600"))
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "tidy\n"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130 and time.monotonic() - began < 5


@pytest.mark.parametrize("where", ["imports", "main"])
def test_what_nobody_expected_is_one_line_and_a_file(where, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    raises = "raise KeyError('a\\x1b[31m\\u202eb')"
    bodies = {"imports": raises} if where == "imports" else {}
    process = program("pass" if bodies else raises, **bodies)
    _, error = process.communicate(timeout=20)
    (path,) = tmp_path.iterdir()
    assert process.returncode == 1 and error.count("\n") == 1
    assert error.startswith("error: expected no KeyError, found one: ")
    assert f"report it with {path}; LCRSR_TRACEBACK=1 before the command shows" in error
    assert "\x1b" not in error and "\u202e" not in error
    assert "Traceback (most recent call last)" in path.read_text("utf-8")
    monkeypatch.setenv("LCRSR_TRACEBACK", "1")
    process = program("pass" if bodies else raises, **bodies)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 1 and error.startswith("Traceback (most recent call last)")


def test_a_reader_that_has_enough_is_no_error():
    process = program("print('here', flush=True); time.sleep(.5); print('x' * 10**6)")
    assert process.stdout.readline() == "here\n"
    process.stdout.close()
    process.wait(timeout=20)
    assert process.returncode == 141 and process.stderr.read() == ""


def test_text_of_data_does_not_steer_the_terminal():
    says = (
        "import logging; logging.info('\\x1b[2Jtitle\\nnext'); "
        "raise __import__('core.errors').errors.UserError('found \\x9b31m\\u2066 \\r\\n it')"
    )
    process = program(says)
    _, error = process.communicate(timeout=20)
    lines = error.splitlines()
    assert process.returncode == 2 and len(lines) == 2
    assert lines[0].endswith("\\u001b[2Jtitle\\u000anext")
    assert lines[1] == "error: found \\u009b31m\\u2066 it"


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("lcr_ser_qilin", "lcr_ser_qilin.py"),
        ("lcr_ser_qilin.py", "lcr_ser_qilin.py"),
        ("configs/lcr_ser_qilin.py", "lcr_ser_qilin.py"),
        ("sasrec:amazon_beauty", "sasrec.py:amazon_beauty"),
    ],
)
def test_a_config_of_the_library_is_found_from_any_folder(tmp_path, monkeypatch, given, file):
    monkeypatch.chdir(tmp_path)
    assert cli.with_installed_configs(["x", f"--config={given}", "--config.seed=1"]) == [
        "x",
        f"--config={CONFIGS / file}",
        "--config.seed=1",
    ]
    assert cli.with_installed_configs(["x", "--config", given])[2] == str(CONFIGS / file)


def test_a_config_of_the_user_comes_before_one_of_the_library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    for own in ("configs/lcr_ser_qilin.py", "mine.py"):
        (tmp_path / own).write_text("")
        assert cli.with_installed_configs(["x", f"--config={own}"]) == ["x", f"--config={own}"]
    # A run's folder has the name of its config, and is none.
    (tmp_path / "lcr_ser_qilin").mkdir()
    words = cli.with_installed_configs(["x", "--config=lcr_ser_qilin"])
    assert words == ["x", f"--config={CONFIGS / 'lcr_ser_qilin.py'}"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("lcr_ser_qilim", r"did you mean lcr_ser:qilin or lcr_ser_qilin.*\? pass --con"),
        ("configs/lcr_ser_qilim.py:x", r"did you mean lcr_ser:qilin or lcr_ser_qilin"),
        ("basline", r"found none that loads at basline, here or among the library's; pass"),
        ("gensar_trivago", r"did you mean (?!gensar:)"),
        ("sasrek", r"did you mean sasrec\b.*\? pass --config=NAME of one of"),
        ("mime", r"found none that loads at mime, here or .*; did you mean mine\? pass"),
        ("xyzzy", r"among the library's; pass --config=NAME of one of these or a file of yours$"),
    ],
)
def test_a_config_that_does_not_exist_comes_with_the_nearest(tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def get_config():\n")
    with pytest.raises(UserError, match=words):
        cli.with_installed_configs(["x", f"--config={given}"])

"""Programs against an S3 server on this machine: prepare, train and evaluate from its buckets."""

import json
import os
import subprocess
import sys
import time
import urllib.request

import jobs
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An S3 server with an empty bucket `bucket`; returns the environment of programs."""
    pytest.importorskip("moto", reason="the server is moto's: pip install -e '.[test]'")
    s3fs = pytest.importorskip("s3fs", reason="fsspec needs s3fs for s3://")
    port = jobs.free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "LCRSR_STORE_FOLDER": str(tmp_path_factory.mktemp("copies")),
    }
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(address + "/moto-api/data.json", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
        files = s3fs.S3FileSystem(key="key", secret="secret", endpoint_url=address)
        files.mkdir("bucket")
        yield environment, files, address
    finally:
        process.kill()
        process.wait()


def run(environment, name, *flags):
    command = [sys.executable, "-m", f"launch.{name}", *flags]
    environment = jobs.one_device() | environment
    return subprocess.run(
        command, cwd=jobs.ROOT, env=environment, capture_output=True, text=True, timeout=240
    )


def copies(environment):
    """The files of all copies; not what a cache remembers of raw files, which is no result."""
    folder = environment["LCRSR_STORE_FOLDER"]
    return {
        os.path.join(at, name)
        for at, _, names in os.walk(folder)
        for name in names
        if name != "raw-hashes.json"
    }


def test_prepared_trained_and_evaluated_from_a_bucket(server, csv_folder, tmp_path):
    environment, files, address = server
    files.put(f"{csv_folder}/", "bucket/raw/", recursive=True)
    prepare = ["--dataset=csv_log", "--raw_dir=s3://bucket/raw"]
    done = run(environment, "prepare_data", *prepare, "--data_dir=s3://bucket/log")
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout)
    assert card["prepared"] == "s3://bucket/log"
    here = run({}, "prepare_data", "--dataset=csv_log", f"--raw_dir={csv_folder}",
               f"--data_dir={tmp_path / 'log'}")  # fmt: skip
    assert json.loads(here.stdout)["hash"] == card["hash"]
    for name in os.listdir(tmp_path / "log"):
        if name.endswith(".npy"):
            assert files.cat(f"bucket/log/{name}") == (tmp_path / "log" / name).read_bytes()

    # The raw files, and a cache in the bucket; then the prepared log, and a cache of this machine.
    method = "--config=configs/popularity.py:csv_log"
    stored = ["--config.data_dir=s3://bucket/raw", "--config.cache_dir=s3://bucket/cache"]
    first = run(environment, "train", method, *stored, f"--workdir={tmp_path / 'a'}")
    assert first.returncode == 0, first.stderr
    kept = files.find("bucket/cache")
    assert any("/meta.json~" in name for name in kept)
    other = environment | {"LCRSR_STORE_FOLDER": str(tmp_path / "other machine")}
    second = run(other, "train", method, *stored, f"--workdir={tmp_path / 'b'}")
    assert second.returncode == 0, second.stderr
    assert files.find("bucket/cache") == kept
    prepared = ["--config.data_dir=s3://bucket/log", f"--config.cache_dir={tmp_path / 'cache'}"]
    third = run(environment, "train", method, *prepared, f"--workdir={tmp_path / 'c'}")
    assert third.returncode == 0, third.stderr
    metrics = [
        {key: row["metrics"] for key, row in jobs.rows_of(tmp_path / run).items()} for run in "abc"
    ]
    assert metrics[0] and metrics[0] == metrics[1] == metrics[2]
    again = run(environment, "evaluate", f"--workdir={tmp_path / 'a'}", "--protocol=full")
    assert again.returncode == 0, again.stderr

    before = copies(environment)
    refused = {
        "--config.data_dir=s3://no-bucket/raw": "found The specified bucket does not exist;",
        "--config.cache_dir=s3://no-bucket/cache": "found The specified bucket does not exist;",
    }
    for flag, words in refused.items():
        flags = [method, f"--config.data_dir={csv_folder}", flag, f"--workdir={tmp_path / 'none'}"]
        done = run(environment, "train", *flags)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr.splitlines()[-1], done.stderr
    # From now on the server asks who it is, and knows nobody.
    request = urllib.request.Request(f"{address}/moto-api/reset-auth", data=b"0")
    request.add_header("Content-Type", "text/plain")
    urllib.request.urlopen(request).close()
    done = run(environment, "train", method, *stored, f"--workdir={tmp_path / 'none'}")
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: expected to read s3://bucket/raw (config.data_dir), found "), (
        last
    )
    done = run(environment, "prepare_data", "--dataset=csv_log", f"--raw_dir={csv_folder}",
               "--data_dir=s3://bucket/other")  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "s3://bucket/other (--data_dir), found " in done.stderr.splitlines()[-1]
    assert not (tmp_path / "none").exists()
    assert copies(environment) == before

# SPDX-License-Identifier: MIT
"""The command line: output, exit codes, and one clear line on stderr for bad input."""

from __future__ import annotations

import functools
import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastconv import cli, runtime
from fastconv.recipes.checkpoint import load_checkpoint, save_checkpoint
from fastconv.recipes.digits import load_digits


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs made by the command line."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    options = ["--epochs", "3", "--threads", "1", "--out", str(folder)]
    assert cli.main(["train", "lenet5", *options]) == 0
    return folder


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must exit with 2, print nothing on stdout and one line on stderr."""
    try:
        code: object = cli.main(argv)
    except SystemExit as exit_:
        code = exit_.code
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    return err.rstrip("\n")


# fastconv info


def test_info_prints_every_key_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(runtime.info())
    starts = {len(line) - len(line.split(":", 1)[1].lstrip()) for line in lines}
    assert len(starts) == 1


def test_info_as_json_is_what_the_library_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == runtime.info()


def test_python_m_fastconv_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastconv", "info"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert str(runtime.info()["version"]) in done.stdout


def test_a_closed_pipe_is_no_traceback() -> None:
    program = "import sys; from fastconv.cli import main; input(); sys.exit(main(['info']))"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == b""


# Help and bad options


@pytest.mark.parametrize(
    "command",
    ["", "info", "train", "train lenet5", "predict", "predict lenet5"],
)
def test_help_everywhere(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*command.split(), "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: fastconv {command}".rstrip())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"fastconv {runtime.info()['version']}\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "fastconv: the following arguments are required: COMMAND"),
        ("bake", "fastconv: argument COMMAND: invalid choice: 'bake'"),
        ("train", "fastconv train: the following arguments are required: NETWORK"),
        ("train resnet", "fastconv train: argument NETWORK: invalid choice: 'resnet'"),
        ("train lenet5 --epoch 3", "fastconv: unrecognized arguments: --epoch 3"),
        ("train lenet5 --epochs", "fastconv train: argument --epochs: expected one argument"),
        ("train lenet5 --epochs x", "fastconv train: argument --epochs: invalid int value: 'x'"),
        ("train lenet5 --epochs 0", "fastconv train: expected --epochs an integer from 1 to"),
        ("train lenet5 --batch-size -4", "fastconv train: expected --batch-size an integer"),
        ("train lenet5 --lr nan", "fastconv train: expected --lr a number above 0, got nan"),
        ("train lenet5 --lr 0", "fastconv train: expected --lr a number above 0, got 0.0"),
        ("train lenet5 --dropout 1", "fastconv train: expected --dropout a number from 0 to below"),
        ("train lenet5 --l1 -1", "fastconv train: expected --l1 a number of at least 0, got -1.0"),
        ("train lenet5 --threads 0", "fastconv train: expected --threads an integer from 1 to"),
        ("train lenet5 --seed -1", "fastconv train: expected --seed an integer from 0 to"),
        ("train lenet5 --activation x", "fastconv train: argument --activation: invalid choice"),
        ("train lenet5 --pool x", "fastconv train: argument --pool: invalid choice: 'x'"),
        ("train lenet5 --backend x", "fastconv train: argument --backend: invalid choice: 'x'"),
        ("train lenet5 --momentum 0.5", "fastconv train: --momentum needs --optimizer sgd"),
        ("train lenet5 --data-dir .", "fastconv train: --data-dir needs --data mnist"),
        ("train lenet5 --data mnist", "fastconv train: --data mnist needs --data-dir DIR"),
        (
            "train lenet5 --data mnist --data-dir none",
            "fastconv train: expected --data-dir an existing directory, got 'none'",
        ),
        (
            "train lenet5 --data mnist --data-dir .",
            "fastconv train: .: expected the file train-images-idx3-ubyte",
        ),
        (
            "train lenet5 --resume none.pt",
            "fastconv train: none.pt: expected a checkpoint file, found none",
        ),
        ("train lenet5 --out file", "fastconv train: file: cannot create the run folder: File"),
        ("predict lenet5 a.png", "fastconv predict: the following arguments are required: --check"),
        (
            "predict lenet5 --checkpoint none.pt a.png",
            "fastconv predict: none.pt: expected a checkpoint file, found none",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way")
    assert fails(capsys, *command.split()).startswith(message)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_extra_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "sklearn" else find_spec(name, *rest),
    )
    message = fails(capsys, "train", "lenet5", "--out", str(tmp_path / "run"))
    assert message == (
        'fastconv train: scikit-learn not installed; run: pip install "fastconv[recipes]"'
    )
    assert not (tmp_path / "run").exists()


# fastconv train


def test_train_prints_its_result_and_nothing_else(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = "--epochs 1 --threads 1 --backend torch --activation tanh --pool avg"
    penalties = "--dropout 0.1 --l1 1e-5 --weight-decay 1e-4"
    for name in ("lenet5-1", "lenet5-2"):
        assert cli.main(["train", "lenet5", *options.split(), *penalties.split()]) == 0
        out, err = capfd.readouterr()
        assert err == ""
        (line,) = out.splitlines()
        assert line.startswith("test accuracy ")
        assert "images/s" in line
        assert line.endswith(f"run folder {Path('runs') / name}")
    config = json.loads((tmp_path / "runs" / "lenet5-2" / "config.json").read_text())
    assert (config["pool"], config["backend"], config["l1"]) == ("avg", "torch", 1e-5)


def test_train_resumes_where_the_checkpoint_is(
    capsys: pytest.CaptureFixture[str], run_folder: Path
) -> None:
    checkpoint = str(run_folder / "last.pt")
    assert "with --resume only these may change" in fails(
        capsys, "train", "lenet5", "--resume", checkpoint, "--lr", "0.1"
    )
    assert cli.main(["train", "lenet5", "--resume", checkpoint, "--epochs", "4"]) == 0
    rows = (run_folder / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2", "3", "4"]


def test_a_corrupted_checkpoint_is_refused(
    capsys: pytest.CaptureFixture[str], run_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cut.pt"
    path.write_bytes((run_folder / "last.pt").read_bytes()[:5000])
    for command in ("train lenet5 --resume", "predict lenet5 a.png --checkpoint"):
        message = fails(capsys, *command.split(), str(path))
        assert "cut.pt: damaged, or not a checkpoint of fastconv" in message


def test_a_checkpoint_with_odd_settings_is_refused(
    capsys: pytest.CaptureFixture[str], run_folder: Path, tmp_path: Path
) -> None:
    content = load_checkpoint(run_folder / "last.pt", "lenet5")
    path = tmp_path / "odd.pt"
    for settings, message in (
        ({"activation": "cube"}, "expected --activation one of relu"),
        ({"shape": "round"}, "missing or unknown settings: shape"),
    ):
        config = {**content["config"], **settings}
        save_checkpoint(path, "lenet5", {**content, "config": config})
        assert message in fails(capsys, "train", "lenet5", "--resume", str(path))
    save_checkpoint(path, "lenet5", {"config": content["config"], "data": content["data"]})
    message = fails(capsys, "predict", "lenet5", "--checkpoint", str(path), "a.png")
    assert "odd.pt: the checkpoint is incomplete" in message


def test_divergence_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = ["--optimizer", "sgd", "--lr", "1e30", "--out", str(out)]
    assert cli.main(["train", "lenet5", *options]) == 1
    err = capsys.readouterr().err
    assert err.startswith("fastconv train: training diverged in epoch 1: expected a finite loss")
    assert err.count("\n") == 1


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "fastconv", "train", "lenet5", "--threads", "1"]
    with subprocess.Popen(
        [*command, "--epochs", "100000", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a shell hands down an ignored SIGINT.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 120
        while not (out / "last.pt").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.startswith("fastconv train: interrupted after ")
    assert stderr.endswith(f"go on with --resume {out / 'last.pt'}\n")
    assert stderr.count("\n") == 1
    content = load_checkpoint(out / "last.pt", "lenet5")
    assert content["trainer"]["epoch"] >= 1
    assert not list(out.glob(".*"))


# fastconv predict


def test_predict_prints_the_class_and_all_probabilities(
    capsys: pytest.CaptureFixture[str], run_folder: Path, tmp_path: Path
) -> None:
    images, _ = load_digits()
    path = tmp_path / "digit.png"
    Image.fromarray((images[0, 0].numpy() * 255).astype(np.uint8)).save(path)
    command = ["predict", "lenet5", "--checkpoint", str(run_folder / "best.pt"), str(path)]
    threads = torch.get_num_threads()
    assert cli.main([*command, "--threads", str(threads)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    start, shares = line.split("   ")
    assert start.startswith(f"{path}: ")
    probabilities = [float(part.split(":")[1]) for part in shares.split("  ")]
    assert len(probabilities) == 10
    assert sum(probabilities) == pytest.approx(1.0, abs=0.01)
    assert cli.main([*command, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert str(row["label"]) == start.removeprefix(f"{path}: ")
    assert row["probabilities"] == pytest.approx(probabilities, abs=0.0006)


def test_predict_names_a_bad_image(
    capsys: pytest.CaptureFixture[str], run_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no image")
    checkpoint = str(run_folder / "best.pt")
    message = fails(capsys, "predict", "lenet5", "--checkpoint", checkpoint, str(path))
    assert message == f"fastconv predict: {path}: expected an image file, got something else"
    message = fails(
        capsys, "predict", "lenet5", "--checkpoint", checkpoint, "--threads", "0", str(path)
    )
    assert message.startswith("fastconv predict: expected --threads an integer from 1 to")

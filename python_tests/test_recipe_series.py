# SPDX-License-Identifier: MIT
"""The recipes on an LSTM: train forecast, train text, generate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastconv.cli import main
from fastconv.recipes.errors import UserError
from fastconv.recipes.forecast import ForecastConfig, naive_forecasts, train_forecast
from fastconv.recipes.series_data import load_csv, load_sunspots, make_windows
from fastconv.recipes.text import TextConfig, generate, load_model, train_text
from fastconv.recipes.text_data import Text, columns, encode, load_text, ngram_bits

# --- Series --------------------------------------------------------------------------------------


def test_sunspots_are_the_published_ones() -> None:
    series = load_sunspots()
    assert len(series.values) == 309
    assert (series.labels[0], series.labels[-1]) == ("1700", "2008")
    assert series.values[series.labels.index("1957")] == 190.2  # the highest on record
    assert series.values.argmax() == series.labels.index("1957")


def test_windows_never_look_ahead() -> None:
    values = torch.arange(30.0)
    windows = make_windows(values, window=5, horizon=3, begin=20, end=30)
    assert windows.starts.tolist() == list(range(20, 28))
    assert windows.inputs[0, :, 0].tolist() == [15, 16, 17, 18, 19]
    assert windows.targets[-1].tolist() == [27, 28, 29]
    last, seasonal = naive_forecasts(values, windows, season=2)
    assert last[0].tolist() == [19, 19, 19]
    assert seasonal[0].tolist() == [18, 19, 18]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,x\n", "a header and rows"),
        ("time,y\n1,2\n", "--column one of time, y, got x"),
        ("time,x\n1,2\n2,abc\n", r"line 3: expected a number in column x, got 'abc'"),
        ("time,x\n1,2\n2,nan\n", "line 3: expected a number"),
        ("time,x\n1,2\n2,\n", "line 3: expected a number"),
        ("time,x\n1,2\n2,3\n4,3\n", "line 4: expected equal steps of time, got 4 after 2"),
        ("time,x\n2,2\n1,3\n", "line 3: expected equal steps"),
        ("time,x\n2001-01,2\n2001-02,3\n2001-04,3\n", "got 2001-04 after 2001-02"),
        ("time,x\n2001-01-30,2\n2001-01-31,3\n2001-02-02,3\n", "got 2001-02-02 after"),
        ("time,x\n1,2,3\n", "line 2: expected 2 columns, got 3"),
        (f"time,x\n1,{'7' * 200_000}\n", "expected a CSV file: field larger than"),
        ("time,x\n9999-12-30,1\n9999-12-31,2\n9999-12-31,3\n", "got 9999-12-31 after"),
    ],
)
def test_bad_csv_files_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "series.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_csv(path, "x")


def test_good_csv_files(tmp_path: Path) -> None:
    path = tmp_path / "series.csv"
    for times in (("2001-01", "2001-02", "2001-03"), ("2001-01-31", "2001-02-28", "2001-03-31"),
                  ("2001-01-05", "2001-01-12", "2001-01-19"), ("a", "b", "c"),
                  ("1999", "2000", "2001")):  # fmt: skip
        path.write_text("time,x\n" + "".join(f"{t},{i}\n" for i, t in enumerate(times)))
        assert load_csv(path, "x").values.tolist() == [0, 1, 2]


@pytest.mark.parametrize("horizon", [1, 3])
def test_forecast_beats_both_naive_forecasts(tmp_path: Path, horizon: int) -> None:
    torch.set_num_threads(1)
    result = train_forecast(ForecastConfig(horizon=horizon), out=tmp_path / "run")
    for naive in (result.last_value, result.seasonal):
        assert result.lstm.mae < naive.mae
        assert result.lstm.rmse < naive.rmse
    for name in ("metrics.csv", "config.json", "summary.json", "best.pt", "forecast.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    again = train_forecast(ForecastConfig(horizon=horizon), out=tmp_path / "again")
    assert again.lstm == result.lstm


def test_forecast_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    csv = tmp_path / "wave.csv"
    csv.write_text("t,x\n" + "".join(f"{i},{(i % 7) - 3}\n" for i in range(200)))
    run = ["train", "forecast", "--csv", str(csv), "--column", "x", "--epochs", "2", "--window",
           "8", "--season", "7", "--out", str(tmp_path / "run")]  # fmt: skip
    assert main(run) == 0
    output = capsys.readouterr().out
    assert "season of 7" in output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["seasonal"]["mae"] == 0
    assert main(["train", "forecast", "--csv", str(csv)]) == 2
    assert "--csv and --column together" in capsys.readouterr().err
    assert main(["train", "forecast", "--lr", "-1"]) == 2
    assert main(["train", "forecast", "--window", "400"]) == 2
    assert "expected at least" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--horizon 60 --window 10", "--validation-share to leave at least --horizon 60 of 309"),
        ("--validation-share 0.001", "--validation-share to leave at least --horizon 1 of 309"),
        ("--test-share 0.001", "--test-share to leave at least --horizon 1 of 309 steps, got 0"),
        ("--threads 1000000", "--threads an integer from 1 to 1024, got 1000000"),
        (f"--seed {2**70}", "--seed an integer from 0 to 4294967295"),
        (f"--hidden {10**30}", "--hidden an integer from 1 to 16384"),
        ("--season 0", "--season an integer from 1 to"),
    ],
)
def test_bad_forecasts_leave_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    out = tmp_path / "run"
    assert main(["train", "forecast", *options.split(), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_finished_run_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["train", "forecast", "--epochs", "1", "--hidden", "2", "--out", str(tmp_path)]
    assert main(run) == 0
    before = (tmp_path / "best.pt").read_bytes()
    assert main(run) == 2
    assert "holds a run already; expected a new folder" in capsys.readouterr().err
    assert (tmp_path / "best.pt").read_bytes() == before


# --- Text ----------------------------------------------------------------------------------------


def toy_text() -> str:
    return "the quick brown fox jumps over the lazy dog.\n" * 300


def test_python_topics_are_there() -> None:
    text = load_text(None, 0.1)
    assert len(text.train) > 300_000
    assert 0.05 < len(text.held_out) / len(text.train) < 0.15


def test_columns_go_on_where_they_stopped() -> None:
    part = columns(torch.arange(20), 3)
    assert part.shape == (6, 3)
    assert part[:, 1].tolist() == [6, 7, 8, 9, 10, 11]


def test_ngram_model_by_hand() -> None:
    text = Text("ab", torch.tensor([0, 0, 1]), torch.tensor([0]))
    # Unigram: a seen 2 of 3, 2 kinds, uniform 1/2: (2 + 2/2) / (3 + 2). Context "b" was never
    # followed by anything.
    expected = -torch.log2(torch.tensor(3 / 5)).item()
    assert ngram_bits(text, 2) == pytest.approx(expected)
    assert ngram_bits(text, 1) == pytest.approx(expected)
    uniform = Text("ab", torch.tensor([0, 1] * 50), torch.tensor([0, 1] * 20))
    assert ngram_bits(uniform, 3) < 0.1


def test_text_is_learned_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "text.txt"
    path.write_text(toy_text())
    config = TextConfig(text=str(path), epochs=6, hidden=48, layers=1, batch_size=8, steps=32,
                        dropout=0.0, lr=0.01, sample=20)  # fmt: skip
    lines: list[str] = []
    result = train_text(config, out=tmp_path / "run", say=lines.append)
    assert result.bits < 0.5
    assert sum(line.startswith("epoch") for line in lines) == 6
    model, characters = load_model(tmp_path / "run" / "best.pt")
    written = generate(model, characters, "the quick", 30, 0.3, seed=1)
    assert written == generate(model, characters, "the quick", 30, 0.3, seed=1)
    assert written.startswith(" brown fox")
    checkpoint = ["generate", "--checkpoint", str(tmp_path / "run" / "best.pt")]
    assert main([*checkpoint, "--prompt", "the quick", "--length", "30", "--seed", "1",
                 "--temperature", "0.3"]) == 0  # fmt: skip
    assert capsys.readouterr().out == f"the quick{written}\n"
    for wrong, message in (
        (["--prompt", "QUICK"], "characters of the text"),
        (["--temperature", "0"], "--temperature above 0"),
        (["--length", "0"], "--length an integer from 1 to 1000000, got 0"),
        (["--prompt", ""], "--prompt of at least one"),
    ):
        assert main([*checkpoint, *wrong]) == 2
        assert message in capsys.readouterr().err
    assert main(["generate", "--checkpoint", str(tmp_path / "none.pt")]) == 2


def test_bad_text(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("short")
    with pytest.raises(UserError, match="at least 10000 characters, got 5"):
        load_text(path, 0.1)
    path.write_bytes(b"\xff" * 20_000)
    with pytest.raises(UserError, match="UTF-8"):
        load_text(path, 0.1)
    with pytest.raises(UserError, match="got 'x'"):
        encode("abx", "ab")
    with pytest.raises(UserError, match="--dropout a number from 0"):
        TextConfig(dropout=1.0)
    for name, value in (("threads", 10**6), ("seed", -1), ("sample", -1), ("embedding", 10**30)):
        with pytest.raises(UserError, match=f"--{name} an integer from"):
            TextConfig(**{name: value})
    with pytest.raises(UserError, match="--held-out-share to leave 2 characters"):
        train_text(TextConfig(held_out_share=1e-9))

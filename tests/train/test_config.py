from pathlib import Path

import pytest

from train.config import (
    Config,
    ConfigError,
    config_from_table,
    parse_overrides,
    read_config,
    to_table,
)

from ..support import ROOT

MINIMAL = {"data": {"train": "x.npz"}}


def test_defaults_and_round_trip():
    config = config_from_table(MINIMAL)
    assert config.loss == Config().loss
    assert config_from_table(to_table(config)) == config


def test_file_and_overrides(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(
        "[data]\ntrain = 'a.npz'\n[optimiser]\nepochs = 3\n[model.hypers]\nhidden = 8\n"
    )
    config = read_config(
        path,
        ["--optimiser.epochs", "7", "--optimiser.learning_rate", "1e-4", "--data.train", "b.npz",
         "--model.hypers.cutoff", "4.5"],
    )  # fmt: skip
    assert config.optimiser.epochs == 7
    assert config.optimiser.learning_rate == 1e-4
    assert config.data.train == "b.npz"
    assert config.model.hypers == {"hidden": 8, "cutoff": 4.5}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"optimizer": {}}, "Unknown option optimizer. Did you mean optimiser?"),
        ({"optimiser": {"lr": 1}}, "Unknown option optimiser.lr. .*learning_rate"),
        ({"loss": {"gama": 1}}, "Did you mean loss.gamma?"),
        ({"loss": {"kind": "l3"}}, r"loss.kind is 'l3'; choose one of \['l1', 'l2', 'huber'\]"),
        ({"optimiser": {"epochs": "ten"}}, "optimiser.epochs is 'ten'; it must be of type int"),
        ({"optimiser": {"epochs": 1.5}}, "must be of type int"),
        ({"optimiser": {"epochs": True}}, "must be of type int"),
        ({"optimiser": {"epochs": 0}}, "optimiser.epochs is 0; it must be positive"),
        ({"optimiser": {"ema_decay": 1.0}}, r"must be in \[0, 1\)"),
        ({"optimiser": {"learning_rate": float("nan")}}, "learning_rate is nan"),
        ({"optimiser": {"learning_rate": float("inf")}}, "learning_rate is inf"),
        ({"loss": {"energy": 0, "forces": 0}}, "are all 0"),
        ({"loss": {"gamma": -1}}, "loss.gamma is -1.0; it must be non-negative and finite"),
        ({"data": 3}, r"data must be a table, \[data\]; got 3"),
        ({"data": {}}, "data.train is missing"),
        ({"model": {"name": "schnet"}}, r"choose one of ace"),
    ],
)
def test_unusable_values(table, message):
    with pytest.raises(ConfigError, match=message):
        config_from_table(MINIMAL | table)


def test_unusable_files(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_config(tmp_path / "none.toml")
    path = tmp_path / "c.toml"
    path.write_text("[data\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_config(path)
    path.write_bytes(b"[data]\ntrain = '\xff'\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_config(path)


def test_options_with_an_equals_sign_and_conflicts():
    table = parse_overrides(["--loss.gamma=0.1", "--run.seed", "3", "--data.train=a=b.npz"])
    assert table == {"loss": {"gamma": 0.1}, "run": {"seed": 3}, "data": {"train": "a=b.npz"}}
    with pytest.raises(ConfigError, match="data.train is {'x': 'b'}; it must be of type str"):
        config_from_table(parse_overrides(["--data.train", "a", "--data.train.x", "b"]))


@pytest.mark.parametrize("arguments", [["epochs", "3"], ["--epochs", "3"], ["--run.seed"]])
def test_unusable_options(arguments):
    with pytest.raises(ConfigError, match="not an option|has no value"):
        parse_overrides(arguments)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "train" / "configs").glob("*.toml")), ids=lambda p: p.stem
)
def test_shipped_configurations(path: Path):
    config = read_config(path, ["--data.train", "file.npz"])
    assert config != Config()


@pytest.mark.parametrize(
    ("data", "frames", "sizes"),
    [
        ({}, 1000, (950, 50)),
        ({}, 60, (54, 6)),
        ({}, 5, (4, 1)),
        ({"n_train": 20}, 300, (20, 30)),
        ({"n_train": 20, "n_validation": 7}, 300, (20, 7)),
        ({"n_test": 100}, 300, (170, 30)),
    ],
)
def test_the_split_is_chosen_by_the_number_of_frames(data, frames, sizes):
    assert config_from_table({"data": data | {"train": "a.npz"}}).data.sizes(frames) == sizes

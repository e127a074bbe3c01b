"""Options: one list for flags and job files, with messages that name file, key and the valid ones."""

from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from click.testing import CliRunner
from janus_hpc.kernels.assign import POLICIES

from janus_hpc import config
from janus_hpc.cli import cli
from janus_hpc.errors import UsageError
from janus_hpc.placement.make import KINDS


def test_a_flag_overrides_the_job_file(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('prompts = "rows.jsonl"\nsplit = "1a3e"\nmax_tokens = 5\n')
    loaded = config.load(job, {"max_tokens": 7})
    assert loaded.max_tokens == 7
    assert loaded.split == "1a3e"
    assert loaded.prompts == str(tmp_path / "rows.jsonl")


def test_paths_of_a_job_file_are_beside_it(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('prompts = "rows.jsonl"\nprofile = "p.json"\nreplan = "2a2e,1a3e"\n')
    loaded = config.load(job, {})
    assert loaded.profile == str(tmp_path / "p.json") and loaded.replan == "2a2e,1a3e"
    assert (loaded.slo_tpot_ms, loaded.slo_percentile) == (0.0, "mean")
    assert config.load(job, {"profile": "q.json"}).profile == "q.json"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('prompts = "x"\nsplitt = "1a1e"\n', "unknown key 'splitt'; valid keys are "),
        (
            'prompts = "x"\nmax_tokens = "7"\n',
            "key 'max_tokens': Expected `int`, got `str`, got '7'",
        ),
        ('prompts = "x"\nmax_tokens = 0\n', "key 'max_tokens': Expected `int` >= 1, got 0"),
        ('prompts = "x"\ndevice = "tpu"\n', "key 'device'"),
        ("prompts = ", "cannot be read as TOML"),
        ("prompts = " + "[" * 5000, "cannot be read as TOML"),
        ("seed = " + "9" * 5000, "cannot be read as TOML"),
        ('prompts = "x"\ntemperature = nan\n', "key 'temperature': "),
        ('prompts = "x"\ncomm_timeout_s = inf\n', "key 'comm_timeout_s': expected a finite number"),
        ('prompts = "x"\nseed = 9223372036854775808\n', "key 'seed': expected at most"),
        ('prompts = "x"\nmax_tokens = 2147483648\n', "key 'max_tokens': expected at most"),
        ('prompts = "a\\u0000b"\n', "key 'prompts': expected a text without NUL"),
        ('prompts = "x"\nsplit = "\\u0000"\n', "key 'split': expected a text without NUL"),
        (
            'prompts = "x"\noutput = "' + "o" * 241 + '"\n',
            "key 'output': a file name has more than 240",
        ),
        (
            'prompts = "x"\nmodel = "a/' + "\u00e9" * 121 + '/b"\n',
            "key 'model': a file name has more",
        ),
        ("split = 'auto'\n", "no prompts file given"),
    ],
)
def test_mistakes_in_a_job_file_are_named(tmp_path: Path, text: str, expected: str) -> None:
    job = tmp_path / "job.toml"
    job.write_text(text)
    with pytest.raises(UsageError) as caught:
        config.load(job, {})
    assert expected in str(caught.value)


def test_every_key_is_a_flag() -> None:
    shown = CliRunner().invoke(cli, ["infer", "--help"]).output
    for name in config.RunConfig.__struct_fields__:
        assert name == "prompts" or f"--{name.replace('_', '-')}" in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [("512MB", 512_000_000), ("2GiB", 2 << 30), ("1000", 1000), ("1.5 kb", 1500)],
)
def test_sizes(text: str, expected: int) -> None:
    assert config.parse_bytes(text, "--kv-memory") == expected


@pytest.mark.parametrize("text", ["", "GB", "12parsecs", "nan", "inf GB"])
def test_bad_sizes_are_named(text: str) -> None:
    with pytest.raises(UsageError, match="--kv-memory: expected a size"):
        config.parse_bytes(text, "--kv-memory")


def test_options_name_what_there_is() -> None:
    """Policies and placements, which configuration may not import."""
    hints = get_type_hints(config.RunConfig)
    assert get_args(hints["balance"]) == POLICIES
    assert set(get_args(hints["placement"])) == {"auto", *KINDS}


def test_a_profile_in_a_job_file_is_a_path_beside_it_or_a_name(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    for given, expected in (("h100", "h100"), ("p.json", str(tmp_path / "p.json"))):
        job.write_text(f'prompts = "rows.jsonl"\nprofile = "{given}"\n')
        assert config.load(job, {}).profile == expected

"""Trained arbiters to the hub and back: a folder stands in for it."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, ModelCard

from cospec import cli, load_arbiter
from cospec.arbiters.hub import push, with_metadata
from cospec.arbiters.learned import LearnedArbiter
from cospec.errors import CheckpointError
from cospec.models.bundled import bundled_home
from tests.arbiters.test_learned import learned

if TYPE_CHECKING:
    from pathlib import Path

SENT = ["README.md", "config.json", "model.safetensors", "trained_on.safetensors"]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished training run: the arbiter, and what its training left."""
    folder = tmp_path / "run"
    learned(threshold=0.25).save(folder, "# A card\n")
    for name in (
        "state.pt",
        "run.json",
        "metrics.jsonl",
        "wandb_id",
        "trained_on.safetensors",
    ):
        (folder / name).write_text("of the run")
    (folder / "tensorboard").mkdir()
    (folder / "tensorboard" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Record of the requests to a hub; its repositories are folders of `home`."""
    asked: dict[str, Any] = {"home": tmp_path / "hub"}

    def create_repo(_: object, repo_id: str, **options: object) -> str:
        asked["create"] = {"repo_id": repo_id, **options}
        asked.setdefault("is_private", options["private"])  # unless it is there already
        return f"https://hub.example/{repo_id}"

    def repo_info(_: object, __: str) -> SimpleNamespace:
        return SimpleNamespace(private=asked["is_private"])

    def create_commit(
        _: object, repo_id: str, operations: list[CommitOperationAdd], **__: object
    ) -> None:
        for one in operations:
            path = asked["home"] / repo_id / one.path_in_repo
            path.parent.mkdir(parents=True, exist_ok=True)
            with one.as_file() as file:
                path.write_bytes(file.read())

    def snapshot_download(repo_id: str, **_: object) -> str:
        return str(asked["home"] / repo_id)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_token")
    return asked


@pytest.fixture
def cospec(monkeypatch: pytest.MonkeyPatch):
    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["cospec", *map(str, arguments)])
        cli.main()

    return run


@pytest.mark.parametrize("flags", [[], ["--private"]])
def test_what_was_pushed_is_pulled_by_name(cospec, run_folder, hub, flags, capsys) -> None:
    cospec("push", "--arbiter", run_folder, "--repo-id", "someone/arbiter", *flags)
    assert "https://hub.example/someone/arbiter" in capsys.readouterr().out
    is_private = bool(flags)
    assert hub["create"] == {"repo_id": "someone/arbiter", "private": is_private, "exist_ok": True}
    there = hub["home"] / "someone" / "arbiter"
    assert sorted(str(p.relative_to(there)) for p in there.rglob("*")) == SENT
    assert load_arbiter("someone/arbiter").threshold == 0.25


@pytest.mark.parametrize("is_private", [False, None])
def test_what_is_to_be_private_is_not_pushed_to_a_public_repository(
    cospec, run_folder, hub, is_private
) -> None:
    """Found: a repository that was there stayed public, and was pushed to."""
    hub["is_private"] = is_private
    push = ["push", "--arbiter", run_folder, "--repo-id", "someone/arbiter"]
    with pytest.raises(SystemExit, match="someone/arbiter is a public repository, and a private"):
        cospec(*push, "--private")
    assert not hub["home"].exists()
    cospec(*push)
    assert (hub["home"] / "someone" / "arbiter").is_dir()


def test_a_folder_without_a_card_is_pushed_with_its_metadata(cospec, run_folder, hub) -> None:
    (run_folder / "README.md").unlink()
    cospec("push", "--arbiter", run_folder, "--repo-id", "someone/arbiter")
    there = hub["home"] / "someone" / "arbiter"
    assert LearnedArbiter.load(there).threshold == 0.25
    assert ModelCard((there / "README.md").read_text()).data.library_name == "cospec"


def test_the_card_has_the_metadata_that_the_hub_reads(tmp_path) -> None:
    """The library reads it back: base models, and the result as an entry of the model's index."""
    folder = bundled_home() / "arbiters" / "family-scalar"
    about = json.loads((folder / "config.json").read_text())
    about["pair"] = {"target": "Qwen/Qwen2.5-1.5B", "draft": str(tmp_path)}
    card = ModelCard(with_metadata(folder, about))
    assert card.text.lstrip().startswith("# family-seed0: an arbiter for bundled:family")
    assert card.data.base_model == ["Qwen/Qwen2.5-1.5B"], "a folder is no model of the hub"
    assert card.data.tags == ["cospec-arbiter", "speculative-decoding"]
    (result,) = card.data.eval_results
    assert (result.metric_type, round(result.metric_value, 3)) == ("accuracy", 0.588)
    assert result.dataset_type == "reasoning_gym:gsm_symbolic"
    again = with_metadata(folder, {"name": "x"})
    assert ModelCard(again).data.eval_results is None


@pytest.mark.parametrize(
    ("model", "is_one"),
    [
        ("Qwen/Qwen2.5-1.5B", True),
        ("someone/there", False),
        ("gpt2", True),
        ("folder", False),
        ("/home/me/gone", False),
        ("./gone", False),
        ("~/gone", False),
        ("runs/of/mine", False),
        ("runs/gone.gguf", False),
    ],
)
def test_base_models_are_told_by_their_names(model, is_one, tmp_path, monkeypatch) -> None:
    """Found: a folder that was gone was taken for a model of the hub, and its path was shown."""
    monkeypatch.chdir(tmp_path)
    for name in ("someone/there", "folder"):
        (tmp_path / name).mkdir(parents=True)
    card = ModelCard(with_metadata(tmp_path, {"name": "x", "pair": {"target": model}}))
    assert card.data.base_model == ([model] if is_one else None)


def test_the_metadata_of_a_card_that_was_pushed_before_are_replaced(tmp_path) -> None:
    (tmp_path / "README.md").write_text("# mine\n\n---\n\nA line.\n")
    once = with_metadata(tmp_path, {"name": "first"})
    (tmp_path / "README.md").write_text(once)
    again = with_metadata(tmp_path, {"name": "second"})
    assert again == once.replace("first", "second")


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """A cache of the hub that holds an arbiter and a model, and no connection."""
    home = tmp_path / "cache"
    for name, commit in (("someone--arbiter", "a" * 40), ("someone--model", "b" * 40)):
        repository = home / f"models--{name}"
        snapshot = repository / "snapshots" / commit
        if name.endswith("arbiter"):
            learned(threshold=0.25).save(snapshot)
        else:
            snapshot.mkdir(parents=True)
            (snapshot / "config.json").write_text("{}")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return home


@pytest.mark.parametrize("revision", ["", "@main", "@" + "a" * 40])
def test_without_a_connection_what_is_cached_is_used(cache, revision) -> None:
    assert load_arbiter(f"someone/arbiter{revision}:threshold=0.5").threshold == 0.5


@pytest.mark.parametrize("name", ["someone/other", "someone/arbiter@v2"])
def test_without_a_connection_what_is_not_cached_is_refused_with_what_to_do(cache, name) -> None:
    with pytest.raises(CheckpointError, match=f"{name} is neither a folder.*`cospec arbiters`"):
        load_arbiter(name)


def test_an_interrupted_download_is_refused(cache) -> None:
    """The weights had not come; the hub's library keeps them under another name until they have."""
    (snapshot,) = cache.glob("models--someone--arbiter/snapshots/*")
    (snapshot / "model.safetensors").rename(snapshot / "model.safetensors.incomplete")
    advice = f"delete {snapshot.parent.parent}, and it is downloaded again"
    with pytest.raises(CheckpointError, match=f"is no trained arbiter: .*{advice}"):
        load_arbiter("someone/arbiter")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_file_of_the_cache_is_refused_with_the_folder_to_delete(cache, name) -> None:
    (file,) = cache.glob(f"models--someone--arbiter/snapshots/*/{name}")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=f"delete {file.parents[2]}, and it is downloaded"):
        load_arbiter("someone/arbiter")


def test_arbiters_at_hand_are_listed_with_their_numbers(
    cache, cospec, run_folder, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    cospec("arbiters", run_folder)
    out = capsys.readouterr().out
    assert "58.8%" in out and "57.0%" in out, "shipped, with what the card says"
    assert "someone/arbiter@" in out and "someone/model" not in out
    assert str(run_folder) in out
    with pytest.raises(SystemExit, match="is no trained arbiter"):
        cospec("arbiters", run_folder.parent)


def test_a_cached_arbiter_without_weights_is_listed_as_one_that_cannot_be_used(
    cache, cospec, capsys
) -> None:
    (weights,) = cache.glob("models--someone--arbiter/snapshots/*/model.safetensors")
    weights.unlink()
    cospec("arbiters")
    assert f"someone/arbiter@{'a' * 40} cannot be used: {weights.parent}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"cospec_arbiter": 1', '"cospec_arbiter": 99', "was written by a newer version of cospec"),
        ('"operating_points"', '"other"', "is damaged: operating_points is missing"),
        ("}", "", "is no trained arbiter"),
    ],
)
def test_a_cached_arbiter_that_cannot_be_used_is_listed_with_the_reason(
    cache, cospec, capsys, old, new, reason
) -> None:
    """Found: it was not listed."""
    (config,) = cache.glob("models--someone--arbiter/snapshots/*/config.json")
    config.write_text(config.read_text().replace(old, new))
    cospec("arbiters")
    out = capsys.readouterr().out
    assert f"someone/arbiter@{'a' * 40} cannot be used: {config.parent}" in out and reason in out
    assert "someone/model" not in out


def test_without_a_cache_the_shipped_arbiters_are_listed(monkeypatch, cospec, tmp_path, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    cospec("arbiters")
    assert capsys.readouterr().out.count("bundled-scalar") == 2


def test_a_run_that_is_not_finished_is_not_pushed(cospec, run_folder, hub) -> None:
    (run_folder / "config.json").unlink()
    for folder in (run_folder, run_folder / "nowhere"):
        with pytest.raises(SystemExit, match="is no trained arbiter"):
            cospec("push", "--arbiter", folder, "--repo-id", "someone/arbiter")
    assert "create" not in hub


def test_without_a_token_nothing_is_asked(cospec, run_folder, hub, monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(SystemExit, match="no token of the Hugging Face hub; run `hf auth login`"):
        cospec("push", "--arbiter", run_folder, "--repo-id", "someone/arbiter")
    assert "create" not in hub


@pytest.mark.parametrize("repo_id", ["someone/arbiter", "no such name"])
def test_a_hub_that_is_not_there_is_told_with_its_error(run_folder, repo_id, monkeypatch) -> None:
    """The true client, and a port on which nobody listens."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    with pytest.raises(CheckpointError, match=f"could not be pushed to {repo_id}.*connection"):
        push(run_folder, repo_id)


def test_a_run_keeps_the_revision_that_it_resolved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The hub may move on between the check of an arbiter and its loading for the pair."""
    from cospec.cli.common.options import PairOptions
    from cospec.evaluation.problems import describe_arbiter

    asked = []

    def snapshot_download(repo_id: str, *, revision: str | None, **_: object) -> str:
        asked.append((repo_id, revision))
        folder = tmp_path / "snapshots" / (revision or f"commit{len(asked)}")
        learned(threshold=0.25).save(folder)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    spec = PairOptions().find_arbiter("user/name:threshold=0.5")
    assert asked == [("user/name", None)]
    arbiter = load_arbiter(spec)
    assert len(asked) == 1 and arbiter.threshold == 0.5
    assert describe_arbiter(arbiter)["revision"] == "commit1"
    pinned = PairOptions().find_arbiter("user/name@v2")
    assert asked[1:] == [("user/name", "v2")]
    assert describe_arbiter(load_arbiter(pinned))["revision"] == "v2"


def test_a_folder_is_not_looked_for_on_the_hub(monkeypatch, tmp_path) -> None:
    """Found: the command line asked the hub for ``~/an/arbiter`` and for names with colons."""
    from cospec.cli.common.options import PairOptions

    monkeypatch.setenv("HOME", str(tmp_path))
    learned(threshold=0.25).save(tmp_path / "run:1" / "arbiter")
    for name in ("~/run:1/arbiter", str(tmp_path / "run:1" / "arbiter")):
        assert PairOptions().find_arbiter(name) == name
        assert PairOptions().find_arbiter(f"{name}:threshold=0.5") == f"{name}:threshold=0.5"


def test_a_folder_to_push_may_be_a_string(run_folder, hub, monkeypatch) -> None:
    """Found: a TypeError."""
    monkeypatch.setenv("HOME", str(run_folder.parent))
    for folder in (str(run_folder), "~/run"):
        assert push(folder, "someone/arbiter") == "https://hub.example/someone/arbiter"

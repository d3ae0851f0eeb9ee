"""Artifacts are written whole, refused when they are changed, and promoted on the record."""

import errno
import hashlib
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from turnmill.compression import artifact
from turnmill.compression.artifact import (
    MANIFEST,
    BaseModelRecord,
    Manifest,
    read_manifest,
    verify,
    write_artifact,
)
from turnmill.compression.store import ModelStore
from turnmill.schemas.errors import ArtifactRefused, InvalidInput, NotFound
from turnmill.schemas.settings import EngineSettings
from turnmill.workers.engines.models import prepare_model

PLAN = Manifest(
    name="a",
    base=BaseModelRecord(name="base", sha256="0"),
    recipe={},
    data_sha256="0",
    format="dense",
    versions={},
    files={},
)


def fill(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "more").mkdir()
    (folder / "more" / "model.safetensors").write_bytes(b"weights")


def make(store: ModelStore, name: str, *misses: str) -> Path:
    write_artifact(store.folder / name, fill, PLAN.model_copy(update={"misses": misses}))
    return store.folder / name


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path)


def edit_manifest(folder: Path) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | {"misses": ["edited"]}))


def add_to_manifest(folder: Path, more: dict[str, Any]) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    base = {"base": content["base"] | more.pop("base", {})}
    (folder / MANIFEST).write_text(json.dumps(content | base | more))


CHANGES: dict[str, Callable[[Path], object]] = {
    "changed": lambda folder: (folder / "more" / "model.safetensors").write_bytes(b"Weights"),
    "missing": lambda folder: (folder / "config.json").unlink(),
    "not listed": lambda folder: (folder / "modeling.py").write_text("print()"),
    "checksum does not match": edit_manifest,
    "cannot be read": lambda folder: (folder / MANIFEST).write_text("{"),
    "newer release of Turnmill: this one does not know its version 2": (
        lambda folder: (folder / MANIFEST).write_text('{"version": 2}')
    ),
    "newer release of Turnmill: this one does not know its field base.owner": (
        lambda folder: add_to_manifest(folder, {"base": {"owner": "ACME"}})
    ),
    "does not know its fields later, more. Upgrade Turnmill here, or compress": (
        lambda folder: add_to_manifest(folder, {"later": 1, "more": {}})
    ),
    "manifest: it is damaged": lambda folder: add_to_manifest(folder, {"later": 1, "files": 3}),
    "no artifact of Turnmill": lambda folder: (folder / MANIFEST).unlink(),
}


def test_an_artifact_is_verified_by_every_file(store: ModelStore) -> None:
    manifest = verify(make(store, "a"))

    assert set(manifest.files) == {"config.json", "more/model.safetensors"}


@pytest.mark.parametrize("said", CHANGES)
def test_a_damaged_or_foreign_artifact_is_refused_in_words(store: ModelStore, said: str) -> None:
    folder = make(store, "a")
    CHANGES[said](folder)

    with pytest.raises(ArtifactRefused, match=said):
        verify(folder)


def test_a_manifest_that_lists_files_elsewhere_is_refused(store: ModelStore) -> None:
    folder = make(store, "a")
    content = json.loads((folder / MANIFEST).read_text())
    content["files"]["../b/config.json"] = "0"
    sealed = Manifest.model_validate(content).sealed()
    (folder / MANIFEST).write_text(sealed.model_dump_json())

    with pytest.raises(ArtifactRefused, match="outside its folder"):
        verify(folder)


def test_a_write_that_fails_leaves_no_artifact(store: ModelStore) -> None:
    def fail(folder: Path) -> None:
        fill(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_artifact(store.folder / "a", fail, PLAN)
    assert store.names() == []

    assert verify(make(store, "a"))


def test_the_last_promotion_counts_and_a_rollback_takes_it_back(store: ModelStore) -> None:
    make(store, "a"), make(store, "b")
    store.promote("a", by="ada")
    store.promote("b", by="ada")
    assert store.promoted_path().name == "b"

    store.rollback(by="eve")

    assert store.promoted_path().name == "a"
    assert [(each.action, each.artifact, each.by) for each in store.history()] == [
        ("promote", "a", "ada"),
        ("promote", "b", "ada"),
        ("rollback", "a", "eve"),
    ]
    with pytest.raises(NotFound, match="nothing to roll back to"):
        store.rollback(by="eve")


def test_what_a_library_gave_to_its_owner_alone_is_as_readable_as_the_manifest(
    store: ModelStore,
) -> None:
    def private(folder: Path) -> None:
        fill(folder)
        (folder / "more" / "model.safetensors").chmod(0o600)

    write_artifact(store.folder / "a", private, PLAN)
    modes = {each.stat().st_mode for each in store.path("a").rglob("*") if each.is_file()}
    assert modes == {(store.path("a") / MANIFEST).stat().st_mode}


def test_an_artifact_that_this_account_may_not_read_says_how_to_allow_it(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(store, "a")

    def refused(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(artifact, "digest_of", refused)
    with pytest.raises(ArtifactRefused, match=rf"chmod -R a\+rX {folder}"):
        verify(folder)


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], None]]:
    """Lets no file of this process grow beyond so many bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_promotion_that_the_disk_has_no_room_for_leaves_the_record_as_it_was(
    store: ModelStore, full_disk: Callable[[int], None]
) -> None:
    make(store, "a"), make(store, "b")
    store.promote("a", by="ada")
    record = store.folder / "promotions.jsonl"
    before = record.read_bytes()

    full_disk(len(before) + 40)
    with pytest.raises(OSError, match="too large"):
        store.promote("b", by="ada")
    full_disk(resource.RLIM_INFINITY)

    assert record.read_bytes() == before
    assert store.names() == ["a", "b"]
    assert sorted(path.name for path in store.folder.iterdir() if path.is_file()) == [
        ".lock",
        "promotions.jsonl",
    ]
    store.promote("b", by="ada")
    assert [each.artifact for each in store.history()] == ["a", "b"]


def test_a_line_that_an_earlier_release_left_half_written_is_no_promotion(
    store: ModelStore,
) -> None:
    make(store, "a"), make(store, "b")
    store.promote("a", by="ada")
    record = store.folder / "promotions.jsonl"
    whole = record.read_text()
    record.write_text(whole + whole[:40])

    assert store.promoted_path().name == "a"
    store.promote("b", by="ada")
    store.rollback(by="eve")
    assert store.promoted_path().name == "a"
    assert len(store.history()) == 3


def test_a_promotion_by_a_newer_release_is_no_damage(store: ModelStore) -> None:
    make(store, "a")
    promotion = store.promote("a", by="ada")
    record = store.folder / "promotions.jsonl"
    record.write_text(json.dumps(promotion.model_dump(mode="json") | {"reason": "faster"}) + "\n")
    told = r"newer release .* line 1 of .*promotions\.jsonl.* its field reason\. Upgrade"
    with pytest.raises(ArtifactRefused, match=told):
        store.promoted()


def test_a_damaged_line_is_named_and_the_record_can_do_without_it(store: ModelStore) -> None:
    make(store, "a"), make(store, "b")
    store.promote("a", by="ada")
    store.promote("b", by="ada")
    store.rollback(by="eve")
    record = store.folder / "promotions.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    record.write_text(lines[0] + "{\n" + lines[2])

    with pytest.raises(ArtifactRefused, match=r"promotions\.jsonl is damaged in line 2"):
        store.promoted()

    for kept in (lines[0] + lines[2], lines[2], lines[2].rstrip("\n")):
        record.write_text(kept)
        assert store.promoted_path().name == "a"
    store.promote("b", by="ada")
    assert len(store.history()) == 2


def test_a_rollback_returns_to_another_artifact_though_one_was_promoted_twice(
    store: ModelStore,
) -> None:
    make(store, "a"), make(store, "b", "misses")
    store.promote("a", by="ada")
    for _ in range(3):
        store.promote("b", by="ada", force=True)

    assert store.rollback(by="eve").artifact == "a"
    assert store.promoted_path().name == "a"
    assert len(store.history()) == 5


def test_what_a_rollback_returns_to_is_removed_by_force_alone(store: ModelStore) -> None:
    for name in ("a", "b", "c"):
        make(store, name, name)
        store.promote(name, by="ada", force=True)

    with pytest.raises(InvalidInput, match="c is promoted"):
        store.remove("c", force=True)
    with pytest.raises(InvalidInput, match="rollback returns to b"):
        store.remove("b")
    store.remove("a")
    store.remove("b", force=True)

    assert store.names() == ["c"]
    with pytest.raises(NotFound, match="'b', which was promoted before this one, was removed"):
        store.rollback(by="eve")


def test_an_artifact_that_misses_its_limits_is_promoted_by_force_alone(store: ModelStore) -> None:
    make(store, "a", "Size is 0.9×, the limit 0.6×.")
    with pytest.raises(ArtifactRefused, match=r"0\.9×.*--force"):
        store.promote("a", by="ada")
    assert store.promoted() is None

    store.promote("a", by="ada", force=True)

    (record,) = store.history()
    assert record.forced
    assert record.misses == ("Size is 0.9×, the limit 0.6×.",)


def test_limits_that_nobody_measured_keep_an_artifact_from_being_promoted(
    store: ModelStore,
) -> None:
    plan = PLAN.model_copy(update={"recipe": {"limits": {"perplexity": 1.05}}})
    write_artifact(store.folder / "a", fill, plan)
    with pytest.raises(ArtifactRefused, match=r"not measured.*without --no-evaluate.*--force"):
        store.promote("a", by="ada")

    record = store.promote("a", by="ada", force=True)

    assert record.forced
    assert record.misses == ("The limits of the recipe were not measured.",)
    write_artifact(store.folder / "b", fill, plan.model_copy(update={"report": {"rows": []}}))
    assert not store.promote("b", by="ada").forced


def test_an_artifact_is_replaced_whole_unless_it_was_promoted(store: ModelStore) -> None:
    make(store, "a"), make(store, "b")
    first = store.manifest("a")
    after = store.replace(first, fill, first.model_copy(update={"report": {}}))
    assert verify(store.path("a")) == after
    assert after.report == {}
    with pytest.raises(InvalidInput, match="promoted or replaced"):
        store.replace(first, fill, first)

    store.promote("a", by="ada"), store.promote("b", by="ada")

    with pytest.raises(InvalidInput, match="promoted or replaced"):
        store.replace(after, fill, first)
    assert store.names() == ["a", "b"]


REPLACE_AND_DIE = """
import os, sys
from pathlib import Path
from turnmill.compression.store import ModelStore

rename = Path.rename
def dying(path, target):
    if path.name == "a.partial":
        os._exit(9)
    return rename(path, target)
Path.rename = dying
store = ModelStore(Path(sys.argv[1]))
before = store.manifest("a")
fill = lambda folder: (folder / "config.json").write_text("{}")
store.replace(before, fill, before.model_copy(update={"report": {}}))
"""


@pytest.mark.parametrize("ask", ["names", "path", "replace", "write", "rollback"])
def test_an_artifact_survives_a_kill_while_it_is_replaced(
    store: ModelStore, tmp_path: Path, ask: str
) -> None:
    first = verify(make(store, "a"))
    for name in "bc":
        write_artifact(store.folder / name, fill, PLAN.model_copy(update={"name": name}))
        store.promote(name, by="ada")
    killed = subprocess.run([sys.executable, "-c", REPLACE_AND_DIE, str(tmp_path)], timeout=60)
    assert killed.returncode == 9
    assert not (store.folder / "a").exists()

    if ask == "names":
        assert store.names() == ["a", "b", "c"]
    elif ask == "path":
        assert store.path("a").is_dir()
    elif ask == "replace":
        first = store.replace(first, fill, first.model_copy(update={"report": {}}))
    elif ask == "write":
        with pytest.raises(OSError, match="not empty"):
            make(store, "a")
    else:
        assert store.rollback(by="ada").artifact == "b"

    assert verify(store.folder / "a") == first


def test_an_artifact_that_cannot_be_replaced_stays(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = verify(make(store, "a"))
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name == "a.partial":
            raise OSError("disk full")
        return rename(path, target)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="disk full"):
        patched.setattr(Path, "rename", failing)
        store.replace(first, fill, first.model_copy(update={"report": {}}))

    assert verify(store.folder / "a") == first
    after = store.replace(first, fill, first.model_copy(update={"report": {}}))
    assert verify(store.path("a")) == after
    assert sorted(path.name for path in store.folder.iterdir()) == [".lock", "a"]


def test_a_damaged_artifact_is_not_promoted(store: ModelStore) -> None:
    CHANGES["changed"](make(store, "a"))

    with pytest.raises(ArtifactRefused, match="damaged"):
        store.promote("a", by="ada", force=True)


def test_another_artifact_of_the_promoted_name_is_not_served(store: ModelStore) -> None:
    make(store, "a")
    store.promote("a", by="ada")
    sealed = read_manifest(store.path("a")).model_copy(update={"data_sha256": "1"}).sealed()
    (store.path("a") / MANIFEST).write_text(sealed.model_dump_json())

    with pytest.raises(ArtifactRefused, match="not the one that was promoted"):
        store.promoted_path()


def test_a_worker_logs_which_artifact_it_serves(store: ModelStore, tmp_path: Path) -> None:
    make(store, "a"), make(store, "b")
    served = EngineSettings(model="promoted", models_dir=tmp_path)
    for name in "ab":
        promotion = store.promote(name, by="ada")
        with capture_logs() as logs:
            assert prepare_model(served, "safetensors") == str(store.folder / name)
        assert {"artifact": name, "checksum": promotion.checksum}.items() <= logs[0].items()


@pytest.mark.parametrize("name", ["../a", "", ".hidden", "promoted", "a/b", "a.partial", "a b"])
def test_a_name_that_cannot_be_a_folder_of_the_store_is_refused(
    store: ModelStore, name: str
) -> None:
    with pytest.raises(InvalidInput):
        store.path(name)


def test_an_unknown_artifact_is_answered_with_those_that_exist(store: ModelStore) -> None:
    make(store, "a")

    with pytest.raises(NotFound, match=r"no artifact 'b'.*There is: a"):
        store.path("b")


def test_what_workers_import_and_recipes_need_no_torch() -> None:
    modules = ["artifact", "store", "recipe", "pipeline", "step", "texts", "data"]
    imports = "; ".join(f"import turnmill.compression.{each}" for each in modules)
    absent = {"torch", "transformers", "celery"}
    code = f"{imports}; import sys; assert not {absent} & {{*sys.modules}}"

    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_artifact_of_a_release_that_recorded_fewer_inputs_stays_valid(
    store: ModelStore,
) -> None:
    folder = make(store, "a")
    path = folder / "artifact.json"
    content = json.loads(path.read_text())
    # What its writer did: no such key, and the checksum is of all others.
    assert content.pop("inputs") == {}
    del content["checksum"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(content))

    assert verify(folder).inputs == {}


def test_recorded_inputs_are_sealed(store: ModelStore) -> None:
    manifest = PLAN.model_copy(update={"inputs": {"prose": "0"}})
    write_artifact(store.folder / "a", fill, manifest)
    assert verify(store.folder / "a").inputs == {"prose": "0"}
    path = store.folder / "a" / "artifact.json"
    path.write_text(path.read_text().replace('"prose": "0"', '"prose": "1"'))

    with pytest.raises(ArtifactRefused, match="was changed"):
        verify(store.folder / "a")

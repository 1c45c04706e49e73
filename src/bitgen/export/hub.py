"""An exported folder on the Hugging Face hub: the model as ``main``, one revision for each ``chck_*``."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from huggingface_hub import HfApi

from bitgen.checkpoint.format import REVISION_PREFIX, revision_folders
from bitgen.guards.printable import printable
from bitgen.model.causal_lm_bitgen import CHECKSUMS
from bitgen.vlm.folder import LANGUAGE_FOLDER

logger = logging.getLogger(__name__)
_REVISION = re.compile(rf"{REVISION_PREFIX}\d+M")
# What exports are made of: of an earlier upload these go where this one has no such file, because a model is opened by
# what lies there. All else in a repository is its owner's. (In such a pattern `*` matches `/`, too.)
_OURS = ["model.safetensors", "model-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].safetensors"]
_OURS += ["model.safetensors.index.json", "connector.safetensors", "vision.safetensors"]
_OURS += ["adapter_model.safetensors", "adapter_config.json", "bitgen_adapter.json"]
_OURS += ["config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json", CHECKSUMS]
_OURS += ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"]
_OURS += ["vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja"]
_GONE = [*_OURS, *(f"{LANGUAGE_FOLDER}/{name}" for name in _OURS)]


def push_to_hub(folder: Path, repo_id: str, private: bool = False) -> None:
    """Upload ``folder`` to ``main`` of ``repo_id`` (made when missing), and each ``chck_*`` in it to that revision.

    What an earlier upload holds and this one has not is removed, as far as exports are made of it; code stays, which
    nothing opens where no ``config.json`` names it. Revisions
    of it that this one lacks stay, and a warning names them.

    Raises:
        ValueError: the repository is to be private, and is there and public; nothing was uploaded.
        huggingface_hub.errors.HfHubHTTPError: the hub refuses; what was uploaded before stays, and the same call goes
            on from there.
    """
    api = HfApi()
    api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
    if private and not api.repo_info(repo_id, repo_type="model").private:  # of one that is there it changes nothing
        raise ValueError("this repository is public. Make it private in its settings, or name another")
    _warn_of_others(api, repo_id, folder)
    api.upload_folder(
        repo_id=repo_id,
        folder_path=str(folder),
        revision="main",
        commit_message="Upload BitGen",
        ignore_patterns=[f"{REVISION_PREFIX}*/*"],
        delete_patterns=_GONE,
    )
    for revision in revision_folders(folder):
        logger.info("uploading revision %s", revision.name)
        api.create_branch(repo_id, branch=revision.name, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=str(revision),
            revision=revision.name,
            commit_message=f"Upload BitGen after {revision.name.removeprefix(REVISION_PREFIX)} words",
            delete_patterns=_GONE,
        )


def _warn_of_others(api: HfApi, repo_id: str, folder: Path) -> None:
    """Name the revisions of an earlier upload that stay as they are, and would be evaluated as this model's."""
    ours = {revision.name for revision in revision_folders(folder)}
    there = [branch.name for branch in api.list_repo_refs(repo_id, repo_type="model").branches]
    if others := sorted(name for name in there if _REVISION.fullmatch(name) and name not in ours):
        logger.warning(
            "%s has branches of an earlier upload that this export has no checkpoints for: %s. They stay as they are, "
            "and an evaluation of all revisions takes them for this model's: delete them, or name another repository.",
            printable(repo_id),
            printable(", ".join(others)),
        )

"""An exported folder on the Hugging Face hub: the model as ``main``, one revision for each ``chck_*``."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import HfApi

from bitgen.checkpoint.format import REVISION_PREFIX, revision_folders

logger = logging.getLogger(__name__)
# What exports are made of: of an earlier upload these go where this one has no such file, because a model is opened by
# what lies there. The pictures and texts of its page are its owner's.
_OURS = ["*.safetensors", "*.json", "*.py", "*.jinja"]


def push_to_hub(folder: Path, repo_id: str, private: bool = False) -> None:
    """Upload ``folder`` to ``main`` of ``repo_id`` (made when missing), and each ``chck_*`` in it to that revision.

    Weights, settings and code of an earlier upload that are not in this one are removed.

    Raises:
        ValueError: the repository is to be private, and is there and public; nothing was uploaded.
        huggingface_hub.errors.HfHubHTTPError: the hub refuses; what was uploaded before stays, and the same call goes
            on from there.
    """
    api = HfApi()
    api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
    if private and not api.repo_info(repo_id, repo_type="model").private:  # of one that is there it changes nothing
        raise ValueError("this repository is public. Make it private in its settings, or name another")
    api.upload_folder(
        repo_id=repo_id,
        folder_path=str(folder),
        revision="main",
        commit_message="Upload BitGen",
        ignore_patterns=[f"{REVISION_PREFIX}*/*"],
        delete_patterns=_OURS,
    )
    for revision in revision_folders(folder):
        logger.info("uploading revision %s", revision.name)
        api.create_branch(repo_id, branch=revision.name, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=str(revision),
            revision=revision.name,
            commit_message=f"Upload BitGen after {revision.name.removeprefix(REVISION_PREFIX)} words",
            delete_patterns=_OURS,
        )

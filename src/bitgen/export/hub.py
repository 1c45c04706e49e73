"""An exported folder on the Hugging Face hub: the model as ``main``, one revision for each ``chck_*``."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import HfApi

from bitgen.checkpoint.format import REVISION_PREFIX, revision_folders
from bitgen.export.folder import carried_code
from bitgen.model.causal_lm_bitgen import CHECKSUMS

logger = logging.getLogger(__name__)
# What exports are made of: of an earlier upload these go where this one has no such file, because a model is opened by
# what lies there. All else in a repository is its owner's. (In such a pattern `*` matches `/`, too.)
_OURS = ["model*.safetensors", "model.safetensors.index.json", "connector.safetensors", "vision.safetensors"]
_OURS += ["adapter_model.safetensors", "adapter_config.json", "bitgen_adapter.json", "language/*"]
_OURS += ["config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json", CHECKSUMS]
_OURS += ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"]
_OURS += ["vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja"]


def push_to_hub(folder: Path, repo_id: str, private: bool = False) -> None:
    """Upload ``folder`` to ``main`` of ``repo_id`` (made when missing), and each ``chck_*`` in it to that revision.

    What an earlier upload holds and this one has not is removed, as far as exports are made of it.

    Raises:
        ValueError: the repository is to be private, and is there and public; nothing was uploaded.
        huggingface_hub.errors.HfHubHTTPError: the hub refuses; what was uploaded before stays, and the same call goes
            on from there.
    """
    api, ours = HfApi(), [*_OURS, *carried_code()]
    api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
    if private and not api.repo_info(repo_id, repo_type="model").private:  # of one that is there it changes nothing
        raise ValueError("this repository is public. Make it private in its settings, or name another")
    api.upload_folder(
        repo_id=repo_id,
        folder_path=str(folder),
        revision="main",
        commit_message="Upload BitGen",
        ignore_patterns=[f"{REVISION_PREFIX}*/*"],
        delete_patterns=ours,
    )
    for revision in revision_folders(folder):
        logger.info("uploading revision %s", revision.name)
        api.create_branch(repo_id, branch=revision.name, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=str(revision),
            revision=revision.name,
            commit_message=f"Upload BitGen after {revision.name.removeprefix(REVISION_PREFIX)} words",
            delete_patterns=ours,
        )

"""How corpora are fetched: data sets of the Hugging Face hub, and archives."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

from ...errors import ConfigError, CorpusError


def huggingface(
    dataset: str,
    target_dir: str | Path,
    *,
    allow: Sequence[str] | None = None,
    revision: str | None = None,
    force: bool = False,
) -> Path:
    """Copies a data set of the Hugging Face hub, as files, into a folder; what is there already is not fetched again.

    Args:
        dataset: ``owner/name``.
        target_dir: folder.
        allow: patterns of the files that are wanted; all by default.
        revision: commit or branch.
        force: fetch again.

    Raises:
        ConfigError: huggingface_hub is not installed.
        CorpusError: the hub cannot be reached, or asks for a login or for consent.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ConfigError(f"{dataset}: downloading needs huggingface_hub; pip install huggingface_hub") from error
    try:
        return Path(
            snapshot_download(
                dataset,
                repo_type="dataset",
                local_dir=str(target_dir),
                allow_patterns=list(allow) if allow else None,
                revision=revision,
                force_download=force,
            )
        )
    except Exception as error:  # the hub's own classes change from release to release
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CorpusError(
            f"{dataset}: cannot be downloaded ({reason}); if it is gated, accept its terms on its page and log in with "
            "`hf auth login`"
        ) from error


def archive(url: str, target_dir: str | Path, *, force_download: bool = False) -> Path:
    """Fetches a ``.tar.gz`` with Lhotse's resumable download and unpacks it.

    A file ``.<archive>.completed`` in the folder says that all went well, as with Lhotse's recipes.

    Args:
        url: of the archive.
        target_dir: where it is unpacked.
        force_download: fetch and unpack again.

    Raises:
        CorpusError: it cannot be fetched or unpacked.
    """
    from lhotse.utils import resumable_download

    folder = Path(target_dir)
    folder.mkdir(parents=True, exist_ok=True)
    name = url.rsplit("/", 1)[-1]
    completed = folder / f".{name}.completed"
    if completed.is_file() and not force_download:
        return folder
    try:
        resumable_download(url, filename=folder / name, force_download=force_download)
        with tarfile.open(folder / name) as tar:
            tar.extractall(folder, filter="data")  # nothing outside the folder
    except Exception as error:  # of the network, the archive or the disk
        raise CorpusError(
            f"{url}: cannot be downloaded and unpacked ({error}); fetch it by other means and unpack it in {folder}"
        ) from error
    completed.touch()
    return folder

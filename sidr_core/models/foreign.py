"""What a model folder may not hold: files that can run code when they are read, or that stand for another model."""

from __future__ import annotations

from pathlib import Path

#: Pickles and other formats that are no plain numbers, Python, and adapters: the library would load those over the
#: weights that lie beside them, or fetch the model that they name.
_PATTERNS = (
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", "*.npy", "*.npz", "*.msgpack", "*.h5"),
    *("*.py", "*.pyc", "*.so", "adapter_config.json"),
)


def foreign_file(folder: Path) -> str | None:
    """Name, relative to `folder`, of the first file in it or below it that is refused; None if there is none.

    So is a link to a folder, which is not looked into. Links to files are plain: the hub's cache is made of them.
    """
    refused = (
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if any(map(path.match, _PATTERNS)) or (path.is_symlink() and path.is_dir())
    )
    return min(refused, default=None)

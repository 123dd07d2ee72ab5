"""Outputs of a local store, published into a bucket as if they had been built there."""

import shutil

from sidr_core.pipeline.bucket_store import BucketStore
from sidr_core.pipeline.store import MANIFEST, Store


def publish(local: Store, shared: BucketStore) -> None:
    """Publish every current output and its parts under the same fingerprints, and make them current."""
    for where in local.refs():
        current = local.require(*where)
        for artifact in (current, *(local.open(*part) for part in current.manifest.get("parts", ()))):
            assert artifact is not None
            manifest = artifact.manifest

            def build(folder, artifact=artifact) -> None:
                shutil.copytree(artifact.folder, folder, dirs_exist_ok=True)
                (folder / MANIFEST).unlink()

            kept = {"metrics", "markdown", "checks", "lineage", "parts", "started"} & set(manifest)
            extra = {name: manifest[name] for name in kept}
            key, version = manifest["key"], manifest["code_version"]
            made, _ = shared.obtain(artifact.stage, version, key, build, synthetic=artifact.synthetic, extra=extra)
            assert (made.fingerprint, made.digest) == (artifact.fingerprint, artifact.digest)
        shared.set_ref(*where, current.fingerprint)

"""Where the store lies: in the working folder, or in a bucket that several machines share."""

from __future__ import annotations

import os

from sidr_core.pipeline.profile import Profile, home, store_section
from sidr_core.pipeline.store import Store

#: The environment's URL of the store; it takes precedence over `store.url` of the profile.
STORE_VARIABLE = "SIDR_STORE"


def store_url(profile: Profile | None = None) -> str | None:
    """URL of the bucket that the environment or the profile names; None for a store in the working folder.

    Args:
        profile: default: the one that `SIDR_PROFILE` names.

    Raises:
        ProfileError: it is not such a URL, or holds keys; there is no such profile.
    """
    if given := os.environ.get(STORE_VARIABLE):
        return store_section(STORE_VARIABLE, {"url": given}).url
    return store_section().url if profile is None else profile.store.url


def open_store(profile: Profile | None = None) -> Store:
    """The store of the environment or the profile. A bucket is not asked for anything yet.

    Raises:
        ProfileError: as :func:`store_url`.
        StoreError: the bucket cannot be opened.
    """
    url = store_url(profile)
    if url is None:
        return Store(home() / "store")
    from sidr_core.pipeline.bucket import Bucket
    from sidr_core.pipeline.bucket_store import BucketStore

    return BucketStore(home(), Bucket.at(url))

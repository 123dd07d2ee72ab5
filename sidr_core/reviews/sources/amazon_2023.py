"""Amazon Reviews 2023: JSON lines; an item is its `parent_asin`, times are in milliseconds.

Variants of a product (`asin`) share the parent's id, as in the release's own benchmark files.
"""

from sidr_core.reviews import layouts
from sidr_core.reviews.review_layout import ReviewLayout
from sidr_core.reviews.sources.amazon import Release

RELEASE = Release(
    ReviewLayout(layouts.REVIEWS_2023, ("user_id",), ("parent_asin", "asin"), "rating", "timestamp", "ms"),
    review_names=(layouts.REVIEWS_2023,),
    item_names=(layouts.ITEMS_2023,),
)
review_files, item_files = RELEASE.review_files, RELEASE.item_files
reviews, items = RELEASE.reviews, RELEASE.items

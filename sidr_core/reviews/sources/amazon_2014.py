"""Amazon 2014: JSON reviews; metadata in Python-dict syntax, or the same turned into JSON.

The metadata is read by a literal parser that executes nothing (`sidr_core.reviews.text.literal`).
"""

from sidr_core.reviews import layouts
from sidr_core.reviews.review_layout import ReviewLayout
from sidr_core.reviews.sources.amazon import Release

RELEASE = Release(
    ReviewLayout(layouts.REVIEWS_2014_2018, ("reviewerID",), ("asin",), "overall", "unixReviewTime", "s"),
    review_names=(layouts.REVIEWS_2014, layouts.REVIEWS_2014_2018),
    item_names=(layouts.ITEMS_2014, layouts.ITEMS_2014_JSON, layouts.ITEMS_2014_2018),
)
review_files, item_files = RELEASE.review_files, RELEASE.item_files
reviews, items = RELEASE.reviews, RELEASE.items

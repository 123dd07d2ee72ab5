"""Amazon Reviews 2018 (UCSD v2): JSON lines, gzip or plain."""

from sidr_core.reviews import layouts
from sidr_core.reviews.review_layout import ReviewLayout
from sidr_core.reviews.sources.amazon import Release

RELEASE = Release(
    ReviewLayout(layouts.REVIEWS_2014_2018, ("reviewerID",), ("asin",), "overall", "unixReviewTime", "s"),
    review_names=(layouts.REVIEWS_2018, layouts.REVIEWS_2014_2018),
    item_names=(layouts.ITEMS_2018, layouts.ITEMS_2014_2018),
)
review_files, item_files = RELEASE.review_files, RELEASE.item_files
reviews, items = RELEASE.reviews, RELEASE.items

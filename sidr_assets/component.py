"""The graph of a profile as a component, for a Dagster project that is not this one (docs/operations.md)."""

from dataclasses import replace
from pathlib import Path

import dagster as dg
from pydantic import Field

from sidr_assets import command_line
from sidr_assets.definitions import graph_of
from sidr_core.pipeline.profile import load_profile


class SidrDatasets(dg.Component, dg.Model, dg.Resolvable):
    """Datasets of a SIDR profile: from reviews or orders to recommendations that reason over Semantic IDs.

    Attributes:
        profile: name of a profile of SIDR, or a YAML file beside this one.
        datasets: those of its datasets to take; empty takes all.
        key_prefix: parts of every asset's key before the dataset; none by default, as in SIDR's own project.
        upstream: keys of assets that write the files which the profile's `source` names, such as `shop/orders`; one
            that is defined nowhere is shown as an external asset.
    """

    profile: str = "quickstart"
    datasets: list[str] = Field(default_factory=list)
    key_prefix: list[str] = Field(default_factory=list)
    upstream: list[str] = Field(default_factory=list)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The assets, sensors and schedules.

        Raises:
            ProfileError: there is no such profile, it is wrong, or it has no such dataset.
        """
        command_line.shorten_user_errors()  # another project's selections are not a mistake in our profile
        name = self.profile
        if name.endswith((".yaml", ".yml")) and not Path(name).is_absolute():
            name = str(context.path / name)
        profile = load_profile(name)
        if self.datasets:
            chosen = {name: profile.dataset(name) for name in self.datasets}
            default = profile.default_dataset if profile.default_dataset in chosen else self.datasets[0]
            profile = replace(profile, datasets=chosen, default_dataset=default)
        upstream = [dg.AssetKey.from_user_string(key) for key in self.upstream]
        return graph_of(profile, prefix=self.key_prefix, upstream=upstream)

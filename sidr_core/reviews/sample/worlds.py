"""Catalogues of the sample source: invented things whose texts say what belongs to what.

Three kinds of shop share one structure and the words for it. An *anchor* (a console, a printer, a tool system) decides
which things fit. A *family* (a game series, a product line) has *mains* that follow one another in order, *extras* that
belong to one main, and *companions* that fit every anchor. *Accessories* form an ordered kit per anchor. Every
description ends with facts, `Series: Iron Rally. Part: 2. System: Orbit PC.`, under the same names in all shops, so
that what holds in one shop can be carried over to another. Every name is invented; nothing here is real data.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidr_core.settings import SampleSource


@dataclass(frozen=True, eq=False)  # one object is one item
class Thing:
    """One item. `anchor` is empty if it fits every anchor; `order` counts from 1 within its series."""

    kind: str  # anchor, accessory, main, extra, companion
    title: str
    description: str
    brand: str
    category: tuple[str, ...]
    taste: str = ""
    family: str = ""
    anchor: str = ""
    order: int = 1
    late: bool = False  # on sale for the last weeks only


@dataclass
class World:
    """A catalogue and how strongly its users follow rules, tastes, and the crowd.

    Args:
        rule_share: share of next items that a rule decides, where the history gives any (`users.options`): the dose of
            what can be worked out.
        taste: share of the others that follow the user's tastes; the rest follows popularity.
        repeats: whether accessories are used up and bought again.
        switches: chance per step of a new anchor.
        detours: weight of what interrupts a series (extras, companions, accessories). The more of it, the more often
            the facts that decide the next item lie further back than the newest one.
    """

    things: list[Thing]
    rule_share: float
    taste: float
    repeats: bool
    switches: float
    detours: float = 1.0
    series: dict[tuple[str, str], list[Thing]] = field(default_factory=lambda: defaultdict(list))
    extras: dict[tuple[str, str], list[Thing]] = field(default_factory=lambda: defaultdict(list))
    companions: dict[str, list[Thing]] = field(default_factory=lambda: defaultdict(list))
    kits: dict[str, list[Thing]] = field(default_factory=lambda: defaultdict(list))
    anchors: dict[str, list[Thing]] = field(default_factory=lambda: defaultdict(list))
    families: dict[str, list[str]] = field(default_factory=dict)
    sibling: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        by_taste: dict[str, dict[str, None]] = defaultdict(dict)
        for thing in self.things:
            if thing.kind == "main":
                self.series[thing.family, thing.anchor].append(thing)
            elif thing.kind == "extra":
                self.extras[thing.family, thing.anchor].append(thing)
            elif thing.kind == "companion":
                self.companions[thing.family].append(thing)
            else:
                (self.kits if thing.kind == "accessory" else self.anchors)[thing.anchor].append(thing)
            if thing.family:
                by_taste[thing.taste][thing.family] = None
        self.families = {taste: list(names) for taste, names in by_taste.items()}
        for names in self.families.values():
            self.sibling |= dict(zip(names, names[1:] + names[:1], strict=True))

    @cached_property
    def early(self) -> list[Thing]:
        """What is on sale from the first day on."""
        return [thing for thing in self.things if not thing.late]

    def mains(self, family: str, anchor: str) -> list[Thing]:
        """The series of a family for an anchor, or the one that fits all."""
        return self.series.get((family, anchor)) or self.series.get((family, ""), [])


def build_world(source: SampleSource, rng: random.Random) -> World:
    """The catalogue of a source's category, with exactly `source.items` things."""
    shop = _SHOPS[source.category]
    things = shop.basis(source.items)
    for number in range(source.items):
        if len(things) >= source.items:
            break
        family = shop.family(number, rng)
        late = bool(source.late_share) and number % round(1 / source.late_share) == round(1 / source.late_share) - 1
        things += [replace(thing, late=True) for thing in family] if late else family
    rule_share = shop.rule_share if source.rule_share is None else source.rule_share
    world = World(things[: source.items], rule_share, shop.taste, shop.repeats, shop.switches, source.detours)
    described = [replace(thing, description=_with_facts(thing, world)) for thing in world.things]
    return World(described, rule_share, shop.taste, shop.repeats, shop.switches, source.detours)


def _with_facts(thing: Thing, world: World) -> str:
    """The description with the facts of the thing behind it, one sentence each."""
    facts = {"Series": thing.family}
    if thing.kind == "main":
        facts |= {"Part": str(thing.order), "Next series": world.sibling[thing.family]}
    elif thing.kind == "extra":
        facts["Extends part"] = str(thing.order)
    elif thing.kind == "accessory":
        facts["Number in its range"] = str(thing.order)
    facts["System"] = thing.anchor
    return " ".join([thing.description, *(f"{name}: {value}." for name, value in facts.items() if value)])


def _names(first: str, second: str) -> list[str]:
    """All pairs of words in a fixed order in which neighbours share none."""
    heads, tails = first.split(), second.split()
    pairs = list(product(heads, tails))
    random.Random(len(pairs)).shuffle(pairs)
    return [f"{head} {tail}" for head, tail in pairs]


# -- games ----------------------------------------------------------------------------------------

_PLATFORMS = ("Novadeck 3", "Kestrel One", "Lumen Pocket", "Orbit PC", "Tessera Go")
_GENRES = (
    "role-playing",
    "racing",
    "puzzle",
    "space combat",
    "strategy",
    "platformer",
    "survival horror",
    "farming",
)
_SERIES = _names(
    "Starfall Ember Hollow Iron Velvet Thunder Crystal Lunar Rogue Silent Golden Frost",
    "Odyssey Circuit Garden Frontier Kingdoms Harbor Legion Labyrinth Rally Chronicle",
)
_GAME_KIT = (
    "Wireless Controller",
    "Charging Dock",
    "Stereo Headset",
    "Memory Card 128 GB",
    "Travel Case",
    "HDMI Cable",
    "Screen Protector",
    "Cooling Stand",
)
_EPISODES = ("", "2", "3", "4")


def _kit_size(items: int, anchors: int, most: int) -> int:
    """Accessories per anchor: some 7 % of a catalogue, at least two."""
    return max(2, min(most, round(items * 0.07 / anchors)))


def _game_basis(items: int) -> list[Thing]:
    things = []
    for platform in _PLATFORMS:
        things.append(
            Thing(
                "anchor",
                f"{platform} Console 1 TB",
                f"The {platform} game console with one controller. Plays every {platform} game.",
                platform.split()[0],
                ("Video Games", platform, "Consoles"),
                anchor=platform,
            )
        )
        for order, name in enumerate(_GAME_KIT[: _kit_size(items, len(_PLATFORMS), len(_GAME_KIT))], 1):
            things.append(
                Thing(
                    "accessory",
                    f"{name} for {platform}",
                    f"{name} accessory made for the {platform} console. It does not fit other consoles.",
                    ("Gripwell", "Pixelforge", "Tarn")[order % 3],
                    ("Video Games", platform, "Accessories"),
                    anchor=platform,
                    order=order,
                )
            )
    return things


def _game_family(number: int, rng: random.Random) -> list[Thing]:
    name = _SERIES[number % len(_SERIES)] + (f" {chr(65 + number // len(_SERIES))}" if number >= len(_SERIES) else "")
    genre, studio = _GENRES[number % len(_GENRES)], ("Mirefox", "Oakbyte", "Ninth Bell", "Copperhat")[number % 4]
    episodes = rng.choice((3, 3, 4))
    things: list[Thing] = []
    for platform in sorted(rng.sample(_PLATFORMS, rng.choice((4, 4, 5)))):
        for order in range(1, episodes + 1):
            episode = f"{name} {_EPISODES[order - 1]}".strip()
            text = f"{episode} is a {genre} game for the {platform}, part {order} of the {name} series by {studio}."
            text += f" It continues the story of part {order - 1}." if order > 1 else " The story begins here."
            shelf = ("Video Games", platform, "Games", genre.capitalize())
            things.append(Thing("main", f"{episode} - {platform}", text, studio, shelf, genre, name, platform, order))
        title = f"{name} 2 Expansion Pass - {platform}"
        text = f"Downloadable {genre} content that extends {name} 2 on the {platform}."
        shelf = ("Video Games", platform, "Downloadable Content")
        things.append(Thing("extra", title, text, studio, shelf, genre, name, platform, 2))
    for what in ("Original Soundtrack", "Art Book"):
        text = f"{what} of the {genre} series {name}. A collectible for players on every platform."
        things.append(Thing("companion", f"{name} {what}", text, studio, ("Video Games", "Merchandise"), genre, name))
    return things


# -- office ---------------------------------------------------------------------------------------

_PRINTERS = [
    f"{brand} {model}"
    for model in ("LX210", "P48", "J900")
    for brand in ("Quillon", "Paperwing", "Marlstone", "Inkrest")
]
_CARTRIDGES = ("Black Ink Cartridge", "Color Ink Cartridge", "Black XL Ink Cartridge", "Ink Value Pack", "Photo Paper")
_LINES = (
    ("writing", "Gel Pens", ("Fine 0.5 mm", "Medium 0.7 mm", "Bold 1.0 mm"), "Pen Case"),
    ("filing", "Hanging Folders", ("Letter Size", "Legal Size", "Expanding"), "Folder Labels"),
    ("planning", "Weekly Planner", ("2016", "2017", "2018", "2019"), "Planner Stickers"),
    ("mailing", "Padded Mailers", ("Size 0", "Size 2", "Size 5"), "Packing Tape"),
    ("art", "Watercolor Pencils", ("12 Colors", "24 Colors", "48 Colors"), "Sketch Pad"),
    ("desk", "Desk Organizer", ("Small", "Medium", "Large"), "Desk Mat"),
)
_OFFICE_BRANDS = _names("Birch Calder Dovetail Elmstead Fennick Garnet Hobbin", "Works Papers Supply Hill")


def _office_basis(items: int) -> list[Thing]:
    things = []
    printers = _PRINTERS[: max(2, min(len(_PRINTERS), items // 66))]
    for printer in printers:
        brand = printer.split()[0]
        text = f"{printer} all-in-one printer, scanner and copier. Uses {printer} ink cartridges only."
        shelf = ("Office Products", "Printers", brand)
        things.append(Thing("anchor", f"{printer} All-in-One Printer", text, brand, shelf, anchor=printer))
        for order, name in enumerate(_CARTRIDGES[: _kit_size(items, len(printers), len(_CARTRIDGES))], 1):
            text = f"{name} for the {printer} printer. A consumable that has to be replaced when it is used up."
            shelf = ("Office Products", "Ink", brand)
            things.append(Thing("accessory", f"{name} for {printer}", text, brand, shelf, anchor=printer, order=order))
    return things


def _office_family(number: int, rng: random.Random) -> list[Thing]:
    taste, line, variants, companion = _LINES[number % len(_LINES)]
    brand = _OFFICE_BRANDS[(number // len(_LINES)) % len(_OFFICE_BRANDS)]
    family = f"{brand} {line}" + (f" {number}" if number >= len(_LINES) * len(_OFFICE_BRANDS) else "")
    shelf = ("Office Products", taste.capitalize(), line)
    pack = rng.choice((6, 10, 12, 24))
    things = []
    for order, variant in enumerate(variants, 1):
        text = (
            f"{line} by {brand}, {variant}, for {taste} at home and in the office. Step {order} of the {family} line."
        )
        things.append(Thing("main", f"{family}, {variant}", text, brand, shelf, taste, family, order=order))
    title, text = f"{family} Refill, Pack of {pack}", f"Refill for {family}: {pack} pieces for {taste}."
    things.append(Thing("extra", title, text, brand, shelf, taste, family, order=1))
    text = f"{companion} that goes with {family}, for {taste}."
    things.append(Thing("companion", f"{companion} for {family}", text, brand, shelf, taste, family))
    return things


# -- industrial -----------------------------------------------------------------------------------

_SYSTEMS = tuple(
    f"{brand} 18 V Tool System" for brand in ("Torvik", "Hammerlin", "Brask", "Oxmoor", "Delvane", "Rigby")
)
_BITS = (
    "Drill Bit Set",
    "Spare Battery",
    "Fast Charger",
    "Sanding Pads",
    "Saw Blade",
    "Hex Bit Set",
    "Tool Bag",
    "Chuck Key",
)
_PARTS = (
    ("fasteners", "Hex Bolts", ("M4 x 20 mm", "M6 x 30 mm", "M8 x 40 mm", "M10 x 50 mm"), "Lock Washers"),
    ("sealing", "O-Rings", ("6 mm", "10 mm", "16 mm", "25 mm"), "Silicone Grease"),
    ("tubing", "PVC Tubing", ("4 mm", "6 mm", "8 mm", "12 mm"), "Hose Clamps"),
    ("abrasives", "Sanding Discs", ("60 Grit", "120 Grit", "240 Grit"), "Backing Pad"),
    ("safety", "Work Gloves", ("Size M", "Size L", "Size XL"), "Safety Glasses"),
    ("electrical", "Heat Shrink Tube", ("3 mm", "6 mm", "9 mm"), "Crimp Connectors"),
    ("lab", "Sample Vials", ("2 ml", "10 ml", "20 ml"), "Vial Rack"),
)
_MATERIALS = _names("Stainless Zinc Brass Nylon Carbon Rubber Alloy Clear Heavy Micro", "Grade Line Series Works")


def _industrial_basis(items: int) -> list[Thing]:
    things = []
    for system in _SYSTEMS:
        brand, shelf = system.split()[0], ("Industrial & Scientific", "Power Tools")
        text = f"{system}: cordless drill with one battery. All {brand} 18 V attachments fit."
        things.append(Thing("anchor", f"{system} Drill", text, brand, shelf, anchor=system))
        for order, name in enumerate(_BITS[: _kit_size(items, len(_SYSTEMS), len(_BITS))], 1):
            text = f"{name} for the {system}."
            things.append(Thing("accessory", f"{brand} {name}", text, brand, shelf, anchor=system, order=order))
    return things


def _industrial_family(number: int, rng: random.Random) -> list[Thing]:
    taste, part, sizes, companion = _PARTS[number % len(_PARTS)]
    material = _MATERIALS[(number // len(_PARTS)) % len(_MATERIALS)]
    family = f"{material} {part}" + (f" {number}" if number >= len(_PARTS) * len(_MATERIALS) else "")
    brand, shelf = f"{material.split()[0]}co", ("Industrial & Scientific", taste.capitalize(), part)
    pack = rng.choice((10, 25, 50, 100))
    things = []
    for order, size in enumerate(sizes, 1):
        text = f"{part} for {taste}, {material} quality, {size}, {pack} pieces per pack."
        things.append(
            Thing("main", f"{family}, {size}, Pack of {pack}", text, brand, shelf, taste, family, order=order)
        )
    text = f"{companion} to go with {family}."
    things.append(Thing("companion", f"{companion} for {family}", text, brand, shelf, taste, family))
    return things


@dataclass(frozen=True)
class _Shop:
    """One category: its anchors with their kits, its n-th family, and the shares of :class:`World`."""

    basis: Callable[[int], list[Thing]]
    family: Callable[[int, random.Random], list[Thing]]
    rule_share: float
    taste: float
    repeats: bool
    switches: float


#: Games are rich in rules, industrial parts poor.
_SHOPS = {
    "games": _Shop(_game_basis, _game_family, 0.88, 0.75, False, 0.10),
    "office": _Shop(_office_basis, _office_family, 0.55, 0.7, True, 0.04),
    "industrial": _Shop(_industrial_basis, _industrial_family, 0.22, 0.6, True, 0.04),
}

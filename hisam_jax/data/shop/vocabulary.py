"""The shop's words: each factor that text tells has a few synonyms; no word tells a colour or a pattern."""

from __future__ import annotations

DEPARTMENTS = (
    ("drinkware", "tableware", "kitchen"),
    ("lighting", "lamps", "illumination"),
    ("seating", "furniture", "chairs"),
    ("bags", "luggage", "carry"),
    ("clothing", "apparel", "wear"),
    ("cosmetics", "beauty", "skincare"),
    ("electronics", "gadgets", "devices"),
    ("decor", "homeware", "ornament"),
)
# Four kinds to a department, in the order of `silhouettes.SILHOUETTES`.
KINDS = (
    ("mug", "coffee cup", "beaker"),
    ("tumbler", "glass", "highball"),
    ("bowl", "basin", "porringer"),
    ("jug", "pitcher", "carafe"),
    ("table lamp", "desk light", "bedside lamp"),
    ("floor lamp", "standing light", "torchiere"),
    ("pendant", "hanging light", "ceiling lamp"),
    ("lantern", "hurricane light", "camp light"),
    ("chair", "dining chair", "side seat"),
    ("stool", "bar perch", "footstool"),
    ("armchair", "easy chair", "lounger"),
    ("bench", "settle", "pew"),
    ("tote", "shopper", "carryall"),
    ("backpack", "rucksack", "daypack"),
    ("suitcase", "trolley case", "cabin case"),
    ("handbag", "purse", "clutch"),
    ("shirt", "tee", "top"),
    ("pullover", "sweater", "jumper"),
    ("trousers", "pants", "slacks"),
    ("dress", "gown", "frock"),
    ("lotion", "cleanser", "tonic"),
    ("spray", "mist", "atomiser"),
    ("cream", "balm", "ointment"),
    ("tube", "gel", "paste"),
    ("phone", "handset", "mobile"),
    ("screen", "monitor", "television"),
    ("headphones", "headset", "earphones"),
    ("speaker", "loudspeaker", "soundbox"),
    ("vase", "urn", "amphora"),
    ("clock", "timepiece", "wall timer"),
    ("frame", "photo holder", "portrait mount"),
    ("cushion", "pillow", "bolster"),
)
# The third level of the tree: the emblem on the picture's badge.
EMBLEMS = (
    ("star", "starry", "stellar", "astral"),
    ("heart", "love", "amour", "sweetheart"),
    ("moon", "lunar", "crescent", "moonlit"),
    ("drop", "raindrop", "dew", "droplet"),
    ("bolt", "lightning", "thunder", "flash"),
    ("ring", "halo", "loop", "orbit"),
    ("cross", "plus", "crux", "crossed"),
    ("peak", "mountain", "summit", "alpine"),
)
STYLES = (
    ("minimalist", "pared", "simple"),
    ("rustic", "farmhouse", "country"),
    ("vintage", "retro", "antique"),
    ("industrial", "loft", "factory"),
    ("bohemian", "boho", "hippie"),
    ("nordic", "scandinavian", "hygge"),
    ("baroque", "ornate", "opulent"),
    ("futuristic", "cyber", "scifi"),
    ("coastal", "nautical", "seaside"),
    ("gothic", "medieval", "cathedral"),
    ("tropical", "jungle", "island"),
    ("sporty", "athletic", "active"),
    ("romantic", "dreamy", "tender"),
    ("military", "tactical", "rugged"),
    ("zen", "japandi", "wabi"),
    ("playful", "whimsical", "funny"),
)
BRANDS = tuple(
    "Arlo Bexley Corvo Dunmore Elva Fenwick Galt Hollis Ivara Juno Kestrel Lumo Marlow Nerin Orla Pell".split()
)
FILLERS = tuple("new gift classic premium everyday edition original quality daily set handmade essential".split())

COLOURS = (
    ("red", (222, 60, 57)),
    ("orange", (240, 138, 36)),
    ("yellow", (240, 200, 40)),
    ("lime", (150, 196, 50)),
    ("green", (44, 150, 82)),
    ("teal", (24, 160, 160)),
    ("sky", (96, 184, 238)),
    ("blue", (44, 92, 208)),
    ("violet", (124, 72, 200)),
    ("pink", (238, 110, 170)),
    ("brown", (142, 92, 58)),
    ("slate", (96, 106, 122)),
)
PATTERNS = ("plain", "bars", "columns", "diagonal", "dots", "checks", "zigzag", "lattice")

NUM_DEPARTMENTS, NUM_KINDS, NUM_EMBLEMS = len(DEPARTMENTS), len(KINDS), len(EMBLEMS)
KINDS_PER_DEPARTMENT = NUM_KINDS // NUM_DEPARTMENTS
NUM_LEAVES = NUM_KINDS * NUM_EMBLEMS  # leaf = kind * NUM_EMBLEMS + emblem
NUM_STYLES, NUM_COLOURS, NUM_PATTERNS = len(STYLES), len(COLOURS), len(PATTERNS)

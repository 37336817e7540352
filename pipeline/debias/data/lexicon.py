"""The words and sentence frames of the generator: one lexicon in distribution, one out of distribution.

The two share function words and phenomena; people, places, things, verbs and frames are disjoint. Values of one kind
(places, colours, hours) exclude each other, since each frame speaks of one moment or of one definite thing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Words = tuple[str, ...]


def _words(text: str) -> Words:
    return tuple(text.split())


@dataclass(frozen=True)
class Lexicon:
    """Words and frames of one domain; a frame is a `str.format` template, several frames mean the same.

    `taxonomy`: top class -> class -> members. `states`: nouns -> the two opposite adjectives that fit them. `at`: the
    preposition of places. `acts`: (base form, past participle = past tense). `deeds`: (base form, past tense).
    `scales`: (more, less). `plain`: no negation and no second clause.
    """

    people: Words
    activities: Words
    places: Words
    at: str
    hours: Words
    companions: Words
    groups: Words
    belongings: Words
    colours: Words
    gifts: Words
    taxonomy: Mapping[str, Mapping[str, Words]]
    states: Mapping[Words, tuple[str, str]]
    goods: Words
    acts: tuple[tuple[str, str], ...]
    deeds: tuple[tuple[str, str], ...]
    scales: tuple[tuple[str, str], ...]
    frames: Mapping[str, Words]
    plain: bool = False


HOME = Lexicon(
    people=_words(
        "gardener cook teacher farmer doctor painter baker lawyer singer waiter tailor driver student judge "
        "dancer sailor butcher writer mayor guard"
    ),
    activities=_words("reading singing waiting sleeping eating working talking laughing drawing resting"),
    places=_words("kitchen garden garage library museum station market church school stable cellar theatre"),
    at="in",
    hours=("at noon", "at midnight", "at dawn", "at sunset"),
    companions=("with a friend", "with a child", "with a dog", "with a neighbour"),
    groups=_words("children boys girls women men guests players visitors"),
    belongings=_words("coat hat bag car house scarf cup bicycle chair umbrella"),
    colours=_words("red blue green yellow white black brown pink"),
    gifts=("present", "prize", "toy"),
    taxonomy={
        "animal": {
            "bird": ("sparrow", "parrot", "eagle", "swan"),
            "dog": ("poodle", "terrier", "spaniel", "beagle"),
            "fish": ("salmon", "trout", "shark", "goldfish"),
        },
        "plant": {
            "flower": ("rose", "tulip", "daisy", "lily"),
            "tree": ("pine", "maple", "birch", "palm tree"),
        },
        "vehicle": {
            "boat": ("canoe", "ferry", "kayak", "sailboat"),
            "car": ("taxi", "jeep", "limousine", "sports car"),
        },
    },
    states={
        ("door", "window", "gate", "shop"): ("open", "closed"),
        ("soup", "tea", "dinner", "milk"): ("hot", "cold"),
        ("shirt", "towel", "carpet", "jacket"): ("wet", "dry"),
        ("room", "plate", "floor", "sink"): ("clean", "dirty"),
        ("basket", "bottle", "box", "drawer"): ("empty", "full"),
        ("table", "boat", "cake", "barn"): ("big", "small"),
    },
    goods=_words("apples pears books stamps candles onions pencils eggs"),
    acts=(
        ("call", "called"),
        ("thank", "thanked"),
        ("help", "helped"),
        ("visit", "visited"),
        ("follow", "followed"),
        ("invite", "invited"),
        ("push", "pushed"),
        ("kiss", "kissed"),
        ("paint", "painted"),
        ("praise", "praised"),
    ),
    deeds=(
        ("open the letter", "opened the letter"),
        ("sell the house", "sold the house"),
        ("find the key", "found the key"),
        ("repair the car", "repaired the car"),
        ("clean the table", "cleaned the table"),
        ("catch the train", "caught the train"),
        ("bake the bread", "baked the bread"),
        ("water the flowers", "watered the flowers"),
        ("finish the book", "finished the book"),
        ("climb the hill", "climbed the hill"),
    ),
    scales=(("taller", "shorter"), ("older", "younger"), ("richer", "poorer"), ("stronger", "weaker")),
    frames={
        "join": ("{main}, and {aside}", "{aside}, and {main}", "{main}, while {aside}"),
        "aside": ("the {owner} is {doing}",),
        "location.h+": ("the {owner} is in the {v}", "the {v} is where the {owner} is"),
        "location.h-": ("the {owner} is not in the {v}", "the {v} is not where the {owner} is"),
        "location.p+": ("the {owner} is {doing} in the {v}",),
        "location.p-": ("the {owner} is {doing}, but not in the {v}",),
        "colour.h+": ("the {owner}'s {noun} is {v}",),
        "colour.h-": ("the {owner}'s {noun} is not {v}",),
        "colour.p+": ("the {noun} of the {owner} is {v}", "the {owner} has only one {noun}, which is {v}"),
        "colour.p-": ("the {noun} of the {owner} is not {v}", "the {owner} has only one {noun}, which is not {v}"),
        "taxonomy.h+": ("the {owner}'s {noun} is {a_v}",),
        "taxonomy.h-": ("the {owner}'s {noun} is not {a_v}",),
        "taxonomy.p+": ("the {noun} for the {owner} is {a_v}", "the {owner} gets one {noun}, which is {a_v}"),
        "taxonomy.p-": ("the {noun} for the {owner} is not {a_v}", "the {owner} gets one {noun}, which is not {a_v}"),
        "state.h+": ("the {owner}'s {noun} is {v}",),
        "state.h-": ("the {owner}'s {noun} is not {v}",),
        "state.p+": ("the {noun} of the {owner} is {v}", "right now the {noun} of the {owner} is {v}"),
        "state.p-": ("the {noun} of the {owner} is not {v}", "right now the {noun} of the {owner} is not {v}"),
        "number.h": ("the {owner} bought {v} {noun}",),
        "number.p": (
            "the {owner} bought exactly {v} {noun} and exactly {v2} {noun2}",
            "the {owner} bought exactly {v2} {noun2} and exactly {v} {noun}",
        ),
        "number.open": (
            "the {owner} bought some {noun} and exactly {v2} {noun2}",
            "the {owner} bought exactly {v2} {noun2} and some {noun}",
        ),
        "all.h": ("all of the {noun} are {doing} in the {place}",),
        "some.h": ("some of the {noun} are {doing} in the {place}",),
        "none.h": ("none of the {noun} are {doing} in the {place}",),
        "notall.h": ("not all of the {noun} are {doing} in the {place}",),
        "all.p": ("every one of the {noun} is {doing} in the {place}",),
        "some.p": ("at least one of the {noun} is {doing} in the {place}",),
        "none.p": ("not one of the {noun} is {doing} in the {place}",),
        "notall.p": ("at least one of the {noun} is not {doing} in the {place}",),
        "comparison.h+": ("the {a} is {more} than the {b}",),
        "comparison.h-": ("the {a} is not {more} than the {b}",),
        "comparison.p": ("compared with the {b}, the {a} is {more}", "the {a} is much {more} than the {b}"),
        "voice.h+": ("the {a} {past} the {b}", "the {b} was {past} by the {a}"),
        "voice.h-": ("the {a} did not {base} the {b}", "the {b} was not {past} by the {a}"),
        "voice.p+": ("the {a} {past} the {b}", "the {b} was {past} by the {a}"),
        "voice.p-": ("the {a} did not {base} the {b}", "the {b} was not {past} by the {a}"),
        "detail.h": ("right now the {owner} is {doing} {v}",),
        "detail.p": ("the {owner} is {doing} {v} {v2}", "{v}, the {owner} is {doing} {v2}"),
        "attitude.h+": ("the {owner} {past}",),
        "attitude.h-": ("the {owner} did not {base}",),
        "attitude.yes": (
            "the {owner} managed to {base}",
            "the {owner} remembered to {base}",
            "the {owner} hoped to {base} and did so",
        ),
        "attitude.no": (
            "the {owner} failed to {base}",
            "the {owner} refused to {base}",
            "the {owner} hoped to {base} but never did",
        ),
        "attitude.open": (
            "the {owner} hoped to {base} one day",
            "the {owner} was asked to {base}",
            "the {owner} planned to {base}",
        ),
    },
)

AWAY = Lexicon(
    people=_words(
        "pilot nurse carpenter librarian musician engineer priest tourist actor plumber barber clerk "
        "soldier coach fisherman scientist"
    ),
    activities=_words("whistling knitting praying smoking kneeling shouting thinking studying humming typing"),
    places=_words("hotel camp airport office hospital tower harbour castle stadium factory beach prison"),
    at="at",
    hours=("before breakfast", "during lunch", "just after teatime", "in the small hours"),
    companions=("with a colleague", "with a stranger", "with a cousin", "with an old uncle"),
    groups=_words("passengers dentists prisoners monks cyclists tenants miners scouts"),
    belongings=_words("wallet tent helmet piano lamp suitcase tie blanket mug sofa"),
    colours=_words("grey purple orange golden silver beige turquoise crimson"),
    gifts=("poster", "tattoo", "badge"),
    taxonomy={
        "creature": {
            "insect": ("beetle", "wasp", "ant", "butterfly"),
            "reptile": ("snake", "lizard", "crocodile", "turtle"),
        },
        "weapon": {
            "gun": ("pistol", "rifle", "shotgun", "revolver"),
            "spear": ("javelin", "harpoon", "trident", "lance"),
        },
        "instrument": {
            "horn": ("trumpet", "tuba", "trombone", "bugle"),
            "drum": ("bongo", "snare drum", "kettledrum", "bass drum"),
        },
    },
    states={
        ("rope", "beard", "skirt", "ladder"): ("long", "short"),
        ("engine", "radio", "printer", "oven"): ("on", "off"),
        ("mattress", "pillow", "cheese", "couch"): ("soft", "hard"),
        ("baby", "horse", "camel", "cat"): ("awake", "asleep"),
        ("knife", "axe", "sword", "razor"): ("sharp", "blunt"),
    },
    goods=_words("melons forks ropes hammers tickets lemons shells buttons"),
    acts=(
        ("blame", "blamed"),
        ("hug", "hugged"),
        ("warn", "warned"),
        ("trust", "trusted"),
        ("rescue", "rescued"),
        ("punish", "punished"),
        ("kick", "kicked"),
        ("hire", "hired"),
        ("film", "filmed"),
        ("insult", "insulted"),
    ),
    deeds=(
        ("lock the safe", "locked the safe"),
        ("burn the map", "burned the map"),
        ("cross the river", "crossed the river"),
        ("sign the contract", "signed the contract"),
        ("feed the horses", "fed the horses"),
        ("dig the ditch", "dug the ditch"),
        ("win the race", "won the race"),
        ("hide the money", "hid the money"),
    ),
    scales=(("heavier", "lighter"), ("faster", "slower"), ("happier", "sadder"), ("louder", "quieter")),
    frames={
        "join": ("{main}; meanwhile {aside}", "while {aside}, {main}"),
        "aside": ("the {owner} keeps {doing}",),
        "location.h+": ("you can find the {owner} at the {v}",),
        "location.h-": ("you cannot find the {owner} at the {v}",),
        "location.p+": ("at the {v} stands the {owner}, {doing}", "the {owner} is now at the {v}, still {doing}"),
        "location.p-": ("the {owner} stands {doing}, far away from the {v}",),
        "colour.h+": ("the {noun} owned by the {owner} is {v} in colour",),
        "colour.h-": ("the {noun} owned by the {owner} is not {v} in colour",),
        "colour.p+": ("the colour of the {owner}'s {noun} is {v}",),
        "colour.p-": ("the colour of the {owner}'s {noun} is anything but {v}",),
        "taxonomy.h+": ("{a_v} is what the {owner}'s {noun} depicts",),
        "taxonomy.h-": ("{a_v} is not what the {owner}'s {noun} depicts",),
        "taxonomy.p+": ("the {owner} has one {noun}, and all it shows is {a_v}",),
        "taxonomy.p-": ("the {owner} has one {noun}, and it does not show {a_v}",),
        "state.h+": ("the {noun} owned by the {owner} is {v}",),
        "state.h-": ("the {noun} owned by the {owner} is not {v}",),
        "state.p+": ("everyone can see that the {owner}'s {noun} is {v}",),
        "state.p-": ("everyone can see that the {owner}'s {noun} is not {v}",),
        "number.h": ("there were {v} {noun} in the {owner}'s sack",),
        "number.p": ("inside, the {owner}'s sack held exactly {v} {noun} as well as exactly {v2} {noun2}",),
        "number.open": ("inside, the {owner}'s sack held several {noun} as well as exactly {v2} {noun2}",),
        "all.h": ("each of the {noun} is {doing} at the {place}",),
        "some.h": ("one or more of the {noun} are {doing} at the {place}",),
        "none.h": ("not a single one of the {noun} is {doing} at the {place}",),
        "notall.h": ("one or more of the {noun} are not {doing} at the {place}",),
        "all.p": ("without exception, the {noun} are {doing} at the {place}",),
        "some.p": ("among the {noun} there are some who are {doing} at the {place}",),
        "none.p": ("among the {noun} there is nobody who is {doing} at the {place}",),
        "notall.p": ("among the {noun} there are some who are not {doing} at the {place}",),
        "comparison.h+": ("it is true that the {b} is {less} than the {a}",),
        "comparison.h-": ("it is false that the {b} is {less} than the {a}",),
        "comparison.p": ("between the {a} and the {b}, the {more} one is the {a}",),
        "voice.h+": ("the {b} got {past} by the {a}", "at some point the {a} {past} the {b}"),
        "voice.h-": ("the {b} never got {past} by the {a}", "at no point was the {b} {past} by the {a}"),
        "voice.p+": ("the {a} is one of those who {past} the {b}", "the {a} is known to have {past} the {b}"),
        "voice.p-": ("the {a} is not one of those who {past} the {b}", "the {a} has never {past} the {b}"),
        "detail.h": ("the {owner} was seen {doing} {v}",),
        "detail.p": ("we saw the {owner} just once, {doing} {v} {v2}",),
        "attitude.h+": ("in the end the {owner} {past}",),
        "attitude.h-": ("in the end the {owner} did not {base}",),
        "attitude.yes": ("the {owner} took the time to {base}", "the {owner} took the trouble to {base}"),
        "attitude.no": ("the {owner} declined to {base}", "the {owner} was too tired to {base}"),
        "attitude.open": ("the {owner} intends to {base}", "the {owner} was told to {base}"),
    },
)

"""Words about words: opposites, plurals, past tense, rhymes, spelling, letters, and single words said on their own."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from string import ascii_uppercase

from train.data.world.facts import CAPITALS
from train.data.world.grammar import Family, Slots
from train.data.world.numbers import ORDINALS, spelled
from train.data.world.tables import listed, rows
from train.data.world.time import DAYS, MONTHS

OPPOSITES = rows(
    "word opposite",
    """
    hot: cold, big: small, up: down, left: right, day: night, black: white, fast: slow, happy: sad, old: young,
    open: closed, full: empty, hard: soft, high: low, long: short, light: dark, loud: quiet, near: far,
    new: ancient, rich: poor, strong: weak, thick: thin, true: false, wet: dry, wide: narrow, good: bad,
    early: late, first: last, inside: outside, always: never, yes: no, clean: dirty, deep: shallow,
    easy: difficult, heavy: weightless, friend: enemy, love: hate, start: finish, push: pull, buy: sell,
    win: lose, give: take, come: go, awake: asleep, sharp: blunt, smooth: rough, sweet: sour, war: peace,
    top: bottom, front: back, more: less
    """,
)
OPPOSITES += [{"word": slots["opposite"], "opposite": slots["word"]} for slots in OPPOSITES]

PLURALS = rows(
    "one many",
    """
    cat: cats, dog: dogs, book: books, tree: trees, house: houses, car: cars, apple: apples, table: tables,
    mouse: mice, foot: feet, tooth: teeth, goose: geese, child: children, man: men, woman: women,
    person: people, sheep: sheep, fish: fish, deer: deer, knife: knives, leaf: leaves, wolf: wolves,
    wife: wives, life: lives, shelf: shelves, baby: babies, city: cities, lady: ladies, story: stories,
    berry: berries, box: boxes, fox: foxes, bus: buses, dish: dishes, watch: watches, potato: potatoes,
    tomato: tomatoes, hero: heroes, ox: oxen, key: keys, toy: toys, boy: boys
    """,
)

PAST = rows(
    "now then",
    """
    go: went, come: came, eat: ate, drink: drank, see: saw, sing: sang, swim: swam, run: ran, write: wrote,
    read: read, give: gave, take: took, make: made, buy: bought, bring: brought, think: thought, catch: caught,
    teach: taught, sleep: slept, keep: kept, fly: flew, grow: grew, know: knew, speak: spoke, break: broke,
    drive: drove, find: found, lose: lost, win: won, sit: sat, stand: stood, walk: walked, talk: talked,
    play: played, jump: jumped, look: looked, call: called, open: opened, dance: danced, laugh: laughed
    """,
)

RHYMES = rows(
    "word rhyme",
    """
    cat: hat, dog: frog, house: mouse, tree: bee, sun: fun, moon: spoon, star: car, night: light, day: play,
    rain: train, snow: go, cake: lake, bread: red, blue: shoe, green: queen, king: ring, ball: wall, bell: well,
    boat: coat, book: cook, door: four, eye: sky, fish: dish, fox: box, hand: sand, hill: mill, nose: rose,
    pen: ten, sock: clock, chair: bear, phone: stone, pig: big, jam: ham, mice: ice, town: brown, year: ear
    """,
)
RHYMES += [{"word": slots["rhyme"], "rhyme": slots["word"]} for slots in RHYMES]

KINDS_OF_WORD = {  # what nano says of a word that comes alone
    "number": [spelled(number) for number in (*range(21), 30, 40, 50, 60, 70, 80, 90, 100)],
    "colour": listed("red blue green yellow black white brown grey pink purple"),
    "animal": listed("dog cat cow horse sheep pig duck hen mouse lion tiger elephant monkey rabbit frog bear wolf"),
    "fruit": listed("apple banana pear cherry lemon peach grape melon mango"),
    "vegetable": listed("carrot potato onion cabbage pea bean leek turnip"),
    "drink": listed("tea coffee juice water lemonade milk latte mocha espresso cappuccino americano"),
    "day": DAYS,
    "month": MONTHS,
    "season": listed("spring summer autumn winter"),
    "country": [slots["country"] for slots in CAPITALS],
    "city": [slots["capital"] for slots in CAPITALS],
    "thing": listed("table chair door window basket bottle cup spoon knife lamp clock book pen key phone ladder"),
    "part of the body": listed("head hand foot nose ear eye mouth knee elbow finger thumb shoulder"),
    "letter": list(ascii_uppercase),
}

SPELLABLE = listed(
    "cat dog cow pig hen ant bee bat fox owl hat cup pen bed box car bus key map sun sky sea ice egg jam tea pie nut "
    "red blue pink grey one two six ten big hot cold old new wet dry top leg arm ear eye lip toe boy girl man "
    "king ball bell bird boat book cake coat door duck fish foot frog goat hand home lamp lion milk moon nest nose "
    "rain ring road rose salt ship shoe snow sock star tree wall wind wolf apple bread chair cloud green horse house "
    "juice knife lemon light money mouse music night paper piano plant queen river sheep spoon stone sugar table tiger "
    "train water woman world yellow orange banana basket bottle butter button coffee cookie doctor dollar finger "
    "flower garden guitar hammer island jacket kitten letter market monkey orange pencil rabbit school spider summer "
    "window winter"
)
ALPHABET = list(ascii_uppercase)


def _letters(word: str) -> str:
    return ", ".join(word.upper())


SPELLINGS = [
    {
        "word": word,
        "letters": _letters(word),
        "first": word[0].upper(),
        "last": word[-1].upper(),
        "count": spelled(len(word)),
    }
    for word in dict.fromkeys(SPELLABLE)
]

FORM_FAMILIES = (
    Family(
        "opposites",
        (
            "what is the opposite of {word}?",
            "what's the opposite of {word}?",
            "what is the opposite of the word {word}?",
            "tell me the opposite of {word}.",
            "can you tell me the opposite of {word}?",
            "do you know the opposite of {word}?",
            "which word is the opposite of {word}?",
            "{word} is the opposite of what?",
            "give me the opposite of {word}.",
            "what is the reverse of {word}?",
            "say the opposite of {word}.",
            "I need the opposite of {word}.",
        ),
        "the opposite of {word} is {opposite}.",
        OPPOSITES,
        value="{word}",
        by_question=True,
    ),
    Family(
        "plurals",
        (
            "what is the plural of {one}?",
            "what's the plural of {one}?",
            "one {one}, two what?",
            "what is the plural form of {one}?",
            "how do you say more than one {one}?",
            "can you give me the plural of {one}?",
            "tell me the plural of {one}.",
            "do you know the plural of {one}?",
            "what do you call more than one {one}?",
            "make {one} plural.",
            "I see one {one} here and two what there?",
        ),
        "one {one}, two {many}.",
        PLURALS,
        value="{one}",
        by_question=True,
    ),
    Family(
        "past",
        (
            "what is the past tense of {now}?",
            "what's the past tense of {now}?",
            "what is the past of {now}?",
            "tell me the past tense of {now}.",
            "today I {now}, and yesterday?",
            "put {now} in the past tense.",
            "how do you say {now} in the past?",
            "do you know the past tense of {now}?",
            "can you give me the past tense of {now}?",
            "today we {now}, what did we do yesterday?",
            "which word is the past tense of {now}?",
        ),
        "today I {now}, yesterday I {then}.",
        PAST,
        value="{now}",
        by_question=True,
    ),
    Family(
        "rhymes",
        (
            "what rhymes with {word}?",
            "what word rhymes with {word}?",
            "which word rhymes with {word}?",
            "give me a rhyme for {word}.",
            "tell me a word that rhymes with {word}.",
            "can you find a rhyme for {word}?",
            "do you know a rhyme for {word}?",
            "find a word that rhymes with {word}.",
            "I need a rhyme for {word}.",
            "could you tell me what rhymes with {word}?",
            "make a rhyme with {word}.",
        ),
        "{rhyme} rhymes with {word}.",
        RHYMES,
        value="{word}",
        by_question=True,
    ),
)

SPELLING_FAMILIES = (
    Family(
        "spelling",
        (
            "how do you spell {word}?",
            "how is {word} spelled?",
            "can you spell {word}?",
            "spell {word}.",
            "spell the word {word}.",
            "please spell {word} for me.",
            "could you spell {word}, please?",
            "how do I spell {word}?",
            "how do you write {word}?",
            "tell me how to spell {word}.",
            "what is the spelling of {word}?",
            "do you know how to spell {word}?",
        ),
        "{word} is spelled {letters}.",
        SPELLINGS,
        value="{word}",
        by_question=True,
    ),
    Family(
        "spelling",
        (
            "what does {letters} spell?",
            "what word is {letters}?",
            "which word is spelled {letters}?",
            "{letters}, what is that word?",
            "read this for me: {letters}.",
        ),
        "{letters} spells {word}.",
        SPELLINGS,
        value="{letters}",
        by_question=True,
    ),
    Family(
        "letters",
        (
            "what is the first letter of {word}?",
            "what's the first letter of {word}?",
            "what letter does {word} start with?",
            "which letter does {word} begin with?",
            "with which letter does {word} start?",
            "tell me the first letter of {word}.",
            "do you know the first letter of {word}?",
            "{word} starts with which letter?",
        ),
        "{word} starts with {first}.",
        SPELLINGS,
        value="first of {word}",
        by_question=True,
    ),
    Family(
        "letters",
        (
            "what is the last letter of {word}?",
            "what's the last letter of {word}?",
            "what letter does {word} end with?",
            "which letter does {word} end in?",
            "tell me the last letter of {word}.",
            "{word} ends with which letter?",
        ),
        "{word} ends with {last}.",
        SPELLINGS,
        value="last of {word}",
        by_question=True,
    ),
    Family(
        "letters",
        (
            "how many letters does {word} have?",
            "how many letters are in {word}?",
            "how many letters has the word {word}?",
            "count the letters of {word}.",
            "do you know how many letters {word} has?",
        ),
        "{word} has {count} letters.",
        SPELLINGS,
        value="letters of {word}",
        by_question=True,
    ),
    Family(
        "letters",
        (
            "what letter comes after {letter}?",
            "which letter comes after {letter}?",
            "which letter follows {letter}?",
            "what is the next letter after {letter}?",
            "tell me the letter after {letter}.",
            "what comes after {letter} in the alphabet?",
        ),
        "{after} comes after {letter}.",
        [{"letter": letter, "after": after} for letter, after in pairwise(ALPHABET)],
        value="after {letter}",
        by_question=True,
    ),
    Family(
        "letters",
        (
            "what is the {place} letter of the alphabet?",
            "which letter is the {place} of the alphabet?",
            "what's the {place} letter in the alphabet?",
            "name the {place} letter of the alphabet.",
        ),
        "the {place} letter of the alphabet is {letter}.",
        [{"place": place, "letter": letter} for place, letter in zip(ORDINALS, ALPHABET)],
        value="letter {place}",
        by_question=True,
    ),
)


def _kind_of_word(rng: Random) -> Slots:
    """Kinds are drawn evenly, though there are many more countries than seasons."""
    kind = rng.choice(list(KINDS_OF_WORD))
    return {"word": rng.choice(KINDS_OF_WORD[kind]), "kind": kind}


SINGLE_WORD_FAMILIES = (
    Family(  # the bare word is trained with every word: ears have to know them all alone
        "single words",
        ("{word}.",),
        "{word} is a {kind}.",
        _kind_of_word,
        carriers=False,
    ),
    Family(
        "single words",
        (
            "once more: {word}.",
            "I said {word}.",
            "the word is {word}.",
            "my word is {word}.",
            "here is a word: {word}.",
            "the next word is {word}.",
            "now {word}.",
            "listen: {word}.",
            "and now {word}.",
            "what kind of word is {word}?",
            "what do you know about {word}?",
            "can you hear me say {word}?",
        ),
        "{word} is a {kind}.",
        _kind_of_word,
        value="{word}",
        by_question=True,
        carriers=False,
    ),
)

FAMILIES = FORM_FAMILIES + SPELLING_FAMILIES + SINGLE_WORD_FAMILIES

"""Facts of the living: animals, the body, the family and the work of people.

As with all facts, every value is trained with most of its questions and held out of the others.
"""

from __future__ import annotations

from train.data.world.grammar import Family
from train.data.world.tables import rows

SOUNDS = rows(
    "animal says",
    """
    dog: woof, cat: meow, cow: moo, duck: quack, sheep: baa, pig: oink, horse: neigh, lion: roar, bear: growl,
    bird: tweet, hen: cluck, mouse: squeak, snake: hiss, bee: buzz, frog: croak, owl: hoot, wolf: howl,
    donkey: hee haw, turkey: gobble, crow: caw
    """,
)
LEGS = rows(
    "animal legs",
    """
    dog: four, cat: four, cow: four, horse: four, sheep: four, pig: four, mouse: four, elephant: four,
    lion: four, frog: four, rabbit: four, tiger: four, chicken: two, duck: two, bird: two, owl: two, ant: six,
    bee: six, fly: six, beetle: six, spider: eight, scorpion: eight, snake: no, worm: no, fish: no, whale: no,
    snail: no
    """,
)
BABIES = rows(
    "animal baby",
    """
    dog: puppy, cat: kitten, cow: calf, horse: foal, sheep: lamb, pig: piglet, hen: chick, duck: duckling,
    goose: gosling, bear: cub, goat: kid, frog: tadpole, kangaroo: joey, deer: fawn, swan: cygnet, owl: owlet,
    eagle: eaglet, butterfly: caterpillar
    """,
)
HOMES = rows(
    "animal home",
    """
    bird: a nest, bee: a hive, dog: a kennel, horse: a stable, pig: a sty, rabbit: a burrow, spider: a web,
    lion: a den, fish: the water, cow: a barn, bear: a cave, ant: an anthill, mouse: a hole, hen: a coop,
    whale: the sea, camel: the desert, monkey: the trees, squirrel: a tree, beaver: a lodge, snail: a shell
    """,
)
FOODS = rows(
    "animal food",
    """
    cow: grass, horse: hay, rabbit: carrots, monkey: bananas, cat: fish, dog: meat, mouse: cheese, bird: seeds,
    bear: honey, squirrel: nuts, panda: bamboo, spider: flies, lion: meat, sheep: grass, hen: corn,
    caterpillar: leaves
    """,
)
KINDS = rows(
    "animal kind",
    """
    dog: mammal, cat: mammal, whale: mammal, bat: mammal, horse: mammal, elephant: mammal, owl: bird,
    duck: bird, eagle: bird, penguin: bird, hen: bird, salmon: fish, shark: fish, trout: fish, ant: insect,
    bee: insect, fly: insect, beetle: insect, snake: reptile, lizard: reptile, crocodile: reptile,
    turtle: reptile
    """,
)

ANIMAL_FAMILIES = (
    Family(
        "animals",
        (
            "what sound does {animal:a} make?",
            "what does {animal:a} say?",
            "what noise does {animal:a} make?",
            "how does {animal:a} sound?",
            "which sound does {animal:a} make?",
            "do you know what {animal:a} says?",
            "tell me what {animal:a} says.",
        ),
        "{animal:a} says {says}.",
        SOUNDS,
        value="sound of {animal}",
        by_question=True,
    ),
    Family(
        "animals",
        (
            "which animal says {says}?",
            "what animal says {says}?",
            "who says {says}?",
            "what animal goes {says}?",
            "which animal makes the sound {says}?",
        ),
        "{animal:a} says {says}.",
        SOUNDS,
        value="who says {says}",
        by_question=True,
    ),
    Family(
        "animals",
        (
            "how many legs does {animal:a} have?",
            "how many legs has {animal:a} got?",
            "what number of legs does {animal:a} have?",
            "do you know how many legs {animal:a} has?",
            "can you tell me how many legs {animal:a} has?",
            "{animal:a} has how many legs?",
        ),
        "{animal:a} has {legs} legs.",
        LEGS,
        value="legs of {animal}",
        by_question=True,
    ),
    Family(
        "animals",
        (
            "what is a baby {animal} called?",
            "what do you call a baby {animal}?",
            "what's a baby {animal} called?",
            "what is the name for a baby {animal}?",
            "what is a young {animal} called?",
            "do you know the word for a baby {animal}?",
        ),
        "a baby {animal} is called {baby:a}.",
        BABIES,
        value="baby {animal}",
        by_question=True,
    ),
    Family(
        "animals",
        (
            "where does {animal:a} live?",
            "what does {animal:a} live in?",
            "what is the home of {animal:a}?",
            "where is {animal:a} at home?",
            "do you know where {animal:a} lives?",
        ),
        "{animal:a} lives in {home}.",
        HOMES,
        value="home of {animal}",
        by_question=True,
    ),
    Family(
        "animals",
        (
            "what does {animal:a} eat?",
            "what does {animal:a} like to eat?",
            "what is the food of {animal:a}?",
            "what do you feed {animal:a}?",
            "do you know what {animal:a} eats?",
        ),
        "{animal:a} eats {food}.",
        FOODS,
        value="food of {animal}",
        by_question=True,
    ),
    Family(
        "animals",
        (
            "what kind of animal is {animal:a}?",
            "what is {animal:a}?",
            "which kind of animal is {animal:a}?",
            "what sort of animal is {animal:a}?",
            "do you know what kind of animal {animal:a} is?",
        ),
        "{animal:a} is {kind:a}.",
        KINDS,
        value="kind of {animal}",
        by_question=True,
    ),
)

SENSES = rows(
    "act part",
    """
    see: eyes, hear: ears, smell: nose, taste: tongue, walk: feet, run: legs, chew: teeth, think: brain,
    breathe: lungs, write: hand, kick: foot, hug: arms, speak: mouth, clap: hands, point: finger
    """,
)
PLACES = rows(
    "part place",
    """
    the knee: in the leg, the elbow: in the arm, the thumb: on the hand, the toe: on the foot,
    the tongue: in the mouth, the nose: in the face, the heart: in the chest, the brain: in the head,
    the wrist: between arm and hand, the ankle: between leg and foot, the neck: between head and shoulders,
    the chin: below the mouth
    """,
)
PARTS = rows(
    "part number",
    """
    eyes: two, ears: two, hands: two, feet: two, arms: two, knees: two, thumbs: two, fingers: ten, toes: ten,
    noses: one, mouths: one, hearts: one, heads: one, lungs: two
    """,
)
BODY_FAMILIES = (
    Family(
        "body",
        (
            "what do you {act} with?",
            "what part of the body do you {act} with?",
            "what do people use to {act}?",
            "what do we need to {act}?",
            "which part of the body lets us {act}?",
            "with what do people {act}?",
        ),
        "people {act} with the {part}.",
        SENSES,
        value="{act}",
        by_question=True,
    ),
    Family(
        "body",
        (
            "where is {part}?",
            "where do I find {part}?",
            "can you tell me where {part} is?",
            "do you know where {part} is?",
            "in which place is {part}?",
        ),
        "{part} is {place}.",
        PLACES,
        value="place of {part}",
        by_question=True,
    ),
    Family(
        "body",
        (
            "how many {part} does a person have?",
            "how many {part} do people have?",
            "how many {part} do I have?",
            "what number of {part} does a person have?",
            "do you know how many {part} a person has?",
        ),
        "a person has {number} {what}.",
        [{**slots, "what": slots["part"][:-1] if slots["number"] == "one" else slots["part"]} for slots in PARTS],
        value="number of {part}",
        by_question=True,
    ),
)

RELATIONS = rows(
    "relation person",
    """
    mother's mother: grandmother, mother's father: grandfather, mother's brother: uncle, mother's sister: aunt,
    father's mother: grandmother, father's father: grandfather, father's brother: uncle, father's sister: aunt,
    sister's son: nephew, sister's daughter: niece, brother's son: nephew, brother's daughter: niece,
    son's son: grandson, son's daughter: granddaughter, daughter's son: grandson,
    daughter's daughter: granddaughter, uncle's son: cousin, uncle's daughter: cousin, aunt's son: cousin,
    aunt's daughter: cousin, wife's mother: mother-in-law, wife's father: father-in-law,
    husband's mother: mother-in-law, husband's father: father-in-law
    """,
)
FAMILY_FAMILIES = (
    Family(
        "family",
        (
            "who is my {relation}?",
            "who's my {relation}?",
            "what do I call my {relation}?",
            "what is my {relation} called?",
            "what is the word for my {relation}?",
            "my {relation} is my what?",
            "do you know what to call my {relation}?",
            "how am I related to my {relation}?",
            "can you tell me who my {relation} is?",
            "what is my {relation} to me?",
        ),
        "your {relation} is your {person}.",
        RELATIONS,
        value="{relation}",
        by_question=True,
    ),
)

JOBS = rows(
    "worker does",
    """
    baker: bakes bread, teacher: teaches children, doctor: helps sick people, farmer: grows food,
    painter: paints pictures, singer: sings songs, writer: writes books, pilot: flies planes, cook: makes meals,
    driver: drives cars, dentist: looks after teeth, tailor: sews clothes, builder: builds houses,
    gardener: looks after plants, fisherman: catches fish, barber: cuts hair, postman: brings letters,
    plumber: mends pipes
    """,
)
JOB_FAMILIES = (
    Family(
        "jobs",
        (
            "who {does}?",
            "what do you call someone who {does}?",
            "which person {does}?",
            "what is the job of a person who {does}?",
            "tell me who {does}.",
            "do you know who {does}?",
        ),
        "{worker:a} {does}.",
        JOBS,
        value="who {does}",
        by_question=True,
    ),
    Family(
        "jobs",
        (
            "what does {worker:a} do?",
            "what is the job of {worker:a}?",
            "what's the work of {worker:a}?",
            "what does {worker:a} do all day?",
            "tell me what {worker:a} does.",
            "do you know what {worker:a} does?",
        ),
        "{worker:a} {does}.",
        JOBS,
        value="work of {worker}",
        by_question=True,
    ),
)

FAMILIES = ANIMAL_FAMILIES + BODY_FAMILIES + FAMILY_FAMILIES + JOB_FAMILIES

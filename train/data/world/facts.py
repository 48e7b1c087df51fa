"""Facts of the world: capitals, colours, food, the weather and things.

Nobody can work out a fact, so every value is trained with most of its questions and held out of the others.
"""

from __future__ import annotations

from train.data.world.grammar import Family
from train.data.world.tables import rows

CAPITALS = rows(
    "country capital continent",
    """
    France: Paris: Europe, Germany: Berlin: Europe, Italy: Rome: Europe, Spain: Madrid: Europe,
    Portugal: Lisbon: Europe, England: London: Europe, Scotland: Edinburgh: Europe, Ireland: Dublin: Europe,
    Wales: Cardiff: Europe, Austria: Vienna: Europe, Belgium: Brussels: Europe, Holland: Amsterdam: Europe,
    Denmark: Copenhagen: Europe, Norway: Oslo: Europe, Sweden: Stockholm: Europe, Finland: Helsinki: Europe,
    Iceland: Reykjavik: Europe, Poland: Warsaw: Europe, Hungary: Budapest: Europe, Greece: Athens: Europe,
    Romania: Bucharest: Europe, Bulgaria: Sofia: Europe, Croatia: Zagreb: Europe, Serbia: Belgrade: Europe,
    Ukraine: Kyiv: Europe, Russia: Moscow: Europe, Estonia: Tallinn: Europe, Latvia: Riga: Europe,
    Turkey: Ankara: Asia, China: Beijing: Asia, Japan: Tokyo: Asia, India: New Delhi: Asia,
    Nepal: Kathmandu: Asia, Thailand: Bangkok: Asia, Vietnam: Hanoi: Asia, Indonesia: Jakarta: Asia,
    South Korea: Seoul: Asia, Iran: Tehran: Asia, Iraq: Baghdad: Asia, Egypt: Cairo: Africa,
    Kenya: Nairobi: Africa, Ghana: Accra: Africa, Morocco: Rabat: Africa, Senegal: Dakar: Africa,
    Ethiopia: Addis Ababa: Africa, Canada: Ottawa: America, Cuba: Havana: America, Brazil: Brasilia: America,
    Argentina: Buenos Aires: America, Chile: Santiago: America, Peru: Lima: America, Colombia: Bogota: America,
    Australia: Canberra: Australia, New Zealand: Wellington: Oceania
    """,
)
CONTINENTS = [slots for slots in CAPITALS if slots["country"] != slots["continent"]]

CAPITAL_FAMILIES = (
    Family(
        "capitals",
        (
            "what is the capital of {country}?",
            "what's the capital of {country}?",
            "what is the capital city of {country}?",
            "which city is the capital of {country}?",
            "what is {country}'s capital?",
            "name the capital of {country}.",
            "tell me the capital of {country}.",
            "could you tell me the capital of {country}?",
            "can you name the capital of {country}?",
            "do you know the capital of {country}?",
            "what is the capital called in {country}?",
            "I want to know the capital of {country}.",
        ),
        "the capital of {country} is {capital}.",
        CAPITALS,
        value="capital of {country}",
        by_question=True,
    ),
    Family(
        "capitals",
        (
            "{capital} is the capital of which country?",
            "which country has the capital {capital}?",
            "what country is {capital} the capital of?",
            "of which country is {capital} the capital?",
            "which country's capital is {capital}?",
            "do you know which country has the capital {capital}?",
        ),
        "{capital} is the capital of {country}.",
        CAPITALS,
        value="country of {capital}",
        by_question=True,
    ),
    Family(
        "capitals",
        (
            "which continent is {country} in?",
            "on which continent is {country}?",
            "what continent is {country} on?",
            "where is {country}?",
            "in which part of the world is {country}?",
            "do you know where {country} is?",
        ),
        "{country} is in {continent}.",
        CONTINENTS,
        value="continent of {country}",
        by_question=True,
    ),
)

COLOURS = rows(
    "thing colour",
    """
    a banana: yellow, a lemon: yellow, the sun: yellow, butter: yellow, the sky: blue, the sea: blue,
    grass: green, a leaf: green, a frog: green, a pea: green, a cucumber: green, snow: white, milk: white,
    salt: white, sugar: white, a swan: white, coal: black, a crow: black, the night: black, a tomato: red,
    a strawberry: red, blood: red, a cherry: red, a fire engine: red, a carrot: orange, an orange: orange,
    a pumpkin: orange, chocolate: brown, coffee: brown, wood: brown, a bear: brown, an elephant: grey,
    a mouse: grey, a rain cloud: grey, a pig: pink, a flamingo: pink, a plum: purple, an aubergine: purple
    """,
)
MIXTURES = rows(
    "one two mix",
    """
    blue: yellow: green, red: yellow: orange, red: blue: purple, black: white: grey, red: white: pink,
    red: green: brown, blue: white: light blue
    """,
)
MIXTURES += [{"one": slots["two"], "two": slots["one"], "mix": slots["mix"]} for slots in MIXTURES]

COLOUR_FAMILIES = (
    Family(
        "colours",
        (
            "what colour is {thing}?",
            "which colour is {thing}?",
            "what is the colour of {thing}?",
            "what's the colour of {thing}?",
            "what colour does {thing} have?",
            "tell me the colour of {thing}.",
            "can you tell me what colour {thing} is?",
            "do you know the colour of {thing}?",
        ),
        "{thing} is {colour}.",
        COLOURS,
        value="colour of {thing}",
        by_question=True,
    ),
    Family(
        "colours",
        (
            "what colour do {one} and {two} make?",
            "what do you get when you mix {one} and {two}?",
            "what is {one} mixed with {two}?",
            "which colour do I get from {one} and {two}?",
            "if I mix {one} with {two}, what colour is it?",
            "mix {one} and {two}, please.",
        ),
        "{one} and {two} make {mix}.",
        MIXTURES,
        value="{one} and {two}",
        by_question=True,
    ),
)

EATABLES = rows(
    "food kind",
    """
    an apple: fruit, a banana: fruit, a pear: fruit, an orange: fruit, a cherry: fruit, a lemon: fruit,
    a peach: fruit, a grape: fruit, a melon: fruit, a mango: fruit, a carrot: vegetable, a potato: vegetable,
    an onion: vegetable, a cabbage: vegetable, a pea: vegetable, a bean: vegetable, a leek: vegetable,
    a turnip: vegetable, tea: drink, coffee: drink, juice: drink, water: drink, lemonade: drink
    """,
)
TASTES = rows(
    "food taste",
    """
    sugar: sweet, honey: sweet, cake: sweet, chocolate: sweet, jam: sweet, a lemon: sour, vinegar: sour,
    salt: salty, sea water: salty, bacon: salty, a chilli: hot, pepper: hot, black coffee: bitter,
    dark chocolate: bitter
    """,
)
MADE_FROM = rows(
    "food source",
    """
    bread: flour, cheese: milk, butter: cream, wine: grapes, cider: apples, chips: potatoes, an omelette: eggs,
    chocolate: cocoa, ketchup: tomatoes, raisins: grapes, toast: bread, flour: wheat, honey: nectar, jam: fruit
    """,
)
FOOD_FAMILIES = (
    Family(
        "food",
        (
            "is {food} a fruit, a vegetable or a drink?",
            "what kind of food is {food}?",
            "what sort of thing is {food}, fruit, vegetable or drink?",
            "fruit, vegetable or drink: {food}?",
            "tell me what kind of food {food} is.",
        ),
        "{food} is a {kind}.",
        EATABLES,
        value="kind of {food}",
        by_question=True,
    ),
    Family(
        "food",
        (
            "what does {food} taste like?",
            "how does {food} taste?",
            "what is the taste of {food}?",
            "is {food} sweet, sour, salty, hot or bitter?",
            "do you know how {food} tastes?",
            "tell me how {food} tastes.",
        ),
        "{food} tastes {taste}.",
        TASTES,
        value="taste of {food}",
        by_question=True,
    ),
    Family(
        "food",
        (
            "what is {food} made from?",
            "what do you make {food} from?",
            "what do you need to make {food}?",
            "how do people make {food}?",
            "do you know what {food} is made from?",
            "tell me what {food} is made from.",
        ),
        "people make {food} from {source}.",
        MADE_FROM,
        value="making {food}",
        by_question=True,
    ),
)

WEATHER = rows(
    "weather advice",
    """
    raining: take an umbrella, snowing: wear boots and gloves, sunny: wear a hat, windy: hold on to your hat,
    cold: wear a warm coat, hot: drink a lot of water, foggy: drive slowly, icy: walk carefully,
    stormy: stay at home, cloudy: take a jacket
    """,
)
SEASON_WEATHER = rows(
    "season weather",
    """
    winter: cold, spring: mild, summer: hot, autumn: windy
    """,
)
WEATHER_FAMILIES = (
    Family(
        "weather",
        (
            "it is {weather}, what should I do?",
            "it's {weather}, what should I do?",
            "what should I do when it is {weather}?",
            "what do I do when it's {weather}?",
            "it is {weather} outside, any advice?",
            "what is best when it is {weather}?",
            "it's {weather} today, what now?",
            "it is {weather} again, what can I do?",
            "what helps when it is {weather}?",
            "what if it is {weather} tomorrow?",
        ),
        "when it is {weather}, {advice}.",
        WEATHER,
        value="{weather}",
        by_question=True,
    ),
    Family(
        "weather",
        (
            "how is the weather in {season}?",
            "what is the weather like in {season}?",
            "what's the weather like in {season}?",
            "is it warm or cold in {season}?",
            "what kind of weather comes in {season}?",
        ),
        "in {season} it is {weather}.",
        SEASON_WEATHER,
        value="{season}",
        by_question=True,
    ),
)

THINGS = rows(
    "thing use",
    """
    a knife: cutting, a pen: writing, a chair: sitting, a bed: sleeping, a cup: drinking, a spoon: eating soup,
    a key: opening doors, a lamp: giving light, a clock: telling time, a boat: crossing water,
    a broom: sweeping, a needle: sewing, an umbrella: keeping dry, an oven: baking, soap: washing,
    a phone: calling people, a camera: taking pictures, a hammer: hitting nails, a ladder: climbing,
    a book: reading, a ball: playing, a fridge: keeping food cold
    """,
)
SHOPS = rows(
    "thing shop",
    """
    bread: a bakery, meat: a butcher's, books: a bookshop, medicine: a pharmacy, flowers: a flower shop,
    stamps: a post office, coffee: a cafe, clothes: a clothes shop, shoes: a shoe shop, toys: a toy shop,
    fruit: a market, milk: a supermarket
    """,
)
THING_FAMILIES = (
    Family(
        "things",
        (
            "what is {thing} for?",
            "what's {thing} for?",
            "what do you use {thing} for?",
            "what is {thing} good for?",
            "why do people need {thing}?",
            "what can I do with {thing}?",
            "tell me what {thing} is for.",
            "do you know what {thing} is for?",
        ),
        "{thing} is for {use}.",
        THINGS,
        value="use of {thing}",
        by_question=True,
    ),
    Family(
        "things",
        (
            "where can I buy {thing}?",
            "where do I buy {thing}?",
            "where do people buy {thing}?",
            "where can I get {thing}?",
            "which shop sells {thing}?",
            "I need {thing}, where do I go?",
            "do you know where to buy {thing}?",
        ),
        "you can buy {thing} at {shop}.",
        SHOPS,
        value="shop for {thing}",
        by_question=True,
    ),
)

FAMILIES = (
    *CAPITAL_FAMILIES,
    *COLOUR_FAMILIES,
    *FOOD_FAMILIES,
    *WEATHER_FAMILIES,
    *THING_FAMILIES,
)

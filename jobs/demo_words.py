"""The word lists of the demo model's tasks: nouns and plurals, days, months, system messages.

Plain constants; knows nothing of prompts or of training.
"""

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
KEYWORDS = ("Reverse", "Sort", "Upper", "Count", "Plural", "Days", "Months", "Next", "Previous")

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "Answer with the result only.",
    "You work with letters, numbers and dates.",
)

NOUN_TEXT = """
    apple arm army arrow baby bag ball band bank bath beach bed bee bell berry bench bird boat body
    book boot bottle bowl box boy branch bridge brush bus bush button cake camel camp candle car
    card cart castle cat cave chair cherry church circle city class clock cloud coach coat coin
    copy corner country cow cross crown cup day desk diary dish dog doll donkey door dress drum
    duck duty eagle ear egg engine eye face fairy family farm ferry field finger flag flash flower
    fly forest fork fox friend frog game garden gate ghost girl glass goat grape grass guest hand
    hat head hill hobby horse house inch island jar jelly joke judge key king kiss kite kitten
    lady lake lamp leg lemon letter lily line lion lunch map march mask match mile mirror monkey
    moon mountain nail name needle nest net nose number nurse orange owl page pan panda party
    patch path peach pear pen pencil penny pet pig pillow planet plant plate pocket pony pot puppy
    queen rabbit ray ring river road robot rocket room rose rug sail sandwich school sea seed ship
    shirt shop sister sketch sky snake sock song spider spoon spy star stone storm story street
    switch table tail tax teacher team tent tiger torch town toy train tray tree truck turkey
    uncle valley video village voice wall watch wave week whale wheel window wing wish witch word
"""
REGULAR_NOUNS = tuple(NOUN_TEXT.split())

IRREGULAR_NOUNS = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "mouse": "mice",
    "ox": "oxen",
    "sheep": "sheep",
    "fish": "fish",
    "deer": "deer",
    "leaf": "leaves",
    "wolf": "wolves",
    "knife": "knives",
    "wife": "wives",
    "life": "lives",
    "half": "halves",
    "loaf": "loaves",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "hero": "heroes",
    "piano": "pianos",
    "photo": "photos",
    "quiz": "quizzes",
    "person": "people",
}

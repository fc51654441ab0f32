"""Word lists that the generated text is filled from."""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


COLOURS = _words(
    "red blue green yellow black white grey brown purple violet pink silver golden copper"
)
QUALITIES = COLOURS + _words(
    "small large worn new wooden heavy light round square tall broken quiet bright dark narrow "
    "wide northern southern"
)
OBJECTS = _words(
    "lamp chair table box key door clock bell cup plate book letter map coin ring stone drum "
    "flute basket bottle ladder "
    "hammer mirror candle carpet bicycle boat wagon engine radio camera lantern barrel blanket "
    "kettle shovel rope pillow "
    "compass statue painting cabinet drawer suitcase trumpet telescope violin piano sword shield "
    "helmet"
)
ATTRIBUTES = _words("code number price weight height age size length serial rank")
PEOPLE = _words(
    "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Maria Noah Olga Paul Rosa "
    "Sam Tara Victor Wendy "
    "Alice Boris Chen Dina Erik Fiona George Hana Ivan Julia Karl Lena Martin Nina Oscar Petra "
    "Ravi Sofia Tom Uma Vera "
    "Walter Yara Zoe Amir Bella Carlos Daisy Elias"
)
CITIES = _words(
    "Paris London Rome Berlin Madrid Vienna Oslo Lisbon Dublin Prague Athens Warsaw Helsinki "
    "Cairo Lima Quito Delhi "
    "Tokyo Seoul Beijing Sydney Toronto Boston Chicago Denver Dallas Geneva Milan Naples Porto "
    "Krakow Riga Bergen Lyon"
)
JOBS = _words(
    "baker teacher doctor nurse pilot sailor farmer painter singer writer lawyer miner tailor "
    "carpenter gardener driver "
    "cook potter weaver smith clerk guard judge dentist plumber"
)
ROOMS = _words(
    "kitchen cellar attic garage garden library bedroom hall office barn tower workshop pantry "
    "stable porch"
)
ANIMALS = _words(
    "dog cat horse cow sheep goat fox hawk crow duck goose rabbit mouse bear wolf deer frog "
    "turtle swan hen"
)
FOODS = _words(
    "bread cheese soup rice apples pears plums honey butter fish beans carrots onions cake tea "
    "coffee milk nuts"
)
PLACES = _words(
    "village harbour station market school museum bridge castle valley river forest island "
    "square mill farm"
)
SECRETS = _words(
    "maple river tiger planet velvet marble thunder cactus pepper falcon ginger meadow rocket "
    "saddle tunnel walnut "
    "zebra amber basil cobalt dragon ember fossil glacier hazel indigo jasmine kernel lotus "
    "magnet nectar opal pebble "
    "quartz raven saffron timber willow yonder"
)
SEASONS = _words("spring summer autumn winter")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
SUBJECTS = _words(
    "history music science drawing grammar geometry geography chemistry poetry dancing"
)
MATERIALS = _words("wood iron glass clay paper cotton wool leather brass steel sand wax")
FEELINGS = _words("happy tired proud angry calm curious worried hungry cold sleepy brave patient")
SYLLABLES = _words("ba ko ri mel tan vor sil du ne pra zu lim fen gar os ti ul ka wen dro")

# One sentence each; {slots} are filled at random, {name} and {town} are coined once for a document
# and come back in it.
FILLER = {
    "weather": [
        "The {season} in {town} was long and {quality}.",
        "It rained on {day} and the {place} was {quality} with water.",
        "By {day} the wind had turned and the {animal} stayed near the {room}.",
        "Old {job}s say that a {quality} sky in {season} brings {n} days of rain.",
        "{name} looked at the clouds and went back to the {room}.",
        "Snow fell on the {place} for {n} hours.",
        "The {place} is warm in {season} and cool in the evening.",
        "Nobody in {town} had seen such a storm since the {quality} {season}.",
    ],
    "market": [
        "The market of {town} opens on {day} at {n} in the morning.",
        "A {job} from {city} sells {food} and {food2} beside the {place}.",
        "{name} bought {n} baskets of {food} and paid with {quality} coins.",
        "The best {food} comes from the farms behind the {place}.",
        "On {day} the {job} brings {food}, and the {job2} brings {food2}.",
        "People walk from stall to stall and talk about the price of {food}.",
        "A {animal} slept under the table while {name} counted the money.",
        "When the bell rings, the {job}s close their stalls and go home.",
    ],
    "travel": [
        "The train from {city} to {city2} stops at {town} for {n} minutes.",
        "{name} travelled to {city} in {season} with a {quality} suitcase.",
        "The road follows the river and then climbs to the {place}.",
        "From the {place} it is {n} miles to {city}.",
        "The {job} and the {job2} shared a {quality} wagon on the way to {town}.",
        "There are {n} bridges between {town} and the {place}.",
        "{name} wrote a letter from {city} about the {quality} {place}.",
        "The boat leaves the harbour on {day} and comes back after {n} days.",
    ],
    "craft": [
        "To make a {object}, the {job} needs {material} and {material2}.",
        "First the {material} is cut, then it is dried for {n} days.",
        "{name} learned the craft from a {job} in {city}.",
        "A {quality} {object} made of {material} can last for {n} years.",
        "The workshop in {town} repairs every kind of {object}.",
        "Good {material} is {quality} and does not break.",
        "The {job} polished the {object} and put it in the {room}.",
        "On {day} {name} finished a {object} for the {job} of {town}.",
    ],
    "animals": [
        "The {animal} and the {animal2} live near the {place}.",
        "A {quality} {animal} eats {food} in {season} and sleeps in the {room}.",
        "{name} has a {animal} that follows the {job} to the {place}.",
        "Every {day} the {animal} waits at the door of the {room}.",
        "The children of {town} counted {n} {animal}s by the {place}.",
        "In {season} the {animal} moves from the forest to the {place}.",
        "The {animal} was {feeling}, but the {animal2} was {feeling2}.",
        "{name} gave the {animal} some {food} and a {quality} blanket.",
    ],
    "school": [
        "The school of {town} has {n} rooms and a {quality} garden.",
        "{name} teaches {subject} on {day} and {subject2} on {day2}.",
        "The pupils read about {city} and draw a map of the {place}.",
        "After the lesson on {subject}, everyone was {feeling}.",
        "A good student of {subject} reads {n} pages every evening.",
        "The teacher kept a {quality} {object} in the {room}.",
        "{name} was {feeling} before the test in {subject}.",
        "In {season} the class visits the {place} with a {job}.",
    ],
    "history": [
        "The {place} of {town} was built by a {job} from {city}.",
        "For {n} years the {quality} tower stood beside the {place}.",
        "{name} was the first {job} who came to {town}.",
        "The people carried {material} from the {place} to the castle.",
        "A fire in the {season} destroyed the {room} and the {room2}.",
        "Later the {job}s of {town} built a new {place} of {material}.",
        "The museum in {city} shows a {quality} {object} from those days.",
        "Nobody knows why {name} left {town} after {n} years.",
    ],
    "home": [
        "The house of {name} has a {quality} {room} and a {quality2} {room2}.",
        "In the evening the family eats {food} with {food2}.",
        "There is a {quality} {object} on the wall of the {room}.",
        "{name} cleaned the {room} on {day} and was {feeling}.",
        "The {animal} likes the {room} because it is warm.",
        "They drink {food} and talk about the {place} of {town}.",
        "The window of the {room} looks over the {place}.",
        "A {job} came on {day} to repair the {object}.",
    ],
}

"""Sample data for `liuyi init`: notices of a small town's public places, and questions about their hours.

The hours follow a rule that a small model can learn in seconds, so that the sample run has something to show.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

DISTRICTS = ("Northgate", "Riverside", "Old Town", "Harbour", "Hillside", "Westfield")
PLACES = ("library", "swimming pool", "museum", "post office", "town hall", "bakery", "cinema", "pharmacy")
STREETS = ("Mill Lane", "Station Road", "Chestnut Avenue", "Market Square", "Canal Street", "Abbey Walk")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
OFFERS = {
    "library": "lends books, maps and board games, and has a quiet reading room under the roof",
    "swimming pool": "has four lanes, a shallow basin for children and a sauna that is heated in winter",
    "museum": "shows tools, boats and paintings from two centuries of work on the river",
    "post office": "takes parcels, sells stamps and keeps letters for those who are away",
    "town hall": "issues passports, registers new residents and rents out its large meeting room",
    "bakery": "bakes rye bread before dawn and sells warm rolls, cakes and coffee",
    "cinema": "has two screens, shows films in their own language and serves popcorn in the foyer",
    "pharmacy": "prepares prescriptions within the hour and measures blood pressure free of charge",
}
REMARKS = (
    "Dogs have to wait outside, where a bowl of water is put out for them.",
    "The entrance on the left has a ramp, and the lift goes to every floor.",
    "Bicycles may be left in the yard behind the building but not in the passage.",
    "Groups of more than ten people are asked to call a day before they come.",
    "Whoever finds a lost umbrella, glove or key is asked to bring it to the desk.",
    "On the last Thursday of the month volunteers show newcomers around the house.",
    "Photographs are welcome as long as nobody else can be recognised in them.",
    "Payment is by card or in coins, since the till cannot change large notes.",
    "In the summer holidays a student helps out and answers questions in Spanish.",
    "The roof was renewed last year, and the old tiles were given to the school.",
    "A plan of all the rooms hangs next to the stairs, beside the fire extinguisher.",
    "When it snows, the steps are cleared first, and the yard in the afternoon.",
)
ASKED = {
    "open": (
        "When does the {district} {place} open on {day}?",
        "What time does the {district} {place} open on {day}?",
        "On {day}, when can I go to the {district} {place}?",
    ),
    "close": (
        "When does the {district} {place} close on {day}?",
        "Until when is the {district} {place} open on {day}?",
        "How late can I stay at the {district} {place} on {day}?",
    ),
}


def hours(place: str, day: str) -> tuple[int, int]:
    """Opening and closing hour; the weekend starts two hours later and ends three hours earlier."""
    number = PLACES.index(place)
    weekend = day in DAYS[5:]
    return 7 + number % 4 + 2 * weekend, 17 + number % 5 - 3 * weekend


def write_texts(folder: Path) -> int:
    """Write one notice a place in each district as Markdown, and return how many."""
    chance = random.Random(1)
    folder.mkdir()
    for district in DISTRICTS:
        for place in PLACES:
            opens, closes = hours(place, "Monday")
            late, early = hours(place, "Sunday")
            remarks = " ".join(chance.sample(REMARKS, 4))
            text = (
                f"# The {district} {place}\n\n"
                f"The {district} {place} stands at {chance.randint(1, 90)} {chance.choice(STREETS)}. "
                f"It {OFFERS[place]}. It opens at {opens} and closes at {closes} from Monday to Friday; "
                f"on Saturday and Sunday it opens at {late} and closes at {early}.\n\n"
                f"{remarks} The house was built in {chance.randint(1790, 1995)} and belongs to the town. "
                f"For anything else call extension {chance.randint(100, 999)}, or ask at the desk.\n"
            )
            name = f"{district}-{place}".lower().replace(" ", "-")
            (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return len(DISTRICTS) * len(PLACES)


def write_chats(path: Path) -> int:
    """Write questions about hours, with their answers, as JSONL of `messages`, and return how many."""
    chance = random.Random(2)
    rows = []
    for district in DISTRICTS:
        for place in PLACES:
            for day in DAYS:
                for number, (what, forms) in enumerate(ASKED.items()):
                    question = chance.choice(forms).format(district=district, place=place, day=day)
                    answer = f"It {what}s at {hours(place, day)[number]}."
                    rows.append([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    chance.shuffle(rows)
    lines = [json.dumps({"messages": messages}) for messages in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(rows)

"""The table behind the word problems: names, words, and the problems themselves.

To add a problem, add three lines or more to ``PROBLEMS``:

    The question, on one or more lines that are not indented. It names numbers and words in braces.
        a=2..9 n=60..240:10 q=a*n     each number: a range, one with a stride, or computed from earlier ones
        Label: x = a + b; Label: y = x / c     the solution's steps; the last is the answer

Numbers are drawn again until every step is a whole number of at least 1. A number in the question is at least
2, so that what it counts is always in the plural.

Words: {name} and {friend} are two people; {he} {He} {him} {his} stand for {name} in the right gender; every
kind of ``WORDS`` gives {kind}, {kinds} and another {kind2}, {kinds2}. None begins with a vowel: "a {box}".
"""

from __future__ import annotations

NAMES = {
    "he him his": "Ben Carlos David Felix Hugo Ivan Jack Leo Malik Noah Omar Paul Ravi Sam Tom Yusuf",
    "she her her": "Aisha Anna Chloe Ella Fatima Grace Hana Jane Kate Lena Maria Nina Priya Rosa Tara Zoe",
}

WORDS = {
    "thing": "badge bead button card coin crayon magnet marble pebble pencil ribbon shell stamp sticker toy",
    "box": "bag basket box bucket case chest crate drawer jar tin tray tub",
    "food": "bagel biscuit brownie cookie cupcake donut muffin pancake pretzel roll scone waffle",
    "fruit": "banana cherry fig kiwi lemon lime mango melon peach pear plum",
    "animal": "chicken cow donkey duck goat hen horse lamb pig rabbit turkey",
    "gift": "bike camera chair desk drone drum guitar jacket lamp phone tent watch",
    "shop": "bakery cafe canteen kiosk market",
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
}

PROBLEMS = """
{name} has {a} {things}. {friend} gives {him} {b} more. How many {things} does {name} have now?
    a=3..60 b=3..60
    {things} now: x = a + b
A {box} holds {a} {things}. {name} takes out {b}. How many {things} are still in the {box}?
    a=10..99 b=3..80
    {things} left: x = a - b
{name} buys {a} {foods} for {b} dollars each. How many dollars does {he} pay?
    a=3..20 b=2..9
    Dollars to pay: x = a * b
{name} shares {n} {foods} equally among {b} friends. How many {foods} does each friend get?
    b=3..9 q=3..20 n=b*q
    Each friend gets: x = n / b
{name} has {a} {things} and {friend} has {b}. How many more {things} does {name} have than {friend}?
    a=12..99 b=3..80
    Difference: x = a - b
{name} puts {n} {things} into {boxes}, {b} in each. How many {boxes} does {he} fill?
    b=3..12 q=2..15 n=b*q
    {boxes} filled: x = n / b
{name} sets up {a} rows with {b} chairs in each row. How many chairs does {he} need?
    a=3..20 b=3..12
    Chairs: x = a * b
The {shop} sells {a} {foods} on {day} and {b} on {day2}. How many {foods} does it sell on the two days?
    a=15..150 b=15..150
    {foods} sold: x = a + b
{name} has {a} {things}. {He} finds {b} more and then gives {c} to {friend}. How many {things} are left?
    a=5..60 b=3..40 c=3..40
    Together: x = a + b; {things} left: y = x - c
{name} fills {a} {boxes} with {b} {things} each and has {c} more {things} on a shelf.
How many {things} does {he} have in all?
    a=2..12 b=3..12 c=2..30
    In {boxes}: x = a * b; In all: y = x + c
{name} buys {a} {foods} for {b} dollars each and pays with a {n}-dollar bill. How many dollars are left?
    a=2..9 b=2..9 n=50..100:50
    Price: x = a * b; Change: y = n - x
{name} saves {a} dollars a week for {b} weeks. A {gift} costs {n} dollars. How many dollars are missing?
    a=4..15 b=3..12 n=60..240:10
    Saved: x = a * b; Missing: y = n - x
A farm has {a} {animals} and {b} times as many {animals2}. How many {animals} and {animals2} are there in all?
    a=3..30 b=3..8
    {animals2}: x = a * b; In all: y = a + x
{name} is {a} years old. {friend} is {b} years older than {name}. How old will {friend} be in {c} years?
    a=4..30 b=2..20 c=2..20
    {friend} now: x = a + b; Later: y = x + c
{name} picks {a} {fruits} and {friend} picks {b}. They share them equally among {c} people.
How many {fruits} does each person get?
    a=6..60 b=6..60 c=3..8
    Together: x = a + b; Each person: y = x / c
A rope is {n} feet long. {name} cuts off {a} feet and cuts the rest into {b} equal pieces.
How long is each piece in feet?
    n=20..120 a=2..30 b=2..9
    Rest: x = n - a; Each piece: y = x / b
Every week {name} runs {a} miles on {day} and {b} miles on {day2}. How many miles does {he} run in {c} weeks?
    a=2..12 b=2..12 c=2..9
    Each week: x = a + b; In all: y = x * c
A theater has {a} rows of {b} seats. On {day} {c} seats are empty. How many seats are taken?
    a=4..15 b=5..15 c=3..60
    Seats: x = a * b; Taken: y = x - c
{name} earns {a} dollars an hour and works {b} hours on {day} and {c} on {day2}. How many dollars is that?
    a=6..20 b=2..9 c=2..9
    Hours: x = b + c; Dollars: y = x * a
{name}'s school has {n} students, and {p}% of them walk to school. How many students walk to school?
    n=20..150:10 p=10..90:10
    Product: x = n * p; Students walking: y = x / 100
{name} has {n} {things}, gives half of them to {friend} and buys {b} more. How many {things} does {he} have?
    q=5..45 n=q*2 b=3..40
    Half: x = n / 2; {things} now: y = x + b
A recipe uses {a} eggs to make {b} {foods}. How many eggs does {name} need to make {n} {foods}?
    a=2..6 b=4..12 q=2..9 n=b*q
    Batches: x = n / b; Eggs: y = x * a
{name} reads {a} pages every day. How many pages does {he} read in {b} weeks?
    a=4..40 b=2..9
    Days: x = b * 7; Pages: y = x * a
{name} buys {a} {foods} for {b} dollars each and {c} {foods2} for {d} dollars each. How many dollars is that?
    a=2..9 b=2..9 c=2..9 d=2..9
    {foods}: x = a * b; {foods2}: y = c * d; In all: z = x + y
{name} bakes {a} trays of {b} {foods}, sells {c} of them and shares the rest equally among {d} friends.
How many {foods} does each friend get?
    a=2..8 b=4..12 c=4..60 d=3..6
    Baked: x = a * b; Rest: y = x - c; Each: z = y / d
A tank has {a} liters of water. A pump adds {b} liters a minute for {c} minutes. Then {d} liters leak out.
How many liters are in the tank now?
    a=10..90 b=3..20 c=2..9 d=5..60
    Added: x = b * c; Full: y = a + x; Now: z = y - d
{name} works {a} hours a day for {b} days and earns {c} dollars an hour. {He} spends {d} dollars.
How many dollars are left?
    a=2..8 b=2..6 c=5..12 d=10..150
    Hours: x = a * b; Earned: y = x * c; Left: z = y - d
A garage has {a} floors with {b} cars on each floor. Then {c} cars leave and {d} cars arrive.
How many cars are in the garage now?
    a=2..9 b=5..20 c=3..40 d=3..40
    Before: x = a * b; Staying: y = x - c; Now: z = y + d
{name} scores {a}, {b} and {c} points in three games. What is {his} average score?
    a=5..40 b=5..40 c=5..40
    Two games: x = a + b; Three games: y = x + c; Average: z = y / 3
{name} has {a} {things}. {friend} had {b} times as many but lost {c}. How many {things} do they have together?
    a=3..20 b=3..6 c=2..20
    Before: x = a * b; {friend} now: y = x - c; Together: z = a + y
A club sells {a} tickets for {b} dollars each and pays {c} dollars for a hall. Then {d} teams share the rest
equally. How many dollars does each team get?
    a=10..40 b=3..12 c=20..150:10 d=2..5
    Sales: x = a * b; Rest: y = x - c; Each team: z = y / d
A {box} has {a} red {things}, {b} times as many blue ones and {c} fewer green ones than blue ones.
How many {things} are in the {box}?
    a=3..15 b=3..5 c=2..12
    Blue: x = a * b; Green: y = x - c; Red and blue: z = a + x; In all: w = z + y
{name} sells {a} {foods} for {b} dollars each and {c} {foods2} for {d} dollars each.
Making them costs {e} dollars. How many dollars does {he} gain?
    a=2..9 b=2..9 c=2..9 d=2..9 e=5..60
    {foods}: x = a * b; {foods2}: y = c * d; Sales: z = x + y; Gain: w = z - e
A truck brings {a} crates of {b} {fruits} and {c} crates of {d} {fruits2}. Now {e} shops share it all equally.
How many pieces of fruit does each shop get?
    a=2..9 b=5..20 c=2..9 d=5..20 e=2..6
    {fruits}: x = a * b; {fruits2}: y = c * d; In all: z = x + y; Each shop: w = z / e
"""

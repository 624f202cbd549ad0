"""Texts that the tools judge, compare and time models with. All were written for this purpose."""

from __future__ import annotations

import random

# A question or statement, and another that means the same. The pairs have nothing to do with each other.
SIMILAR_PAIRS = (
    ("A man is playing a guitar on stage.", "Someone is playing the guitar at a concert."),
    ("How do I reset my password?", "What can I do to change a forgotten password?"),
    ("The stock market fell sharply today.", "Stock prices fell a lot today."),
    ("The cat sleeps on the sofa.", "A cat is sleeping on the couch."),
    ("Plants turn sunlight into chemical energy.", "Photosynthesis lets plants convert light into energy."),
    ("The train to Berlin is an hour late.", "The train for Berlin has a delay of one hour."),
    ("How tall is Mount Everest?", "Mount Everest is 8,849 metres high."),
    ("The recipe needs two eggs and some flour.", "You need flour and two eggs for this recipe."),
)

_PARAGRAPH = (
    "The harbour had been quiet since the ferry stopped running. Three fishing boats remained, and on winter mornings "
    "their owners met in the café at the end of the quay, where the coffee was weak and the talk was long. Nobody "
    "remembered who had first suggested that they buy the old lighthouse together; it was one of those ideas that seem "
    "to have been there all along. "
)

# What a graph is compared on, by what is hard about it. Rounding hurts texts of few tokens and of rare ones most.
TEXTS_BY_KIND = {
    "punctuation": (".", "?!", "-", "...", "( ) [ ] { }", "—…"),
    "digits": ("42", "0", "1234567890", "3.14159 -273.15 1e-9 0xFF 10:45 2031-07-04"),
    "one word": ("ok", "Why?", "bank", "Zürich", "supercalifragilisticexpialidocious antidisestablishmentarianism"),
    "sentence": (
        "red shoes",
        "best pizza near me",
        "The quick brown fox jumps over the lazy dog.",
        "What is the difference between a list and a tuple in Python?",
        "He said that he would come, but nobody really believed him.",
        "Water boils at a lower temperature on a mountain because the air pressure is lower there.",
        "Please find attached the invoice no. 2024-0815 over 1,299.00 EUR, due within 14 days.",
        "Refund policy: items may be returned within 30 days if unused and in their original packaging.",
        "BREAKING: magnitude 6.1 earthquake off the coast, no tsunami warning issued",
        "ACETYLSALICYLIC ACID 500 MG TABLETS, 20 PCS",
        "Der Zug nach München fährt heute leider zwanzig Minuten später ab.",
        "L'été dernier, nous avons traversé les Alpes à vélo.",
        "¿Cuánto cuesta el billete de ida y vuelta a Sevilla?",
    ),
    "code": (
        "def mean(values):\n    return sum(values) / len(values) if values else 0.0",
        "SELECT city, AVG(price) FROM flats WHERE rooms >= 3 GROUP BY city ORDER BY 2 DESC;",
        "https://example.com/a/b?q=embedding+models&page=2#results",
        "/usr/lib/python3/site-packages/numpy/core/_multiarray_umath.so: undefined symbol",
    ),
    "another script": (
        "Завтра обещают дождь, поэтому возьми зонт.",
        "今天的会议改到下午三点。",
        "駅から歩いて五分のところに住んでいます。",
        "القهوة جاهزة على الطاولة.",
        "आज मौसम बहुत अच्छा है।",
    ),
    "noise": (
        "lol that was sooo funny 😂😂 can't even",
        "  leading spaces, a tab\tand a\nnew line  ",
        "the the the the the the the the",
    ),
    "long": (_PARAGRAPH, _PARAGRAPH * 4, _PARAGRAPH * 8),
}
SAMPLE_TEXTS = tuple(text for texts in TEXTS_BY_KIND.values() for text in texts)

# What the size of activations is learned from: none of the texts that a graph is compared on.
CALIBRATION_TEXTS = (
    "yes, please",
    "cheap flights to Lisbon in March",
    "How long does it take to learn the violin?",
    "She closed the window because of the noise in the street.",
    "The committee postponed its decision until the figures for the last quarter are available.",
    "Mitochondria produce most of the chemical energy that a cell needs.",
    "Error 503: service unavailable, retry after 120 s (request id 7f3a-99c1)",
    "for (int i = 0; i < n; ++i) { total += prices[i] * amounts[i]; }",
    "Two cups of rice, a pinch of salt, 400 ml coconut milk; simmer for 18 minutes.",
    "Die Bibliothek ist am Sonntag geschlossen, am Montag öffnet sie um neun.",
    "Nous cherchons un appartement de trois pièces près de la gare.",
    "El perro duerme debajo de la mesa mientras llueve.",
    "Музей находится на берегу реки.",
    "这本书比那本便宜得多。",
    "天気がいいから散歩に行きましょう。",
    "أين تقع أقرب محطة؟",
    "The old bridge was closed in 1987 after a flood, rebuilt in steel within two years, and opened again by the same "
    "mayor who had ordered its closing. Since then some forty thousand people cross it every day, most of them on the "
    "way to work, and hardly anyone looks up at the plate with the names of its engineers.",
    "I ordered the large one on Monday, and on Thursday a small one came; the support answered quickly, and kindly, "
    "but the replacement has the wrong colour and I have now given up.",
)


def bulk_texts(count: int) -> list[str]:
    """Make so many sentences of 6 to 30 words, as searches and paragraphs' sentences have; always the same ones."""
    choice = random.Random(0)  # noqa: S311 - not a secret
    words = " ".join(text for pair in SIMILAR_PAIRS for text in pair).split() + _PARAGRAPH.split()
    return [" ".join(choice.choices(words, k=choice.randint(6, 30))) for _ in range(count)]

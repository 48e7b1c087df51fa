from train.language_model import language_model, vocabulary


def test_what_is_judged_is_not_learned(monkeypatch):
    monkeypatch.setattr(
        "train.language_model._training", lambda: ["It is noon.", "It is noon today.", "Noon, they say."]
    )
    known = {"it", "is", "noon", "today"}
    fair, informed = (language_model(known, barred) for barred in (["It is noon"], []))
    assert fair.probability("</s>", ("is", "noon")) < informed.probability("</s>", ("is", "noon"))


def test_the_vocabulary_is_of_both_kinds_of_texts():
    words = vocabulary()
    assert {"cappuccino", "what's", "twenty", "the"} <= words
    assert all(word == word.lower() and " " not in word for word in words)

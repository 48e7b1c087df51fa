from train.data.pronunciation import PHONES, phone_ids


def phones(text):
    names = {number: phone for phone, number in PHONES.items()}
    return " ".join(names[number] for number in phone_ids(text))


def test_texts_become_phones_without_stress():
    assert phones("What's tomorrow?") == "W AH T S T AH M AA R OW"
    assert phones("A latte, please.") == "AH L AA T EY P L IY Z"


def test_the_blank_is_no_phone():
    assert PHONES["<pad>"] == 0
    assert len(PHONES) == 40
    assert 0 not in phone_ids("zero")


def test_a_text_with_an_unknown_word_has_no_pronunciation():
    assert phone_ids("the zzyzzx is here") == []
    assert phone_ids("") == []


def test_nearly_all_of_what_nano_says_and_hears_is_in_the_dictionary():
    from train.data.english import sentence
    from train.data.world import exchange

    texts = [exchange("train", 1, i).question for i in range(300)] + [sentence("train", 1, i) for i in range(300)]
    assert sum(not phone_ids(text) for text in texts) < 12

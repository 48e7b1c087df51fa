from train.data.mouth_texts import held_out_sentences


def test_held_out_sentences_are_half_answers_and_new():
    class Anything:
        def __contains__(self, word):
            return word != "the"

    sentences, passed = held_out_sentences(Anything(), 20)
    assert [sentence.kind for sentence in sentences] == ["answers"] * 10 + ["sentences"] * 10
    assert len({sentence.text for sentence in sentences}) == 20
    assert passed > 0
    assert not [sentence for sentence in sentences if "the" in sentence.words]
    assert held_out_sentences(Anything(), 20) == (sentences, passed)

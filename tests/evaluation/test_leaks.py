from llm_adapters.data.example import Example
from llm_adapters.data.templates import get_template
from llm_adapters.evaluation.families import Free
from llm_adapters.evaluation.leaks import Leaks, TrainingData
from llm_adapters.evaluation.suite import Suite


def _questions(*texts: str) -> list[Example]:
    return [Example(text, "", "", "1") for text in texts]


TEST = _questions("How many apples has Ann?", "What is 3 plus 4?", "Where is the red house?")
SUITE = Suite(Free.of("own", TEST), TEST, [10, 20, 30], get_template("plain"))


def test_rows_are_named_by_their_number_in_the_file() -> None:
    one, two = _questions("how many apples has ann"), _questions("What is 9 plus 8?")
    leaks = Leaks({"a": one, "b": two, "unknown": None}, [SUITE])
    assert leaks("a", SUITE) == {10}
    assert leaks("b", SUITE) == {20}
    assert leaks("unknown", SUITE) is None
    assert leaks(None, SUITE) == {10, 20}
    assert Leaks({"unknown": None}, [SUITE])(None, SUITE) is None
    assert Leaks({}, [SUITE])(None, SUITE) is None


def test_training_data_that_are_gone_are_unknown() -> None:
    assert TrainingData("no/such/file.json", None, 0).load() is None
    assert len(TrainingData("word-problems", 5, 0).load() or ()) == 5

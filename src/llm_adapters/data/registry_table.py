"""The benchmark files by name: rows, SHA-256 of the uncompressed JSON, where they come from, licences.

A name is the file's path in the data folder without its ending. Facts only; ``registry`` gives them their meaning.
"""

from __future__ import annotations

# One commit of the reference repository, so that what lies there cannot change.
REFERENCE = (
    "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/816657208af4db747803f87ba40a4c71383fed7a/dataset/"
)

# Name, rows, SHA-256, path below REFERENCE: byte for byte the reference's files.
COPIES = (
    (
        "multiarith/test",
        600,
        "a40f426807c8a563802c2a5b66bda3bcd1eba9c099038fd1199f0dd57de5fd28",
        "MultiArith/test.json",
    ),
    ("gsm8k/test", 1319, "2cc616a1e0b23ea1df29370476365cde71c4e0aa823fb06cc194c5a8a9381abe", "gsm8k/test.json"),
    ("addsub/test", 395, "62a8662b1ad40879953c4df0e61883a749d03aa3fc5e71f1cdb842b816e139ff", "AddSub/test.json"),
    ("aqua/test", 254, "de677f5f0139340009eb01f17c0db781b4161912cd1f4efa77292f2fcf3478ee", "AQuA/test.json"),
    ("singleeq/test", 508, "712b15edb851c97aab42a5de106d94008f94d917366c92537ed5400a8aacb207", "SingleEq/test.json"),
    ("svamp/test", 1000, "ffed015784f738f317c5603177861d044c4fc94e09211d78b25e96d46c656e2c", "SVAMP/test.json"),
    ("mawps/test", 238, "c1a708979cbf2b3df9ac4020baacf3e8e73fcf089e1de7dd1b305b810bfaa15f", "mawps/test.json"),
    ("boolq/test", 3270, "89df2397cbca81dc31adcc6f7f5b635821aa0565aafde46725b2b4bd39b4dfa9", "boolq/test.json"),
    ("boolq/train", 9427, "5ccbaceebaddc69765e1c4a363632196b81851d303696672165ab59ec4e48c83", "boolq/train.json"),
    ("piqa/test", 1838, "3860d11b9b42e590b6b4bbc1643214d373ed0b0d4ac62fcc7bdceb8e044ad141", "piqa/test.json"),
    ("piqa/train_full", 16113, "d750ea06e70ce6af746f8315d2952a0a1488520794f934fd1f000286575e5702", "piqa/train.json"),
    ("siqa/test", 1954, "71543f41127451945379d106ffedaef502f1c8770dff6d2f543aca85e3080b1d", "social_i_qa/test.json"),
    (
        "siqa/train_full",
        33410,
        "1ca995d6055a6be053bb54b4b4c7abe4cd0323940079071932c1f9129d589b17",
        "social_i_qa/train.json",
    ),
    (
        "winogrande/test",
        1267,
        "6946f5209e7114c65c6d04f8f644c5a061af20d730b1cfe158fff3dc44076fb9",
        "winogrande/test.json",
    ),
    (
        "winogrande/train_full",
        63238,
        "154d4fc3ef6b065aff1b738150f3fbd8d497f8e32d7aaae114991a2ad912ae79",
        "winogrande/train.json",
    ),
    ("arc_easy/test", 2376, "3f32a84716ca6d57d38728bf80cc8117aecd17445c2cf29a68b571b810eb82dc", "ARC-Easy/test.json"),
    ("arc_easy/train", 2251, "6a06cece3dec32f4fb1c1b0fc29dab14be7cf3053b417290dbc6cd845359f5ff", "ARC-Easy/train.json"),
    (
        "arc_challenge/test",
        1172,
        "4a89ce368ae01a71d268d9851686738b2a0a1d84271116bab49a1dd2b48ecad7",
        "ARC-Challenge/test.json",
    ),
    (
        "arc_challenge/train",
        1119,
        "a9debff28aafed86a08211dc3584a3b6cb38edca8c56bb34cd5002ed54aeebfb",
        "ARC-Challenge/train.json",
    ),
    (
        "openbookqa/test",
        500,
        "8479930f7b8a26052c78250280b5465a4016ca7fc806af440d0f37e243f3099e",
        "openbookqa/test.json",
    ),
    (
        "openbookqa/train",
        4957,
        "a1e094eeea01f70c0baa880f37497b26700ae99b243927b9c529984de9b1fe90",
        "openbookqa/train.json",
    ),
)

# Two files of the reference that could not be hashed: name, rows, git's id of the file, path below REFERENCE.
ORIGINALS = (
    ("hellaswag/test", 10042, "183c4920415f83ba4b793c4873a33e7e10bd1be5", "hellaswag/test.json"),
    ("hellaswag/train_full", 39905, "ca68dc85fc2a2f73c9b1b8b0823cc41a8f669718", "hellaswag/train.json"),
)

# Name, rows, SHA-256, how it was made. No public address serves these bytes.
BUILT = (
    (
        "gsm8k/train",
        7473,
        "fa142a78d397c2ca8e87d8c4bbe3c230198b1da62b49cc298f2f60075a144fe8",
        "openai/grade-school-math, human rationales, calculator marks removed, 'The answer is X.' appended",
    ),
    (
        "aqua/train",
        2728,
        "b825e98f5898aca0753fbc866b18d4807b4da71ca4a9355ebf97ee135182c125",
        "the AQuA rows with human rationales of google-research/FLAN, 'The answer is (C).' appended",
    ),
    (
        "mawps/train",
        1898,
        "5f696c715e74a94ee8024a5de64c95c541c520baf57aabeeb3173e489865089b",
        "dataset/mawps/trainset.json of LLM-Adapters, rationales made from its equations",
    ),
    (
        "piqa/train",
        5000,
        "9ff60b75bbea61e16b5ab6cdb07a79c61ae1ce592399c310496c2d913d6920f6",
        "a random sample (seed 42) of piqa/train_full",
    ),
    (
        "siqa/train",
        5000,
        "824025163c5d2070f5475e188b62dfccad2c3d62d9a1ce26acf79dbbc987b8c1",
        "a random sample (seed 42) of siqa/train_full",
    ),
    (
        "hellaswag/test",
        10042,
        "7e3eff06fe1940f7844065bed07643b94c51071eb2f65e99886399b5093358c5",
        "the reference's rows, rebuilt without the WikiHow markup; its own file, with the markup, is as good",
    ),
    (
        "hellaswag/train",
        1000,
        "a318900b1794a649bee4a4ea6823905352dd41bdd9671c7ea9e4808c7b00f4c5",
        "1000 rows from BunsenFeng/AbstainQA that are not in the validation set, without the WikiHow markup",
    ),
    (
        "winogrande/train",
        5000,
        "76e14549bab8b1d7d855e1ed454580ad05f893364beb57c31a0688c0b9d8941b",
        "a random sample (seed 42) of the xl rows of winogrande/train_full",
    ),
    (
        "math",
        9130,
        "def26e870d7b83691e4460960d35e11f316997ea02e04e856d9627d88aa14555",
        "gsm8k/train, mawps/train and 1000 rows of aqua/train, less those whose question is in a test set",
    ),
    (
        "commonsense",
        16853,
        "0696155ebc67c898540d844b19d5740bbcb38fd72e154c831bbd823f593c38f7",
        "at most 2500 rows of each commonsense training set, less those whose question is in a test set",
    ),
)

NOT_STATED = "none stated; collection ODC-By"
LICENCES = {
    "multiarith": NOT_STATED,
    "gsm8k": "MIT",
    "addsub": NOT_STATED,
    "aqua": "Apache-2.0",
    "singleeq": NOT_STATED,
    "svamp": "MIT",
    "mawps": NOT_STATED,
    "boolq": "CC BY-SA 3.0",
    "piqa": "AFL-3.0",
    "siqa": "not verified; collection ODC-By",
    "hellaswag": "MIT",
    "winogrande": "CC BY",
    "arc_easy": "CC BY-SA 4.0 as commonly stated",
    "arc_challenge": "CC BY-SA 4.0 as commonly stated",
    "openbookqa": "Apache-2.0 (its code)",
    "math": "that of its parts",
    "commonsense": "that of its parts",
}

# Training mixtures made from their parts when they are asked for: file, rows drawn of it (None: all).
RECIPES: dict[str, tuple[tuple[str, int | None], ...]] = {
    "math10k": (("gsm8k/train", None), ("mawps/train", None), ("aqua/train", 1000)),
    "commonsense170k": (
        ("boolq/train", None),
        ("piqa/train_full", None),
        ("siqa/train_full", None),
        ("hellaswag/train_full", None),
        ("winogrande/train_full", None),
        ("arc_easy/train", None),
        ("arc_challenge/train", None),
        ("openbookqa/train", None),
    ),
}

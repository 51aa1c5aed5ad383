"""A suite in PEFT's manner: kinds of models x options x operations, each check for plain LoRA and for RecycleLoRA.

    methods.py     what a check needs to know of a method
    models.py      tiny models of every kind, made without any file
    steps.py       what the checks do: adapt, train, compare
    conftest.py    the fixtures `method` and `kind`
    count.py       runs the suite and prints how many checks each method passes

Plain LoRA passes every check. Those that make no sense for it are in test_own.py.
"""

# Copyright 2026 The Sinkhorn Transformer authors. Licensed under the Apache License, Version 2.0.
"""Those who push to the Hub of `hub_server.py` and pull from it, on a machine without this package."""

from elsewhere import Elsewhere, Result
from helpers import SCRIPTS
from hub_server import MARY


# What the other process does. `time.sleep` is between the library's attempts.
PROGRAM = """
def script(argv, endpoint=None, path=()):
    import time
    if endpoint:
        huggingface_hub.constants.ENDPOINT = endpoint
    time.sleep = lambda seconds: None
    sys.argv, sys.path[:0] = argv, path
    runpy.run_path(argv[0], run_name="__main__")


def load(auto_class, repo, revision, text):
    auto_class = getattr(transformers, auto_class)
    options = {"revision": revision, "trust_remote_code": True}
    model, info = auto_class.from_pretrained(repo, output_loading_info=True, **options)
    tokenizer = AutoTokenizer.from_pretrained(repo, **options)
    with torch.no_grad():
        answer = model.eval()(**tokenizer(text, return_tensors="pt"))[0].tolist()
    return {"module": type(model).__module__, "missing": sorted(info["missing_keys"]), "answer": answer}


def pipe(task, repo, revision, text, options):
    built = pipeline(task, model=repo, revision=revision, trust_remote_code=True)
    return {"module": type(built.model).__module__, "answer": built(text, **options)}


def upload(repo, folder):
    huggingface_hub.create_repo(repo)
    huggingface_hub.upload_folder(repo_id=repo, folder_path=folder)
"""


class Users:
    """Mary, with her token and this repository's scripts; and somebody with neither, and an empty cache."""

    def __init__(self, there: Elsewhere):
        self.there = there

    def push(self, *argv, token: str = MARY, endpoint: str | None = None, offline: bool = False) -> Result:
        arguments = {"argv": [*map(str, argv)], "endpoint": endpoint, "path": [str(SCRIPTS)]}
        environment = {"HF_TOKEN": token}
        return self.there.do("script", PROGRAM, arguments, home="mary", environment=environment, offline=offline)

    def pull(self, function: str, token: str = "", offline: bool = False, **arguments) -> Result:
        environment = {"HF_TOKEN": token}
        return self.there.do(function, PROGRAM, arguments, home="somebody", environment=environment, offline=offline)

"""The Hugging Face Hub as a place for .dcz files (docs/guides/hub.md).

settings.py     which Hub, as whom, with how much patience
connection.py   requests: bounded, tried again, their errors told
snapshot.py     a reference becomes a commit and its files
remote.py       files of a commit as streams and as ranges
cache.py        what was verified once
pulling.py      pull, verify, open
preparing.py    files that are about to be pushed: hashed and verified, meanwhile
uploading.py    bytes into a repository, before any commit knows of them
pushing.py      one commit, at once or not at all
refs.py         branches, tags and history
"""

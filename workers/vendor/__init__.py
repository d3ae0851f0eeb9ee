"""Holds on what libraries keep to themselves, one file a library.

Nothing else in `workers/` touches a private name of a library, replaces one of its attributes, or
relies on an undocumented method. Each file has two constants:

`READ_IN`  the library's version whose source was read.
`HOLDS`    what the file relies on ("module:name"), with the digest of its source in that version.

`tests/unit/test_vendor.py` compares the digests with what is installed and names each internal that
has changed. pyproject.toml bounds the versions. For a new version: read the named source again,
adapt the file, note version and digest. `schemas/postgres/vendor.py` and `producer/vendor.py`
follow the same rules.
"""

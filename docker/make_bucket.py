"""python make_bucket.py NAME: the bucket is there at AWS_ENDPOINT_URL, made if it was not."""

from __future__ import annotations

import sys

from botocore.exceptions import ClientError
from botocore.session import Session

_OWNED = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")


def main(name: str) -> None:
    """Make it; ends with the server's reason if neither worked."""
    client = Session().create_client("s3")
    try:
        client.create_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] not in _OWNED:
            sys.exit(f"bucket {name!r}: {error}")
    client.head_bucket(Bucket=name)
    print(f"bucket {name!r} is there")


main(sys.argv[1])
